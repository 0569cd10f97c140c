"""y = x * rsqrt(mean(x^2) + eps) * weight, row by row.

    program i:  |<---------------- row i, D elements in one block ---------------->|

Memory-bound: one read and one write of the row. A row of 5120 fits in the registers of 8 warps, so x is read once. At a
few rows the launch, one trip to memory and a sum over the program's warps set the time: more warps, and an early start.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    # 0: as many as leave a thread 16 elements, of 4 to 16
    num_warps: int = 0


@triton.jit
def _rms_norm(
    x, s_x_m,
    weight,
    out, s_out_m,
    eps, D,
    BD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0)
    begin(EARLY)
    b_x = tl.load(x + i_m * s_x_m + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x) / D + eps) * b_w
    tl.store(out + i_m * s_out_m + o_d, b_y.to(out.dtype.element_ty), mask=m_d)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    M, D = x.shape
    if x.stride(1) != 1 or weight.shape != (D,) or not weight.is_contiguous():
        found = f"{tuple(x.shape)} strides {x.stride()}, {tuple(weight.shape)}"
        raise ValueError(f"rms_norm takes x [M, D] of unit stride in D and weight [D], not {found}")
    config = config or pick("rms_norm", Config(), x.device, M=M, D=D)
    out = torch.empty((M, D), dtype=out_dtype or x.dtype, device=x.device)
    BD = triton.next_power_of_2(D)
    warps = config.num_warps or min(16, max(4, BD // 512))
    _rms_norm[(M,)](x, x.stride(0), weight, out, D, eps, D, BD=BD, num_warps=warps, **early(x.device))
    return out
