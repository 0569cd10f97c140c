"""Tuning many cases on one or several GPUs.

    one process a GPU:   its worker, its pool of compilers, all on the same studies
    this process:        listens, and writes the winners

Every process goes through the cases in the same order, so that all GPUs work on one study until it is done; the first
process plays off the winner while the others go on.
"""

import os
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

from triton.backends.compiler import GPUTarget

from . import winners
from .ahead import Ahead
from .neighbours import Neighbours
from .outcome import Outcome, Verdict
from .sampler import DEFAULT, Proposer
from .space import Point, Problem
from .storage import open_storage
from .timer import Machine
from .trials import Trials
from .tuner import DEPTH, Budget, Event, Tuner
from .worker import Died, Isolated, Post, gate_cases

# of all legal points, where neither trials nor time is given: enough for the default sampler (perf/LOG.md)
SHARE, LEAST = 0.12, 24


@dataclass(frozen=True)
class Plan:
    """One call of `draftwood tune`."""

    problems: tuple[Problem, ...]
    device: str
    sampler: str = DEFAULT
    trials: int = 0
    seconds: float = 0.0
    storage: str = ""
    seed: int = 0
    timeout_s: float = 60.0
    times: str = ""
    compilers: int = 0
    target: tuple[Any, ...] = ()
    lead: bool = True
    first: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    known_bad: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """The end of a case."""

    problem: Problem
    verdict: Verdict | None
    entry: dict[str, Any] | None
    facts: dict[str, Any]


Watch = Callable[[Event], None]


def budget(plan: Plan, problem: Problem, seconds: float) -> Budget:
    """Of one case; `seconds` are its share of the time that is left, where time is given."""
    points = len(problem.points) + 1
    if plan.trials:
        return Budget(min(plan.trials, points))
    if plan.seconds or plan.sampler == "grid":
        return Budget(points, seconds if plan.seconds else 0.0)
    return Budget(wanted(problem))


def wanted(problem: Problem) -> int:
    """How many trials a case is worth. Where time is given, cases share it in proportion to these."""
    points = len(problem.points) + 1
    return min(points, max(LEAST, round(SHARE * points)))


def run(plan: Plan, watch: Watch) -> Iterator[Settled]:
    """Tune every case on one device."""
    storage, until = open_storage(plan.storage), time.monotonic() + plan.seconds
    worth = [wanted(problem) if plan.seconds else 1 for problem in plan.problems]
    width = plan.compilers or compilers(1)
    runner: Isolated | None = None
    gated: dict[str, Outcome] = {}
    # what is known of the GPU before the worker is there spares the compilers its start
    ahead = _pool(plan, plan.target) if plan.target else None
    neighbours: Neighbours | None = None
    try:
        for number, problem in enumerate(plan.problems):
            left = until - time.monotonic()
            if plan.seconds and left <= 0:
                watch(Event("given up", problem.case.id, text=f"no time for {len(plan.problems) - number} cases"))
                return
            trials = Trials(problem, storage)
            if copied := trials.adopt():
                watch(Event("copied", problem.case.id, text=f"{copied} trials of another space are still valid"))
            try:
                if runner is None:
                    runner = Isolated(problem, Post(plan.device, plan.times, plan.timeout_s))
                else:
                    runner.load(problem)
            except Died as death:
                watch(Event("given up", problem.case.id, text=f"the worker does not start: {death}"))
                continue
            facts = runner.facts
            if ahead is None and not plan.device.startswith("cpu"):
                ahead = _pool(plan, facts["target"])
            if ahead:
                ahead.drop(problem)
            neighbours = neighbours or Neighbours(facts.get("uuid", ""))
            watch(
                Event(
                    "started",
                    problem.case.id,
                    extra={"name": problem.name, "points": len(problem.points), "read_gb_s": facts["read_gb_s"]},
                )
            )
            bad = plan.known_bad.get(problem.name, {})
            tuner = Tuner(
                problem,
                trials,
                runner,
                Proposer(problem, plan.sampler, plan.seed),
                budget(plan, problem, left * worth[number] / sum(worth[number:])),
                watch,
                _submitter(ahead, problem, facts["shapes"]) if ahead else None,
                ahead.pump if ahead else lambda: None,
                _rehearsal(ahead, problem, facts["asked"]) if ahead else lambda _point: [],
                lambda point, bad=bad, trials=trials: bad.get(trials.identity(point)),  # type: ignore[misc]
                {"device": plan.device, "sampler": plan.sampler},
                neighbours.notes,
                gated,
                depth=max(DEPTH, width),
                # a model proposes better the more it knows; a list loses nothing by deciding early
                claims=width if plan.sampler in ("grid", "random") else 1,
                patience_s=plan.timeout_s,
            )
            tuner.search(plan.first.get(problem.name, ()))
            if plan.lead:
                verdict = tuner.settle()
                yield Settled(problem, verdict, _entry(problem, verdict, runner), runner.facts)
    finally:
        if runner:
            runner.close()
        if ahead:
            ahead.close()
        if neighbours:
            neighbours.close()


def _pool(plan: Plan, target: tuple[Any, ...]) -> Ahead:
    """Compilers, with work for every case."""
    ahead = Ahead(plan.compilers or compilers(1), GPUTarget(*target))
    for problem in plan.problems:
        ahead.later(problem, _likely(plan, problem))
    ahead.pump()
    return ahead


def _submitter(ahead: Ahead, problem: Problem, shapes: Any) -> Callable[[Point], "Future[str | None]"]:
    return lambda point: ahead.submit(problem, shapes, point)


def _rehearsal(ahead: Ahead, problem: Problem, asked: dict[str, Any]) -> Callable[[Point], list["Future[str | None]"]]:
    def rehearse(point: Point) -> list["Future[str | None]"]:
        cases = gate_cases(problem, asked, point)
        return [ahead.submit(replace(problem, case=case), None, point) for case in cases]

    return rehearse


def _likely(plan: Plan, problem: Problem) -> list[Point | None]:
    """What a case will try first, the default and given points before all."""
    proposer = Proposer(problem, plan.sampler, plan.seed)
    return [None, *plan.first.get(problem.name, ()), *proposer.likely(2 * wanted(problem))]


def _entry(problem: Problem, verdict: Verdict | None, runner: Isolated) -> dict[str, Any] | None:
    machine: Machine = runner.facts["machine"]
    return winners.made(problem, machine, verdict, runner.facts["read_gb_s"]) if verdict else None


def cores() -> int:
    return len(os.sched_getaffinity(0))


def compilers(devices: int) -> int:
    """Processes that compile for one of so many devices: two cores are the tuner's and its worker's."""
    return max(1, cores() // devices - 2)


# -- several GPUs ------------------------------------------------------------------------------------------------------


def _drive(plan: Plan, events: Any) -> None:
    """A process of one GPU."""
    try:
        for settled in run(plan, lambda event: events.put((plan.device, event))):
            events.put((plan.device, settled))
    except KeyboardInterrupt:
        pass
    finally:
        events.put((plan.device, None))


def run_many(plans: list[Plan], watch: Callable[[str, Event], None]) -> Iterator[Settled]:
    """One process a plan; what they settle, as it comes."""
    if len(plans) == 1:
        yield from run(plans[0], lambda event: watch(plans[0].device, event))
        return
    context = get_context("spawn")
    events = context.Queue()
    processes = [context.Process(target=_drive, args=(plan, events)) for plan in plans]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes) or not events.empty():
            try:
                device, item = events.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(item, Settled):
                yield item
            elif isinstance(item, Event):
                watch(device, item)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.terminate()
