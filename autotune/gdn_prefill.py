"""Knobs of gdn_prefill."""

from typing import Any

from ..kernels.gdn_prefill import CHUNKED_FROM
from ..reference.spec import Case
from .tree_gdn import UNREAD, heavy, refused

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_T": (16, 32, 64),
    "BLOCK_K": (16, 32, 64, 128),
    "BLOCK_V": (4, 8, 16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4),
    "precision": ("ieee", "tf32x3", "bf16"),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    tokens, width = config["BLOCK_T"], config["BLOCK_V"]
    if width > case["V"]:
        return f"BLOCK_V {width} is larger than V, {case['V']}"
    if case["T"] < CHUNKED_FROM:
        odd = [name for name, value in UNREAD.items() if config[name] != value]
        if odd:
            return f"fewer than {CHUNKED_FROM} tokens run one by one, without {', '.join(odd)}"
        if width * case["K"] > 64 * 32 * config["num_warps"]:
            return (
                f"a state of {width} x {case['K']} takes more than 64 registers a thread of {config['num_warps']} warps"
            )
        return None
    if width < 16:
        return f"a dot is at least 16 wide, BLOCK_V is {width}"
    if tokens > 16 and tokens >= 2 * case["T"]:
        return f"BLOCK_T {tokens} runs as a smaller chunk on {case['T']} tokens"
    if config["BLOCK_K"] > case["K"]:
        return f"BLOCK_K {config['BLOCK_K']} is larger than K, {case['K']}"
    return refused(config["precision"], gpu) or heavy(config)
