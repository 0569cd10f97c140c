"""y_t = silu(sum_w weight[:, w] * x_(t - (W-1-w))), x = state ++ u; then state = the last W-1 rows of x.

    program (tokens, channels, b):   x  | s s s | u u u u | u u u u | u ..
                                    first: BT tokens, and the state, old and new
                                                          next: BT tokens, W-1 rows of u before them

Only the programs of the first tokens look at the state, so they alone may move it on: once all of their rows are read.
At one token (decode) the launch sets the time: the weights are read before the launch before has ended.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.device import lacks_dot
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    BLOCK_T: int = 16
    BLOCK_C: int = 128
    num_warps: int = 4


@triton.jit
def _conv_line(
    u, s_u_b, s_u_t,
    weight,
    state,
    y,
    T, C,
    W: tl.constexpr, BW: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_t, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)
    o_c = (tl.program_id(0) * BC + tl.arange(0, BC)).to(tl.int64)
    m_t, m_c = o_t < T, o_c < C
    p_u, p_state = u + i_b * s_u_b + o_c, state + i_b * (W - 1) * C + o_c
    p_w = weight + o_c * W
    b_w0 = tl.load(p_w, mask=m_c, other=0.0)
    begin(EARLY)
    b_sum = tl.zeros((BT, BC), tl.float32)
    for tap in tl.static_range(W):
        b_w = b_w0 if tap == 0 else tl.load(p_w + tap, mask=m_c, other=0.0)
        # row of u, those of the state below zero
        o_r = o_t - (W - 1 - tap)
        m_u = (m_t & (o_r >= 0))[:, None] & m_c[None, :]
        b_x = tl.load(p_u[None, :] + o_r.to(tl.int64)[:, None] * s_u_t, mask=m_u, other=0.0).to(tl.float32)
        if tap < W - 1:
            m_s = (m_t & (o_r < 0))[:, None] & m_c[None, :]
            b_s = tl.load(p_state[None, :] + (W - 1 + o_r)[:, None] * C, mask=m_s, other=0.0).to(tl.float32)
            b_x = tl.where((o_r < 0)[:, None], b_s, b_x)
        b_sum += b_w[None, :] * b_x  # [BT, BC]
    b_y = b_sum * tl.sigmoid(b_sum)
    tl.store(
        y + (i_b * T + o_t.to(tl.int64)[:, None]) * C + o_c[None, :],
        b_y.to(y.dtype.element_ty),
        mask=m_t[:, None] & m_c[None, :],
    )
    if i_t == 0:
        # the row of x that becomes each row of the state
        o_w = tl.arange(0, BW)
        source = T + o_w
        m, m_old = (o_w < W - 1)[:, None] & m_c[None, :], (source < W - 1)[:, None]
        p_new = p_u[None, :] + (source - (W - 1)).to(tl.int64)[:, None] * s_u_t
        b_new = tl.load(p_new, mask=m & ~m_old, other=0.0).to(state.dtype.element_ty)
        b_row = tl.where(m_old, tl.load(p_state[None, :] + source[:, None] * C, mask=m & m_old, other=0.0), b_new)
        # a channel's loads and stores may be those of different threads
        tl.debug_barrier()
        tl.store(p_state[None, :] + o_w[:, None] * C, b_row, mask=m)


def conv_line(u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor, config: Config | None = None) -> torch.Tensor:
    (B, T, C), W = u.shape, weight.shape[-1]
    if weight.shape != (C, W) or state.shape != (B, W - 1, C) or not 2 <= W <= 5:
        shapes = [tuple(x.shape) for x in (u, weight, state)]
        raise ValueError(f"conv_line takes u [B, T, C], weight [C, W of 2 to 5], state [B, W-1, C], not {shapes}")
    if (C > 1 and u.stride(2) != 1) or not (weight.is_contiguous() and state.is_contiguous()):
        raise ValueError(f"conv_line takes u with unit stride in C and the rest contiguous, not u strides {u.stride()}")
    # sm75's compiler spills two registers of a block of 16
    default = Config(BLOCK_T=8) if lacks_dot(u.device) else Config()
    config = config or pick("conv_line", default, u.device, B=B, T=T, C=C, W=W)
    y = torch.empty((B, T, C), dtype=u.dtype, device=u.device)
    # the rows before the second block are all of u
    BT = min(max(4, config.BLOCK_T), triton.next_power_of_2(T))
    grid = (triton.cdiv(C, config.BLOCK_C), triton.cdiv(T, BT), B)
    _conv_line[grid](
        u, u.stride(0), u.stride(1), weight, state, y, T, C,
        W=W, BW=triton.next_power_of_2(W - 1), BT=BT, BC=config.BLOCK_C, num_warps=config.num_warps, **early(u.device),
    )  # fmt: skip
    return y
