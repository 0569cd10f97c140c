"""y = x · Wᵀ over tiles (reference/tiles.py) for many rows of x.

    groups of R x 16 W rows of the weight, each K / 256 records long, end to end:

    |     group 0     |     group 1     |     group 2     | ...
    |  program 0   |  program 1   |  program 2   |  ...            equal shares, a record at a time

    record ──16-byte loads, a record ahead──> registers ──codes──> f16 A operand ──tl.dot──> f32 [16 W, BM]
    x      ──cp.async──> shared ────────────────────────────────────B operand───┘

A lane's loads are its own operand registers, so dequantised weights never touch shared memory. Programs that share a
group leave partial sums; the last to arrive adds them in order, so the result does not depend on who that was.
"""

import triton
import triton.language as tl

from .tiles import (
    _Q4_0,
    _Q5_0,
    _Q5_1,
    _Q5_2,
    _Q5_3,
    _Q6_0,
    _Q6_1,
    HIGH,
    byte_pair,
    halves,
    nibbles,
    wider,
)

_HIGH = tl.constexpr(HIGH)


@triton.jit
def _at(REP: tl.constexpr, W: tl.constexpr, VEC: tl.constexpr):
    o = tl.arange(0, REP * W * 32 * VEC)
    return o // (W * 32 * VEC), o // (32 * VEC) % W, o // VEC % 32, o % VEC


@triton.jit
def _load(p):
    return tl.load(p, eviction_policy="evict_first")


@triton.jit
def pairs(w):
    """i32 [n] -> i16 [2 n]. What a loop carries is i32: the compiler unpacks i16 where they are loaded, and waits."""
    w = tl.join((w & 0xFFFF).to(tl.int16), (w >> 16).to(tl.int16))
    return tl.reshape(w, (w.shape[0] * 2,))


