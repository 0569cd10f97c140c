"""Knobs of kv_quant: rows a program quantises, and the warps that share them."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_R": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    values = config["BLOCK_R"] * case["D"] // (32 * config["num_warps"])
    if values > 128:
        return f"{values} values a thread spill"
    return None
