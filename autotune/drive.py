"""Tuning many cases on one or several GPUs.

    one process a GPU:   its worker, its pool of compilers, all on the same studies
    this process:        listens, and writes the winners

Every process goes through the cases in the same order, so that all GPUs work on one study until it is done; the first
process plays off the winner while the others go on.
"""

import math
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

from optuna.storages import BaseStorage
from triton.backends.compiler import GPUTarget

from . import winners
from .ahead import SLACK, Ahead, Built
from .effort import Features, features
from .neighbours import Neighbours
from .outcome import Outcome, Verdict
from .sampler import DEFAULT, Proposer
from .space import Point, Problem
from .storage import open_storage
from .trials import Trials
from .tuner import DEPTH, Budget, Contest, Event, Tuner
from .worker import Died, Isolated, Post, gate_cases

# of all legal points, where neither trials nor time is given: enough for the default sampler (perf/LOG.md)
SHARE, LEAST = 0.12, 24
# of one case, before its search ends
MOST_COMPILED = 256
# where time is given, a case is searched for so many seconds at least, and claims so many points: one is tried while
# another is compiled
LEAST_S, CLAIMS = 0.1, 2
# about what a trial takes: compilers work ahead on twice as many points as a case will have time for, and a few more:
# no case finds them busy with what nobody will try
TRIAL_S, SPARE = 0.15, 2
# a case that is searched for less has no time to wait for compilers: they work on the first points of every case, then
# on more of every case, and are told of what won so many cases ahead
BRIEF_S, AHEAD, ROUNDS = 3.0, 8, (2, 4, 8, 16, 256)
# of so many cases before, the time beside the search is remembered; so many of the longest tell nothing of the rest: a
# reference that goes token by token, a worker that had to be replaced
REMEMBERED, RARE = 24, 3


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


def tried_in(seconds: float) -> int:
    """So many points of a case are worth compiling where it is searched for so many seconds."""
    return SPARE + math.ceil(2 * max(0.0, seconds) / TRIAL_S)


class Shares:
    """The seconds of a call. Every case takes some beside its search: its operands, the reference, the default's trial,
    the play-off, the gate. What the cases to come will take so is put aside, and the rest is shared by worth."""

    def __init__(self, seconds: float, worth: list[int]) -> None:
        self.until, self.worth = time.monotonic() + seconds, worth
        self.beside: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def of(self, number: int) -> float:
        """How long to search the case of this number."""
        rest = self.worth[number:]
        usual = sorted(self.beside)[: max(1, len(self.beside) - RARE)]
        aside = sum(usual) / max(1, len(usual)) * len(rest)
        return max(LEAST_S, (self.left - aside) * rest[0] / sum(rest))


def run(plan: Plan, watch: Watch) -> Iterator[Settled]:
    """Tune every case on one device. While a case is searched, compilers work on the gate of the one before and on the
    cases that follow; a winner is judged as soon as what that takes is compiled."""
    storage = open_storage(plan.storage)
    shares = Shares(plan.seconds, [wanted(problem) if plan.seconds else 1 for problem in plan.problems])
    runner: Isolated | None = None
    gated: dict[str, Outcome] = {}
    # what is known of the GPU before the worker is there spares the compilers its start
    ahead = _pool(plan, plan.target) if plan.target else None
    neighbours: Neighbours | None = None
    judged: deque[tuple[Tuner, Contest, dict[str, Any]]] = deque()
    # what was fastest on the cases before, by op
    won: dict[str, list[dict[str, Any]]] = {}
    try:
        for number, problem in enumerate(plan.problems):
            begun = time.monotonic()
            if plan.seconds and shares.left <= 0:
                watch(Event("given up", problem.case.id, text=f"no time for {len(plan.problems) - number} cases"))
                break
            try:
                if runner is None:
                    runner = Isolated(problem, Post(plan.device, plan.times, plan.timeout_s))
                    # to start a worker is not what a case takes
                    begun = time.monotonic()
                else:
                    runner.load(problem)
            except Died as death:
                text = f"the worker does not start: {death}"
                watch(Event("given up", problem.case.id, text=text, extra={"name": problem.name}))
                continue
            facts = runner.facts
            if ahead is None and not plan.device.startswith("cpu"):
                ahead = _pool(plan, facts["target"])
            neighbours = neighbours or Neighbours(facts.get("uuid", ""))
            tuner = _tuner(plan, problem, storage, runner, ahead, neighbours, gated, shares.of(number), watch)
            near = winners.carried(problem, won.get(problem.op_name, []))
            tuner.search((*([near] if near else []), *plan.first.get(problem.name, ())))
            if ahead:
                ahead.drop(problem)
            if not plan.lead:
                continue
            if contest := tuner.contest():
                judged.append((tuner, contest, facts))
                one = {"case": problem.case.as_dict(), "config": contest.winner.point}
                won.setdefault(problem.op_name, []).append(one)
                if ahead and plan.seconds:
                    _pass_on(ahead, won, plan.problems[number + 1 : number + 1 + AHEAD])
            else:
                yield Settled(problem, None, None, facts)
            while judged and all(future.done() for future in judged[0][1].compiling):
                yield _settled(*judged.popleft(), runner)
            shares.beside.append(time.monotonic() - begun - tuner.searched_s)
        while judged and runner:
            yield _settled(*judged.popleft(), runner)
    finally:
        if runner:
            runner.close()
        if ahead:
            ahead.close()
        if neighbours:
            neighbours.close()


