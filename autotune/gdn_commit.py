"""Knobs of gdn_commit."""

from typing import Any

from ..kernels.gdn_commit import Config
from ..reference.spec import Case
from .tree_gdn import unread

SPACE: dict[str, tuple[Any, ...]] = {
    "BLOCK_D": (16, 32),
    "BLOCK_V": (4, 8, 16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
}


def legal(config: dict[str, Any], case: Case, gpu: str) -> str | None:
    nodes, width, warps = config["BLOCK_D"], config["BLOCK_V"], config["num_warps"]
    if width > case["V"]:
        return f"BLOCK_V {width} is larger than V, {case['V']}"
    if width * case["K"] > 64 * 32 * warps:
        return f"a state of {width} x {case['K']} takes more than 64 registers a thread of {warps} warps"
    if case["strategy"] != "wy":
        return unread(config, ("BLOCK_D",), case["strategy"], Config())
    if width < 16:
        return f"a dot is at least 16 wide, BLOCK_V is {width}"
    if nodes > 16 and nodes >= 2 * case["D"]:
        return f"BLOCK_D {nodes} is twice the {case['D']} slots of a path"
    return None
