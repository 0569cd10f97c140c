"""y_i = silu(sum_w weight[:, w] * u[ancestor W-1-w steps above i]).

    program (nodes, channels, b):          BLOCK_C channels
                                   i  | y y y y y y y y |   tap W-1: row i of u
                         BLOCK_T      | y y y y y y y y |   tap W-2: row parents[i], above a root the newest of state
                                      | y y y y y y y y |   ...      one row further up a tap

The rows of a tree are read W times, once from memory and then from L2; parents are W-1 dependent gathers of a few
bytes. A tree of 23 x 10240 moves 1 MB, so the launch and those gathers set the time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.device import has_pdl
from .lib.early import wait


@dataclass(frozen=True)
class Config:
    BLOCK_T: int = 2
    BLOCK_C: int = 256
    num_warps: int = 2


@triton.jit
def _tree_conv(
    u, s_u_b, s_u_t,
    weight,
    state,
    parents,
    y,
    T, C,
    W: tl.constexpr, BW: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(2).to(tl.int64)
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    o_w = tl.arange(0, BW)
    m_t, m_c = o_t < T, o_c < C
    m_w = m_c[:, None] & (o_w < W)[None, :]
    b_w = tl.load(weight + o_c.to(tl.int64)[:, None] * W + o_w[None, :], mask=m_w, other=0.0).to(tl.float32)
    if EARLY:
        wait()
    b_real = tl.load(parents + i_b * T + o_t, mask=m_t, other=-2) != -2
    p_u = u + i_b * s_u_b + o_c[None, :]
    m_u = b_real[:, None] & m_c[None, :]
    rows = (tl.load(p_u + o_t.to(tl.int64)[:, None] * s_u_t, mask=m_u, other=0.0).to(tl.float32),)
    # slot s >= 0 is a node, -1 the newest row of the state, -2 the one before
    b_slot = o_t
    for _ in tl.static_range(1, W):
        b_up = tl.load(parents + i_b * T + b_slot, mask=b_real & (b_slot >= 0), other=0)
        b_slot = tl.where(b_slot >= 0, b_up, b_slot - 1)
        m_node = (b_slot >= 0)[:, None]
        b_u = tl.load(p_u + b_slot.to(tl.int64)[:, None] * s_u_t, mask=m_u & m_node, other=0.0).to(tl.float32)
        p_s = state + (i_b * (W - 1) + (W - 1 + b_slot)[:, None]) * C + o_c[None, :]
        b_s = tl.load(p_s, mask=m_u & (b_slot < 0)[:, None], other=0.0).to(tl.float32)
        rows = rows + (tl.where(m_node, b_u, b_s),)  # type: ignore[assignment]  # noqa: RUF005
    # all loads are on their way before the first is needed
    b_sum = tl.zeros((BT, BC), tl.float32)
    for back in tl.static_range(W):
        b_tap = tl.sum(tl.where(o_w[None, :] == W - 1 - back, b_w, 0.0), 1)
        b_sum += b_tap[None, :] * rows[back]  # [BT, BC]
    b_y = tl.where(b_real[:, None], b_sum * tl.sigmoid(b_sum), 0.0)
    p_y = y + (i_b * T + o_t[:, None]) * C + o_c[None, :]
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_t[:, None] & m_c[None, :])


def tree_conv(
    u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor, parents: torch.Tensor, config: Config | None = None
) -> torch.Tensor:
    (B, T, C), W = u.shape, weight.shape[-1]
    if weight.shape != (C, W) or state.shape != (B, W - 1, C) or parents.shape != (B, T) or not 2 <= W <= 5:
        shapes = [tuple(x.shape) for x in (u, weight, state, parents)]
        raise ValueError(
            f"tree_conv takes u [B, T, C], weight [C, W of 2 to 5], state [B, W-1, C], parents [B, T], not {shapes}"
        )
    if (C > 1 and u.stride(2) != 1) or not all(x.is_contiguous() for x in (weight, state, parents)):
        raise ValueError(f"tree_conv takes u with unit stride in C and the rest contiguous, not u strides {u.stride()}")
    config = config or pick("tree_conv", Config(), u.device, B=B, T=T, C=C, W=W)
    y = torch.empty((B, T, C), dtype=u.dtype, device=u.device)
    BT = min(config.BLOCK_T, triton.next_power_of_2(T))
    grid = (triton.cdiv(T, BT), triton.cdiv(C, config.BLOCK_C), B)
    overlap = has_pdl(u.device)
    launch = {"launch_pdl": True} if overlap else {}
    _tree_conv[grid](
        u, u.stride(0), u.stride(1), weight, state, parents, y, T, C,
        W=W, BW=triton.next_power_of_2(W), BT=BT, BC=config.BLOCK_C, EARLY=overlap,
        num_warps=config.num_warps, **launch,
    )  # fmt: skip
    return y
