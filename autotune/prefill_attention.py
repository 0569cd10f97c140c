"""Knobs of prefill_attention: queries and rows of the cache in a tile."""

from typing import Any

from ..reference.spec import Case
from .tree_attention import fits

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_M": (16, 32, 64, 128),
    "BLOCK_S": (16, 32, 64, 128),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_M"] > 16 and config["BLOCK_M"] >= 2 * case["T"]:
        return f"a tile of {config['BLOCK_M']} queries runs as one of {case['T']} does"
    return fits(config, case, gpu)
