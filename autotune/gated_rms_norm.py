"""Knobs of gated_rms_norm."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_R": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    elements = config["BLOCK_R"] * (1 << (case["D"] - 1).bit_length())
    if elements > 64 * 32 * config["num_warps"]:
        return f"{elements} elements on {config['num_warps']} warps are more than 64 a lane"
    return None
