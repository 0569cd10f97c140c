"""The loop: propose, claim, compile ahead, try, record; then play off what is left.

    likely next ─────────────► compile (pool)            several candidates ahead of the GPU
           propose ──► claim ──────┐
    record ◄── time ◄── check ◄────┘                     one at a time, in the worker

The first trial is the default config; every other is raced against the fastest so far. At the end the fastest few and
the default meet again, with more blocks: the fastest stays in only against those that it beats beyond the noise, and of
those that tie, the simplest wins. A winner other than the default then has to pass every oracle on the op's smoke and
edge cases.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .ahead import Built
from .effort import Features
from .outcome import Found, Outcome, Record, Verdict
from .race import MARGIN, Race
from .sampler import Proposer
from .space import Point, Problem
from .trials import Claim, Trials
from .worker import Died

# how many candidates are compiled ahead of the GPU
DEPTH = 8
# how many of the fastest meet again, how near the fastest they have to be, and in how many blocks
PLAYOFF, NEAR, BLOCKS = 5, 1.03, 24
# a case of fewer seconds has no time for more than the fastest and the default
HURRY_S = 5.0


class Runner(Protocol):
    """What tries a candidate: worker.Isolated, or a landscape in its place."""

    facts: dict[str, Any]

    def attempt(self, point: Point, rival: Point | None) -> Found: ...
    def ask(self, verb: str, *arguments: Any) -> Any: ...
    def command(self, point: Point) -> str: ...


@dataclass(frozen=True)
class Budget:
    """When a case is done: so many finished trials of its study, or so many seconds of this run."""

    trials: int = 0
    seconds: float = 0.0


@dataclass
class Event:
    """What the tuner tells whoever watches."""

    kind: str
    case: str
    record: Record | None = None
    best: Record | None = None
    done: int = 0
    of: int = 0
    text: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Contest:
    """Who won, the default where it ran, and what is being compiled for the gate."""

    winner: Record
    base: Record | None
    compiling: "list[Future[Built]]"


class Tuner:
    """One worker on one problem."""

    def __init__(
        self,
        problem: Problem,
        trials: Trials,
        runner: Runner,
        proposer: Proposer,
        budget: Budget,
        watch: Watch = lambda _event: None,
        submit: Callable[[Point], "Future[Built]"] | None = None,
        idle: Callable[[], None] = lambda: None,
        built: Callable[[], Iterable[tuple[Point, Features]]] = lambda: (),
        rehearse: Callable[[Point], list["Future[Built]"]] = lambda _point: [],
        known_bad: Callable[[Point], str | None] = lambda _point: None,
        who: dict[str, Any] | None = None,
        notes: Callable[[], tuple[str, ...]] = lambda: (),
        gated: dict[str, Outcome] | None = None,
        depth: int = DEPTH,
        claims: int = 1,
        patience_s: float = 60.0,
    ) -> None:
        self.problem, self.trials, self.runner, self.proposer = problem, trials, runner, proposer
        self.budget, self.watch, self.submit, self.known_bad = budget, watch, submit, known_bad
        # called between two trials; what compilers have found since; and a start on what the gate runs
        self.idle, self.built, self.rehearse = idle, built, rehearse
        self.who, self.notes = who or {}, notes
        self.depth, self.claims, self.patience_s = depth, claims, patience_s
        self.noted: set[str] = set()
        # what the gate said of a config, for the cases that follow
        self.gated: dict[str, Outcome] = {} if gated is None else gated
        self.waiting: deque[tuple[Claim, Future[Built] | None]] = deque()
        self.compiling: dict[str, Future[Built]] = {}
        self.records: dict[str, Record] = {}
        self.default: Point = runner.facts.get("default", problem.defaults)
        self.asked: dict[str, Any] = runner.facts.get("asked", {})
        self.of = len(problem.points)
        self.contenders = 1 if 0 < budget.seconds < HURRY_S else PLAYOFF
        # of the budget's seconds, those that the search took
        self.searched_s = 0.0

    # -- the search ----------------------------------------------------------------------------------------------------

    def search(self, first: tuple[Point, ...] = ()) -> None:
        """Try points until the budget is spent or none is left. `first` are tried before any proposal."""
        until = float("inf")
        self.trials.bury()
        self._learn()
        seeds = iter((self.default, *first))
        try:
            while time.monotonic() < until:
                self._learn()
                self._fill(seeds)
                self.idle()
                if not self.waiting:
                    break
                if claim := self._compiled(until - time.monotonic()):
                    self._try(claim)
                # the first trial, the default's, is not the search's
                if self.budget.seconds and math.isinf(until):
                    until = time.monotonic() + self.budget.seconds
        finally:
            if not math.isinf(until):
                self.searched_s = self.budget.seconds - max(0.0, until - time.monotonic())
            for claim, _ in self.waiting:
                self.trials.release(claim)

    def _compiled(self, left_s: float) -> Claim | None:
        """The first of the waiting that is compiled; None where none is before the time is over, or patience ran out on
        one."""
        futures = [future for _, future in self.waiting if future is not None]
        if len(futures) == len(self.waiting):
            wait(futures, min(self.patience_s, left_s), FIRST_COMPLETED)
        ready = next((pair for pair in self.waiting if pair[1] is None or pair[1].done()), None)
        if ready is None and left_s < self.patience_s:
            return None
        claim = (ready or self.waiting[0])[0]
        self.waiting = deque(pair for pair in self.waiting if pair[0] is not claim)
        if ready is None:
            self._record(claim, Outcome("refused", f"not compiled in {self.patience_s:.0f} s"))
            return None
        return claim

    def _learn(self) -> None:
        """What this and other workers found since the last look."""
        for identity, record in self.trials.finished().items():
            if identity not in self.records:
                self.records[identity] = record
                self.proposer.result(record.point, record.outcome.us or None)
        self.proposer.taken(self.trials.running().values())
        for point, features in self.built():
            self.proposer.effort(point, features)

    def _fill(self, seeds: Iterator[Point]) -> None:
        depth = self.claims if self.submit else 1
        room = self.budget.trials - len(self.records) if self.budget.trials else self.of + 1
        while len(self.waiting) < min(depth, room):
            point = next(seeds, None) or self.proposer.propose()
            if point is None:
                return
            self.proposer.taken([point])
            if self.trials.identity(point) in self.records:
                continue
            if text := self.known_bad(point):
                self._say("skipped", text=text)
                continue
            if claim := self.trials.claim(point, **self.who):
                # the worker has run the default before it said what that is
                self.waiting.append((claim, None if point == self.default else self._compile(point)))
        if room > len(self.waiting):
            for point in self.proposer.likely(self.depth - len(self.waiting)):
                self._compile(point)

    def _compile(self, point: Point) -> "Future[Built] | None":
        """The compilation of a point, begun once; None where nothing is compiled ahead."""
        if self.submit is None:
            return None
        identity = self.trials.identity(point)
        if identity not in self.compiling:
            self.compiling[identity] = self.submit(point)
        return self.compiling[identity]

    def _try(self, claim: Claim) -> None:
        best = self.best()
        rival = best.point if best else None
        found = self.runner.attempt(claim.point, rival)
        outcome = found.outcome
        if outcome.status == "ok" and best and found.race:
            # the rival's time when it was recorded, times the ratio of now: a clock that has changed since cancels
            scale = best.outcome.us * found.race.ratio / outcome.us
            spread = (outcome.spread[0] * scale, outcome.spread[1] * scale)
            outcome = replace(outcome, us=outcome.us * scale, spread=spread)
        self._record(claim, replace(outcome, notes=self.notes()))

    def _record(self, claim: Claim, outcome: Outcome) -> None:
        for note in set(outcome.notes) - self.noted:
            self.noted.add(note)
            self._say("notice", text=note)
        self.trials.finish(claim, outcome)
        identity = self.trials.identity(claim.point)
        record = Record(claim.number, claim.point, identity, outcome)
        self.records[identity] = record
        self.proposer.result(claim.point, outcome.us or None)
        self._say("trial", record)

    def best(self) -> Record | None:
        ran = [record for record in self.records.values() if record.outcome.status == "ok"]
        return min(ran, key=lambda record: record.outcome.us, default=None)

    def _say(self, kind: str, record: Record | None = None, text: str = "", **extra: Any) -> None:
        of = min(self.budget.trials or self.of, self.of + 1)
        extra = {"name": self.problem.name, **extra}
        self.watch(Event(kind, self.problem.case.id, record, self.best(), len(self.records), of, text, extra))

    # -- the end -------------------------------------------------------------------------------------------------------

    def settle(self) -> Verdict | None:
        """Play off the fastest and the default; None where nothing that ran is right."""
        while contest := self.contest():
            if verdict := self.judge(contest):
                return verdict
        return None

    def contest(self) -> "Contest | None":
        """The fastest few and the default race; what the gate runs on the winner begins to compile."""
        self._learn()
        out = self.trials.disqualified()
        ran = [r for r in self.records.values() if r.outcome.status == "ok" and r.identity not in out]
        ran.sort(key=lambda record: record.outcome.us)
        if not ran:
            return None
        default_id = self.trials.identity(self.default)
        base = next((r for r in ran if r.identity == default_id), None)
        near = [r for r in ran if r.outcome.us <= ran[0].outcome.us * NEAR][: self.contenders]
        winner = self._play([*near, *([base] if base and base not in near else [])], default_id)
        # the default runs wherever nothing is tuned: `draftwood check` judges it
        return Contest(winner, base, [] if winner is base else self.rehearse(winner.point))

    def judge(self, contest: "Contest") -> Verdict | None:
        """Whether the winner passes the gate; None where it does not, and is out. The runner may be at another case."""
        winner, base = contest.winner, contest.base
        self._say("gate", winner)
        gate = Outcome("ok") if winner is base else self._gate(contest)
        if gate.status == "ok":
            return self._verdict(winner, base)
        self.trials.disqualify(winner, gate.why)
        self._say("refused", winner, text=gate.why)
        return None

    def _play(self, field_: list[Record], default_id: str) -> Record:
        """The simplest of those that tie with the fastest."""
        fastest, races = field_[0], dict[int, Race]()
        for record in field_[1:]:
            races[record.number] = self._duel(fastest.point, record.point)
            if races[record.number].verdict == "faster":
                fastest, races = record, {}
        ties = [fastest, *(r for r in field_ if r is not fastest and self._ties(fastest, r, races))]
        return min(ties, key=lambda r: self._complexity(r, default_id))

    def _ties(self, fastest: Record, other: Record, races: dict[int, Race]) -> bool:
        if other.number not in races:
            races[other.number] = self._duel(fastest.point, other.point)
        return races[other.number].verdict != "slower"

    def _duel(self, a: Point, b: Point) -> Race:
        return self.runner.ask("duel", a, b, BLOCKS, MARGIN)

    def _complexity(self, record: Record, default_id: str) -> tuple[Any, ...]:
        """The default first, then the fewest knobs away from it, then the faster."""
        config = {**self.problem.defaults, **record.point}
        away = sum(config[k] != {**self.problem.defaults, **self.default}[k] for k in config)
        return record.identity != default_id, away, record.outcome.us

    def _gate(self, contest: "Contest") -> Outcome:
        record = contest.winner
        names = {k: v for k, v in self.problem.case.as_dict().items() if isinstance(v, str)}
        key = repr((self.problem.op_name, record.identity, sorted(names.items())))
        if key not in self.gated:
            wait(contest.compiling, self.patience_s)
            try:
                found: Found = self.runner.ask("gate", self.problem, self.asked, record.point)
                self.gated[key] = found.outcome
            except Died as death:
                self.gated[key] = Outcome(death.status, death.why, command=self.runner.command(record.point))
        return self.gated[key]

    def _verdict(self, winner: Record, base: Record | None) -> Verdict:
        us = (winner.outcome.spread[0], winner.outcome.us, winner.outcome.spread[1])
        default_us = base.outcome.us if base else 0.0
        same = base is not None and winner.identity == base.identity
        text = "the default: nothing is faster beyond the noise" if same else "faster than the default beyond the noise"
        if base is None:
            tried = self.trials.identity(self.default) in self.records
            text = "the default is not right here" if tried else "the default was not tried"
        return Verdict(winner.point, us, default_us, text, len(self.records), kept=same)


def describe(point: Point) -> str:
    return " ".join(
        f"{knob}={json.dumps(value) if isinstance(value, bool) else value}" for knob, value in point.items()
    )
