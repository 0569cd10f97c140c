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
from ..kernels.config import CONFIGS, FITTED
from ..reference.ops import Op, registered
from ..reference.spec import Case
from .matrix import TIMED
from .ports import Task, alone, compile_all, default, write

TRIES = 24


def candidates(op: Op, case: Case, start: dict[str, Any], arch: str) -> list[dict[str, Any]]:
    """Points with smaller tiles, fewer stages, more warps or another way than `start`, the fewest and smallest changes
    first."""
    module = op.module("autotune")
    unread = module.unread_by(case) if hasattr(module, "unread_by") else set()
    space, knobs = module.SPACE, []
    for knob, values in space.items():
        held = start[knob]
        numbers = isinstance(held, int) and not isinstance(held, bool)
        more = knob.endswith("warps")
        others = [v for v in values if ((v > held if more else v < held) if numbers else v != held)]
        at = _near(values, held) if numbers else values.index(held)
        knobs.append([(0, held), *((abs(values.index(value) - at), value) for value in others if knob not in unread)])
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


def fitted(op_name: str, arch: str, sources: tuple[str, ...], tries: int) -> list[dict[str, Any]]:
    """An entry of each case: its default where that does not spill, else the first point found that does not, or the
    best. What served another case, or a relative, is tried first."""
    op = registered(sources)[op_name]
    served = [entry["config"] for file in sorted(CONFIGS.glob(f"*{FITTED}/{op_name}.json")) for entry in _entries(file)]
    found = []
    for case in op.spec.cases["perf"]:
        found.append(_entry(op, case, arch, sources, tries, served))
        if found[-1]["changes"] and found[-1]["config"] not in served[:1]:
            served.insert(0, found[-1]["config"])
    return found


def _entries(file: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads(file.read_text())["entries"] if not entry["spills"]]


def _entry(
    op: Op, case: Case, arch: str, sources: tuple[str, ...], tries: int, served: list[dict[str, Any]]
) -> dict[str, Any]:
    start = default(op, case, arch)

    def cost(config: dict[str, Any]) -> tuple[int, int]:
        text = json.dumps(config, sort_keys=True)
        builds = compile_all(Task(op.name, arch, (case.id,), "points", sources, (text,)))
        return sum(bool(build.error) for build in builds), sum(build.spills for build in builds)

    before = best = cost(start)
    chosen, left = start, candidates(op, case, start, arch) if best > (0, 0) else []
    first = [point for point in served if point in left]
    # of the most changes: where even that spills, few are worth the time
    first += left[-1:]
    hopeless = False
    for number in range(min(tries, len(left))):
        if hopeless and number >= tries // 3:
            break
        # then one step from the best so far, the fewest changes of the default first
        point = first.pop(0) if first else min(left, key=lambda p: sum(p[knob] != chosen[knob] for knob in p))
        last = point is left[-1]
        left.remove(point)
        first = [other for other in first if other != point]
        found = cost(point)
        hopeless |= last and found > (0, 0)
        if found < best:
            best, chosen = found, point
        if best == (0, 0):
            break
    stamp = {
        "kernel": Problem(op.name, case, arch, sources).kernel_hash,
        "triton": triton.__version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    spills = {"spills": best[1], "default_spills": before[1]}
    changes = {knob: value for knob, value in chosen.items() if value != start[knob]}
    return {"case": case.as_dict(), "config": chosen, **spills, "changes": changes, "stamp": stamp}


def fit(work: list[tuple[str, str]], sources: tuple[str, ...], workers: int) -> Iterator[tuple[str, str, Any]]:
    """For each (op, architecture) whose defaults spill: all its entries."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=alone) as pool:
        waiting = {pool.submit(fitted, name, arch, sources, TRIES): (name, arch) for name, arch in work}
        for done in as_completed(waiting):
            yield *waiting[done], done.result()


def save(op: str, arch: str, entries: list[dict[str, Any]], home: Path = CONFIGS) -> Path | None:
    """Write what was found, unless the defaults serve every case or are known to pay."""
    file = home / f"{arch}-fitted" / f"{op}.json"
    if arch in TIMED or not any(entry["changes"] for entry in entries):
        file.unlink(missing_ok=True)
        return None
    head = {"schema": 2, "op": op, "gpu": f"{arch}-fitted"}
    rows = [{key: value for key, value in entry.items() if key != "changes"} for entry in entries]
    lines = ",\n".join(sorted(json.dumps(row) for row in rows))
    # other processes read what served here while they look for their own
    write(file, (json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n").encode())
    return file


def rows(op: str, arch: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What PORTS.md says of the cases whose defaults do not serve."""
    return [
        {"op": op, "arch": arch, "case": Case(tuple(entry["case"].items())).id}
        | {key: entry[key] for key in ("changes", "spills", "default_spills")}
        for entry in entries
        if entry["changes"] or entry["spills"]
    ]