@triton.jit
def fetch_codes(wide, p, stride, C: tl.constexpr, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr):
    """Words (C, w, l, ...) of record p, 16 bytes a lane, and q8_0's second plane."""
    o_w, o_e = tl.arange(0, W * 128) // 128, tl.arange(0, W * 128) % 128
    at = p * (RECORD // 4) + C * 512 + o_w // 4 * (stride * (RECORD // 4)) + o_w % 4 * 128 + o_e
    b_w = _load(wide + at)
    b_more = b_w
    if FORMAT == "q8_0":
        b_more = _load(wide + at + 2048)
    return b_w, b_more


@triton.jit
def fetch_high(wide, p, stride, CP: tl.constexpr, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr):
    """Bits above the nibble: all of q5_k's record, or half of q6_k's."""
    o_w, o_e = tl.arange(0, W * 128) // 128, tl.arange(0, W * 128) % 128
    at = p * (RECORD // 4) + _HIGH // 4 + o_w // 4 * (stride * (RECORD // 4)) + o_w % 4 * 128 + o_e
    return _load(wide + at + CP * 512)


@triton.jit
def fetch_scales(
    words, wide, p, stride, FORMAT: tl.constexpr, RECORD: tl.constexpr, SCALES: tl.constexpr, D: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """A lane's two rows of 16 bytes, and their d: a lane's three neighbours load the same."""
    o_r, o_w, o_l, o_v = _at(2, W, 4)
    at = p * (RECORD // 4) + SCALES // 4 + o_w // 4 * (stride * (RECORD // 4))
    b_s = _load(wide + at + o_w % 4 * 64 + o_r * 32 + o_l // 4 * 4 + o_v)
    b_d = b_s
    if FORMAT == "q4_k" or FORMAT == "q5_k" or FORMAT == "q6_k":
        o_r, o_w, o_l, o_v = _at(2, W, 1)
        row = o_w % 4 * 16 + o_r * 8 + o_l // 4
        if FORMAT == "q6_k":
            b_d = _load(words + p * (RECORD // 2) + D // 2 + o_w // 4 * (stride * (RECORD // 2)) + row).to(tl.int32)
        else:
            b_d = _load(wide + p * (RECORD // 4) + D // 4 + o_w // 4 * (stride * (RECORD // 4)) + row)
    return b_s, b_d


@triton.jit
def _last_two(s):
    """[..., 2, 2] -> four tensors."""
    even, odd = tl.split(s)
    s0, s2 = tl.split(even)
    s1, s3 = tl.split(odd)
    return s0, s1, s2, s3


@triton.jit
def scales(s, d, FORMAT: tl.constexpr, W: tl.constexpr, ASM: tl.constexpr):
    """What `fetch_scales` loaded -> scales and minimums of words c = 0..3: f16 [r0, lane, p], q6_k [.., r1]."""
    L: tl.constexpr = W * 32
    s = pairs(s)
    if FORMAT == "q6_k":
        even, odd = byte_pair(s, "biased", ASM)
        b_d = tl.reshape(d.to(tl.int16).to(tl.float16, bitcast=True), (2, L))
        b_s = tl.reshape(tl.join(even, odd), (2, L, 2, 2, 4)) * b_d[:, :, None, None, None]
        b_s = tl.permute(b_s, (0, 1, 4, 2, 3))  # p r1, c / 2, c % 2
        m = _last_two(b_s)
        s = m
    else:
        if FORMAT == "q4_k" or FORMAT == "q5_k":
            b_s, b_m = byte_pair(s, "unsigned", ASM)
            b_d, b_dm = halves(d)
            b_s, b_d = tl.reshape(b_s, (2, L, 2, 2, 2)), tl.reshape(b_d, (2, L))[:, :, None, None, None]
            b_m = tl.reshape(b_m, (2, L, 2, 2, 2)) * tl.reshape(b_dm, (2, L))[:, :, None, None, None]
            # codes are around 0: a scale's rounding counts half as often, and the middle, not rounded before it is
            # added, is part of the minimum
            b_m = tl.fma(b_s, b_d * (-16.0 if FORMAT == "q5_k" else -8.0), b_m)
            b_s *= b_d
        else:
            b_s = tl.reshape(s.to(tl.float16, bitcast=True), (2, L, 2, 2, 2))
            b_m = b_s
        s = _last_two(tl.permute(b_s, (0, 1, 4, 2, 3)))
        m = _last_two(tl.permute(b_m, (0, 1, 4, 2, 3)))
    return s, m


@triton.jit
def _scaled(q, s, m, MINIMUM: tl.constexpr, L: tl.constexpr):
    """Codes in word order (lane, r1, r0, h) times scales [r0, lane], or [r0, lane, r1], less minimums."""
    q = tl.reshape(q, (L, 2, 2, 2))
    if len(s.shape) == 3:
        q *= tl.permute(s, (1, 2, 0))[:, :, :, None]
    else:
        q *= tl.permute(s, (1, 0))[:, None, :, None]
    if MINIMUM:
        q -= tl.permute(m, (1, 0))[:, None, :, None]
    return q


@triton.jit
def _of_p(s, FORMAT: tl.constexpr, L: tl.constexpr):
    """Scales of p = 0 and p = 1."""
    if FORMAT == "q6_k":
        s = tl.permute(tl.reshape(s, (2, L, 2, 2)), (0, 1, 3, 2))
    return tl.split(s)


@triton.jit
def weights(
    w, more, high, s, m, C: tl.constexpr, FORMAT: tl.constexpr, W: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """Words (C, ...) -> f16 [16 W, 64], columns 64 C and on. Registers only.

    A scale and a minimum are rounded to f16 once, then the weight once.
    """
    L: tl.constexpr = W * 32
    w = pairs(w)
    if FORMAT == "q5_k":
        # word pairs v = (r1, r0) share a word of high bits: take them apart, put them back
        h0, h1, h2, h3 = _last_two(tl.permute(tl.reshape(pairs(high), (L, 2, 2, 2)), (0, 3, 1, 2)))  # [l, h] of c
        h = h0 if C == 0 else (h1 if C == 1 else (h2 if C == 2 else h3))
        w0, w1, w2, w3 = _last_two(tl.permute(tl.reshape(w, (L, 2, 2, 2)), (0, 3, 1, 2)))
        a0, b0, c0, d0 = wider(w0, h, 0, 1, _Q5_0, 16, ASM)
        a1, b1, c1, d1 = wider(w1, h, 1, 1, _Q5_1, 16, ASM)
        a2, b2, c2, d2 = wider(w2, h, 2, 1, _Q5_2, 16, ASM)
        a3, b3, c3, d3 = wider(w3, h, 3, 1, _Q5_3, 16, ASM)
        q0, q1, q2, q3 = _four(a0, a1, a2, a3), _four(b0, b1, b2, b3), _four(c0, c1, c2, c3), _four(d0, d1, d2, d3)
    elif FORMAT == "q6_k":
        h0, h1 = tl.split(tl.permute(tl.reshape(pairs(high), (L, 2, 2, 2)), (0, 2, 3, 1)))  # [l, r1, h] of c
        h = h1 if C % 2 else h0
        w0, w1 = tl.split(tl.permute(tl.reshape(w, (L, 2, 2, 2)), (0, 1, 3, 2)))
        a0, b0, c0, d0 = wider(w0, h, 0, 2, _Q6_0, 32, ASM)
        a1, b1, c1, d1 = wider(w1, h, 2, 2, _Q6_1, 32, ASM)
        q0, q1, q2, q3 = _two(a0, a1), _two(b0, b1), _two(c0, c1), _two(d0, d1)
    elif FORMAT == "q8_0":
        q0, q2 = byte_pair(w, "signed", ASM)
        q1, q3 = byte_pair(pairs(more), "signed", ASM)
    else:
        q0, q1, q2, q3 = nibbles(w, _Q4_0, 8, ASM)
    MINIMUM: tl.constexpr = FORMAT == "q4_k" or FORMAT == "q5_k"
    s0, s1 = _of_p(s, FORMAT, L)
    m0, m1 = s0, s1
    if MINIMUM:
        m0, m1 = tl.split(m)
    q0, q1 = _scaled(q0, s0, m0, MINIMUM, L), _scaled(q1, s1, m1, MINIMUM, L)
    q2, q3 = _scaled(q2, s0, m0, MINIMUM, L), _scaled(q3, s1, m1, MINIMUM, L)
    q = tl.join(tl.join(q0, q2), tl.join(q1, q3))
    # w lhi llo r1 r0 h s p -> rows, columns in order
    q = tl.permute(tl.reshape(q, (W, 8, 4, 2, 2, 2, 2, 2)), (0, 4, 1, 7, 3, 6, 2, 5))
    # a sum of one element: what is joined before it, the compiler would take for wider elements
    return tl.sum(tl.reshape(q, (16 * W, 64, 1)), 2)


@triton.jit
def _four(v0, v1, v2, v3):
    """[l, h] of four register pairs (r1, r0) -> words in order."""
    v = tl.join(tl.join(v0, v2), tl.join(v1, v3))
    return tl.permute(v, (0, 2, 3, 1))


@triton.jit
def _two(v0, v1):
    """[l, r1, h] of two register pairs r0 -> words in order."""
    return tl.permute(tl.join(v0, v1), (0, 1, 3, 2))


@triton.jit
def _finish(acc, up, residual, s_residual_m, out, o_n, o_m, M, N, SWIGLU: tl.constexpr):
    m_out = (o_m < M)[None, :] & (o_n < N)[:, None]
    if SWIGLU:
        acc = acc * tl.sigmoid(acc) * up
    if residual is not None:
        p_r = residual + o_m.to(tl.int64)[None, :] * s_residual_m + o_n[:, None]
        acc += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + o_m.to(tl.int64)[None, :] * N + o_n[:, None], acc.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _owner(i, share, more):
    """The program whose share holds record i."""
    return tl.where(i < more * (share + 1), i // (share + 1), (i - more) // tl.maximum(share, 1))


@triton.jit
def _save(acc, p, ROWS: tl.constexpr, BM: tl.constexpr):
    tl.store(p + tl.arange(0, ROWS)[:, None] * BM + tl.arange(0, BM)[None, :], acc)


@triton.jit
def _total(p, first, last, ROWS: tl.constexpr, BM: tl.constexpr, SLOT: tl.constexpr, cut):
    """The sum of the partials of programs first..last, in order; `cut`: the first began before this group."""
    o_a = tl.arange(0, ROWS)[:, None] * BM + tl.arange(0, BM)[None, :]
    total = tl.zeros((ROWS, BM), tl.float32)
    for q in range(first, last + 1):
        slot = 2 * q + tl.where(q == first, cut, 0)
        total += tl.load(p + slot.to(tl.int64) * SLOT + o_a, cache_modifier=".cg")
    return total


@triton.jit
def _x(p, k, m_m):
    """256 columns of x from k: four times [64, BM]."""
    x0 = tl.load(p + k, mask=m_m[None, :], other=0.0)
    x1 = tl.load(p + k + 64, mask=m_m[None, :], other=0.0)
    x2 = tl.load(p + k + 128, mask=m_m[None, :], other=0.0)
    x3 = tl.load(p + k + 192, mask=m_m[None, :], other=0.0)
    return x0, x1, x2, x3


@triton.jit
def wide_exact(
    x, s_x_m,
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
    W: tl.constexpr,
    R: tl.constexpr,
    BM: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """BM rows of x a program. R = 2: two tiles, with SwiGLU gate and up."""
    ROWS: tl.constexpr = 16 * W
    TILES: tl.constexpr = W // 4
    SLOT: tl.constexpr = R * ROWS * BM
    TYPE: tl.constexpr = x.dtype.element_ty
    records = K // 256
    i_p, P = tl.program_id(0), tl.num_programs(0)
    i_m = tl.program_id(1)
    groups = N // ROWS if SWIGLU else N // (ROWS * R)
    work = groups * records
    # the first `more` programs take a record more than the others
    share, more = work // P, work % P
    first = i_p * share + tl.minimum(i_p, more)
    last = first + share + (i_p < more).to(tl.int32)
    # from a group to the next, and to its second tile
    STEP: tl.constexpr = TILES if SWIGLU else R * TILES
    beside = N // 64 if SWIGLU else TILES
    o_k = tl.arange(0, 64)
    o_m = i_m * BM + tl.arange(0, BM)
    p_x = x + o_m.to(tl.int64)[None, :] * s_x_m + o_k[:, None]
    m_m = o_m < M
    slots = partial + (i_m * P).to(tl.int64) * (2 * SLOT)
    i_n = first // records
    p = tl.cast(i_n * STEP, tl.int64) * records + first % records
    b_w0, b_more0 = fetch_codes(wide, p, records, 0, FORMAT, RECORD, W)
    b_w1, b_more1 = fetch_codes(wide, p, records, 1, FORMAT, RECORD, W)
    b_w2, b_more2 = fetch_codes(wide, p, records, 2, FORMAT, RECORD, W)
    b_w3, b_more3 = fetch_codes(wide, p, records, 3, FORMAT, RECORD, W)
    b_s, b_d = fetch_scales(words, wide, p, records, FORMAT, RECORD, SCALES, D, W)
    b_high = b_w0
    b_high1 = b_w0
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        b_high = fetch_high(wide, p, records, 0, FORMAT, RECORD, W)
    if FORMAT == "q6_k":
        b_high1 = fetch_high(wide, p, records, 1, FORMAT, RECORD, W)
    for i_n in range(first // records, (last - 1) // records + 1):
        begin, end = tl.maximum(first, i_n * records), tl.minimum(last, (i_n + 1) * records)
        acc = tl.zeros((ROWS, BM), tl.float32)
        if R == 2:
            acc_b = tl.zeros((ROWS, BM), tl.float32)
        for i in tl.range(begin, end, num_stages=STAGES):
            k = (i - i_n * records) * 256
            x0, x1, x2, x3 = _x(p_x, k, m_m)
            nxt = tl.minimum(i + 1, last - 1)
            i_next = tl.where(nxt == (i_n + 1) * records, i_n + 1, i_n)
            p = tl.cast(i_next * (STEP - 1) * records + nxt, tl.int64)
            ahead = p
            if R == 2:
                ahead = tl.cast((i_n * (STEP - 1) + beside) * records + i, tl.int64)
            s, m = scales(b_s, b_d, FORMAT, W, ASM)
            b_s, b_d = fetch_scales(words, wide, ahead, records, FORMAT, RECORD, SCALES, D, W)
            high, high1 = b_high, b_high1
            if FORMAT == "q5_k":
                b_high = fetch_high(wide, ahead, records, 0, FORMAT, RECORD, W)
            a = weights(b_w0, b_more0, high, s[0], m[0], 0, FORMAT, W, ASM).to(TYPE)
            b_w0, b_more0 = fetch_codes(wide, ahead, records, 0, FORMAT, RECORD, W)
            acc = tl.dot(a, x0, acc)
            a = weights(b_w1, b_more1, high, s[1], m[1], 1, FORMAT, W, ASM).to(TYPE)
            b_w1, b_more1 = fetch_codes(wide, ahead, records, 1, FORMAT, RECORD, W)
            if FORMAT == "q6_k":
                b_high = fetch_high(wide, ahead, records, 0, FORMAT, RECORD, W)
            acc = tl.dot(a, x1, acc)
            a = weights(b_w2, b_more2, high1 if FORMAT == "q6_k" else high, s[2], m[2], 2, FORMAT, W, ASM).to(TYPE)
            b_w2, b_more2 = fetch_codes(wide, ahead, records, 2, FORMAT, RECORD, W)
            acc = tl.dot(a, x2, acc)
            a = weights(b_w3, b_more3, high1 if FORMAT == "q6_k" else high, s[3], m[3], 3, FORMAT, W, ASM).to(TYPE)
            b_w3, b_more3 = fetch_codes(wide, ahead, records, 3, FORMAT, RECORD, W)
            if FORMAT == "q6_k":
                b_high1 = fetch_high(wide, ahead, records, 1, FORMAT, RECORD, W)
            acc = tl.dot(a, x3, acc)
            if R == 2:
                s, m = scales(b_s, b_d, FORMAT, W, ASM)
                b_s, b_d = fetch_scales(words, wide, p, records, FORMAT, RECORD, SCALES, D, W)
                high, high1 = b_high, b_high1
                if FORMAT == "q5_k":
                    b_high = fetch_high(wide, p, records, 0, FORMAT, RECORD, W)
                a = weights(b_w0, b_more0, high, s[0], m[0], 0, FORMAT, W, ASM).to(TYPE)
                b_w0, b_more0 = fetch_codes(wide, p, records, 0, FORMAT, RECORD, W)
                acc_b = tl.dot(a, x0, acc_b)
                a = weights(b_w1, b_more1, high, s[1], m[1], 1, FORMAT, W, ASM).to(TYPE)
                b_w1, b_more1 = fetch_codes(wide, p, records, 1, FORMAT, RECORD, W)
                if FORMAT == "q6_k":
                    b_high = fetch_high(wide, p, records, 0, FORMAT, RECORD, W)
                acc_b = tl.dot(a, x1, acc_b)
                a = weights(b_w2, b_more2, high1 if FORMAT == "q6_k" else high, s[2], m[2], 2, FORMAT, W, ASM).to(TYPE)
                b_w2, b_more2 = fetch_codes(wide, p, records, 2, FORMAT, RECORD, W)
                acc_b = tl.dot(a, x2, acc_b)
                a = weights(b_w3, b_more3, high1 if FORMAT == "q6_k" else high, s[3], m[3], 3, FORMAT, W, ASM).to(TYPE)
                b_w3, b_more3 = fetch_codes(wide, p, records, 3, FORMAT, RECORD, W)
                if FORMAT == "q6_k":
                    b_high1 = fetch_high(wide, p, records, 1, FORMAT, RECORD, W)
                acc_b = tl.dot(a, x3, acc_b)
        o_n = i_n * (ROWS if SWIGLU else R * ROWS) + tl.arange(0, ROWS)
        if end - begin == records:
            _finish(acc, acc_b if SWIGLU else acc, residual, s_residual_m, out, o_n, o_m, M, N, SWIGLU)
            if R == 2 and not SWIGLU:
                _finish(acc_b, acc_b, residual, s_residual_m, out, o_n + ROWS, o_m, M, N, SWIGLU)
        else:
            p_slot = slots + tl.cast(2 * i_p + (begin != first), tl.int64) * SLOT
            _save(acc, p_slot, ROWS, BM)
            if R == 2:
                _save(acc_b, p_slot + ROWS * BM, ROWS, BM)
    # arrivals come last: nothing of this program's stream waits for a fence
    tl.debug_barrier()
    for i_n in range(first // records, (last - 1) // records + 1):
        begin_p, end_p = _owner(i_n * records, share, more), _owner((i_n + 1) * records - 1, share, more)
        if begin_p != end_p:
            p_arrived = arrived + i_m * groups + i_n
            if tl.atomic_add(p_arrived, 1, sem="acq_rel") == end_p - begin_p:
                tl.store(p_arrived, 0)
                o_n = i_n * (ROWS if SWIGLU else R * ROWS) + tl.arange(0, ROWS)
                cut = (begin_p * share + tl.minimum(begin_p, more) < i_n * records).to(tl.int32)
                acc = _total(slots, begin_p, end_p, ROWS, BM, SLOT, cut)
                if R == 2:
                    acc_b = _total(slots + ROWS * BM, begin_p, end_p, ROWS, BM, SLOT, cut)
                _finish(acc, acc_b if SWIGLU else acc, residual, s_residual_m, out, o_n, o_m, M, N, SWIGLU)
                if R == 2 and not SWIGLU:
                    _finish(acc_b, acc_b, residual, s_residual_m, out, o_n + ROWS, o_m, M, N, SWIGLU)
