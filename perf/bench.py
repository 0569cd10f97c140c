"""How fast is each op here, how far from what the memory allows, and against what a user would pick instead.

Results go to perf/results/<gpu>/<op>.json, one entry a line, sorted by case:
{"schema":1,"op":…,"gpu":…,"versions":{…},"command":…,"entries":[{"case":{…},"impl":…,"config":{…},"us":{…},"bytes":…,"gb_s":…,"roof":…,"baselines":{…}}]}
`roof` is the share of the device's measured read bandwidth that the op's least bytes would need in the time it took.

What tuning gains goes to perf/results/<gpu>/against.json: every case with the config picked there, raced against the
default. Where the two are one, nothing is raced: "same".
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from triton.errors import TritonError
from triton.runtime import driver

from ..autotune import ahead, timer
from ..autotune.race import quantiles, race
from ..autotune.space import Problem
from ..kernels import config
from ..kernels.lib.device import folder
from ..lab.oracles import draw
from ..reference.ops import Op
from ..reference.spec import Case, Inputs

RESULTS = Path(__file__).resolve().parent / "results"
# sets of operands that a baseline is timed on, at most, and what all of them together may take, about; from so many
# seconds a call on, one is enough
RIVALS, SLOW_S, SLOWEST_S = 8, 0.05, 0.5


def calls(
    op: Op, case: Case, device: torch.device, impl: str = "kernels", chosen: Any = None
) -> tuple[list[Callable[[], Any]], list[Inputs]]:
    """The op on each set of operands, and the sets. `chosen` overrides the config that would be picked."""
    sets, function = timer.operands(op, case, device), op.function(impl)
    extra = {"config": chosen} if chosen is not None else {}
    return [functools.partial(function, **inputs, **extra) for inputs in sets], sets


def precompile(jobs: list[tuple[str, Case]], sources: tuple[str, ...] = ()) -> None:
    """Compile the kernels of many cases, with the configs they would get, by all cores at once: Triton's cache on disk
    hands them to this process."""
    gpu = folder(torch.device("cuda"))
    problems = [Problem(name, case, gpu, sources) for name, case in jobs]
    # one is compiled here as fast
    for _ in ahead.compile_all(problems, driver.active.get_current_target()) if len(problems) > 1 else ():
        pass


def picks(op: Op, run: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config that the op picks here, and its default."""
    with config.recording() as picked:
        run()
    with config.untuned(), config.recording() as without:
        run()
    return picked.get(op.name, {}), without.get(op.name, {})


