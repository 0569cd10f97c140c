"""The trials of one problem: claimed by one worker each, on disk as soon as they end, never repeated.

    claim   a trial appears in the study as RUNNING, with its config, identity and owner, in one write. Whoever claims
            the same identity later sees the earlier number, and lets go.
    finish  COMPLETE with its microseconds, or FAIL with why: wrong, refused, crashed, hung.

A RUNNING trial whose owner is dead was not finished: it is marked and may be claimed again. Studies are named
op/gpu/case@space: a space with another knob or value is another study, into which every finished trial that is still
valid (same config, same kernel hash, same versions) is copied, not timed again.
"""

import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from .outcome import Outcome, Record
from .space import Point, Problem

# a claim of another machine is given up after this long
LEASE_S = 1800.0


@dataclass(frozen=True)
class Claim:
    number: int
    trial_id: int
    point: Point


def me() -> str:
    """This process, told apart from a later one of the same number."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(owner: str, since: float) -> bool:
    host, pid, started = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return time.time() - since < LEASE_S
    return _started(int(pid)) == started != ""


class Trials:
    """The study of one problem in one storage."""

    def __init__(self, problem: Problem, storage: BaseStorage) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.problem, self.storage = problem, storage
        self.name = f"{problem.name}@{problem.space_hash}"
        self.study = optuna.create_study(
            storage=storage, study_name=self.name, direction="minimize", load_if_exists=True
        )
        self.study_id = storage.get_study_id_from_name(self.name)
        self.distributions = {knob: CategoricalDistribution(values) for knob, values in problem.space.items()}
        self._identities: dict[str, str] = {}

    def identity(self, point: Point) -> str:
        key = repr(sorted(point.items()))
        if key not in self._identities:
            self._identities[key] = self.problem.identity(point)
        return self._identities[key]

    # -- reading -------------------------------------------------------------------------------------------------------

    def _all(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def finished(self) -> dict[str, Record]:
        """Every finished trial of the kernel and the versions at hand, by identity; the first where there are two."""
        found: dict[str, Record] = {}
        for trial in self._all():
            if (record := _record(trial)) and record.identity not in found and self._fits(trial):
                found[record.identity] = record
        return found

    def running(self) -> dict[str, Point]:
        """What living workers have claimed and not finished."""
        return {
            trial.user_attrs["identity"]: trial.user_attrs["point"]
            for trial in self._all()
            if trial.state == TrialState.RUNNING and _held(trial)
        }

    def _fits(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs["identity"] == self.identity(trial.user_attrs["point"])

    # -- writing -------------------------------------------------------------------------------------------------------

    def _template(self, point: Point, state: TrialState, attrs: dict[str, Any], us: float | None) -> FrozenTrial:
        known = {knob: value for knob, value in point.items() if value in self.problem.space.get(knob, ())}
        # a point outside the space, as the defaults may be, has no parameters
        params = known if len(known) == len(self.problem.space) else {}
        return create_trial(
            state=state,
            value=us,
            params=params,
            distributions={knob: self.distributions[knob] for knob in params},
            user_attrs=attrs,
        )

    def claim(self, point: Point, **extra: Any) -> Claim | None:
        """The right to try this point, or None where another has it or has done it."""
        identity = self.identity(point)
        attrs = {"identity": identity, "point": point, "owner": me(), "since": time.time(), **extra}
        trial_id = self.storage.create_new_trial(self.study_id, self._template(point, TrialState.RUNNING, attrs, None))
        number = self.storage.get_trial(trial_id).number
        for trial in self._all():
            same = trial.number < number and trial.user_attrs.get("identity") == identity
            if same and (_record(trial) or (trial.state == TrialState.RUNNING and _held(trial))):
                self._drop(trial_id, "duplicate")
                return None
        return Claim(number, trial_id, point)

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """The result, then the state: a trial with a result and no state is completed on the next visit."""
        self.storage.set_trial_user_attr(claim.trial_id, "outcome", asdict(outcome))
        self._close(claim.trial_id, outcome)

    def _close(self, trial_id: int, outcome: Outcome) -> None:
        if outcome.status == "ok":
            self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [outcome.us])
        else:
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def release(self, claim: Claim) -> None:
        """Give a claim back untried."""
        self._drop(claim.trial_id, "released")

    def _drop(self, trial_id: int, reason: str) -> None:
        self.storage.set_trial_user_attr(trial_id, "dropped", reason)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def disqualify(self, record: Record, why: str) -> None:
        """A finished trial that failed where the winner is looked at closely; it stays out of later play-offs."""
        self.storage.set_study_user_attr(self.study_id, f"disqualified {record.identity}", why)

    def disqualified(self) -> dict[str, str]:
        attrs = self.storage.get_study_user_attrs(self.study_id)
        return {key.split()[1]: why for key, why in attrs.items() if key.startswith("disqualified ")}

    def bury(self) -> int:
        """Close what dead workers left: finished where the result stands, else dropped. Returns how many."""
        left = [t for t in self._all() if t.state == TrialState.RUNNING and not _held(t)]
        for trial in left:
            try:
                if "outcome" in trial.user_attrs:
                    self._close(trial._trial_id, Outcome(**trial.user_attrs["outcome"]))
                else:
                    self._drop(trial._trial_id, "owner died")
            except (optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
                # another worker buried it first
                continue
        return len(left)

    def adopt(self) -> int:
        """Copy what other studies of this op, GPU and case know and this one does not. Returns how many."""
        known = set(self.finished())
        wanted = {self.identity(point): point for point in [self.problem.defaults, *self.problem.points]}
        count = 0
        for study in self.storage.get_all_studies():
            if study.study_name == self.name or not study.study_name.startswith(f"{self.problem.name}@"):
                continue
            for trial in self.storage.get_all_trials(study._study_id, deepcopy=False):
                record = _record(trial)
                if record and record.identity in wanted and record.identity not in known:
                    known.add(record.identity)
                    self._copy(record, wanted[record.identity], study.study_name)
                    count += 1
        return count

    def _copy(self, record: Record, point: Point, source: str) -> None:
        outcome = record.outcome
        attrs = {**record.extra, "identity": record.identity, "point": point, "outcome": asdict(outcome)}
        state, us = (TrialState.COMPLETE, outcome.us) if outcome.status == "ok" else (TrialState.FAIL, None)
        self.study.add_trial(self._template(point, state, {**attrs, "copied_from": source}, us))


def _held(trial: FrozenTrial) -> bool:
    attrs = trial.user_attrs
    return "owner" not in attrs or alive(attrs["owner"], attrs["since"])


def _record(trial: FrozenTrial) -> Record | None:
    """A finished trial; None for one that runs, was dropped, or came from elsewhere."""
    attrs = trial.user_attrs
    if not trial.state.is_finished() or "outcome" not in attrs:
        return None
    outcome = Outcome(**{**attrs["outcome"], "spread": tuple(attrs["outcome"]["spread"])})
    extra = {k: v for k, v in attrs.items() if k not in ("identity", "point", "outcome")}
    return Record(trial.number, attrs["point"], attrs["identity"], outcome, extra)
