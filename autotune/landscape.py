"""A landscape: every legal point of an op's space on a case, timed. Searches are compared on it without a GPU.

    autotune/landscapes/<gpu>/<op>.json.gz
    {"schema": 1, "op": …, "gpu": …, "versions": {…}, "kernel": hash, "cases": [
        {"case": {…}, "default": {…}, "knobs": ["BLOCK_C", …], "points": [[[64, …], [p20, p50, p80], …], …],
         "launches": [[[programs, warps, bytes of code, registers, shared memory], …], …]}]}

A point is its knob values in the order of `knobs` and one [p20, p50, p80] of microseconds for each pass over the case;
in their place stands a sentence where the point gave wrong numbers or did not run. The passes visit the points in
different orders: how far they differ is the noise of a landscape. `launches`, in the order of `points`, is what a
point's binaries are: known without timing (effort.py).
"""

import functools
import gzip
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..lab.oracles import Subject, Trial
from ..reference.spec import Case
from . import timer
from .ahead import Ahead, Built
from .effort import Launch
from .elsewhere import outline
from .space import Point, Problem

HOME = Path(__file__).resolve().parent / "landscapes"
ORACLES = ("numeric", "poison", "redzone", "unchanged", "repeat")
Times = tuple[float, float, float]


@dataclass
class Landscape:
    """What is known of one case: a point's passes of (p20, p50, p80), or why it has none."""

    case: Case
    knobs: tuple[str, ...]
    default: Point
    passes: dict[tuple[Any, ...], list[Times]]
    refused: dict[tuple[Any, ...], str]
    launches: dict[tuple[Any, ...], tuple[Launch, ...]] = field(default_factory=dict)

    def key(self, point: Point) -> tuple[Any, ...]:
        return tuple(point[knob] for knob in self.knobs)

    @property
    def points(self) -> list[Point]:
        return [dict(zip(self.knobs, key, strict=True)) for key in (*self.passes, *self.refused)]

    def us(self, point: Point) -> float:
        """The median over the passes of the point's p50; infinity where it did not run or was wrong."""
        found = sorted(times[1] for times in self.passes.get(self.key(point), []))
        return found[len(found) // 2] if found else float("inf")

    @property
    def best(self) -> float:
        return min(self.us(point) for point in self.points)

    @property
    def fastest(self) -> Point:
        return min(self.points, key=self.us)

    def as_dict(self) -> dict[str, Any]:
        timed = [[list(key), *([round(us, 3) for us in one] for one in runs)] for key, runs in self.passes.items()]
        return {
            "case": self.case.as_dict(),
            "default": self.default,
            "knobs": list(self.knobs),
            "points": [*timed, *([list(key), text] for key, text in self.refused.items())],
            "launches": [
                [one.as_list() for one in self.launches.get(key, ())] for key in (*self.passes, *self.refused)
            ],
        }


def _parse(raw: dict[str, Any]) -> Landscape:
    passes = {tuple(key): [tuple(one) for one in runs] for key, *runs in raw["points"] if not isinstance(runs[0], str)}
    refused = {tuple(key): runs[0] for key, *runs in raw["points"] if isinstance(runs[0], str)}
    built = zip((tuple(key) for key, *_ in raw["points"]), raw.get("launches", ()), strict="launches" in raw)
    launches = {key: tuple(Launch(*one) for one in found) for key, found in built if found}
    case = Case(tuple(raw["case"].items()))
    return Landscape(case, tuple(raw["knobs"]), raw["default"], passes, refused, launches)


def load(file: Path) -> list[Landscape]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [_parse(raw) for raw in json.loads(text)["cases"]]


def save(file: Path, op: str, kernel: str, machine: timer.Machine, found: list[Landscape]) -> None:
    head = {"schema": 1, "op": op, "gpu": machine.gpu, "versions": machine.as_dict(), "kernel": kernel}
    text = json.dumps({**head, "cases": [one.as_dict() for one in found]}, separators=(",", ":"))
    file.parent.mkdir(parents=True, exist_ok=True)
    # no time of day in the archive: the same landscape is the same bytes
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


class Survey:
    """One case on this GPU: operands, expected values, and the passes over its points."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem, self.device = problem, device
        self.sets = timer.operands(problem.op, problem.case, device)
        self.function = problem.op.function("kernels")
        # timing an op that works in place changes its operands
        self.trial = Trial(problem.op, problem.case, 0, Subject(lambda _name, **inputs: None, device))
        self.points = problem.points
        self.found = Landscape(problem.case, tuple(problem.space), problem.defaults, {}, {})

    def compile(self, ahead: Ahead) -> list[tuple[Point, "Future[Built]"]]:
        shapes = outline(self.sets[0])
        return [(point, ahead.submit(self.problem, shapes, point)) for point in self.points]

    def visit(self, point: Point, check: bool) -> None:
        key, config = self.found.key(point), self.problem.config(point)
        try:
            if check and (text := self._wrong(config)):
                self.found.refused[key] = f"wrong: {text}"
                return
            calls = [functools.partial(self.function, **inputs, config=config) for inputs in self.sets]
            timing = timer.measure(calls, self.device, replays=15, budget_s=0.05)
        except Exception as error:  # a config may fail to compile or launch in any way: it is out
            self.found.refused[key] = f"crashed: {type(error).__name__}: {str(error)[:200]}"
            return
        self.found.passes.setdefault(key, []).append((timing.p20, timing.p50, timing.p80))

    def _wrong(self, config: Any) -> str | None:
        self.trial.subject = Subject(lambda _name, **inputs: self.function(**inputs, config=config), self.device)
        bad = (v for v in self.trial.verdicts(ORACLES) if v.status in ("fail", "error"))
        return next((f"{v.oracle}: {v.detail}" for v in bad), None)


def survey(
    problems: list[Problem], device: torch.device, workers: int, passes: int = 2, deadline: float = float("inf")
) -> Iterator[tuple[Problem, Landscape]]:
    """Time every legal point of each case as it is compiled, then again in another order; stop at `deadline`
    (time.monotonic). What is known of a case comes out whenever a pass over it ends, and at the deadline."""
    ahead = Ahead(workers)
    surveys = [Survey(problem, device) for problem in problems]
    compiling = {future: (one, point) for one in surveys for point, future in one.compile(ahead)}
    left = {one.problem.name: len(one.points) for one in surveys}
    try:
        for future in as_completed(compiling):
            if time.monotonic() > deadline:
                break
            one, point = compiling[future]
            if not future.exception() and (launches := future.result().launches):
                one.found.launches[one.found.key(point)] = launches
            one.visit(point, check=True)
            left[one.problem.name] -= 1
            if not left[one.problem.name]:
                yield one.problem, one.found
        for number in range(1, passes):
            for one in surveys:
                again = [dict(zip(one.found.knobs, key, strict=True)) for key in one.found.passes]
                random.Random(number).shuffle(again)
                for point in again:
                    if time.monotonic() < deadline:
                        one.visit(point, check=False)
                yield one.problem, one.found
    finally:
        ahead.close()
