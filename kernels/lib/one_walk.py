"""A share of tree_attention as `rows_left.py` has it, where a lane has few registers: one loop, half a head at a time.

Committed rows and nodes are walked by the same loop, under the mask: a second one keeps the addresses of both alive, a
hundred registers. q and K meet in halves of a head (`half_heads.py`), and queries are rotated by butterflies.
"""

import triton
import triton.language as tl

from .cache_rows import columns, load_rows
from .half_heads import load_queries, scores
from .share import mask, mean, seen, share
from .softmax import LOWEST, weigh


@triton.jit
def one_walk(
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
):  # fmt: skip
    i_split, i_kv, rows = tl.program_id(1), tl.program_id(2).to(tl.int64), T * G
    o_m, o_s = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BS)
    i_t, i_h, m_m = o_m // G, i_kv * G + o_m % G, o_m < rows
    p_q = q + i_t.to(tl.int64) * s_q_t + i_h * s_q_h
    b_q, b_q2 = load_queries(p_q, m_m, FORMAT_K, D, TYPE_K, True)
    b_m, b_l = tl.full((BM,), LOWEST, tl.float32), tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)

    first, begin, end, rest = share(start, window, i_split, splits, BS)
    begin, end = tl.where(i_split == splits, rest, begin), tl.where(i_split == splits, first + T, end)
    p_k, p_v = cache_k + i_kv * s_k_h, cache_v + i_kv * s_v_h
    for i_s in tl.range(begin, end, BS, num_stages=STAGES):
        o_row = i_s + o_s
        m_s = seen(o_row, first, T, ancestors)
        b_s = scores(b_q, b_q2, p_k + o_row.to(tl.int64) * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row.to(tl.int64) * s_v_s, m_s, FORMAT_V, D, TYPE_V)
        m = tl.trans(mask(o_row, first, o_m, rows, T, ancestors, G))
        b_m, b_l, b_acc = weigh(b_s, b_v, m, scale, b_m, b_l, b_acc)

    o_part = (i_split.to(tl.int64) * T + i_t) * H + i_h
    tl.store(part_m + o_part, b_m, mask=m_m)
    tl.store(part_l + o_part, b_l, mask=m_m)
    b_o = mean(b_acc, b_l[:, None]).to(part_o.dtype.element_ty)
    tl.store(part_o + o_part[:, None] * D + columns(FORMAT_V, D)[None, :], b_o, mask=m_m[:, None])
