"""Knobs of kv_move: how many columns of the rows a program moves."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_C": (32, 64, 128, 256)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    return None