def chosen(op: Op, case: Case, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a case, without the operands that a timing takes."""
    return picks(op, functools.partial(op.function("kernels"), **draw(op.spec, case, 0, device)))


def against_default(op: Op, runs: list[Callable[[], Any]], device: torch.device) -> dict[str, Any]:
    """The kernel's default raced against what it picks here; where the two are one there is nothing to race."""
    picked, default = picks(op, runs[0])
    if picked == default:
        return same(default)
    # a graph keeps the configs that it was captured with
    with config.untuned():
        first = timer.replay(runs, device)
    found = race(first.sample, timer.replay(runs, device, first).sample)
    verdict = "no difference" if found.verdict == "tie" else f"tuned is {found.verdict}"
    low, us, high = (round(value, 3) for value in quantiles(found.a))
    gains = {"gain": round(1 / found.ratio, 3), "least": round(1 / found.high, 3), "most": round(1 / found.low, 3)}
    return {"us": us, "spread": [low, high], "config": default, **gains, "verdict": verdict}


def duel(op: Op, case: Case, device: torch.device, chosen: Any) -> dict[str, Any]:
    """This config raced against the one that the kernel picks here; or why it does not run."""
    runs, sets = calls(op, case, device)
    others = [functools.partial(op.function("kernels"), **inputs, config=chosen) for inputs in sets]
    picked, _ = picks(op, runs[0])
    row = {"op": op.name, "case": case.as_dict(), "picked": picked, "config": dataclasses.asdict(chosen)}
    try:
        others[0]()
    except (ValueError, TritonError) as error:
        return row | {"verdict": "refused", "why": str(error).strip().splitlines()[-1]}
    first = timer.replay(runs, device)
    found = race(first.sample, timer.replay(others, device, first).sample)
    us = {name: [round(v, 3) for v in quantiles(times)] for name, times in (("picked_us", found.a), ("us", found.b))}
    bounds = {name: round(getattr(found, name), 4) for name in ("ratio", "low", "high")}
    return {**row, **us, **bounds, "verdict": found.verdict}


def same(default: dict[str, Any]) -> dict[str, Any]:
    return {"config": default, "gain": 1.0, "verdict": "same"}


def entry(
    op: Op,
    case: Case,
    device: torch.device,
    impl: str = "kernels",
    baselines: bool = True,
    against: bool = False,
    peers: bool = True,
) -> dict[str, Any]:
    """Time one op on one case; with `against`, its default config too. Without `peers`, only torch beside it."""
    spec = op.spec
    runs, sets = calls(op, case, device, impl)
    with config.recording() as picked:
        timing = timer.measure(runs, device)
    cost = spec.cost(case)
    gb_s = cost.bytes / timing.p50 / 1e3
    row: dict[str, Any] = {
        "case": case.as_dict(),
        "impl": impl if timing.mode != "cpu" else f"{impl} (cpu)",
        "config": picked.get(op.name, {}),
        "us": timing.us(),
        "bytes": cost.bytes,
        "gb_s": round(gb_s, 1),
        "roof": round(gb_s / timer.bandwidth(device)["read"], 4),
        "baselines": {},
    }
    if cost.flops:
        row["tflop_s"] = round(cost.flops / timing.p50 / 1e6, 3)
    if against and impl == "kernels":
        row["default"] = against_default(op, runs, device)
    if baselines:
        for name, prepare in spec.baselines.items():
            if not peers and name != "torch":
                continue
            try:
                others, seconds = rivals(prepare, sets, device)
            except ImportError:
                # a peer that is not installed is no baseline here
                continue
            if seconds > SLOWEST_S:
                row["baselines"][f"{name} (eager)"] = round(seconds * 1e6, 3)
            elif others:
                timed = timer.measure_baseline(others, device)
                row["baselines"][f"{name} (eager)" if timed.mode == "cuda-eager" else name] = round(timed.p50, 3)
    return row


def rivals(
    prepare: Callable[[Inputs], Callable[[], Any] | None], sets: list[Inputs], device: torch.device
) -> tuple[list[Callable[[], Any]], float]:
    """A baseline on as many sets of operands as drive each other out of the L2, fewer where each is large or slow; and
    the seconds of a call."""
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    run = prepare(sets[0])
    if run is None or device.type != "cuda":
        return [run] if run else [], 0.0
    held = torch.cuda.memory_allocated() - before
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    most = min(RIVALS, max(1, int(SLOW_S / seconds)), timer.copies(held))
    others = (prepare(inputs) for inputs in sets[1:most])
    return [run, *(other for other in others if other)], seconds


def _key(row: dict[str, Any]) -> str:
    return json.dumps({**row["case"], "impl": row["impl"]}, sort_keys=True)


def _order(row: dict[str, Any]) -> list[tuple[str, int, float, str]]:
    """Sizes by number, names by letter."""
    values = {**row["case"], "impl": row["impl"]}
    return [(k, 0, v, "") if isinstance(v, (int, float)) else (k, 1, 0, v) for k, v in sorted(values.items())]


def load(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {"entries": []}
    return json.loads(file.read_text())


def save(op: str, machine: timer.Machine, command: str, rows: Iterable[dict[str, Any]], home: Path = RESULTS) -> Path:
    """Write the rows into the op's result file for this GPU; rows of other cases that stand there stay."""
    file = home / machine.gpu / f"{op}.json"
    held = load(file)
    merged = {_key(row): row for row in held["entries"]}
    # peers that were not timed again keep their times, if nothing they run on is another
    alike = all(held.get("versions", {}).get(name) == getattr(machine, name) for name in ("name", "torch", "triton"))
    for row in rows:
        # rows of a model's steps have no peers
        if alike and "baselines" in row:
            before = merged.get(_key(row), {}).get("baselines", {})
            row = {**row, "baselines": {**before, **row["baselines"]}}
        merged[_key(row)] = row
    head = {"schema": 1, "op": op, "gpu": machine.gpu, "versions": machine.as_dict(), "command": command}
    lines = ",\n".join(json.dumps(row) for row in sorted(merged.values(), key=_order))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n")
    return file


def save_against(machine: timer.Machine, command: str, rows: Iterable[dict[str, Any]], home: Path = RESULTS) -> Path:
    """Write rows of `gain_row` into this GPU's against.json; what stands there of other cases stays."""
    file = home / machine.gpu / "against.json"
    key = lambda row: json.dumps([row["op"], row["case"]], sort_keys=True)
    merged = {key(row): row for row in (*load(file)["entries"], *rows)}
    head = {"schema": 1, "gpu": machine.gpu, "versions": machine.as_dict(), "command": command}
    lines = ",\n".join(json.dumps(merged[name]) for name in sorted(merged))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n")
    return file


def gain_row(op: str, row: dict[str, Any]) -> dict[str, Any]:
    """What against.json keeps of a timed row."""
    return {"op": op, "case": row["case"], "config": row["config"], "us": row["us"]["p50"], "default": row["default"]}


def gains(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """By op: cases, how many of them the picked config is faster, no different and slower on, and the gains."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["op"], []).append(row["default"])
    return [
        {
            "op": op,
            "cases": len(listed),
            **{name: sum(one["verdict"] == f"tuned is {name}" for one in listed) for name in ("faster", "slower")},
            # a tie is no gain
            "mean": math.exp(sum(math.log(gain) for gain in proven) / len(proven)),
            "most": max(proven),
        }
        for op, listed in found.items()
        for proven in [[one["gain"] if one["verdict"].startswith("tuned is") else 1.0 for one in listed]]
    ]


def compare(rows: Iterable[dict[str, Any]], file: Path, slack: float) -> list[str]:
    """A sentence for every row slower than the committed one by more than `slack` and by more than both spreads."""
    committed = {_key(row): row for row in load(file)["entries"]}
    worse = []
    for row in rows:
        old = committed.get(_key(row))
        if old and row["us"]["p50"] > old["us"]["p50"] * (1 + slack) and row["us"]["p20"] > old["us"]["p80"]:
            case = ",".join(f"{k}={v}" for k, v in row["case"].items())
            now, then = row["us"]["p50"], old["us"]["p50"]
            worse.append(f"{case}: {now} us, committed {then} us ({now / then:.2f}x)")
    return worse
