"""Knobs of gdn_prefill."""

from typing import Any

from ..kernels.gdn_prefill import CHUNKED_FROM, Config
from ..reference.spec import Case
from .tree_gdn import crowded, unread

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_T": (16, 32, 64),
    "BLOCK_V": (4, 8, 16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "factor_warps": (4, 8),
    "num_stages": (1, 2, 3),
    "segment": (0, 16, 32),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    tokens, width, warps = config["BLOCK_T"], config["BLOCK_V"], config["num_warps"]
    if width > case["V"]:
        return f"BLOCK_V {width} is larger than V, {case['V']}"
    if case["T"] < CHUNKED_FROM:
        if width * case["K"] > 64 * 32 * warps:
            return f"a state of {width} x {case['K']} takes more than 64 registers a thread of {warps} warps"
        return unread(
            config, ("BLOCK_T", "factor_warps", "num_stages", "segment"), f"fewer than {CHUNKED_FROM} tokens", Config()
        )
    if width < 16:
        return f"a dot is at least 16 wide, BLOCK_V is {width}"
    if tokens > 16 and tokens >= 2 * case["T"]:
        return f"BLOCK_T {tokens} runs as a smaller chunk on {case['T']} tokens"
    if tokens < 32 and case["T"] >= 64 and gpu.startswith("sm90"):
        return "chunks of 16 tokens leave tensor cores idle where there are many"
    if config["segment"] * tokens >= case["T"]:
        return f"{case['T']} tokens are fewer than {config['segment']} chunks of {tokens}"
    # q, k, v and three planes of halves or two of f32
    half, planes = (2, 6) if case["dtype"] in ("bf16", "f16") else (4, 8)
    held = config["num_stages"] * tokens * (2 * case["K"] * half + planes * tokens + width * half)
    if gpu.startswith("sm90") and held > 227 << 10:
        return f"{config['num_stages']} stages hold {held >> 10} KiB, sm90 has 227"
    return crowded(width, case["K"], warps, gpu)
