"""A search without a GPU: the tuner's own loop over a landscape of times that were measured once.

    draftwood tune --simulate      every sampler on every committed landscape, many seeds: best-so-far and regret, kept
                                   in landscapes/regret.json

What is new here is the runner, which looks a time up where the real one measures it, with the noise of one race.
"""

import json
import math
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage

from ..reference.spec import Case
from .effort import features
from .landscape import HOME, Landscape
from .outcome import Found, Outcome
from .race import Race, race
from .sampler import Proposer
from .space import Point, Problem
from .trials import Trials
from .tuner import Budget, Event, Tuner

# a tenth of fewer points than this is no search
SMALLEST = 60
# of one replay of a graph, and of one capture of it against another (perf/LOG.md)
NOISE_REPLAY, NOISE_CAPTURE = 0.004, 0.002


class Simulated:
    """A runner that reads times instead of taking them. `pause_s` is how long a trial takes."""

    def __init__(self, landscape: Landscape, problem: Problem, seed: int = 0, pause_s: float = 0.0) -> None:
        self.landscape, self.problem, self.pause_s = landscape, problem, pause_s
        self.random = random.Random(seed)
        self.facts: dict[str, Any] = {"default": landscape.default}

    def _us(self, point: Point) -> float:
        config = {**self.landscape.default, **point}
        return self.landscape.us(config)

    def attempt(self, point: Point, rival: Point | None) -> Found:
        time.sleep(self.pause_s)
        us = self._us(point)
        if math.isinf(us):
            text = self.landscape.refused.get(self.landscape.key(point), "crashed: not in the landscape")
            status, _, why = text.partition(": ")
            return Found(Outcome(status, why, command=self.command(point)))
        held = self.duel(rival or point, point)
        us = statistics.median(held.b)
        return Found(Outcome("ok", us=us, spread=(min(held.b), max(held.b))), held if rival else None)

    def duel(self, a: Point, b: Point, most: int = 24, margin: float = 0.01) -> Race:
        us = [self._us(point) * math.exp(self.random.gauss(0, NOISE_CAPTURE)) for point in (a, b)]

        def noisy(mean: float) -> float:
            return mean * math.exp(self.random.gauss(0, NOISE_REPLAY))

        return race(lambda: noisy(us[0]), lambda: noisy(us[1]), most, margin)

    def ask(self, verb: str, *arguments: Any) -> Any:
        return Found(Outcome("ok")) if verb == "gate" else self.duel(*arguments)

    def command(self, point: Point) -> str:
        return f"draftwood check {self.problem.op_name} --case '{self.landscape.case.id}'"


class Replica(Problem):
    """A landscape as a problem: its space and its legal points are what was timed."""

    def __init__(self, op: str, gpu: str, landscape: Landscape) -> None:
        super().__init__(op, landscape.case, gpu)
        axes = {
            knob: tuple(
                sorted({key[i] for key in (*landscape.passes, *landscape.refused)}, key=lambda v: (str(type(v)), v))
            )
            for i, knob in enumerate(landscape.knobs)
        }
        self.__dict__.update(space=axes, points=landscape.points, defaults=landscape.default, kernel_hash="landscape")


@dataclass(frozen=True)
class Curve:
    """One search: the true time of the best found after each trial, over the true optimum."""

    op: str
    case: Case
    sampler: str
    seed: int
    points: int
    best: tuple[float, ...]

    def within(self, share: float) -> int | None:
        """Trials until the best found is within `share` of the optimum."""
        return next((i + 1 for i, ratio in enumerate(self.best) if ratio <= 1 + share), None)

    def at(self, trials: int) -> float:
        return self.best[min(trials, len(self.best)) - 1]


def replay(
    op: str, gpu: str, landscape: Landscape, sampler: str, seed: int, trials: int, first: tuple[Point, ...] = ()
) -> Curve:
    """One search on one landscape; `first` are tried before any proposal, as the winners of a neighbouring case are."""
    problem = Replica(op, gpu, landscape)
    runner = Simulated(landscape, problem, seed)
    curve: list[float] = []
    optimum = landscape.best

    def watch(event: Event) -> None:
        if event.kind == "trial" and event.best is not None:
            curve.append(min([*curve[-1:], landscape.us({**landscape.default, **event.best.point}) / optimum]))

    compiled = [
        (point, features(launches, gpu))
        for point in problem.points
        if (launches := landscape.launches.get(landscape.key(point)))
    ]
    proposer = Proposer(problem, sampler, seed)
    book = Trials(problem, InMemoryStorage())
    Tuner(problem, book, runner, proposer, Budget(trials), watch, built=lambda: compiled).search(first)
    return Curve(op, landscape.case, f"{sampler}, warm" if first else sampler, seed, len(problem.points), tuple(curve))


def as_dict(curve: Curve) -> dict[str, Any]:
    return {**vars(curve), "case": curve.case.id}


def winner(rows: list[dict[str, Any]]) -> str:
    """The sampler with the least mean regret over the landscapes."""
    samplers = {row["sampler"] for row in rows if "warm" not in row["sampler"]}
    return min(samplers, key=lambda s: statistics.fmean(r["regret_mean"] for r in rows if r["sampler"] == s))


def save(rows: list[dict[str, Any]], seeds: range, file: Path = HOME / "regret.json") -> None:
    """Keep the table, a row a line."""
    head = {"schema": 1, "command": f"draftwood tune --simulate --seed {seeds.start} --seeds {len(seeds)}"}
    rounded = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    file.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(map(json.dumps, rounded)) + "\n]}\n")


def tenth(points: int) -> int:
    """A tenth of the exhaustive trials."""
    return max(1, points // 10)


def table(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """Per landscape and sampler: regret after a tenth of the exhaustive trials, and trials until within 2 %."""
    groups: dict[tuple[str, Case, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.op, curve.case, curve.sampler), []).append(curve)
    rows = []
    for (op, case, sampler), held in groups.items():
        budget = tenth(held[0].points)
        regret = sorted(curve.at(budget) - 1 for curve in held)
        reached = sorted(curve.within(0.02) or len(curve.best) + 1 for curve in held)
        rows.append(
            {
                "op": op,
                "case": case.id,
                "sampler": sampler,
                "points": held[0].points,
                "trials": budget,
                "within_2": sum(value <= 0.02 for value in regret) / len(regret),
                "regret_median": statistics.median(regret),
                "regret_mean": statistics.fmean(regret),
                "regret_worst": regret[-1],
                "trials_to_2": statistics.median(reached),
            }
        )
    return rows