def _tuner(
    plan: Plan,
    problem: Problem,
    storage: BaseStorage,
    runner: Isolated,
    ahead: Ahead | None,
    neighbours: Neighbours,
    gated: dict[str, Outcome],
    seconds: float,
    watch: Watch,
) -> Tuner:
    trials, facts = Trials(problem, storage), runner.facts
    if copied := trials.adopt():
        watch(Event("copied", problem.case.id, text=f"{copied} trials of another space are still valid"))
    extra = {"name": problem.name, "points": len(problem.points), "read_gb_s": facts["read_gb_s"]}
    watch(Event("started", problem.case.id, extra=extra))
    bad = plan.known_bad.get(problem.name, {})
    width = plan.compilers or compilers(1)
    # a model proposes better the more it knows; a list loses nothing by deciding early
    claims = width if plan.sampler in ("grid", "random") else CLAIMS if plan.seconds else 1
    proposer = Proposer(problem, plan.sampler, plan.seed)
    pool = Compiling(ahead, problem, facts) if ahead else None
    few = tried_in(seconds) if plan.seconds else MOST_COMPILED
    brief = plan.seconds > 0 and seconds < BRIEF_S
    if pool and plan.sampler == DEFAULT and not brief:
        # what the binaries tell is worth more than a trial: where there is time, all of them
        pool.want(proposer.likely(min(few, MOST_COMPILED)), 0.0 if plan.seconds else plan.timeout_s)
    return Tuner(
        problem,
        trials,
        runner,
        proposer,
        budget(plan, problem, seconds),
        watch,
        pool.submit if pool else None,
        pool.idle if pool else lambda: None,
        pool.built if pool else lambda: (),
        pool.rehearse if pool else lambda _point: [],
        lambda point: bad.get(trials.identity(point)),
        {"device": plan.device, "sampler": plan.sampler},
        neighbours.notes,
        gated,
        depth=claims if brief else min(max(DEPTH, width), few),
        claims=claims,
        patience_s=plan.timeout_s,
    )


def _settled(tuner: Tuner, contest: Contest, facts: dict[str, Any], runner: Isolated) -> Settled:
    """Judge a winner; where it is refused, play its case off again."""
    verdict = tuner.judge(contest)
    if verdict is None:
        try:
            runner.load(tuner.problem)
            verdict = tuner.settle()
        except Died:
            pass
    machine, read, asked = facts["machine"], facts["read_gb_s"], facts.get("asked", {})
    entry = winners.made(tuner.problem, machine, verdict, read, asked) if verdict else None
    return Settled(tuner.problem, verdict, entry, facts)


class Compiling:
    """The pool as the tuner of one case sees it."""

    def __init__(self, ahead: Ahead, problem: Problem, facts: dict[str, Any]) -> None:
        self.ahead, self.problem, self.facts = ahead, problem, facts
        self.told: set[str] = set()

    def want(self, points: list[Point], seconds: float) -> None:
        """Compile these before what other cases want, and wait for so long."""
        self.ahead.drop(self.problem)
        self.ahead.later(self.problem, [None, *points], first=True)
        until = time.monotonic() + seconds
        while self.ahead.kept and self.ahead.kept[0][0] == self.problem and time.monotonic() < until:
            self.ahead.pump()
            time.sleep(0.02)
        wait([future for _, future in self.ahead.given_to(self.problem)], max(0.0, until - time.monotonic()))

    def submit(self, point: Point) -> "Future[Built]":
        return self.ahead.submit(self.problem, self.facts["shapes"], point)

    def idle(self) -> None:
        self.ahead.pump()

    def built(self) -> Iterator[tuple[Point, Features]]:
        """What was compiled since the last call, and what it will take."""
        for point, future in self.ahead.given_to(self.problem):
            if repr(point) in self.told or not future.done():
                continue
            self.told.add(repr(point))
            if not future.exception() and (launches := future.result().launches):
                yield self.facts["default"] if point is None else point, features(launches, self.problem.gpu)

    def rehearse(self, point: Point) -> "list[Future[Built]]":
        """Begin to compile what the gate runs."""
        cases = gate_cases(self.problem, self.facts["asked"], point)
        return [self.ahead.submit(replace(self.problem, case=case), None, point) for case in cases]


def _pool(plan: Plan, target: tuple[Any, ...]) -> Ahead:
    """Compilers, with work for every case: all defaults, then the rest case by case."""
    ahead = Ahead(plan.compilers or compilers(1), GPUTarget(*target))
    for problem in plan.problems:
        ahead.later(problem, [None])
    total = sum(wanted(problem) for problem in plan.problems)
    if not plan.seconds:
        for problem in plan.problems:
            ahead.later(problem, _likely(plan, problem, 2 * wanted(problem)))
    else:
        many = {problem: tried_in(plan.seconds * wanted(problem) / total) for problem in plan.problems}
        first = {problem: _likely(plan, problem, count) for problem, count in many.items()}
        for size in ROUNDS:
            for problem, points in first.items():
                ahead.later(problem, points[:size])
                del points[:size]
    # enough to do until the worker has started
    ahead.pump(len(plan.problems) + 8 * ahead.workers if plan.seconds else SLACK)
    return ahead


def _pass_on(ahead: Ahead, won: dict[str, list[dict[str, Any]]], problems: tuple[Problem, ...]) -> None:
    """Compile what won for the last of the cases that follow: it is tried there first."""
    if problems and (point := winners.carried(problems[-1], won.get(problems[-1].op_name, []))):
        ahead.later(problems[-1], [point], first=True)


def _likely(plan: Plan, problem: Problem, count: int) -> list[Point]:
    """What a case will try first, given points before all."""
    proposer = Proposer(problem, plan.sampler, plan.seed)
    return [*plan.first.get(problem.name, ()), *proposer.likely(count)]


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
