"""o_i = softmax(q_i k^T / sqrt(D)) v over the rows of the cache up to start + i, or the last `window` of them.

    program (BM queries, head h)         rows of the cache, in tiles of BS ->
                                         | out of window | window's edge | all see all | diagonal |
        queries start + i BM ..          |    skipped    |    masked     |   masked    |  masked  |

Compute-bound from some hundred queries on (4 T H D rows flops on the tensor cores); the H/Hkv heads of a group and
neighbouring query tiles run side by side, so that the rows they share come from the L2. Late query tiles have the
most rows and start first. Every program dequantises its rows itself: BM should be large where the cache is quantised.
Products are taken as in tree_attention. An infinite or NaN value in a row spoils all queries of a tile that holds it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..reference.cache import QUANTISED
from .config import pick
from .lib.cache_rows import columns, load_rows, require_caches
from .lib.device import compiled_for, is_narrow
from .lib.fwht import unrotate
from .lib.half_heads import load_queries, scores
from .lib.softmax import LOG2E, LOWEST, attend, product_type, rows_in_tile, weigh


@dataclass(frozen=True)
class Config:
    BLOCK_M: int = 32
    BLOCK_S: int = 32
    num_warps: int = 4
    num_stages: int = 1


@triton.jit
def _prefill(
    q, s_q_t, s_q_h,
    cache_k, s_k_h, s_k_s: tl.constexpr,
    cache_v, s_v_h, s_v_s: tl.constexpr,
    start,
    gate, s_g_t, s_g_h,
    out,
    T, H, window, scale,
    G: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
    TYPE_K: tl.constexpr,
    TYPE_V: tl.constexpr,
    GATED: tl.constexpr,
    WINDOWED: tl.constexpr,
    FEW: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    i_h, i_m = tl.program_id(0).to(tl.int64), tl.num_programs(1) - 1 - tl.program_id(1)
    o_t, o_s = i_m * BM + tl.arange(0, BM), tl.arange(0, BS)
    m_t = o_t < T
    p_q = q + o_t.to(tl.int64) * s_q_t + i_h * s_q_h
    # in the order of K's tiles; where registers are few, in halves, and rotated by butterflies
    b_q, b_q2 = load_queries(p_q, m_t, FORMAT_K, D, TYPE_K, FEW)

    first = tl.load(start)
    p_k, p_v = cache_k + i_h // G * s_k_h, cache_v + i_h // G * s_v_h
    b_own = first + o_t
    b_low = tl.where(window > 0, b_own - window + 1, 0)
    begin = tl.maximum(tl.where(window > 0, first + i_m * BM - window + 1, 0), 0)
    end = first + tl.minimum((i_m + 1) * BM, T)

    # tiles that all queries of the program see need no mask; the others, on both sides of them, follow
    seen_from = begin
    if WINDOWED:
        last_low = tl.maximum(first + tl.minimum((i_m + 1) * BM, T) - window, 0)
        seen_from += tl.cdiv(last_low - begin, BS) * BS
    seen_to = begin + (first + i_m * BM + 1 - begin) // BS * BS
    seen_to = tl.maximum(seen_to, seen_from)
    if FEW:
        # one loop for all: two of them hold on to each other's addresses
        seen_from, seen_to = begin, begin
    b_m = tl.full((BM,), LOWEST, tl.float32)
    b_l = tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)
    if not FEW:
        for i_s in tl.range(seen_from, seen_to, BS, num_stages=STAGES):
            p_row = (i_s + o_s).to(tl.int64)
            b_k = load_rows(p_k + p_row * s_k_s, None, FORMAT_K, D, TYPE_K)
            b_v = load_rows(p_v + p_row * s_v_s, None, FORMAT_V, D, TYPE_V)
            b_m, b_l, b_acc = attend(b_q, b_k, b_v, None, scale, b_m, b_l, b_acc)
    early = (seen_from - begin) // BS
    for i_n in tl.range(0, early + tl.cdiv(end - seen_to, BS), num_stages=STAGES if FEW else 1):
        i_s = tl.where(i_n < early, begin + i_n * BS, seen_to + (i_n - early) * BS)
        o_row = i_s + o_s
        m_s = o_row < end
        if FEW:
            b_s = scores(b_q, b_q2, p_k + o_row.to(tl.int64) * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        else:
            b_k = load_rows(p_k + o_row.to(tl.int64) * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row.to(tl.int64) * s_v_s, m_s, FORMAT_V, D, TYPE_V)
        m = (o_row[None, :] <= b_own[:, None]) & (o_row[None, :] >= b_low[:, None])  # [BM, BS]
        if not FEW:
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_m, b_l, b_acc = weigh(b_s, b_v, m, scale, b_m, b_l, b_acc)

    b_o = tl.where((b_l == 0.0)[:, None], 0.0, b_acc / b_l[:, None])
    if FORMAT_V == "tq3_0":
        b_o = unrotate(b_o, columns(FORMAT_V, 128), tl.float32 if FEW else TYPE_V)
    o_d = columns(FORMAT_V, D)
    if GATED:
        p_g = gate + o_t.to(tl.int64) * s_g_t + i_h * s_g_h
        b_g = tl.load(p_g[:, None] + o_d[None, :], mask=m_t[:, None], other=0.0).to(tl.float32)
        b_o = b_o / (1 + tl.exp(-b_g))
    p_o = out + (o_t.to(tl.int64) * H + i_h) * D
    tl.store(p_o[:, None] + o_d[None, :], b_o.to(out.dtype.element_ty), mask=m_t[:, None])


def _default(q: torch.Tensor, context: int, format_k: str, format_v: str) -> Config:
    """By shape on sm90, where these were measured."""
    T, _, D = q.shape
    if is_narrow(q.device):
        return Config(16, 16, 8)
    full = tl.float32 in (product_type(q.dtype, format_k), product_type(q.dtype, format_v))
    if full or T < 128 or compiled_for(q.device) != "sm90":
        return Config()
    quantised = [format in QUANTISED for format in (format_k, format_v)]
    if all(quantised):
        return Config(128, 64, 8, 1 if "tq3_0" in (format_k, format_v) else 2)
    if any(quantised):
        return Config()
    if D <= 128:
        return Config(64, 64, 4, 3)
    return Config(64, 32, 4, 2) if context < 4096 else Config(128, 32, 8, 3)


def prefill_attention(
    q: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    start: torch.Tensor,
    format_k: str,
    format_v: str,
    window: int = 0,
    gate: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    (T, H, D), (Hkv, S, _) = q.shape, cache_k.shape
    require_caches("prefill_attention", q, gate, cache_k, format_k, cache_v, format_v)
    sizes = {"T": T, "H": H, "Hkv": Hkv, "D": D, "context": S - T}
    default = _default(q, S - T, format_k, format_v)
    config = config or pick("prefill_attention", default, q.device, **sizes, format_k=format_k, format_v=format_v)
    BM = min(config.BLOCK_M, max(16, triton.next_power_of_2(T)))
    gate_strides = (gate.stride(0), gate.stride(1)) if gate is not None else (0, 0)
    out = torch.empty((T, H, D), dtype=q.dtype, device=q.device)
    _prefill[(H, triton.cdiv(T, BM))](
        q, q.stride(0), q.stride(1), cache_k, cache_k.stride(0), cache_k.stride(1),
        cache_v, cache_v.stride(0), cache_v.stride(1), start, gate, *gate_strides, out,
        T, H, window, LOG2E / D**0.5, G=H // Hkv, D=D, BM=BM, BS=rows_in_tile(config.BLOCK_S, q.dtype),
        FORMAT_K=format_k, FORMAT_V=format_v, TYPE_K=product_type(q.dtype, format_k),
        TYPE_V=product_type(q.dtype, format_v), GATED=gate is not None, WINDOWED=window > 0, FEW=is_narrow(q.device),
        STAGES=config.num_stages, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
