"""Knobs of ring_store."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_C": (256, 512, 1024, 2048), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_C"] < 32 * config["num_warps"]:
        return f"{config['BLOCK_C']} columns leave some of {config['num_warps']} warps idle"
    return None
