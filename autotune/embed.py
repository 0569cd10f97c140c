"""Knobs of embed."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"block_c": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["block_c"] > 1 and config["block_c"] * 128 >= case["E"]:
        return f"{config['block_c']} chunks of 256 are more than a row of {case['E']}"
    return None
