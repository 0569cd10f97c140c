"""Knobs of conv_line."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_T": (4, 8, 16, 32),
    "BLOCK_C": (64, 128, 256, 512),
    "num_warps": (1, 2, 4, 8),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_T"] > max(4, case["T"]):
        return f"BLOCK_T {config['BLOCK_T']} runs as a smaller block on {case['T']} tokens"
    elements = min(config["BLOCK_T"], case["T"]) * config["BLOCK_C"]
    if elements < 32 * config["num_warps"]:
        return f"{elements} elements leave some of {config['num_warps']} warps idle"
    if elements > 64 * 32 * config["num_warps"]:
        return f"{elements} elements need more than 64 registers a thread of {config['num_warps']} warps"
    return None
