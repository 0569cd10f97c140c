"""y = silu(gate) * up.

    program i:  row i // NF, elements |<- BF ->| at (i % NF) BF, the last block of a row masked

Memory-bound: two reads and one write an element. A row is cut into NF programs, so that one row still fills the GPU.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    BLOCK_F: int = 1024
    num_warps: int = 4


@triton.jit
def _swiglu(
    gate, s_gate_m,
    up, s_up_m,
    out, s_out_m,
    F, NF,
    BF: tl.constexpr,
):  # fmt: skip
    i_m = (tl.program_id(0) // NF).to(tl.int64)
    o_f = (tl.program_id(0) % NF).to(tl.int64) * BF + tl.arange(0, BF)
    m_f = o_f < F
    b_gate = tl.load(gate + i_m * s_gate_m + o_f, mask=m_f, other=0.0).to(tl.float32)
    b_up = tl.load(up + i_m * s_up_m + o_f, mask=m_f, other=0.0).to(tl.float32)
    b_y = b_gate / (1 + tl.exp(-b_gate)) * b_up
    tl.store(out + i_m * s_out_m + o_f, b_y.to(out.dtype.element_ty), mask=m_f)


def swiglu(gate: torch.Tensor, up: torch.Tensor, config: Config | None = None) -> torch.Tensor:
    M, F = gate.shape
    if up.shape != (M, F) or gate.stride(1) != 1 or up.stride(1) != 1:
        given = [(tuple(t.shape), t.stride()) for t in (gate, up)]
        raise ValueError(f"swiglu takes gate and up [M, F] with unit stride in F, not {given}")
    config = config or pick("swiglu", Config(), gate.device, M=M, F=F)
    out = torch.empty((M, F), dtype=gate.dtype, device=gate.device)
    blocks = triton.cdiv(F, config.BLOCK_F)
    grid, strides = (M * blocks,), (gate.stride(0), up.stride(0), out.stride(0))
    _swiglu[grid](
        gate, strides[0], up, strides[1], out, strides[2], F, blocks, BF=config.BLOCK_F, num_warps=config.num_warps
    )
    return out
