"""positions, slots = | drafted + i | start + i |, | (drafted + i) % N or -1 | min(start, N) + i |, i < B.

    one program:   | 0 .. B-1: of the context | B .. 2B-1: the block's own |

A few dozen integers: one launch instead of a dozen of one operation each.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin as wait
from .lib.early import early


@dataclass(frozen=True)
class Config:
    num_warps: int = 1


@triton.jit
def _ring_rows(drafted, start, positions, slots, begin, N, B, B2: tl.constexpr, EARLY: tl.constexpr):
    wait(EARLY)
    o_i = tl.arange(0, B2)
    first, b_start = tl.load(drafted), tl.load(start)
    b_begin = tl.minimum(b_start, N)
    m_own = o_i >= B
    b_new = tl.where(m_own, b_start + o_i - B, first + o_i)
    b_slot = tl.where(b_new < b_start, b_new % N, -1)
    b_slot = tl.where(m_own, b_begin + o_i - B, b_slot)
    tl.store(positions + o_i, b_new, mask=o_i < 2 * B)
    tl.store(slots + o_i, b_slot, mask=o_i < 2 * B)
    tl.store(begin, b_begin)


def ring_rows(
    drafted: torch.Tensor, start: torch.Tensor, N: int, B: int, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = [(tuple(x.shape), x.dtype) for x in (drafted, start)]
    if given != [((1,), torch.int32)] * 2 or N < 1 or B < 1:
        raise ValueError(
            f"ring_rows takes drafted and start [1] i32, a ring and a block of rows, not {given}, {N}, {B}"
        )
    config = config or pick("ring_rows", Config(), start.device, N=N, B=B)
    positions = torch.empty(2 * B, dtype=torch.int32, device=start.device)
    slots, begin = torch.empty_like(positions), torch.empty_like(start)
    _ring_rows[(1,)](
        drafted, start, positions, slots, begin, N, B,
        B2=triton.next_power_of_2(2 * B), num_warps=config.num_warps, **early(start.device),
    )  # fmt: skip
    return positions, slots, begin
