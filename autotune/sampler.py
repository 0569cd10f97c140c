"""Which point to try next.

tpe and cmaes are Optuna's. They see a study of their own, in memory, in which a knob whose values are numbers in order
is an integer (its place in the order) and any other knob is a category; what they propose is moved to the nearest point
that is legal and untried. gp looks at all legal points (surrogate.py), and at what the binaries of the compiled ones
tell (effort.py). A point is proposed once.
"""

import itertools
import math
import random
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.trial import TrialState, create_trial

from .effort import Features
from .space import Point, Problem
from .surrogate import Surrogate

NAMES = ("gp", "tpe", "cmaes", "random", "grid")
DEFAULT = "gp"
# a point that is wrong or does not run counts as this many times slower than the slowest that ran
PENALTY = 1.5
# gp: points before the model speaks where nothing is foreseen, the default among them; how far above the median, in
# log2(us), times are told apart; how many of the fastest trials it looks at; and how much more has to be compiled for
# it to look again
STARTUP, SLOW, MOST, GROWN = 3, 0.3, 48, 1.25
Key = tuple[int, ...]


class Chooser(Protocol):
    """Chooses among the keys that are left; told what is pending and what came out."""

    def pending(self, key: Key) -> None: ...
    def result(self, key: Key, value: float) -> None: ...
    def effort(self, key: Key, features: Features) -> None: ...
    def choose(self, left: dict[Key, Point]) -> Key: ...
    def likely(self, left: dict[Key, Point], count: int) -> list[Key]: ...


def _ordered(values: tuple[Any, ...]) -> bool:
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(numbers) == len(values) and list(numbers) == sorted(numbers)


class Proposer:
    """Proposes points of one problem; told what is claimed and what came out."""

    def __init__(self, problem: Problem, sampler: str = DEFAULT, seed: int = 0) -> None:
        if sampler not in NAMES:
            raise ValueError(f"no sampler named '{sampler}'; there are {', '.join(NAMES)}")
        # a knob of one value decides nothing
        self.axes = {knob: values for knob, values in problem.space.items() if len(values) > 1}
        self.left = {self._key(point): point for point in problem.points}
        self.worst = -math.inf
        self.chooser = _chooser(sampler, self.axes, list(self.left), seed)

    def _key(self, point: Point) -> Key:
        """A point as its places in the space; -1 for a value that is not in it."""
        return tuple(values.index(point[knob]) if point[knob] in values else -1 for knob, values in self.axes.items())

    def taken(self, points: Iterable[Point]) -> None:
        """Points that somebody tries now."""
        for point in points:
            if self.left.pop(key := self._key(point), None) is not None:
                self.chooser.pending(key)

    def result(self, point: Point, us: float | None) -> None:
        """What a point took; None where it was wrong or did not run."""
        key = self._key(point)
        self.left.pop(key, None)
        value = math.log2(us) if us else max(self.worst, 0.0) + math.log2(PENALTY)
        self.worst = max(self.worst, value) if us else self.worst
        if -1 not in key:
            self.chooser.result(key, value)

    def effort(self, point: Point, features: Features) -> None:
        """What a point takes as far as its binaries tell (effort.py)."""
        self.chooser.effort(self._key(point), features)

    def propose(self) -> Point | None:
        """A legal point that nobody has tried; None when there is none left."""
        return self.left[self.chooser.choose(self.left)] if self.left else None

    def likely(self, count: int) -> list[Point]:
        """What may be proposed soon, most likely first: worth compiling before anybody has decided."""
        return [self.left[key] for key in self.chooser.likely(self.left, count)]


