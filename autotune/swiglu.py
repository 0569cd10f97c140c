"""Knobs of swiglu."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_F": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_F"] > 64 * 32 * config["num_warps"]:
        return f"{config['BLOCK_F']} elements on {config['num_warps']} warps are more than 64 a lane"
    return None
