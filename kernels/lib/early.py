"""Programmatic dependent launch: a kernel starts while the one before it ends (NVIDIA, from sm_90).

    kernel n      ..wait | may start the next | work, store ............|
    kernel n + 1              launch, indices, prefetch of the state    wait | ...

Before its wait a kernel reads nothing but weights: it asks the L2 for what it will need. So whoever comes before it may
still be writing, and whoever comes after it may start at once. What two launches of one op do is its own affair: the
second may read before its wait what the first does not write, for all before the first is done by then.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from .device import has_pdl

_ASK = """
{{
.reg .pred first, any;
.reg .u32 lane;
mov.u32 lane, %tid.x;{some}
setp.eq.u32 first, lane, 0;
@first cp.async.bulk.prefetch.L2.global [$1], $2;
mov.u32 $0, 0;
}}
"""
# one thread asks the L2 for $2 bytes from $1 on
ASK = tl.constexpr(_ASK.format(some=""))
# none where they are 0: a branch instead, on what lanes have loaded, and ptxas keeps nothing in uniform registers
ASK_SOME = tl.constexpr(_ASK.format(some="\nsetp.ne.u32 any, $2, 0;\nselp.b32 lane, lane, 1, any;"))


@triton.jit
def prefetch(p, BYTES: tl.constexpr):
    """Ask the L2 for BYTES from p on, both multiples of 16; the first thread of a program does it."""
    tl.inline_asm_elementwise(
        ASK,
        "=r,l,r",
        [p.to(tl.int64), BYTES],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def wait():
    """Until everything before this launch is done and visible; the next launch may then start."""
    cuda.gdc_wait()
    release()


@triton.jit
def since():
    """0, known only after the wait: an address with it in it is not read before, even by PTX that has no effects."""
    return tl.inline_asm_elementwise("mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def release():
    """The next launch may start as soon as every program of this one came here or ended."""
    cuda.gdc_launch_dependents()


@triton.jit
def begin(EARLY: tl.constexpr):
    """As `wait`, but the next launch may start at once: for launches of few programs, which leave it room on the GPU.

    Every program calls it, or the next launch would not know that those before this one are done.
    """
    if EARLY:
        release()
        cuda.gdc_wait()


def early(device: torch.device) -> dict[str, bool]:
    """What a launch of a kernel that calls `begin` takes besides its own arguments."""
    return {"EARLY": True, "launch_pdl": True} if has_pdl(device) else {"EARLY": False}
