"""Knobs of dequant_matmul."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "block_n": (4, 8, 16, 32, 64, 128),
    "block_m": (16, 32, 64),
    "int8_dot": (False, True),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    one_row = case["M"] == 1
    if not one_row and config["block_n"] < 16:
        return f"tl.dot takes at least 16 columns, not {config['block_n']}"
    if (one_row or case["M"] <= 16) and config["block_m"] > 16:
        return f"{case['M']} rows fill one tile of 16 rows, not of {config['block_m']}"
    if config["int8_dot"]:
        if one_row or case["precision"] != "int8":
            return "int8_dot is for several rows of int8 activations"
        if case["format"] == "q6_k":
            return "integer tensor cores take 32 codes a group, q6_k has 16"
        if gpu.startswith("sm75"):
            return "Triton has no integer dot on sm75"
    return None
