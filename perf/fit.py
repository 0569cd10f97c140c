"""Configs that compile without spilling, where an op's defaults spill and nobody has a GPU to tune on.

    autotune/configs/<arch>-fitted/<op>.json, one entry a line:
    {"schema": 2, "op": …, "gpu": …, "entries": [
     {"case": {…}, "config": {…}, "spills": 0, "default_spills": 882, "stamp": {"kernel": hash, "triton": …, …}}]}

Found by compiling alone, nearest to the default first: nothing was timed. `kernels/config.py` takes such an entry last,
where neither this GPU nor a relative has been tuned.
"""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from ..autotune.foresight import foresee
from ..autotune.gpu import ARCHS
from ..autotune.space import Problem
from ..kernels.config import CONFIGS
from ..reference.ops import Op, registered
from ..reference.spec import Case
from .matrix import TIMED
from .ports import Task, alone, compile_all, default

TRIES = 24


def candidates(op: Op, case: Case, start: dict[str, Any], arch: str) -> list[dict[str, Any]]:
    """Points with smaller tiles, fewer stages, more warps or another way than `start`, the fewest and smallest changes
    first."""
    module = op.module("autotune")
    space, knobs = module.SPACE, []
    for knob, values in space.items():
        held = start[knob]
        numbers = isinstance(held, int) and not isinstance(held, bool)
        more = knob.endswith("warps")
        others = [v for v in values if ((v > held if more else v < held) if numbers else v != held)]
        at = _near(values, held) if numbers else values.index(held)
        knobs.append([(0, held), *((abs(values.index(value) - at), value) for value in others)])
    points = []
    for choice in itertools.product(*knobs):
        steps = [step for step, _ in choice]
        point = dict(zip(space, (value for _, value in choice), strict=True))
        whole = {**start, **point}
        if any(steps) and module.legal(point, case, arch) is None and not foresee(op, case, whole, ARCHS[arch]):
            points.append(((sum(step > 0 for step in steps), sum(steps)), whole))
    return [point for _, point in sorted(points, key=lambda pair: pair[0])]


def _near(values: tuple[Any, ...], held: Any) -> int:
    return min(range(len(values)), key=lambda number: abs(values[number] - held))


def fitted(op_name: str, case_id: str, arch: str, sources: tuple[str, ...], tries: int) -> dict[str, Any]:
    """The entry of one case: its default where that does not spill, else the first point found that does not, or the
    best."""
    op = registered(sources)[op_name]
    case = next(case for case in op.spec.cases["perf"] if case.id == case_id)
    start = default(op, case, arch)

    def cost(config: dict[str, Any]) -> tuple[int, int]:
        text = json.dumps(config, sort_keys=True)
        builds = compile_all(Task(op_name, arch, (case_id,), "points", sources, (text,)))
        return sum(bool(build.error) for build in builds), sum(build.spills for build in builds)

    before = best = cost(start)
    chosen, left = start, candidates(op, case, start, arch) if best > (0, 0) else []
    for _ in range(min(tries, len(left))):
        # one step from the best so far, the fewest changes of the default first
        point = min(left, key=lambda point: sum(point[knob] != chosen[knob] for knob in point))
        left.remove(point)
        if (found := cost(point)) < best:
            best, chosen = found, point
        if best == (0, 0):
            break
    stamp = {
        "kernel": Problem(op_name, case, arch, sources).kernel_hash,
        "triton": triton.__version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    spills = {"spills": best[1], "default_spills": before[1]}
    changes = {knob: value for knob, value in chosen.items() if value != start[knob]}
    return {"case": case.as_dict(), "config": chosen, **spills, "changes": changes, "stamp": stamp}


def fit(work: list[tuple[str, str]], sources: tuple[str, ...], workers: int) -> Iterator[tuple[str, str, Any]]:
    """For each (op, architecture) whose defaults spill: all its entries, when every case has one."""
    known = registered(sources)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in work}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=alone) as pool:
        waiting = {
            pool.submit(fitted, name, case.id, arch, sources, TRIES): (name, arch)
            for name, arch in work
            for case in known[name].spec.cases["perf"]
        }
        for done in as_completed(waiting):
            pair = waiting[done]
            found[pair].append(done.result())
            if len(found[pair]) == len(known[pair[0]].spec.cases["perf"]):
                yield *pair, found[pair]


def save(op: str, arch: str, entries: list[dict[str, Any]], home: Path = CONFIGS) -> Path | None:
    """Write what was found, unless the defaults serve every case or are known to pay."""
    file = home / f"{arch}-fitted" / f"{op}.json"
    if arch in TIMED or not any(entry["changes"] for entry in entries):
        file.unlink(missing_ok=True)
        return None
    head = {"schema": 2, "op": op, "gpu": f"{arch}-fitted"}
    rows = [{key: value for key, value in entry.items() if key != "changes"} for entry in entries]
    lines = ",\n".join(sorted(json.dumps(row) for row in rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n")
    return file


def rows(op: str, arch: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What PORTS.md says of the cases whose defaults do not serve."""
    return [
        {"op": op, "arch": arch, "case": Case(tuple(entry["case"].items())).id}
        | {key: entry[key] for key in ("changes", "spills", "default_spills")}
        for entry in entries
        if entry["changes"] or entry["spills"]
    ]
