"""How well `autotune/foresight.py` knows what will not run where: edges and a seeded sample of the whole space, really
compiled.

                      runs            does not run
    foreseen to run   right           missed            <- what a port stumbles over
    refused           needless        right

A point is an op, one of its cases, an architecture and a value for every knob, drawn from all of them; nothing that the
tuner would leave out is left out here.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..autotune.foresight import foresee
from ..autotune.gpu import ARCHS
from ..reference.ops import Op, registered
from .ports import Build, Task, run

SEED = 0


@dataclass(frozen=True)
class Point:
    op: str
    arch: str
    case: str
    config: str
    # why it will not run, or nothing
    foreseen: str
    # what the compiler or the launcher said, or nothing
    found: str
    spills: int = 0
    shared: int = 0

    @property
    def cell(self) -> str:
        if self.foreseen:
            return "right refusals" if self.found else "needless"
        return "missed" if self.found else "right passes"


def draw(op: Op, arch: str, count: int) -> list[tuple[str, str]]:
    """Cases and configs: both ends of every knob, the others at their defaults, and `count` points of the whole space,
    evenly from all cases and all values of every knob; the same for the same op, and the first of more."""
    if not op.has("autotune"):
        return []
    generator = random.Random(f"{SEED} {op.name} {arch}")
    space = op.module("autotune").SPACE
    default = dataclasses.asdict(op.module("kernels").Config())
    cases = list(dict.fromkeys(case.id for group in ("perf", "qwen35") for case in op.spec.cases.get(group, ())))
    points = [{knob: end} for knob, values in space.items() for end in (values[0], values[-1])]
    found = [(generator.choice(cases), point) for point in points]
    # one after the other, so that more points are the same ones and others
    for _ in range(count):
        found.append((generator.choice(cases), {knob: generator.choice(values) for knob, values in space.items()}))
    return list(dict.fromkeys((case, json.dumps({**default, **point}, sort_keys=True)) for case, point in found))


def work(ops: list[str], archs: list[str], count: int, sources: list[str]) -> list[Task]:
    """One task a point, shuffled: what is done of them at any time is a sample."""
    known = registered(sources)
    found = [
        Task(name, arch, (case,), "points", tuple(sources), (config,))
        for name in ops
        for arch in archs
        for case, config in draw(known[name], arch, count)
    ]
    random.Random(SEED).shuffle(found)
    return found


def judged(task: Task, builds: list[Build]) -> Point:
    op = registered(list(task.sources))[task.op]
    case = next(c for group in op.spec.cases.values() for c in group if c.id == task.cases[0])
    foreseen = foresee(op, case, json.loads(task.points[0]), ARCHS[task.arch])
    found = next((build.error for build in builds if build.error), "")
    spills, shared = (max((getattr(b, fact) for b in builds), default=0) for fact in ("spills", "shared"))
    return Point(task.op, task.arch, case.id, task.points[0], foreseen or "", found, spills, shared)


def sample(tasks: list[Task], workers: int) -> Iterator[Point]:
    for task, builds in run(tasks, workers):
        yield judged(task, builds)


def table(points: list[Point]) -> dict[str, dict[str, int]]:
    """Counts of the four cells for each op and for all."""
    rows: dict[str, dict[str, int]] = {}
    for point in points:
        for name in (point.op, "all"):
            row = rows.setdefault(name, dict.fromkeys(("right passes", "missed", "needless", "right refusals"), 0))
            row[point.cell] += 1
    return rows


def misses(rows: dict[str, dict[str, int]]) -> Any:
    """The share of real failures that nobody foresaw."""
    row = rows["all"]
    return row["missed"] / max(1, row["missed"] + row["right refusals"])
