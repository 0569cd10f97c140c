"""Knobs of conv_commit."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_C": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_C"] < 32 * config["num_warps"]:
        return f"BLOCK_C {config['BLOCK_C']} leaves some of {config['num_warps']} warps idle"
    return None
