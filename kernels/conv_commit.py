"""state = the last W-1 rows of (state ++ u[path[:length]]).

    W = 4, length = 2:   row 0 <- state 2      program (channels, b) writes rows oldest first,
                         row 1 <- u[path[0]]   so a row of the state is read before anything is written over it
                         row 2 <- u[path[1]]

A few rows of C values: the launch sets the time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    BLOCK_C: int = 512
    num_warps: int = 4


@triton.jit
def _conv_commit(
    u, s_u_b, s_u_t,
    state,
    path,
    length,
    C, D,
    W: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    m_c = o_c < C
    b_length = tl.load(length + i_b)
    p_state = state + i_b * (W - 1) * C + o_c
    for row in tl.static_range(W - 1):
        # the row this one becomes: an older row of the state, or a node of the path
        source = b_length + row
        if source < W - 1:
            b_row = tl.load(p_state + source * C, mask=m_c, other=0.0)
        else:
            node = tl.load(path + i_b * D + source - (W - 1)).to(tl.int64)
            b_row = tl.load(u + i_b * s_u_b + node * s_u_t + o_c, mask=m_c, other=0.0).to(state.dtype.element_ty)
        # the compiler may give a channel's load and store to different threads
        tl.debug_barrier()
        tl.store(p_state + row * C, b_row, mask=m_c)


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
        W=W, BC=config.BLOCK_C, num_warps=config.num_warps,
    )  # fmt: skip
