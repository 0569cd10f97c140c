"""out = x with its first R dims turned by pos * inv_freq, pairs (i, i + R/2); the other D - R dims copied.

    program (t, block of BH heads):     token t:  | head | head | head | ..
                                                  | a: R/2 | b: R/2 |   rest   |
                                        one row of R/2 angles serves all BH heads

Memory-bound, and at a few tokens launch-bound: the cosines of a token are computed once for BH heads, x is read and
written once. The angle is one f32 product and its sine and cosine are taken in full range: positions reach 262143 and
so do angles, in rad.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    BLOCK_H: int = 8
    num_warps: int = 4


@triton.jit
def _rope(
    x, s_x_t, s_x_h,
    positions, s_pos_a, s_pos_t,
    inv_freq,
    out,
    H, limit_h, limit_w,
    D: tl.constexpr,
    HALF: tl.constexpr,
    SECTIONED: tl.constexpr,
    BH: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    o_r = tl.arange(0, BR)
    m_r = o_r < HALF
    p_x = x + i_t * s_x_t + o_h.to(tl.int64)[:, None] * s_x_h
    p_out = out + i_t * H * D + o_h.to(tl.int64)[:, None] * D

    # T, H, W by turns, T again once an axis has had its share
    b_axis = tl.zeros((BR,), tl.int32)
    if SECTIONED:
        b_axis = tl.where((o_r % 3 == 1) & (o_r < limit_h), 1, b_axis)
        b_axis = tl.where((o_r % 3 == 2) & (o_r < limit_w), 2, b_axis)
    b_pos = tl.load(positions + b_axis * s_pos_a + i_t * s_pos_t, mask=m_r, other=0)
    b_angle = b_pos.to(tl.float32) * tl.load(inv_freq + o_r, mask=m_r, other=0.0)
    b_cos, b_sin = tl.cos(b_angle)[None, :], tl.sin(b_angle)[None, :]

    m_h = (o_h < H)[:, None]
    m = m_h & m_r[None, :]
    b_a = tl.load(p_x + o_r[None, :], mask=m, other=0.0).to(tl.float32)  # [BH, BR]
    b_b = tl.load(p_x + HALF + o_r[None, :], mask=m, other=0.0).to(tl.float32)  # [BH, BR]
    tl.store(p_out + o_r[None, :], (b_a * b_cos - b_b * b_sin).to(out.dtype.element_ty), mask=m)
    tl.store(p_out + HALF + o_r[None, :], (b_b * b_cos + b_a * b_sin).to(out.dtype.element_ty), mask=m)
    if 2 * HALF < D:
        o_d = 2 * HALF + tl.arange(0, BD)
        m = m_h & (o_d < D)[None, :]
        tl.store(p_out + o_d[None, :], tl.load(p_x + o_d[None, :], mask=m, other=0.0), mask=m)


def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    sections: tuple[int, ...] = (),
    config: Config | None = None,
) -> torch.Tensor:
    (T, H, D), half = x.shape, inv_freq.shape[0]
    if x.stride(2) != 1 or not 0 < 2 * half <= D or not inv_freq.is_contiguous():
        given = f"{tuple(x.shape)} strides {x.stride()} and {half}"
        raise ValueError(f"rope takes x [T, H, D] with unit stride in D and at most D/2 frequencies, not {given}")
    if positions.shape not in ((T,), (3, T)) or (positions.dim() == 2 and not sections):
        given = f"{tuple(positions.shape)} with sections {sections}"
        raise ValueError(f"rope takes positions [T], or [3, T] with sections, for {T} tokens, not {given}")
    config = config or pick("rope", Config(), x.device, T=T, H=H, D=D, R=2 * half)
    out = torch.empty((T, H, D), dtype=x.dtype, device=x.device)
    limits = (3 * sections[1], 3 * sections[2]) if sections else (0, 0)
    BH = min(config.BLOCK_H, triton.next_power_of_2(H))
    _rope[(T, triton.cdiv(H, BH))](
        x, x.stride(0), x.stride(1),
        positions, positions.stride(0) if positions.dim() == 2 else 0, positions.stride(-1),
        inv_freq, out, H, *limits, D=D, HALF=half, SECTIONED=len(sections) > 0, BH=BH,
        BR=triton.next_power_of_2(half), BD=triton.next_power_of_2(max(1, D - 2 * half)), num_warps=config.num_warps,
    )  # fmt: skip
    return out
