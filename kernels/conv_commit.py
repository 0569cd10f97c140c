"""state = the last W-1 rows of (state ++ u[path[:length]]).

    W = 4, length = 2:   row 0 <- state 2      program (channels, b): all rows are read before
                         row 1 <- u[path[0]]   any is written
                         row 2 <- u[path[1]]

A few rows of C values: what follows from what sets the time. The length, the path, the rows, the state: four trips.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    BLOCK_C: int = 256
    num_warps: int = 4


@triton.jit
def _conv_commit(
    u, s_u_b, s_u_t,
    state,
    path,
    length,
    C, D,
    W: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    i_b = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    o_w = tl.arange(0, BW)
    m = (o_w < W - 1)[:, None] & (o_c < C)[None, :]
    p_state = state + i_b * (W - 1) * C + o_c[None, :]
    # the row this one becomes: an older row of the state, or a node of the path
    source = tl.load(length + i_b) + o_w
    m_old = (source < W - 1)[:, None]
    node = tl.load(path + i_b * D + source - (W - 1), mask=(source >= W - 1) & (o_w < W - 1), other=0).to(tl.int64)
    b_new = tl.load(u + i_b * s_u_b + node[:, None] * s_u_t + o_c[None, :], mask=m & ~m_old, other=0.0)
    b_old = tl.load(p_state + source[:, None] * C, mask=m & m_old, other=0.0)
    b_row = tl.where(m_old, b_old, b_new.to(state.dtype.element_ty))  # [BW, BC]
    # a channel's loads and stores may be those of different threads
    tl.debug_barrier()
    tl.store(p_state + o_w[:, None] * C, b_row, mask=m)


def conv_commit(
    u: torch.Tensor, state: torch.Tensor, path: torch.Tensor, length: torch.Tensor, config: Config | None = None
) -> None:
    (B, T, C), W, D = u.shape, state.shape[1] + 1, path.shape[-1]
    if state.shape != (B, W - 1, C) or path.shape != (B, D) or length.shape != (B,) or not 2 <= W <= 5:
        shapes = [tuple(x.shape) for x in (u, state, path, length)]
        raise ValueError(
            f"conv_commit takes u [B, T, C], state [B, W-1 of 1 to 4, C], path [B, D], length [B], not {shapes}"
        )
    if (C > 1 and u.stride(2) != 1) or not all(x.is_contiguous() for x in (state, path, length)):
        raise ValueError(
            f"conv_commit takes u with unit stride in C and the rest contiguous, not u strides {u.stride()}"
        )
    config = config or pick("conv_commit", Config(), u.device, B=B, T=T, C=C, W=W, D=D)
    _conv_commit[(triton.cdiv(C, config.BLOCK_C), B)](
        u, u.stride(0), u.stride(1), state, path, length, C, D,
        W=W, BW=triton.next_power_of_2(W - 1), BC=config.BLOCK_C, num_warps=config.num_warps, **early(u.device),
    )  # fmt: skip
