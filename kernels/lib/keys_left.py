"""A share of tree_attention with keys on the left of the products: S^T = K q^T, O^T = V^T p^T.

    cache  ──cp.async──>  shared  ──>  registers, as codes  ──>  f16 left operand  ──wgmma──>  S^T [BS, BM], O^T [D, BM]
    q      ───────────────────────────────>  shared, rotated  ──right operand──┘
    p      ───────────────>  shared, f16  ─────────────────────right operand──┘

The tensor cores take 64 rows at least and any 8 columns: so with keys and values as rows a few queries waste nothing,
and the unpacked cache is the operand that may stay in registers.
The maximum of a column is raised only when a score exceeds it by more than 2^8, which f16 and f32 hold easily. Until
then nothing is rescaled and no column is reduced over the lanes of a program.
"""

import triton
import triton.language as tl

from .early import wait
from .fwht import rotate
from .operands import key_order, keys, load_keys, load_values, value_rows, values
from .share import mask, mean, seen, share
from .softmax import LOWEST

# a maximum may lie this far below a score, in units of log 2, before all sums are rescaled
SLACK = tl.constexpr(8.0)


@triton.jit
def _read_keys(p, s: tl.constexpr, first, m, HALF: tl.constexpr, BS: tl.constexpr, FORMAT: tl.constexpr,
               D: tl.constexpr):  # fmt: skip
    """Rows first .. first + BS - 1, or half of each, as they lie in memory."""
    if FORMAT == "f16" or FORMAT == "bf16":
        p = p + tl.cast(first, tl.int64) * s + (tl.arange(0, BS) * s)[:, None] + tl.arange(0, D)[None, :]
        b_x = tl.load(p, mask=m, other=0.0 if m is not None else None)
        b_h, b_d = b_x, b_x
    else:
        b_x, b_h, b_d = load_keys(p, s, first, m, HALF, BS, FORMAT, D)
    return b_x, b_h, b_d


@triton.jit
def _read_values(p, s: tl.constexpr, first, m, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr):
    if FORMAT == "f16" or FORMAT == "bf16":
        b_x, b_h, b_d = _read_keys(p, s, first, m, None, BS, FORMAT, D)
    else:
        b_x, b_h, b_d = load_values(p, s, first, m, BS, FORMAT, D)
    return b_x, b_h, b_d


