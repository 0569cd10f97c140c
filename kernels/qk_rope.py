"""q = rope(rms_norm(q) * w_q), k = rope(rms_norm(k) * w_k): pairs (i, i + R/2) of a normed head turned.

    program (t, heads):     token t:  | q | q | q | q |   | q ..   |   | k | k | k | k |      BH heads of q, or of k
                                      | a: R/2 | b: R/2 |   rest   |

One launch for what would be four. Memory-bound, and at a few tokens launch-bound: weights are read before the launch
before has ended, and the angle, one f32 product of up to 262143 rad, takes no reduction in memory (`lib/turn.py`).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early
from .lib.turn import cos_sin


@dataclass(frozen=True)
class Config:
    BLOCK_H: int = 4
    num_warps: int = 4


@triton.jit
def _heads(
    x, s_x_t, s_x_h,
    weight,
    positions,
    inv_freq,
    out,
    i_h, H, eps,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BH: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_h, o_r, o_d = i_h * BH + tl.arange(0, BH), tl.arange(0, BR), 2 * HALF + tl.arange(0, BD)
    m_h, m_r, m_d = (o_h < H)[:, None], o_r < HALF, o_d < D
    p_x = x + i_t * s_x_t + o_h.to(tl.int64)[:, None] * s_x_h
    p_out = out + (i_t * H + o_h.to(tl.int64)[:, None]) * D
    b_freq = tl.load(inv_freq + o_r, mask=m_r, other=0.0)
    b_wa, b_wb = tl.load(weight + o_r, mask=m_r, other=0.0), tl.load(weight + HALF + o_r, mask=m_r, other=0.0)
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0)
    begin(EARLY)
    m, m_rest = m_h & m_r[None, :], m_h & m_d[None, :]
    b_a = tl.load(p_x + o_r[None, :], mask=m, other=0.0).to(tl.float32)  # [BH, BR]
    b_b = tl.load(p_x + HALF + o_r[None, :], mask=m, other=0.0).to(tl.float32)  # [BH, BR]
    b_rest = tl.load(p_x + o_d[None, :], mask=m_rest, other=0.0).to(tl.float32)  # [BH, BD]
    b_angle = tl.load(positions + i_t).to(tl.float32) * b_freq
    b_cos, b_sin = cos_sin(b_angle)
    b_cos, b_sin = b_cos[None, :], b_sin[None, :]
    b_sum = tl.sum(b_a * b_a, 1) + tl.sum(b_b * b_b, 1) + tl.sum(b_rest * b_rest, 1)
    b_scale = tl.rsqrt(b_sum / D + eps)[:, None]
    b_a, b_b = b_a * b_scale * b_wa[None, :], b_b * b_scale * b_wb[None, :]
    TYPE: tl.constexpr = out.dtype.element_ty
    tl.store(p_out + o_r[None, :], (b_a * b_cos - b_b * b_sin).to(TYPE), mask=m)
    tl.store(p_out + HALF + o_r[None, :], (b_b * b_cos + b_a * b_sin).to(TYPE), mask=m)
    tl.store(p_out + o_d[None, :], (b_rest * b_scale * b_w[None, :]).to(TYPE), mask=m_rest)


@triton.jit
def _qk_rope(
    q, s_q_t, s_q_h,
    k, s_k_t, s_k_h,
    q_weight,
    k_weight,
    positions,
    inv_freq,
    q_out,
    k_out,
    H, HKV, eps,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BH: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    i_h, of_q = tl.program_id(1), tl.cdiv(H, BH)
    if i_h < of_q:
        _heads(q, s_q_t, s_q_h, q_weight, positions, inv_freq, q_out, i_h, H, eps, D, HALF, BH, BR, BD, EARLY)
    else:
        i_h -= of_q
        _heads(k, s_k_t, s_k_h, k_weight, positions, inv_freq, k_out, i_h, HKV, eps, D, HALF, BH, BR, BD, EARLY)


def qk_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float = 1e-6,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    (T, H, D), Hkv, half = q.shape, k.shape[1], inv_freq.shape[0]
    if k.shape != (T, Hkv, D) or not q.stride(2) == k.stride(2) == 1 or not 0 < 2 * half <= D:
        given = f"{tuple(q.shape)} strides {q.stride()}, {tuple(k.shape)} strides {k.stride()} and {half}"
        raise ValueError(f"qk_rope takes heads [T, H, D] dense in D and at most D/2 frequencies, not {given}")
    vectors = (q_weight, k_weight, positions, inv_freq)
    if [x.shape for x in vectors[:3]] != [(D,), (D,), (T,)] or not all(x.is_contiguous() for x in vectors):
        shapes = [tuple(x.shape) for x in vectors]
        raise ValueError(f"qk_rope takes dense weights [D], twice, positions [T] and frequencies, not {shapes}")
    config = config or pick("qk_rope", Config(), q.device, T=T, H=H, Hkv=Hkv, D=D, R=2 * half)
    q_out = torch.empty((T, H, D), dtype=q.dtype, device=q.device)
    k_out = torch.empty((T, Hkv, D), dtype=k.dtype, device=k.device)
    BH = min(config.BLOCK_H, triton.next_power_of_2(max(H, Hkv)))
    _qk_rope[(T, triton.cdiv(H, BH) + triton.cdiv(Hkv, BH))](
        q, q.stride(0), q.stride(1), k, k.stride(0), k.stride(1),
        q_weight, k_weight, positions, inv_freq, q_out, k_out, H, Hkv, eps, D=D, HALF=half, BH=BH,
        BR=triton.next_power_of_2(half), BD=triton.next_power_of_2(max(1, D - 2 * half)), num_warps=config.num_warps,
        **early(q.device),
    )  # fmt: skip
    return q_out, k_out
