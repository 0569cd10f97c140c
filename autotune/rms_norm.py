"""Knobs of rms_norm."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"num_warps": (0, 1, 2, 4, 8, 16, 32)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    return None
