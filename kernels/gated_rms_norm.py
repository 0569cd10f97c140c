"""y = x * rsqrt(mean(x^2) + eps) * weight * silu(gate), over the last axis: norm before gate.

    program i:   |<---- D elements ---->|
          row    m, h      = divmod(i BR,     H)
          row    m, h + 1  = divmod(i BR + 1, H)     BR heads a program, wherever they lie

Memory-bound: two reads and one write an element. Heads are short (128 elements, one warp's worth of 8-byte loads), so a
program takes several and the sum over a head stays within a warp.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    BLOCK_R: int = 4
    num_warps: int = 2


@triton.jit
def _gated_rms_norm(
    x, s_x_m, s_x_h,
    gate, s_gate_m, s_gate_h,
    weight,
    out,
    eps, N, H, D,
    BR: tl.constexpr, BD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # divided as i32: a 64-bit division is a loop of dozens of instructions
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    o_m, o_h = (o_r // H).to(tl.int64), (o_r % H).to(tl.int64)
    m_rd = (o_r < N)[:, None] & (o_d < D)[None, :]
    p_x = x + (o_m * s_x_m + o_h * s_x_h)[:, None] + o_d[None, :]
    p_gate = gate + (o_m * s_gate_m + o_h * s_gate_h)[:, None] + o_d[None, :]
    b_w = tl.load(weight + o_d, mask=o_d < D, other=0.0)
    begin(EARLY)
    b_x = tl.load(p_x, mask=m_rd, other=0.0).to(tl.float32)  # [BR, BD]
    b_gate = tl.load(p_gate, mask=m_rd, other=0.0).to(tl.float32)  # [BR, BD]
    b_scale = tl.rsqrt(tl.sum(b_x * b_x, 1) / D + eps)
    b_y = b_x * b_scale[:, None] * b_w[None, :] * (b_gate / (1 + tl.exp(-b_gate)))
    tl.store(out + o_r.to(tl.int64)[:, None] * D + o_d[None, :], b_y.to(out.dtype.element_ty), mask=m_rd)


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    config: Config | None = None,
) -> torch.Tensor:
    M, H, D = x.shape
    if M * H >= 1 << 31:
        raise ValueError(f"gated_rms_norm takes fewer than 2^31 heads in all, not {M} x {H}")
    if gate.shape != x.shape or weight.shape != (D,) or not x.stride(2) == gate.stride(2) == weight.stride(0) == 1:
        given = [(tuple(t.shape), t.stride()) for t in (x, gate, weight)]
        raise ValueError(f"gated_rms_norm takes x and gate [M, H, D] and weight [D] with unit stride in D, not {given}")
    config = config or pick("gated_rms_norm", Config(), x.device, M=M, H=H, D=D)
    out = torch.empty((M, H, D), dtype=x.dtype, device=x.device)
    strides = (*x.stride()[:2], *gate.stride()[:2])
    _gated_rms_norm[(triton.cdiv(M * H, config.BLOCK_R),)](
        x, *strides[:2], gate, *strides[2:], weight, out, eps, M * H, H, D,
        BR=config.BLOCK_R, BD=triton.next_power_of_2(D), num_warps=config.num_warps,
        **early(x.device),
    )  # fmt: skip
    return out
