"""A share of tree_attention with keys on the left of the products: S^T = K q^T, O^T = V^T p^T.

    cache  ──>  registers, as codes, a tile ahead  ──>  f16 left operand  ──wgmma──>  S^T [BS, BM], O^T [D, BM]
    q      ────────────────>  shared, rotated  ──────────right operand────┘
    p      ────────────────>  shared, f16  ──────────────right operand────┘

The tensor cores take 64 rows at least and any 8 columns: so with keys and values as rows a few queries waste nothing,
and the unpacked cache is the operand that may stay in registers. Its codes are loaded there directly, a tile ahead: a
copy through shared memory would have to land before p may pass to the tensor cores, for that fence waits for both.
"""

import triton
import triton.language as tl

from .fwht import rotate
from .operands import key_order, keys, load_keys, load_values, value_order, value_rows, values
from .share import again, mask, mean, seen, share, top
from .softmax import LOWEST


@triton.jit
def _read_keys(p, s: tl.constexpr, i_s, first, T, ancestors, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """Rows i_s .. i_s + BS - 1 as they lie in memory."""
    if FORMAT == "f16" or FORMAT == "bf16":
        o_row = i_s + tl.arange(0, BS)
        p = p + o_row.to(tl.int64)[:, None] * s + tl.arange(0, D)[None, :]
        if MASKED:
            b_x = tl.load(p, mask=seen(o_row, first, T, ancestors)[:, None], other=0.0)
        else:
            b_x = tl.load(p)
        b_h, b_d = b_x, b_x
    else:
        b_x, b_h, b_d = load_keys(p, s, i_s, first, T, ancestors, BS, FORMAT, D, None, MASKED)
    return b_x, b_h, b_d


@triton.jit
def _read_values(p, s: tl.constexpr, i_s, first, T, ancestors, BS: tl.constexpr, FORMAT: tl.constexpr,
                 D: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    if FORMAT == "f16" or FORMAT == "bf16":
        b_x, b_h, b_d = _read_keys(p, s, i_s, first, T, ancestors, BS, FORMAT, D, MASKED)
    else:
        b_x, b_h, b_d = load_values(p, s, i_s, first, T, ancestors, BS, FORMAT, D, MASKED)
    return b_x, b_h, b_d


@triton.jit
def _keys(b_x, b_h, b_d, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr):
    return b_x if FORMAT == "f16" or FORMAT == "bf16" else keys(b_x, b_h, b_d, BS, FORMAT, D, ASM)


@triton.jit
def _values(b_x, b_h, b_d, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr):
    return tl.trans(b_x) if FORMAT == "f16" or FORMAT == "bf16" else values(b_x, b_h, b_d, BS, FORMAT, D, ASM)


@triton.jit
def _queries(q, s_q_t, s_q_h, o_m, i_kv, rows, G: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr,
             TYPE: tl.constexpr):  # fmt: skip
    """[D, N] of TYPE, rows in the order of the columns of keys."""
    p_q = q + (o_m // G).to(tl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    o_d = tl.arange(0, D)
    if FORMAT == "q8_0" or FORMAT == "q4_0" or FORMAT == "tq3_0":
        o_d = key_order(o_d, FORMAT)
    if FORMAT == "tq3_0":
        b_q = tl.load(p_q[:, None] + o_d[None, :], mask=(o_m < rows)[:, None], other=0.0).to(TYPE)
        b_q = tl.trans(rotate(b_q, key_order(tl.arange(0, 128), FORMAT), TYPE).to(TYPE))
    else:
        b_q = tl.load(p_q[None, :] + o_d[:, None], mask=(o_m < rows)[None, :], other=0.0).to(TYPE)
    return b_q


@triton.jit
def _sums(b_p, BS: tl.constexpr):
    """[BS, N] -> [32, N]: the sums a lane can take alone."""
    N: tl.constexpr = b_p.shape[1]
    return tl.reshape(tl.sum(tl.sum(tl.reshape(b_p, (BS // 64, 4, 2, 8, N)), 0), 1), (32, N))


@triton.jit
def _peaks(b_x, BS: tl.constexpr):
    """[BS, N] -> [128]: the largest a lane holds."""
    N: tl.constexpr = b_x.shape[1]
    b_x = tl.max(tl.max(tl.reshape(b_x, (BS // 64, 4, 2, 8, N)), 0), 1)
    return tl.reshape(tl.max(tl.max(tl.reshape(b_x, (32, N // 8, 4, 2)), 3), 1), (128,))


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
    ASM: tl.constexpr,
):  # fmt: skip
    i_split, i_kv, rows = tl.program_id(1), tl.program_id(2).to(tl.int64), T * G
    o_m, o_s = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BS)
    first, begin, end, rest = share(start, window, i_split, splits, BS)
    p_k, p_v = cache_k + i_kv * s_k_h, cache_v + i_kv * s_v_h

    i_s = tl.minimum(begin, tl.maximum(first - BS, 0))
    b_wk, b_hk, b_dk = _read_keys(p_k, s_k_s, i_s, first, T, ancestors, BS, FORMAT_K, D, True)
    b_wv, b_hv, b_dv = _read_values(p_v, s_v_s, i_s, first, T, ancestors, BS, FORMAT_V, D, True)
    b_q = _queries(q, s_q_t, s_q_h, o_m, i_kv, rows, G, FORMAT_K, D, TYPE_K)
    b_m = top(tl.dot(_keys(b_wk, b_hk, b_dk, BS, FORMAT_K, D, ASM).to(TYPE_K), b_q), scale, 0)
    b_l, b_acc = tl.zeros((32, BM), tl.float32), tl.zeros((D, BM), tl.float32)
    b_peak = tl.zeros((128,), tl.float32)
    for i_s in tl.range(begin, end, BS, num_stages=1):
        b_xk, b_yk, b_zk, b_xv, b_yv, b_zv = b_wk, b_hk, b_dk, b_wv, b_hv, b_dv
        i_next = tl.minimum(i_s + BS, end - BS)
        b_wk, b_hk, b_dk = _read_keys(p_k, s_k_s, i_next, first, T, ancestors, BS, FORMAT_K, D, False)
        b_wv, b_hv, b_dv = _read_values(p_v, s_v_s, i_next, first, T, ancestors, BS, FORMAT_V, D, False)
        b_s = tl.dot(_keys(b_xk, b_yk, b_zk, BS, FORMAT_K, D, ASM).to(TYPE_K), b_q)
        b_v = _values(b_xv, b_yv, b_zv, BS, FORMAT_V, D, ASM).to(TYPE_V)
        b_x = b_s * scale - b_m[None, :]
        b_peak = tl.maximum(b_peak, _peaks(b_x, BS))
        b_p = tl.exp2(b_x)
        b_l += _sums(b_p, BS)
        b_acc = tl.dot(b_v, b_p.to(TYPE_V), b_acc)

    redo, begin, end = again(b_peak, i_split, splits, first, T, begin, end, rest)
    b_m, b_l, b_acc = tl.where(redo, LOWEST, b_m), tl.where(redo, 0.0, b_l), tl.where(redo, 0.0, b_acc)
    for i_s in tl.range(begin, end, BS, num_stages=1):
        b_wk, b_hk, b_dk = _read_keys(p_k, s_k_s, i_s, first, T, ancestors, BS, FORMAT_K, D, True)
        b_s = tl.dot(_keys(b_wk, b_hk, b_dk, BS, FORMAT_K, D, ASM).to(TYPE_K), b_q)
        b_s = tl.where(mask(i_s + o_s, first, o_m, rows, T, ancestors, G), b_s, float("-inf"))
        b_top = tl.maximum(b_m, tl.max(b_s, 0) * scale)
        b_p, b_old = tl.exp2(b_s * scale - b_top[None, :]), tl.exp2(b_m - b_top)
        b_wv, b_hv, b_dv = _read_values(p_v, s_v_s, i_s, first, T, ancestors, BS, FORMAT_V, D, True)
        b_v = _values(b_wv, b_hv, b_dv, BS, FORMAT_V, D, ASM).to(TYPE_V)
        b_m, b_l = b_top, b_l * b_old[None, :] + _sums(b_p, BS)
        b_acc = tl.dot(b_v, b_p.to(TYPE_V), b_acc * b_old[None, :])

    o_part, m = (i_split.to(tl.int64) * T + o_m // G) * H + i_kv * G + o_m % G, o_m < rows
    b_l = tl.sum(b_l, 0)
    tl.store(part_m + o_part, b_m, mask=m)
    tl.store(part_l + o_part, b_l, mask=m)
    p_o = part_o + o_part[:, None, None] * D + value_order(FORMAT_V, D)[None]
    b_o = value_rows(mean(b_acc, b_l[None, :]), FORMAT_V).to(part_o.dtype.element_ty)
    tl.store(p_o, b_o, mask=m[:, None, None])