@triton.jit
def _keys(b_x, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    return b_x if FORMAT == "f16" or FORMAT == "bf16" else keys(b_x, b_h, b_d, FORMAT, ASM)


@triton.jit
def _values(b_x, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    return tl.trans(b_x) if FORMAT == "f16" or FORMAT == "bf16" else values(b_x, b_h, b_d, FORMAT, ASM)


@triton.jit
def queries(q, s_q_t, s_q_h, o_m, i_kv, rows, G: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr,
             HALF: tl.constexpr, TYPE: tl.constexpr):  # fmt: skip
    """[D or half of it, N] of TYPE, rows in the order of the columns of keys."""
    p_q = q + (o_m // G).to(tl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    if FORMAT == "tq3_0":
        o_d = key_order(tl.arange(0, 128), FORMAT)
        b_q = tl.load(p_q[:, None] + (HALF * 128 + o_d)[None, :], mask=(o_m < rows)[:, None], other=0.0).to(TYPE)
        b_q = tl.trans(rotate(b_q, o_d, TYPE).to(TYPE))
    else:
        o_d = tl.arange(0, D) if HALF is None else HALF * (D // 2) + tl.arange(0, D // 2)
        if FORMAT == "q8_0" or FORMAT == "q4_0":
            o_d = key_order(o_d, FORMAT)
        b_q = tl.load(p_q[None, :] + o_d[:, None], mask=(o_m < rows)[None, :], other=0.0).to(TYPE)
    return b_q


@triton.jit
def above(b_s, m, scale, b_m):
    """Scores in units of log 2 above the maximum [BS, N]; above 0 where there is none yet."""
    b_x = b_s * scale - tl.where(b_m > LOWEST, b_m, 0.0)[None, :]
    return b_x if m is None else tl.where(m, b_x, float("-inf"))


@triton.jit
def higher(b_x, b_m, b_l, b_acc):
    """The maximum up to that of the tile; one that is not set yet up or down to it."""
    b_top, b_set = tl.max(b_x, 0), b_m > LOWEST
    b_found = b_top != float("-inf")
    b_up = tl.where(b_set, tl.maximum(b_top, 0.0), tl.where(b_found, b_top, 0.0))
    b_old = tl.exp2(-tl.maximum(b_up, 0.0))
    b_m = tl.where(b_set | b_found, tl.where(b_set, b_m, 0.0) + b_up, LOWEST)
    return b_x - b_up[None, :], b_m, b_l * b_old[None, :], b_acc * b_old[None, :]


@triton.jit
def fold(b_p, BS: tl.constexpr):
    """[BS, N] -> [32, N]: the sums a lane can take alone."""
    N: tl.constexpr = b_p.shape[1]
    return tl.reshape(tl.sum(tl.sum(tl.reshape(b_p, (BS // 64, 4, 2, 8, N)), 0), 1), (32, N))


@triton.jit
def _step(i_s, m_s, p_k, s_k: tl.constexpr, p_v, s_v: tl.constexpr, b_q, b_q2, m, scale, b_m, b_l, b_acc,
          D: tl.constexpr, BS: tl.constexpr, FORMAT_K: tl.constexpr, FORMAT_V: tl.constexpr, TYPE_K: tl.constexpr,
          TYPE_V: tl.constexpr, HALVES: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    b_w, b_h, b_d = _read_keys(p_k, s_k, i_s, m_s, 0 if HALVES else None, BS, FORMAT_K, D)
    b_s = tl.dot(_keys(b_w, b_h, b_d, FORMAT_K, ASM).to(TYPE_K), b_q)
    if HALVES:
        b_w, b_h, b_d = _read_keys(p_k, s_k, i_s, m_s, 1, BS, FORMAT_K, D)
        b_s = tl.dot(_keys(b_w, b_h, b_d, FORMAT_K, ASM).to(TYPE_K), b_q2, b_s)
    b_w, b_h, b_d = _read_values(p_v, s_v, i_s, m_s, BS, FORMAT_V, D)
    b_x = above(b_s, m, scale, b_m)
    if (tl.min(b_m) <= LOWEST) | (tl.max(b_x) > SLACK):
        b_x, b_m, b_l, b_acc = higher(b_x, b_m, b_l, b_acc)
    b_p = tl.exp2(b_x)
    b_l += fold(b_p, BS)
    b_acc = tl.dot(_values(b_w, b_h, b_d, FORMAT_V, ASM).to(TYPE_V), b_p.to(TYPE_V), b_acc)
    return b_m, b_l, b_acc


@triton.jit
def keys_left(
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
    ASM: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        wait()
    # a rotation is of 128; and of many queries' sums and keys at once, registers hold but half
    HALVES: tl.constexpr = FORMAT_K == "tq3_0" or (BM > 32 and (FORMAT_K == "q8_0" or FORMAT_K == "q4_0"))
    i_split, i_kv, rows = tl.program_id(1), tl.program_id(2).to(tl.int64), T * G
    o_m, o_s = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BS)
    b_q = queries(q, s_q_t, s_q_h, o_m, i_kv, rows, G, FORMAT_K, D, 0 if HALVES else None, TYPE_K)
    b_q2 = b_q
    if HALVES:
        b_q2 = queries(q, s_q_t, s_q_h, o_m, i_kv, rows, G, FORMAT_K, D, 1, TYPE_K)
    b_m, b_l = tl.full((BM,), LOWEST, tl.float32), tl.zeros((32, BM), tl.float32)
    b_acc = tl.zeros((D, BM), tl.float32)

    first, begin, end, rest = share(start, window, i_split, splits, BS)
    p_k, p_v = cache_k + i_kv * s_k_h, cache_v + i_kv * s_v_h
    for i_s in tl.range(begin, end, BS, num_stages=STAGES):
        b_m, b_l, b_acc = _step(
            i_s, None, p_k, s_k_s, p_v, s_v_s, b_q, b_q2, None, scale, b_m, b_l, b_acc, D, BS, FORMAT_K, FORMAT_V,
            TYPE_K, TYPE_V, HALVES, ASM,
        )  # fmt: skip
    for i_s in tl.range(rest, tl.where(i_split == splits, first + T, 0), BS, num_stages=1):
        m_s = seen(i_s + o_s, first, T, ancestors)[:, None]
        m = mask(i_s + o_s, first, o_m, rows, T, ancestors, G)
        b_m, b_l, b_acc = _step(
            i_s, m_s, p_k, s_k_s, p_v, s_v_s, b_q, b_q2, m, scale, b_m, b_l, b_acc, D, BS, FORMAT_K, FORMAT_V, TYPE_K,
            TYPE_V, HALVES, ASM,
        )  # fmt: skip

    o_part, m = (i_split.to(tl.int64) * T + o_m // G) * H + i_kv * G + o_m % G, o_m < rows
    tl.store(part_m + o_part, b_m, mask=m)
    b_l = tl.sum(b_l, 0)
    tl.store(part_l + o_part, b_l, mask=m)
    b_o = value_rows(mean(b_acc, b_l[None, :]), FORMAT_V).to(part_o.dtype.element_ty)
    tl.store(part_o + o_part[:, None] * D + tl.arange(0, D)[None, :], b_o, mask=m[:, None])
