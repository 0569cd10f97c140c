"""A launch that begins while the one before it still runs: NVIDIA's programmatic dependent launch.

    one   |== work ==========|
    next     |= start, weights =|....|= what `one` wrote =|          waits in `begin`, not before its launch

`begin` lets the launch after this one in and then waits until all before it have ended and their writes are seen. So
what a kernel loads before `begin` must be nothing that a launch before it writes: weights. Every program calls it, or
the launch after this one would not know that those before this one have ended.
"""

import torch
import triton
import triton.language as tl

from .device import has_pdl


@triton.jit
def begin(EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def early(device: torch.device) -> dict[str, bool]:
    """What a launch of a kernel that calls `begin` takes besides its own arguments."""
    return {"EARLY": True, "launch_pdl": True} if has_pdl(device) else {"EARLY": False}
