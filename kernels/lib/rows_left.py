"""A share of tree_attention with queries on the left of the products: S = q K^T, O = p V.

A query's sums lie in one lane's registers, p is an operand from registers, and rows that need no unpacking come through
shared memory by asynchronous copies: the side for plain caches, and the only one in f32. Rows of a quantised cache pass
through shared memory as numbers.
"""

import triton
import triton.language as tl

from .cache_rows import columns, load_rows
from .early import wait
from .fwht import rotate
from .share import ABOVE, mask, mean, passed, seen, share, top
from .softmax import LOWEST, attend


@triton.jit
def _lanes(b_x):
    """[BM, BS] -> [BM, BS / 8, 4, 2]: what a lane holds of a row lies along the second and the last."""
    return tl.reshape(b_x, (b_x.shape[0], b_x.shape[1] // 8, 4, 2))


@triton.jit
def _walk(begin, end, p_k, s_k: tl.constexpr, p_v, s_v: tl.constexpr, b_q, scale, b_m, b_lanes, b_peak, b_acc,
          BS: tl.constexpr, FORMAT_K: tl.constexpr, FORMAT_V: tl.constexpr, D: tl.constexpr, TYPE_K: tl.constexpr,
          TYPE_V: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Tiles begin .. end - 1 under a maximum that stands: the sums of the weights, the highest score above it, p v."""
    o_s = tl.arange(0, BS)
    for i_s in tl.range(begin, end, BS, num_stages=STAGES):
        o_row = i_s + o_s
        b_k = load_rows(p_k + o_row.to(tl.int64) * s_k, None, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row.to(tl.int64) * s_v, None, FORMAT_V, D, TYPE_V)
        b_x = tl.dot(b_q, tl.trans(b_k)) * scale - b_m[:, None]
        b_peak = tl.maximum(b_peak, tl.max(tl.max(_lanes(b_x), 3), 1))
        b_p = tl.exp2(b_x)
        b_lanes += tl.sum(tl.sum(_lanes(b_p), 3), 1)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc)
    return b_lanes, b_peak, b_acc


@triton.jit
def rows_left(
    q, s_q_t, s_q_h,
    cache_k, s_k_h, s_k_s: tl.constexpr,
    cache_v, s_v_h, s_v_s: tl.constexpr,
    start,
    ancestors,
    part_o,
    part_m,
    part_l,
    T, H, window, scale, splits,
    G: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
    TYPE_K: tl.constexpr,
    TYPE_V: tl.constexpr,
    STAGES: tl.constexpr,
    RISING: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        wait()
    i_split, i_kv, rows = tl.program_id(1), tl.program_id(2).to(tl.int64), T * G
    o_m, o_s = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BS)
    i_t, i_h, m_m = o_m // G, i_kv * G + o_m % G, o_m < rows
    p_q = q + i_t.to(tl.int64) * s_q_t + i_h * s_q_h
    # its columns in the order of K's tiles
    b_q = tl.load(p_q[:, None] + columns(FORMAT_K, D)[None, :], mask=m_m[:, None], other=0.0).to(TYPE_K)  # [BM, D]
    if FORMAT_K == "tq3_0":
        b_q = rotate(b_q, columns(FORMAT_K, 128), TYPE_K).to(TYPE_K)
    b_m, b_l = tl.full((BM,), LOWEST, tl.float32), tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)

    first, begin, end, rest = share(start, window, i_split, splits, BS)
    p_k, p_v = cache_k + i_kv * s_k_h, cache_v + i_kv * s_v_h
    if RISING:
        for i_s in tl.range(begin, end, BS, num_stages=STAGES):
            o_row = i_s + o_s
            b_k = load_rows(p_k + o_row.to(tl.int64) * s_k_s, None, FORMAT_K, D, TYPE_K)
            b_v = load_rows(p_v + o_row.to(tl.int64) * s_v_s, None, FORMAT_V, D, TYPE_V)
            b_m, b_l, b_acc = attend(b_q, b_k, b_v, None, scale, b_m, b_l, b_acc)
        begin = rest
        end = tl.where(i_split == splits, first + T, rest)
    else:
        b_k = load_rows(p_k + (begin + o_s).to(tl.int64) * s_k_s, begin + o_s < end, FORMAT_K, D, TYPE_K)
        b_m = top(tl.dot(b_q, tl.trans(b_k)), scale, 1) + ABOVE
        b_lanes, b_peak = tl.zeros((BM, 4), tl.float32), tl.zeros((BM, 4), tl.float32)
        b_lanes, b_peak, b_acc = _walk(
            begin, end, p_k, s_k_s, p_v, s_v_s, b_q, scale, b_m, b_lanes, b_peak, b_acc, BS, FORMAT_K, FORMAT_V, D,
            TYPE_K, TYPE_V, STAGES,
        )  # fmt: skip
        # too far above: once more, from the highest score of all
        again = passed(b_peak)
        b_m = tl.where(again, b_m + tl.max(b_peak, 1), b_m)
        b_lanes, b_acc = tl.where(again, 0.0, b_lanes), tl.where(again, 0.0, b_acc)
        b_lanes, b_peak, b_acc = _walk(
            tl.where(again, begin, end), end, p_k, s_k_s, p_v, s_v_s, b_q, scale, b_m, b_lanes, b_peak, b_acc, BS,
            FORMAT_K, FORMAT_V, D, TYPE_K, TYPE_V, STAGES,
        )  # fmt: skip
        b_m, b_l = tl.where(i_split == splits, LOWEST, b_m), tl.sum(b_lanes, 1)
        begin = rest
        end = tl.where(i_split == splits, first + T, rest)
    for i_s in tl.range(begin, end, BS, num_stages=1):
        o_row = i_s + o_s
        m_s = seen(o_row, first, T, ancestors)
        b_k = load_rows(p_k + o_row.to(tl.int64) * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row.to(tl.int64) * s_v_s, m_s, FORMAT_V, D, TYPE_V)
        m = tl.trans(mask(o_row, first, o_m, rows, T, ancestors, G))
        b_m, b_l, b_acc = attend(b_q, b_k, b_v, m, scale, b_m, b_l, b_acc)

    o_part = (i_split.to(tl.int64) * T + i_t) * H + i_h
    tl.store(part_m + o_part, b_m, mask=m_m)
    tl.store(part_l + o_part, b_l, mask=m_m)
    b_o = mean(b_acc, b_l[:, None]).to(part_o.dtype.element_ty)
    tl.store(part_o + o_part[:, None] * D + columns(FORMAT_V, D)[None, :], b_o, mask=m_m[:, None])
