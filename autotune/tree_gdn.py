"""Knobs of tree_gdn."""

from typing import Any

from ..reference.spec import Case

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_T": (16, 32, 64),
    "BLOCK_K": (16, 32, 64, 128),
    "BLOCK_V": (4, 8, 16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4),
    "precision": ("ieee", "tf32x3", "bf16"),
}
# what the recurrence does not read stays at one value
UNREAD = {"BLOCK_T": 32, "BLOCK_K": 32, "num_stages": 2, "precision": "ieee"}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    tokens, width = config["BLOCK_T"], config["BLOCK_V"]
    if config["BLOCK_V"] > case["V"]:
        return f"BLOCK_V {width} is larger than V, {case['V']}"
    if case["strategy"].startswith("store"):
        odd = [name for name, value in UNREAD.items() if config[name] != value]
        if odd:
            return f"{case['strategy']} does not read {', '.join(odd)}"
        if width * case["K"] > 128 * 32 * config["num_warps"]:
            return f"{width} x {case['K']} of state take more than 128 registers a thread, {config['num_warps']} warps"
        return None
    if width < 16:
        return f"a dot is at least 16 wide, BLOCK_V is {width}"
    if tokens > 16 and tokens >= 2 * case["T"]:
        return f"BLOCK_T {tokens} runs as a smaller block on {case['T']} slots"
    if config["BLOCK_K"] > case["K"]:
        return f"BLOCK_K {config['BLOCK_K']} is larger than K, {case['K']}"
    return refused(config["precision"], gpu) or heavy(config)


def refused(precision: str, gpu: str) -> str | None:
    """Why this GPU does not multiply f32 like that, in a sentence, or None."""
    arch = gpu.split("-")[0]
    if precision != "ieee" and arch.startswith("sm") and int(arch[2:]) < 80:
        return f"{arch} has no tensor cores for {precision}"
    if precision == "tf32x3" and arch.startswith("gfx"):
        return f"{arch} has no tf32x3"
    return None


def heavy(config: dict[str, Any]) -> str | None:
    """Why a block of BLOCK_T tokens cannot fit in registers, in a sentence, or None."""
    tokens, warps = config["BLOCK_T"], config["num_warps"]
    if tokens * tokens > 32 * 32 * warps:
        return f"several matrices of {tokens} x {tokens} take more than 32 registers each a thread of {warps} warps"
    if config["precision"] == "ieee" and tokens * config["BLOCK_K"] > 32 * 32 * warps:
        return f"without tensor cores a dot holds {tokens} x {config['BLOCK_K']} in the registers of {warps} warps"
    return None
