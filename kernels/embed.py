"""y_t = dequant(W[ids_t]): the rows of a quantised embedding table.

    program (t, c):  row ids_t  | chunk | chunk | ... BLOCK_C chunks of 256 weights ... |  ->  out[t, 256 BLOCK_C c ...]

Memory-bound and short: a row of q4_k is 2.9 kB in and 10 kB of bf16 out, so a launch costs more than the bytes.
Ids that name no row read nothing and give zeros. Results are ggml's bits: compiled without fusing multiplies and adds.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..reference.formats import FORMATS, find, row_bytes
from .config import pick
from .lib.blocks import CHUNK, dequantise
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    block_c: int = 4
    num_warps: int = 4


@triton.jit
def _embed(
    ids,
    weight, s_weight_n,
    out,
    rows, E,
    FORMAT: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BC: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    i_t = tl.program_id(0).to(tl.int64)
    i_id = tl.load(ids + i_t)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    # of a row that is not there nothing is left to read
    left = tl.where((i_id >= 0) & (i_id < rows), E - o_c * 256, 0)  # [BC]
    m_c = left > 0
    b_w = dequantise(
        weight + i_id.to(tl.int64) * s_weight_n + o_c * CHUNK_SIZE, m_c, left[:, None], FORMAT
    )  # [BC, 256]
    # a masked block's zero codes may decode to -0
    b_w = tl.where(m_c[:, None], b_w, 0.0)
    o_e = o_c[:, None] * 256 + tl.arange(0, 256)[None, :]
    tl.store(out + i_t * E + o_e, b_w.to(out.dtype.element_ty), mask=o_e < E)


def embed(
    ids: torch.Tensor, weight: torch.Tensor, format: str, out_dtype: torch.dtype, config: Config | None = None
) -> torch.Tensor:
    plain = find(format).dtype
    T, (rows, width) = ids.shape[0], weight.shape
    E = width if plain is not None else width // FORMATS[format].bytes * FORMATS[format].elements
    if (
        format not in CHUNK
        or weight.dtype != (plain or torch.uint8)
        or (plain is None and row_bytes(format, E) != width)
    ):
        supported = f"rows of {', '.join(CHUNK)}, u8 where they are blocks"
        raise ValueError(f"embed takes {supported}, not {format} as {weight.dtype} {tuple(weight.shape)}")
    if ids.dtype != torch.int32 or not ids.is_contiguous() or weight.stride(1) != 1:
        found = f"{ids.dtype} of stride {ids.stride()} and rows of stride {weight.stride()}"
        raise ValueError(f"embed takes dense i32 ids and rows of unit stride, not {found}")
    config = config or pick("embed", Config(), weight.device, T=T, E=E, rows=rows, format=format)
    out = torch.empty((T, E), dtype=out_dtype, device=weight.device)
    BC = min(config.block_c, triton.next_power_of_2(triton.cdiv(E, 256)))
    grid = (T, triton.cdiv(E, 256 * BC))
    meta = {"FORMAT": format, "CHUNK_SIZE": CHUNK[format], "BC": BC}
    options = {"num_warps": config.num_warps, "enable_fp_fusion": False}
    _embed[grid](ids, weight, weight.stride(0), out, rows, E, **meta, **options, **early(weight.device))
    return out
