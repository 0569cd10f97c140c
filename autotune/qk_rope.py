"""Knobs of qk_rope: how many heads share a program and its cosines."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {"BLOCK_H": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8)}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    if config["BLOCK_H"] >= 2 * max(case["H"], case["Hkv"]):
        return f"a block of {config['BLOCK_H']} heads runs as one of {case['H']} heads does"
    return None
