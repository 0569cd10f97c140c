"""What trials and cases end with."""

from dataclasses import dataclass, field
from typing import Any

from .race import Race
from .space import Point


@dataclass(frozen=True)
class Outcome:
    """What a trial found. `us` is 0 where nothing was timed."""

    status: str
    why: str = ""
    us: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)
    command: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    number: int
    point: Point
    identity: str
    outcome: Outcome
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A race's figures besides the outcome: what the tuner needs to place the candidate."""

    outcome: Outcome
    race: Race | None = None


@dataclass(frozen=True)
class Verdict:
    """The end of a case: the winner and how it stands against the default."""

    winner: Point
    us: tuple[float, float, float]
    default_us: float
    why: str
    tried: int
    notes: tuple[str, ...] = ()
    # whether the winner is the default
    kept: bool = False
