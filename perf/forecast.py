"""How well `autotune/foresight.py` knows what will not run where: edges and a seeded sample of the whole space, really
compiled.

                      runs            does not run                                  took over ports.LIMIT_S
    foreseen to run   right           missed            <- what a port stumbles over   slow
    refused           needless        right                                            right

A point is an op, one of its cases, an architecture and a value for every knob, drawn from all of them; nothing that the
tuner would leave out is left out here.

Few points fail and most take their compilers long. So all that are refused may be compiled, and of an op's others a
random part: what is missed among those then stands for as many more as the part is smaller than the whole.
"""

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..autotune.foresight import foresee
from ..autotune.gpu import ARCHS
from ..reference.ops import Op, registered
from ..reference.spec import Case
from .ports import TOO_LONG, Build, Task, run

SEED = 0
CELLS = ("right passes", "missed", "needless", "right refusals", "slow")


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
        # whether it would run nobody knows
        slow = self.found.startswith(TOO_LONG)
        return "slow" if slow else "missed" if self.found else "right passes"


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


def _of(task: Task) -> tuple[Op, Case]:
    op = registered(list(task.sources))[task.op]
    return op, next(c for group in op.spec.cases.values() for c in group if c.id == task.cases[0])


def part(tasks: list[Task], most: int) -> tuple[list[Task], Counter[str]]:
    """All points that are refused, and of an op's others the first `most`, which are shuffled (0: all); and how many of
    each op are not refused."""
    chosen, willing = [], Counter[str]()
    for task in tasks:
        op, case = _of(task)
        if not foresee(op, case, json.loads(task.points[0]), ARCHS[task.arch]):
            willing[task.op] += 1
            if most and willing[task.op] > most:
                continue
        chosen.append(task)
    return chosen, willing


def judged(task: Task, builds: list[Build]) -> Point:
    op, case = _of(task)
    foreseen = foresee(op, case, json.loads(task.points[0]), ARCHS[task.arch])
    found = next((build.error for build in builds if build.error), "")
    spills, shared = (max((getattr(b, fact) for b in builds), default=0) for fact in ("spills", "shared"))
    return Point(task.op, task.arch, case.id, task.points[0], foreseen or "", found, spills, shared)


def sample(tasks: list[Task], workers: int) -> Iterator[Point]:
    for task, builds in run(tasks, workers):
        yield judged(task, builds)


def table(points: list[Point], willing: dict[str, int] | None = None) -> dict[str, dict[str, int]]:
    """Counts of the cells for each op and for all; and of how many the points that are not refused are a part."""
    rows: dict[str, dict[str, int]] = {}
    for point in points:
        for name in (point.op, "all"):
            row = rows.setdefault(name, dict.fromkeys(CELLS, 0))
            row[point.cell] += 1
    for name, row in rows.items():
        compiled = row["right passes"] + row["missed"] + row["slow"]
        row["not refused"] = (willing or {}).get(name, compiled)
    if rows:
        rows["all"]["not refused"] = sum(row["not refused"] for name, row in rows.items() if name != "all")
    return rows


def weight(row: dict[str, int]) -> float:
    """Of how many points each that was compiled and not refused is one."""
    compiled = row["right passes"] + row["missed"] + row.get("slow", 0)
    return row.get("not refused", compiled) / max(1, compiled)


def misses(rows: dict[str, dict[str, int]]) -> float:
    """The share of real failures that nobody foresaw; those missed in a part stand for those of the whole."""
    missed = sum(row["missed"] * weight(row) for name, row in rows.items() if name != "all")
    return missed / max(1.0, missed + rows["all"]["right refusals"])


def most_misses(rows: dict[str, dict[str, int]], doubt: float = 0.05) -> float:
    """What that share hardly exceeds over the whole space, of which the points are a sample: were more missed, so few
    would show in one sample of twenty. As if every miss could be of the op that was compiled in the smallest part."""
    weights = [weight(row) for name, row in rows.items() if name != "all"]
    seen, low, high = rows["all"]["missed"], 0.0, 100.0 + 10 * rows["all"]["missed"]
    while high - low > 1e-6:
        mean = (low + high) / 2
        likely = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(seen + 1))
        low, high = (mean, high) if likely > doubt else (low, mean)
    missed = high * max([1.0, *weights])
    return missed / (missed + rows["all"]["right refusals"])
