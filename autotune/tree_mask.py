"""Knobs of tree_mask."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_I": (1, 4, 8, 16, 32, 64), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_I"] > 2 * case["T"]:
        return f"BLOCK_I {config['BLOCK_I']} is more than twice the {case['T']} slots of a tree"
    return None