def _chooser(sampler: str, axes: dict[str, tuple[Any, ...]], keys: list[Key], seed: int) -> Chooser:
    # a tenth of the space may be all that is tried: a fourth of that to look around
    startup = max(3, min(8, len(keys) // 30))
    match sampler:
        case "gp":
            return Model(axes, keys, seed)
        case "tpe":
            return Foreign(axes, TPESampler(seed=seed, multivariate=True, n_startup_trials=startup), seed)
        case "cmaes":
            if find_spec("cmaes") is None:
                raise ValueError("the sampler cmaes needs the package of that name; pip install 'draftwood[tune]'")
            cma = CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            return Foreign(axes, cma, seed, learns_from_own_only=True)
    if sampler == "random":
        random.Random(seed).shuffle(keys)
    return Listed(keys)


class Listed:
    """The points in a given order: grid and random."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys

    def pending(self, key: Key) -> None:
        return

    def result(self, key: Key, value: float) -> None:
        return

    def effort(self, key: Key, features: Features) -> None:
        return

    def choose(self, left: dict[Key, Point]) -> Key:
        return self.likely(left, 1)[0]

    def likely(self, left: dict[Key, Point], count: int) -> list[Key]:
        while self.keys and self.keys[0] not in left:
            self.keys.pop(0)
        return list(itertools.islice((key for key in self.keys if key in left), count))


class Model:
    """The Gaussian processes. What is pending counts as found to be what they expect of it."""

    def __init__(self, axes: dict[str, tuple[Any, ...]], keys: list[Key], seed: int) -> None:
        self.keys = keys
        self.index = {key: i for i, key in enumerate(keys)}
        self.coordinates = np.array([_coordinates(axes, key) for key in keys], dtype=float).reshape(len(keys), -1)
        self.seed, self.draw = seed, np.random.default_rng(seed).random(len(keys))
        self.known: dict[int, float] = {}
        self.waiting: set[int] = set()
        self.efforts: dict[int, Features] = {}
        # what the surrogate was made with
        self.weighed: set[int] = set()
        self.surrogate: Surrogate | None = None

    def pending(self, key: Key) -> None:
        self.waiting.add(self.index[key])

    def result(self, key: Key, value: float) -> None:
        if key in self.index:
            self.waiting.discard(self.index[key])
            self.known[self.index[key]] = value

    def effort(self, key: Key, features: Features) -> None:
        if key in self.index:
            self.efforts.setdefault(self.index[key], features)

    def choose(self, left: dict[Key, Point]) -> Key:
        return self.likely(left, 1)[0]

    def likely(self, left: dict[Key, Point], count: int) -> list[Key]:
        free = np.array([self.index[key] for key in left], dtype=int)
        if not len(free):
            return []
        model, known = self._model(), [i for i in self.known if i in self.weighed]
        weighed = np.array([i in self.weighed for i in free])
        if known and weighed.any():
            # what is compiled is known better: it goes first
            order = np.lexsort((-self._promise(model, free, known), ~weighed))
        elif len(self.known) + len(self.waiting) < STARTUP or len(self.known) < 2:
            order = np.argsort(self.draw[free])
        else:
            order = np.argsort(-self._promise(model, free, list(self.known)))
        return [self.keys[i] for i in free[order[:count]]]

    def _model(self) -> Surrogate:
        """Made anew when a quarter more is compiled, or a trial came of what was not."""
        news = any(i in self.efforts and i not in self.weighed for i in self.known)
        if self.surrogate is None or news or len(self.efforts) > GROWN * len(self.weighed):
            self.weighed = set(self.efforts)
            x, foreseen = self.coordinates, np.zeros(len(self.keys))
            if self.efforts:
                middle = np.median(np.array(list(self.efforts.values())), 0)
                features = np.array([self.efforts.get(i, middle) for i in range(len(self.keys))])
                low, high = features.min(0), features.max(0)
                foreseen = features[:, 0]
                x = np.hstack([x, ((features - low) / np.where(high > low, high - low, 1.0))[:, 1:]])
            self.surrogate = Surrogate(x, foreseen, self.seed)
        return self.surrogate

    def _promise(self, model: Surrogate, free: np.ndarray, known: list[int]) -> np.ndarray:
        known = sorted(known, key=lambda i: self.known[i])[:MOST]
        y = np.array([self.known[i] for i in known])
        # how slow a slow point is teaches nothing about the fast ones
        y = np.minimum(y, np.median(y) + SLOW)
        model.fit(known, y)
        if self.waiting:
            waiting = list(self.waiting)
            y = np.concatenate([y, model.expected(np.array(waiting))])
            model.fit([*known, *waiting], y)
        return model.improvement(free, float(y.min()))


class Foreign:
    """A sampler of Optuna's, on its own study."""

    def __init__(
        self, axes: dict[str, tuple[Any, ...]], sampler: BaseSampler, seed: int, learns_from_own_only: bool = False
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.axes, self.own_only, self.random = axes, learns_from_own_only, random.Random(seed)
        self.study = optuna.create_study(sampler=sampler, direction="minimize")
        self.asked: dict[Key, optuna.Trial] = {}
        self.shadow: dict[Key, int] = {}
        self.distributions: dict[str, BaseDistribution] = {
            knob: IntDistribution(0, len(values) - 1) if _ordered(values) else CategoricalDistribution(values)
            for knob, values in axes.items()
        }

    def pending(self, key: Key) -> None:
        if key in self.asked or key in self.shadow:
            return
        params = {
            knob: place if isinstance(self.distributions[knob], IntDistribution) else values[place]
            for place, (knob, values) in zip(key, self.axes.items(), strict=True)
        }
        trial = create_trial(state=TrialState.RUNNING, params=params, distributions=self.distributions)
        self.shadow[key] = self.study._storage.create_new_trial(self.study._study_id, template_trial=trial)

    def result(self, key: Key, value: float) -> None:
        if trial := self.asked.pop(key, None):
            self.study.tell(trial, value)
            return
        self.pending(key)
        self.study._storage.set_trial_state_values(self.shadow.pop(key), TrialState.COMPLETE, [value])

    def effort(self, key: Key, features: Features) -> None:
        return

    def choose(self, left: dict[Key, Point]) -> Key:
        trial = self.study.ask(self.distributions)
        found = trial.params
        wanted = tuple(
            found[knob] if isinstance(self.distributions[knob], IntDistribution) else values.index(found[knob])
            for knob, values in self.axes.items()
        )
        key = wanted if wanted in left else self._nearest(wanted, left)
        if self.own_only:
            # the trial it asked for stands for the point it was moved to
            self.asked[key] = trial
        else:
            self.study.tell(trial, state=TrialState.FAIL)
        return key

    def likely(self, left: dict[Key, Point], count: int) -> list[Key]:
        """Nothing: to ask is to decide."""
        return []

    def _nearest(self, wanted: Key, left: Iterable[Key]) -> Key:
        at = _coordinates(self.axes, wanted)
        apart = {key: sum(abs(a - b) for a, b in zip(_coordinates(self.axes, key), at, strict=True)) for key in left}
        least = min(apart.values())
        return self.random.choice([key for key, distance in apart.items() if distance <= least + 1e-9])


def _coordinates(axes: dict[str, tuple[Any, ...]], key: Key) -> list[float]:
    """A point in 0..1: an ordered knob is one axis, any other as many as it has values."""
    found: list[float] = []
    for place, values in zip(key, axes.values(), strict=True):
        if _ordered(values):
            found.append(place / (len(values) - 1))
        else:
            found += [0.5 * (i == place) for i in range(len(values))]
    return found
