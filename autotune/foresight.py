"""Why a config will not run on an architecture, from the op's spec and the config alone; nothing is compiled."""

from typing import Any

from ..reference.ops import Op
from ..reference.spec import Case
from .gpu import Arch


def foresee(op: Op, case: Case, config: dict[str, Any], arch: Arch) -> str | None:
    """A sentence, or None where nothing speaks against it."""
    return None
