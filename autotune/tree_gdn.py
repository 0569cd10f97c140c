"""Knobs of tree_gdn."""

from typing import Any

from ..kernels.tree_gdn import ONE_BLOCK, Config
from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_V": (4, 8, 16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "factor_warps": (1, 2, 4, 8),
    "BLOCK_T": (16, 32, 64),
    "BLOCK_K": (32, 64, 128),
    "one_block": (64, 16),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    width, warps = config["BLOCK_V"], config["num_warps"]
    if width > case["V"]:
        return f"BLOCK_V {width} is larger than V, {case['V']}"
    if case["strategy"].startswith("store"):
        if width * case["K"] > 128 * 32 * warps:
            return f"{width} x {case['K']} of state take more than 128 registers a thread of {warps} warps"
        return unread(config, ("factor_warps", "BLOCK_T", "BLOCK_K", "one_block"), case["strategy"])
    if width < 16:
        return f"a dot is at least 16 wide, BLOCK_V is {width}"
    if config["one_block"] != ONE_BLOCK and (gpu.startswith("sm90") or not 16 < case["T"] <= ONE_BLOCK):
        return f"{case['T']} nodes are as many blocks whatever one_block is, or on sm90 faster as one"
    if case["T"] <= config["one_block"]:
        small = case["T"] <= 16
        if config["factor_warps"] not in ((1, 2, 4) if small else (4, 8)):
            return f"{config['factor_warps']} warps do not suit the factors of a block of {16 if small else ONE_BLOCK}"
        return crowded(width, case["K"], warps, gpu) or unread(config, ("BLOCK_T", "BLOCK_K"), "a tree of one block")
    if config["BLOCK_K"] > case["K"]:
        return f"BLOCK_K {config['BLOCK_K']} is larger than K, {case['K']}"
    if config["BLOCK_T"] ** 2 > 32 * 32 * warps:
        return f"several matrices of {config['BLOCK_T']} squared take more than 32 registers each of {warps} warps"
    # a tree that could be one block starts from the warps of its factors
    start = Config(factor_warps=8) if case["T"] <= ONE_BLOCK else Config()
    return unread(config, ("factor_warps",), "a tree of several blocks", start)


def unread(config: dict[str, Any], names: tuple[str, ...], who: str, default: object = Config()) -> str | None:
    """Why other values than the default of what `who` does not read are no configs of their own, or None."""
    odd = [name for name in names if config[name] != getattr(default, name)]
    return f"{who} does not read {', '.join(odd)}" if odd else None


def crowded(width: int, K: int, warps: int, gpu: str) -> str | None:
    """Why a block of the state and its three bf16 parts do not suit these warps, in a sentence, or None."""
    if width * K > 64 * 32 * warps:
        return f"{width} x {K} of state and its parts take more than 160 registers a thread of {warps} warps"
    if width == 64 and warps == 8:
        return "triton 3.6 multiplies 64 rows wrongly with 8 warps"
    # elsewhere more warps may be what keeps a state from spilling
    if 16 * warps > 2 * width and gpu.startswith("sm90"):
        return f"{width} rows leave some of {warps} warps without a tile of 16"
    return None
