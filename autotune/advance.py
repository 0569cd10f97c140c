"""Knobs of advance: a path fits one warp."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"num_warps": (1, 2, 4)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    return None
