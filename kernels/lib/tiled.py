"""y = x · Wᵀ over tiles (reference/tiles.py), for a few rows of x up to a prefill's.

    program (tile, split, m):  64 rows of W x its share of K, 256 columns a step, against BM rows of x

    record ──cp.async──> shared ──> registers ──codes──> f16 A operand ──wgmma──> f32 [64, BM]
    x      ──cp.async──> shared ─────────────────────────────B operand──┘

Dequantised weights never touch shared memory: a lane's loads are its own operand registers. SPLIT programs share a
tile; the last to arrive adds their partial sums in order, so the result does not depend on who that was.

With d, x is in 8 bits. Codes meet codes, group by group, in f16, whose sums f32 holds exactly; scales come after. It
serves where no m16n8k32 does (`row_int8.py`, `rows_int8.py`): on matrix cores of another kind, or on none.
"""

import triton
import triton.language as tl

from .parts import read_in_parts
from .tiles import HIGH, codes, scales_of, weights

_HIGH = tl.constexpr(HIGH)


@triton.jit
def _record(words, wide, p, FORMAT: tl.constexpr, SCALES: tl.constexpr, D: tl.constexpr):
    """The planes of the record at byte p, as `weights` takes them."""
    CODES: tl.constexpr = 8192 if FORMAT == "q8_0" else 4096
    o_r, o_8 = tl.arange(0, 64), tl.arange(0, 8)
    b_w = tl.load(words + p // 2 + tl.arange(0, CODES), eviction_policy="evict_first")
    b_scales = tl.load(words + (p + SCALES) // 2 + o_r[:, None] * 8 + o_8[None, :], eviction_policy="evict_first")
    b_high, b_d = b_w, b_w
    if FORMAT == "q5_k":
        b_high = tl.load(words + (p + _HIGH) // 2 + tl.arange(0, 1024), eviction_policy="evict_first")
    if FORMAT == "q6_k":
        b_high = tl.load(words + (p + _HIGH) // 2 + tl.arange(0, 2048), eviction_policy="evict_first")
        b_d = tl.load(words + (p + D) // 2 + o_r, eviction_policy="evict_first")
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        b_d = tl.load(wide + (p + D) // 4 + o_r, eviction_policy="evict_first")
    return b_w, b_high, b_scales, b_d


@triton.jit
def _step(
    acc, b_x, p_x, m_m, b_d, b_sum, words, wide, p,
    FORMAT: tl.constexpr, SCALES: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc [64, BM] + the record at byte p · b_x [256, BM], or what p_x points to; b_d and b_sum [G, BM] where x is in 8
    bits."""
    b_w, b_high, b_scales, b_dw = _record(words, wide, p, FORMAT, SCALES, D)
    if b_d is None:
        b_a = weights(b_w, b_high, b_scales, b_dw, FORMAT, ASM)
        acc = read_in_parts(acc, b_a, p_x, m_m, PARTS) if PARTS > 1 else tl.dot(b_a.to(b_x.dtype), b_x, acc)
    else:
        G: tl.constexpr = b_d.shape[0]
        b_q = tl.reshape(codes(b_w, b_high, FORMAT, ASM), (64, G, 256 // G))
        b_dot = tl.dot(tl.permute(b_q, (1, 0, 2)), tl.reshape(b_x.to(tl.float16), (G, 256 // G, b_x.shape[1])))
        b_scale, b_min = scales_of(b_scales, b_dw, FORMAT, ASM)  # [64, G]
        b_dot = b_dot * tl.trans(b_scale)[:, :, None] * b_d[:, None, :]  # [G, 64, BM]
        if FORMAT == "q4_k" or FORMAT == "q5_k":
            b_dot -= tl.trans(b_min)[:, :, None] * b_sum[:, None, :]
        acc += tl.sum(b_dot, 0)
    return acc


@triton.jit
def _groups(d, o_m, m_m, i_k, K, G: tl.constexpr):
    """Of 256 columns of x in 8 bits: d, or d * sum, [G, BM]. q6_k's groups are half as wide as those of x."""
    o_d = o_m.to(tl.int64)[None, :] * (K // 32) + i_k * 8 + tl.arange(0, G)[:, None] * 8 // G
    return tl.load(d + o_d, mask=m_m[None, :], other=0.0)


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def tiled(
    x, s_x_m,
    d, d_sum,
    words,
    wide,
    residual, s_residual_m,
    out,
    partial,
    arrived,
    M, N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = 16 if FORMAT == "q6_k" else 8
    i_t, i_s = tl.program_id(0), tl.program_id(1)
    steps = K // 256
    first, last = steps * i_s // tl.num_programs(1), steps * (i_s + 1) // tl.num_programs(1)
    o_m = tl.program_id(2) * BM + tl.arange(0, BM)
    m_m = o_m < M
    o_k = tl.arange(0, 256)
    p_first = x + o_m.to(tl.int64)[None, :] * s_x_m  # [1, BM]
    p_x = p_first + o_k[:, None]
    row = i_t.to(tl.int64) * steps * RECORD
    up = (i_t + N // 64).to(tl.int64) * steps * RECORD
    acc = tl.zeros((64, BM), tl.float32)
    acc_up = tl.zeros((64, BM), tl.float32)
    for i_k in tl.range(first, last, num_stages=STAGES):
        b_x, b_d, b_sum = None, None, None
        if PARTS == 1 or d is not None:
            b_x = tl.load(p_x + i_k * 256, mask=m_m[None, :], other=0.0)  # [256, BM]
        if d is not None:
            b_d, b_sum = _groups(d, o_m, m_m, i_k, K, G), _groups(d_sum, o_m, m_m, i_k, K, G)
        acc = _step(
            acc, b_x, p_first + i_k * 256, m_m, b_d, b_sum, words, wide, row + i_k * RECORD, FORMAT, SCALES, D,
            PARTS, ASM,
        )  # fmt: skip
        if SWIGLU and PARTS == 1:
            acc_up = _step(
                acc_up, b_x, p_first + i_k * 256, m_m, b_d, b_sum, words, wide, up + i_k * RECORD, FORMAT, SCALES, D,
                PARTS, ASM,
            )  # fmt: skip
    if SWIGLU and PARTS > 1:
        # one after the other: registers hold one record
        for i_k in tl.range(first, last, num_stages=STAGES):
            b_x, b_d, b_sum = None, None, None
            if d is not None:
                b_x = tl.load(p_x + i_k * 256, mask=m_m[None, :], other=0.0)
                b_d, b_sum = _groups(d, o_m, m_m, i_k, K, G), _groups(d_sum, o_m, m_m, i_k, K, G)
            acc_up = _step(
                acc_up, b_x, p_first + i_k * 256, m_m, b_d, b_sum, words, wide, up + i_k * RECORD, FORMAT, SCALES, D,
                PARTS, ASM,
            )  # fmt: skip

    o_n = i_t * 64 + tl.arange(0, 64)
    o_out = o_m.to(tl.int64)[None, :] * N + o_n[:, None]  # [64, BM]
    m_out = m_m[None, :] & (o_n < N)[:, None]
    complete = True
    if SPLIT:
        # f32 [splits, 1 or 2, M, N]; the counter goes back to zero for the next launch
        plane = tl.cast(M, tl.int64) * N
        p_part = partial + i_s * plane * (2 if SWIGLU else 1) + o_out
        tl.store(p_part, acc, mask=m_out)
        if SWIGLU:
            tl.store(p_part + plane, acc_up, mask=m_out)
        tl.debug_barrier()
        p_arrived = arrived + tl.program_id(2) * tl.num_programs(0) + i_t
        complete = tl.atomic_add(p_arrived, 1, sem="acq_rel") == tl.num_programs(1) - 1
        if complete:
            tl.store(p_arrived, 0)
            acc = tl.zeros((64, BM), tl.float32)
            acc_up = tl.zeros((64, BM), tl.float32)
            for i_p in range(tl.num_programs(1)):
                p_part = partial + i_p * plane * (2 if SWIGLU else 1) + o_out
                acc += tl.load(p_part, mask=m_out, other=0.0, cache_modifier=".cg")
                if SWIGLU:
                    acc_up += tl.load(p_part + plane, mask=m_out, other=0.0, cache_modifier=".cg")
    if complete:
        if SWIGLU:
            acc = acc * tl.sigmoid(acc) * acc_up
        if residual is not None:
            p_r = residual + o_m.to(tl.int64)[None, :] * s_residual_m + o_n[:, None]
            acc += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
        tl.store(out + o_out, acc.to(out.dtype.element_ty), mask=m_out)
