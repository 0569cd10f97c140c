"""y = x · dequant(W)ᵀ (+ residual), or silu(x · gateᵀ) * (x · upᵀ), W in GGUF blocks as they lie in the file.

    program (n, m):      |<------------- K, 256 weights a step ------------->|
                 row n0  | chunk | chunk | chunk | ...                       |     BN rows of W (twice with SwiGLU: gate
                   ...   | chunk | chunk | chunk | ...                       |     and up), dequantised in registers,
                 n0+BN-1 | chunk | chunk | chunk | ...                       |     against BM rows of x

`norm`: x is normed first, in the launch itself where one row over tiles is rounded to 8 bits, or by a launch before.

One row of x is multiplied and added in f32. More rows go through `tl.dot` in tiles of at least 16, in x's own type:
weights are rounded to it, and f16 reaches to 65504. precision "int8": one launch quantises x to q, with d and
d * sum(q) for every 32 (against K-quants d is shared by 256), then

    y = sum over groups of  scale * d * (q_w · q_x)  -  minimum * d * sum(q_x)          (· in integers, the rest in f32)

Limits: W's bytes for few rows, but the integer-to-float conversion of every weight comes first; nothing splits K.
Weights rearranged once (layout "tiles") need no such conversion: `lib/over_tiles.py`.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from ..reference.dequant_matmul import GROUP, LAYOUTS, SMALLEST, group_of
from ..reference.formats import find, row_bytes
from ..reference.tiles import COLUMNS, RECORD, ROWS
from .config import pick
from .lib import over_tiles, plain_rows
from .lib.blocks import CHUNK, dequantise, unpack
from .lib.by_shape import by_shape, plain
from .lib.device import (
    has_few_registers,
    has_imma,
    has_much_shared,
    has_wgmma,
    is_narrow,
    lacks_dot,
    lacks_imma,
    processors,
)
from .lib.handed import countable
from .lib.parts import in_parts, parts_of
from .rms_norm import rms_norm


@dataclass(frozen=True)
class Config:
    # over blocks as they lie: rows of W and of x a program
    block_n: int = 32
    block_m: int = 32
    # integer tensor cores for several rows of int8: they want 32 codes a group (not q6_k), and Triton has none on sm75
    int8_dot: bool = False
    # over tiles, exact: "split", "wide", "rows" or "ring"; of int8, "ring", or "split" where there are no integer
    # tensor cores; "" chooses it and all of its knobs by the shape
    algorithm: str = ""
    # of "split" and "wide" rows of x a program; programs that share a tile's columns, or (of "ring" too) programs a
    # multiprocessor; tiles side by side
    tile_m: int = 64
    split: int = 2
    resident: int = 1
    together: int = 1
    # of "rows", "ring" and int8: warps a program, 0 to choose what follows by the shape; how many of them have other
    # rows of W, not other columns; 32 rows a warp, not 16; most registers a thread, 0 for as many as the compiler wants
    warps: int = 0
    warp_rows: int = 1
    pair: bool = False
    registers: int = 0
    # where a program lets the next launch begin, "start", "end" or "no" ("": by the shape). That one then reads its
    # first weights before this one has ended, so they must not be what this one writes
    early: str = ""
    num_warps: int = 4
    num_stages: int = 2


@triton.jit
def _quantise(
    x, s_x_m,
    q, d, d_sum,
    groups,
    SMALLEST: tl.constexpr,
    SHARE: tl.constexpr,
    BG: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64)
    o_g = tl.program_id(1) * BG + tl.arange(0, BG)
    m_g = o_g < groups
    o_k = o_g[:, None] * 32 + tl.arange(0, 32)[None, :]
    b_x = tl.load(x + i_m * s_x_m + o_k, mask=m_g[:, None], other=0.0).to(tl.float32)  # [BG, 32]
    b_x = tl.reshape(b_x, (BG // SHARE, SHARE * 32))
    b_max = tl.max(tl.abs(b_x), 1)
    b_inverse = tl.where(b_max >= SMALLEST, tl.div_rn(tl.full((BG // SHARE,), 127.0, tl.float32), b_max), 0.0)
    # adding 1.5 * 2^23 leaves no fraction bits: to the nearest, halves to even
    b_q = (b_x * b_inverse[:, None] + 12582912.0) - 12582912.0
    b_q = tl.reshape(tl.where(tl.abs(b_q) <= 127.0, b_q, 0.0), (BG, 32))
    # zero, or NaN where the group is not finite
    b_d = b_max * 0.007874015748031496 + tl.sum(b_x * 0.0, 1)
    b_d = tl.reshape(tl.broadcast_to(b_d[:, None], (BG // SHARE, SHARE)), (BG,))
    tl.store(q + i_m * groups * 32 + o_k, b_q.to(tl.int8), mask=m_g[:, None])
    tl.store(d + i_m * groups + o_g, b_d, mask=m_g)
    tl.store(d_sum + i_m * groups + o_g, b_d * tl.sum(b_q, 1), mask=m_g)


@triton.jit
def _exact(b_acc, b_x, p, m_n, left, FORMAT: tl.constexpr, PARTS: tl.constexpr):
    """b_acc [BM, BN] + b_x [BM, 256] · the chunks at p [BN]."""
    b_w = dequantise(p, m_n, left, FORMAT)  # [BN, 256]
    if b_x.shape[0] == 1:
        b_acc += tl.sum(b_w * b_x.to(tl.float32), 1)[None, :]
    else:
        b_acc = in_parts(b_acc, b_x, b_w.to(b_x.dtype), PARTS)
    return b_acc


@triton.jit
def _integer(b_acc, b_x, b_d, b_sum, p, m_n, left, FORMAT: tl.constexpr, INT8_DOT: tl.constexpr):
    """b_acc [BM, BN] + codes b_x [G, BM, 256/G] with d and d * sum [G, BM] · the chunks at p [BN]."""
    b_q, b_scale, b_min = unpack(p, m_n, left, FORMAT)
    if b_x.shape[1] == 1:
        b_x = tl.reshape(b_x, (1, b_x.shape[0], b_x.shape[2])).to(tl.int32)
        b_dot = tl.sum(b_q * b_x, 2).to(tl.float32)  # [BN, G]
        b_part = b_dot * b_scale * tl.trans(b_d) - b_min * tl.trans(b_sum)
        b_acc += tl.sum(b_part, 1)[None, :]
    else:
        # codes and their sums, below 2^20, are as exact in f16 and f32 as in integers
        TYPE: tl.constexpr = tl.int8 if INT8_DOT else tl.float16
        SUM: tl.constexpr = tl.int32 if INT8_DOT else tl.float32
        b_w = tl.permute(b_q, (1, 2, 0)).to(TYPE)
        b_dot = tl.dot(b_x.to(TYPE), b_w, out_dtype=SUM).to(tl.float32)  # [G, BM, BN]
        b_part = b_dot * tl.trans(b_scale)[:, None, :] * b_d[:, :, None]
        if FORMAT == "q4_k" or FORMAT == "q5_k":
            b_part = b_part - tl.trans(b_min)[:, None, :] * b_sum[:, :, None]
        b_acc += tl.sum(b_part, 0)
    return b_acc


@triton.jit
def _dequant_matmul(
    x, s_x_m,
    d, d_sum,
    weight, s_weight_n,
    residual, s_residual_m,
    out,
    M, N, K,
    FORMAT: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    SWIGLU: tl.constexpr,
    INT8_DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = 16 if FORMAT == "q6_k" else 8
    o_m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    o_n = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    m_m, m_n = o_m < M, o_n < N
    p_w = weight + o_n * s_weight_n
    p_up = weight + (o_n + N) * s_weight_n
    b_acc = tl.zeros((BM, BN), tl.float32)
    b_up = tl.zeros((BM, BN), tl.float32)
    for i_c in range(0, tl.cdiv(K, 256)):
        left = K - i_c * 256
        if d is None:
            o_k = tl.arange(0, 256)
            m_x = m_m[:, None] & (o_k < left)[None, :]
            b_x = tl.load(x + o_m[:, None] * s_x_m + i_c * 256 + o_k[None, :], mask=m_x, other=0.0)  # [BM, 256]
            b_acc = _exact(b_acc, b_x, p_w, m_n, left, FORMAT, PARTS)
            if SWIGLU:
                b_up = _exact(b_up, b_x, p_up, m_n, left, FORMAT, PARTS)
        else:
            o_g = tl.arange(0, G)
            o_k = o_g[:, None, None] * (256 // G) + tl.arange(0, 256 // G)[None, None, :]
            m_x = m_m[None, :, None] & (o_k < left)
            b_x = tl.load(x + o_m[None, :, None] * s_x_m + i_c * 256 + o_k, mask=m_x, other=0)  # [G, BM, 256 / G]
            o_d = o_m[None, :] * (K // 32) + i_c * 8 + (o_g * 8 // G)[:, None]
            m_d = m_m[None, :] & (o_g * (256 // G) < left)[:, None]
            b_d = tl.load(d + o_d, mask=m_d, other=0.0)  # [G, BM]
            b_sum = tl.load(d_sum + o_d, mask=m_d, other=0.0)
            b_acc = _integer(b_acc, b_x, b_d, b_sum, p_w, m_n, left, FORMAT, INT8_DOT)
            if SWIGLU:
                b_up = _integer(b_up, b_x, b_d, b_sum, p_up, m_n, left, FORMAT, INT8_DOT)
        p_w += CHUNK_SIZE
        p_up += CHUNK_SIZE
    if SWIGLU:
        b_acc = b_acc * tl.sigmoid(b_acc) * b_up
    m_out = m_m[:, None] & m_n[None, :]
    if residual is not None:
        p_r = residual + o_m[:, None] * s_residual_m + o_n[None, :]
        b_acc += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + o_m[:, None] * N + o_n[None, :], b_acc.to(out.dtype.element_ty), mask=m_out)


def _quantised(x: torch.Tensor, format: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [M, K] i8, d [M, K/32] and d * sum(q) [M, K/32] f32."""
    (M, K), BG = x.shape, 64
    q = torch.empty((M, K), dtype=torch.int8, device=x.device)
    d = torch.empty((M, K // GROUP), dtype=torch.float32, device=x.device)
    d_sum = torch.empty_like(d)
    grid = (M, triton.cdiv(K // GROUP, BG))
    # fused, the product would not be rounded before it is rounded to an integer
    _quantise[grid](
        x, x.stride(0), q, d, d_sum, K // GROUP, SMALLEST, group_of(format) // GROUP, BG, enable_fp_fusion=False
    )
    return q, d, d_sum


def _check(
    x: torch.Tensor, weight: torch.Tensor, format: str, precision: str, residual: torch.Tensor | None, columns: int
) -> None:
    plain, K = find(format).dtype, x.shape[1]
    width = K if plain is not None else row_bytes(format, K)
    if format not in CHUNK or weight.dtype != (plain or torch.uint8) or weight.shape[1:] != (width,):
        found = f"{format} as {weight.dtype} {tuple(weight.shape)} for K = {K}"
        raise ValueError(f"dequant_matmul takes rows of {', '.join(CHUNK)}, u8 where they are blocks, not {found}")
    if weight.stride(1) != 1 or weight.stride(0) * weight.element_size() % 2:
        raise ValueError(f"dequant_matmul takes dense weight rows an even number of bytes apart, not {weight.stride()}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.stride(1) != 1:
        raise ValueError(f"dequant_matmul takes x f32, bf16 or f16 of unit stride in K, not {x.dtype} {x.stride()}")
    if precision not in ("exact", "int8") or (precision == "int8" and plain is not None):
        raise ValueError(f"dequant_matmul takes exact, or int8 with a quantised format, not {precision} with {format}")
    _check_residual(residual, x.shape[0], columns)


def _check_residual(residual: torch.Tensor | None, M: int, N: int) -> None:
    if residual is not None and (residual.shape != (M, N) or residual.stride(1) != 1):
        found = f"{tuple(residual.shape)} of stride {residual.stride()}"
        raise ValueError(f"dequant_matmul takes a residual {(M, N)} of unit stride in N, not {found}")


def _check_norm(x: torch.Tensor, norm: torch.Tensor, precision: str, layout: str) -> None:
    if norm.shape != (x.shape[1],) or norm.dtype != torch.float32 or not norm.is_contiguous():
        found = f"{norm.dtype} {tuple(norm.shape)} of stride {norm.stride()}"
        raise ValueError(f"dequant_matmul takes a norm of {x.shape[1]} dense f32, as many as columns of x, not {found}")
    if precision == "int8" and (len(x) > 1 or layout == "gguf"):
        raise ValueError(f"dequant_matmul norms int8 of one row over tiles, not of {len(x)} rows over {layout}")


def _check_tiles(x: torch.Tensor, weight: torch.Tensor, format: str, precision: str, swiglu: bool) -> None:
    K, dense = x.shape[1], weight.dim() == 3 and weight.is_contiguous()
    if format not in RECORD or weight.dtype != torch.uint8 or not dense or weight.shape[2] != RECORD[format]:
        found = f"{format} as {weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"dequant_matmul takes tiles u8 [N/64, K/256, bytes] of {', '.join(RECORD)}, not {found}")
    if weight.shape[1] * COLUMNS != K or x.stride(1) != 1 or (swiglu and weight.shape[0] % 2):
        raise ValueError(
            f"dequant_matmul takes x of K = {weight.shape[1] * COLUMNS} and whole tiles, not {tuple(x.shape)}"
        )
    if precision not in ("exact", "int8"):
        raise ValueError(f"dequant_matmul takes exact or int8, not {precision}")
    if precision == "exact" and x.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"exact over tiles takes x f16 or bf16, not {x.dtype}")


def _on_tiles(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    precision: str,
    residual: torch.Tensor | None,
    swiglu: bool,
    out_dtype: torch.dtype | None,
    layout: str,
    norm: torch.Tensor | None,
    eps: float,
    config: Config | None,
) -> torch.Tensor:
    _check_tiles(x, weight, format, precision, swiglu)
    (M, K), rows = x.shape, weight.shape[0] * ROWS
    N = rows // 2 if swiglu else rows
    _check_residual(residual, M, N)
    dims: dict[str, int | str] = {"M": M, "N": rows, "K": K, "format": format}
    config = config or pick("dequant_matmul", Config(), x.device, **dims, precision=precision, layout=layout)
    # the ring takes x and the weight in pieces of 16 bytes
    whole = precision == "int8" or (x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0)
    whole = whole and weight.data_ptr() % 16 == 0 and countable(weight.shape[0], weight.shape[1], processors(x.device))
    rings = has_wgmma(x.device) and whole
    if config.algorithm == "ring" and not whole:
        config = replace(config, algorithm="")
    if lacks_imma(x.device):
        config = plain(config, M, rows, K, precision, lacks_dot(x.device) or has_few_registers(x.device))
    config = by_shape(
        config, M, rows, K, format, precision, swiglu, has_imma(x.device), has_much_shared(x.device), rings,
        has_wgmma(x.device),
    )  # fmt: skip
    out = torch.empty((M, N), dtype=out_dtype or x.dtype, device=x.device)
    if precision == "int8" and M == 1 and config.algorithm not in ("split", "ring"):
        over_tiles.int8_row(x, weight, format, residual, swiglu, out, config, norm, eps)
        return out
    if norm is not None:
        # a row of int8 by another kernel than its own
        x = rms_norm(x, norm, eps)
    if precision == "int8" and config.algorithm == "split":
        # 8 or 16 sums a weight row and row of x: more rows leave no registers
        over_tiles.in_blocks(*_quantised(x, format), weight, format, residual, swiglu, out, config, 16)
        return out
    if precision == "int8":
        launch = over_tiles.int8_ring if config.algorithm == "ring" else over_tiles.int8_rows
    else:
        launch = over_tiles.EXACT[config.algorithm]
    launch(x, weight, format, residual, swiglu, out, config)
    return out


def dequant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    precision: str = "exact",
    residual: torch.Tensor | None = None,
    swiglu: bool = False,
    out_dtype: torch.dtype | None = None,
    layout: str = "gguf",
    norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    config: Config | None = None,
) -> torch.Tensor:
    if layout not in LAYOUTS:
        raise ValueError(f"dequant_matmul takes weights as {', '.join(LAYOUTS)}, not '{layout}'")
    if norm is not None:
        _check_norm(x, norm, precision, layout)
    if norm is not None and precision == "exact":
        # tiles take no f32
        out_dtype, narrow = out_dtype or x.dtype, layout != "gguf" and x.dtype == torch.float32
        x, norm = rms_norm(x, norm, eps, torch.float16 if narrow else x.dtype), None
    if layout != "gguf":
        return _on_tiles(x, weight, format, precision, residual, swiglu, out_dtype, layout, norm, eps, config)
    (M, K), rows = x.shape, weight.shape[0]
    N = rows // 2 if swiglu else rows
    if swiglu and rows % 2:
        raise ValueError(f"dequant_matmul takes an even number of rows with swiglu, not {rows}")
    _check(x, weight, format, precision, residual, N)
    default = Config(block_n=16, block_m=16, num_warps=8) if is_narrow(x.device) else Config()
    config = config or pick(
        "dequant_matmul", default, x.device, M=M, N=rows, K=K, format=format, precision=precision, layout=layout
    )
    out = torch.empty((M, N), dtype=out_dtype or x.dtype, device=x.device)
    if plain_rows.fits(x, weight):
        return plain_rows.multiply(x, weight, residual, swiglu, out)
    d = d_sum = None
    if precision == "int8":
        x, d, d_sum = _quantised(x, format)
    BM = 1 if M == 1 else min(config.block_m, max(16, triton.next_power_of_2(M)))
    grid = (triton.cdiv(N, config.block_n), triton.cdiv(M, BM))
    meta = {"FORMAT": format, "CHUNK_SIZE": CHUNK[format], "SWIGLU": swiglu, "INT8_DOT": config.int8_dot}
    blocks = {"BM": BM, "BN": config.block_n, "PARTS": parts_of(x.device) if lacks_dot(x.device) else 1}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    s_residual_m = 0 if residual is None else residual.stride(0)
    _dequant_matmul[grid](
        x, x.stride(0), d, d_sum, weight, weight.stride(0), residual, s_residual_m, out,
        M, N, K, **meta, **blocks, **options,
    )  # fmt: skip
    return out
