"""Time every legal config of an op's space on its cases and write the winners: `python -m draftwood.perf.sweep OP
[--cases perf]`.

A config is first compared with the reference on the case's own inputs; one that is wrong is named and never timed. The
winner of a case is the fastest by p50, unless the op's default is within both spreads of it: then the default stays.
Results go to autotune/configs/<gpu>/<op>.json after each case, so that a run that is stopped loses one case at most.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from ..autotune import timer
from ..kernels.config import CONFIGS
from ..lab.compare import compare
from ..lab.oracles import named
from ..reference.ops import Op, registered
from ..reference.spec import Case, map_tensors, raised
from . import bench

console = Console(stderr=True)


def candidates(op: Op, case: Case, gpu: str) -> list[dict[str, Any]]:
    """The legal points of the op's space for this case."""
    module = op.module("autotune")
    points = (dict(zip(module.SPACE, values, strict=True)) for values in itertools.product(*module.SPACE.values()))
    return [point for point in points if module.legal(point, case, gpu) is None]


def sweep_case(op: Op, case: Case, device: torch.device, gpu: str) -> dict[str, Any] | None:
    """The entry of this case: the winning config and how it stands against the default."""
    spec, function = op.spec, op.function("kernels")
    default = op.module("kernels").Config()
    sets = bench.operands(op, case, device)
    # timing an op that works in place changes its operands
    pristine = map_tensors(sets[0], torch.clone)
    native_in = map_tensors(pristine, torch.clone)
    native = named(spec, native_in, op.function("reference")(**native_in))
    exact_in = raised(pristine)
    exact = named(spec, exact_in, op.function("reference")(**exact_in))
    rules = spec.tolerances(case)
    timed: list[tuple[timer.Timing, Any]] = []
    for point in [{}, *candidates(op, case, gpu)]:
        config = dataclasses.replace(default, **point)
        try:
            inputs = map_tensors(pristine, torch.clone)
            got = named(spec, inputs, function(**inputs, config=config))
            if worst := next((w for n in native if (w := compare(n, got[n], native[n], exact[n], rules[n]))), None):
                console.print(f"[red]wrong[/red] {op.name} {case.id} {point}: {worst}", highlight=False)
                continue
            calls = [functools.partial(function, **inputs, config=config) for inputs in sets]
            timed.append((timer.measure(calls, device, replays=15, budget_s=0.15), config))
        except Exception as error:  # a config may fail to compile or launch in any way: it is out
            console.print(
                f"refused {op.name} {case.id} {point}: {type(error).__name__}: {str(error)[:100]}", highlight=False
            )
    if not timed:
        return None
    best, config = min(timed, key=lambda pair: pair[0].p50)
    base = next((t for t, c in timed if c == default), best)
    if base.p20 <= best.p80:
        best, config = base, default
    gb_s = spec.cost(case).bytes / best.p50 / 1e3
    return {
        "case": case.as_dict(),
        "config": dataclasses.asdict(config),
        "us": best.us(),
        "default_us": round(base.p50, 3),
        "roof": round(gb_s / timer.bandwidth(device)["read"], 4),
        "tried": len(timed),
    }


def save(op: Op, machine: timer.Machine, entries: list[dict[str, Any]]) -> None:
    file = CONFIGS / machine.gpu / f"{op.name}.json"
    held = json.loads(file.read_text())["entries"] if file.exists() else []
    merged = {json.dumps(entry["case"], sort_keys=True): entry for entry in (*held, *entries)}
    head = {"schema": 1, "op": op.name, "gpu": machine.gpu, "versions": machine.as_dict()}
    lines = ",\n".join(json.dumps(merged[key]) for key in sorted(merged))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="+")
    parser.add_argument("--cases", default="perf")
    parser.add_argument("--only", default="", help="cases whose id holds this text")
    parser.add_argument("--ops", action="append", default=[], help="a folder or package with ops of your own")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU: a config's time on a CPU says nothing")
    device = torch.device("cuda")
    machine = timer.machine(device)
    for name in args.op:
        op = registered(args.ops)[name]
        chosen = [case for group in args.cases.split(",") for case in op.spec.cases[group] if args.only in case.id]
        entries: list[dict[str, Any]] = []
        for case in track(chosen, f"sweeping {name}", console=console):
            if entry := sweep_case(op, case, device, machine.gpu):
                entries.append(entry)
                save(op, machine, entries)
                print(
                    f"{name} {case.id}: {entry['us']['p50']} us ({entry['default_us']} default) {entry['roof']:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
