"""ring[(start + d) % R] = x[path[d]] for d < length, in the ring's dtype.

    program (d, columns):   x[path[d]]   |<- BC ->|   --->   ring[(start + d) % R]   |<- BC ->|

A few rows: the launch sets the time. The path is no longer than the ring, so no two programs write one row.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    BLOCK_C: int = 1024
    num_warps: int = 4


@triton.jit
def _ring_store(
    x, s_x_t,
    ring, s_ring_r,
    path,
    length,
    start,
    E, R,
    BC: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    i_d = tl.program_id(0)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_c = (o_c < E) & (i_d < tl.load(length))
    row, slot = tl.load(path + i_d).to(tl.int64), (tl.load(start).to(tl.int64) + i_d) % R
    b_x = tl.load(x + row * s_x_t + o_c, mask=m_c, other=0.0)
    tl.store(ring + slot * s_ring_r + o_c, b_x.to(ring.dtype.element_ty), mask=m_c)


def ring_store(
    x: torch.Tensor,
    ring: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    start: torch.Tensor,
    config: Config | None = None,
) -> None:
    (T, E), (R, width), D = x.shape, ring.shape, path.shape[0]
    if width != E or x.stride(1) != 1 or ring.stride(1) != 1 or D > R:
        given = f"{tuple(x.shape)} {x.stride()}, {tuple(ring.shape)} {ring.stride()} and a path of {D}"
        raise ValueError(f"ring_store takes dense rows x [T, E] and ring [R, E] and a path of at most R, not {given}")
    if not (path.is_contiguous() and length.numel() == start.numel() == 1):
        raise ValueError(f"ring_store takes one path, one length and one start, not {tuple(path.shape)}")
    config = config or pick("ring_store", Config(), x.device, T=T, E=E, R=R, D=D)
    BC = min(config.BLOCK_C, triton.next_power_of_2(E))
    _ring_store[(D, triton.cdiv(E, BC))](
        x, x.stride(0), ring, ring.stride(0), path, length, start, E, R,
        BC=BC, num_warps=config.num_warps, **early(x.device),
    )  # fmt: skip
