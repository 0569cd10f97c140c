"""Read memory and do nothing with it, or copy it: the bandwidths that other kernels are held against.

program i:  |<- 16 KiB ->| a step, steps one grid apart, summed into one f32 a program
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _read(x, out, elements, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(i * BLOCK, elements, step):
        b_sum += tl.load(x + start + tl.arange(0, BLOCK))
    tl.store(out + i, tl.sum(b_sum))


def read(x: torch.Tensor) -> torch.Tensor:
    """x: [N] f32, N a multiple of 4096."""
    if x.numel() % 4096:
        raise ValueError(f"read takes a multiple of 4096 elements, not {x.numel()}")
    programs = min(x.numel() // 4096, 132 * 64)
    out = torch.empty(programs, dtype=torch.float32, device=x.device)
    _read[(programs,)](x, out, x.numel(), BLOCK=4096, num_warps=8)
    return out


@triton.jit
def _copy(x, out, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + o, tl.load(x + o))


def copy(x: torch.Tensor, out: torch.Tensor) -> None:
    """out = x, both [N] f32, N a multiple of 4096."""
    if x.numel() % 4096 or x.shape != out.shape:
        raise ValueError(f"copy takes two tensors of a multiple of 4096 elements, not {x.numel()} and {out.numel()}")
    _copy[(x.numel() // 4096,)](x, out, BLOCK=4096, num_warps=8)
