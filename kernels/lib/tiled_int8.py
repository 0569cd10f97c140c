"""y = W · x for one row x in 8-bit integers, over tiles (reference/tiles.py).

    program:  16 rows of W, or 32, by KW warps        warp kw:  records kw, kw + KW, ... of 256 columns

    record of W  ──16 bytes a lane, a step or two ahead──>  registers  ──masks──>  A  ┐
    256 of x     ──────────────────────────────────────>  8 bits and a scale  ────>  B  ┴─ m16n8k32 ─> integers,
                                                            times the 6-bit scales still integers, then one multiply-add

A warp quantises its own piece of x while its weights are in flight: no launch before this one and no sum that two
programs share, so what decides is how many bytes are in flight. `APART` takes x from a launch of `quantise` instead.
Which lane holds what: `imma.py`.
"""

import triton
import triton.language as tl

from .imma import four, lanes, products, quantised, sums
from .tiles import HIGH, halves

_HIGH = tl.constexpr(HIGH)


@triton.jit
def quantise(x, words, d, FORMAT: tl.constexpr, SMALLEST: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr):
    """A program 256 columns: words [32 lanes, 4] and d [8], as a lane of `tiled_int8` wants them."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i_k = tl.program_id(0)
    lane = tl.arange(0, 32)
    o_2 = tl.arange(0, 64)
    p_x = x + i_k * 256 + o_2 // 8 * 32 + o_2 % 8
    b_w, d0, d1 = quantised(
        tl.load(p_x), tl.load(p_x + 8), tl.load(p_x + 16), tl.load(p_x + 24), lane, FORMAT, SMALLEST, ASM
    )
    w0, w1, w2, w3 = b_w
    w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (128,))
    tl.store(words + i_k * 128 + tl.arange(0, 128), w)
    m_d = lane < 4
    tl.store(d + i_k * 8 + 2 * lane, d0, mask=m_d)
    tl.store(d + i_k * 8 + 2 * lane + 1, d1, mask=m_d)


@triton.jit
def _record(i_r, records, o_kw, WHOLE: tl.constexpr):
    """A warp's record of a step; past the last one the last again, which then counts nothing."""
    return i_r + o_kw if WHOLE else tl.minimum(i_r + o_kw, records - 1)


@triton.jit
def _fetch(
    p, block, i_r, records,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    WR: tl.constexpr,
    WHOLE: tl.constexpr,
    EVICT: tl.constexpr,
):  # fmt: skip
    """What a warp reads of its record of a step: words, bits above, scales and d of rows g and g + 8.

    p: the first record of a tile's rows, in words; i_r: the step's first record, a warp takes the next of WR.
    """
    L: tl.constexpr = W * 32
    o, o_4 = tl.arange(0, L), tl.arange(0, 4 * L)
    if WHOLE:
        p += i_r * (RECORD // 4)
        i_r = 0
    p_w = p + _record(i_r, records, o_4 // (128 * WR), WHOLE) * (RECORD // 4) + block * 128 + o_4 % (128 * WR)
    w = (
        tl.load(p_w, eviction_policy=EVICT),
        tl.load(p_w + 512, eviction_policy=EVICT),
        tl.load(p_w + 1024, eviction_policy=EVICT),
        tl.load(p_w + 1536, eviction_policy=EVICT),
    )
    more = w
    if FORMAT == "q8_0":
        more = (
            tl.load(p_w + 2048, eviction_policy=EVICT),
            tl.load(p_w + 2560, eviction_policy=EVICT),
            tl.load(p_w + 3072, eviction_policy=EVICT),
            tl.load(p_w + 3584, eviction_policy=EVICT),
        )
    if FORMAT == "q5_k":
        more = (tl.load(p_w + _HIGH // 4, eviction_policy=EVICT),)  # type: ignore[assignment]
    if FORMAT == "q6_k":
        p_h = p_w + _HIGH // 4
        more = (tl.load(p_h, eviction_policy=EVICT), tl.load(p_h + 512, eviction_policy=EVICT))  # type: ignore[assignment]
    # lane 4 g + t: word t of row g, and of row g + 8
    o_r, o_b = _record(i_r, records, o // (32 * WR), WHOLE) * (RECORD // 4), block + o // 32 % WR
    p_s = p + SCALES // 4 + o_r + o_b * 64 + o % 32
    scales = (tl.load(p_s, eviction_policy=EVICT), tl.load(p_s + 32, eviction_policy=EVICT))
    d = scales
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        p_d = p + D // 4 + o_r + o_b * 16 + o % 32 // 4
        d = (tl.load(p_d, eviction_policy=EVICT), tl.load(p_d + 8, eviction_policy=EVICT))
    if FORMAT == "q6_k":
        p_d = p.to(tl.pointer_type(tl.int16)) + D // 2 + 2 * o_r + o_b * 16 + o % 32 // 4
        d = (tl.load(p_d, eviction_policy=EVICT), tl.load(p_d + 8, eviction_policy=EVICT))
    return w, more, scales, d


@triton.jit
def _fetch_x(
    x, x_words, x_d, i_r, records,
    W: tl.constexpr,
    WR: tl.constexpr,
    APART: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """A warp's 256 columns of x: eight a lane, or words of them with d."""
    L: tl.constexpr = W * 32
    o, o_2, o_4 = tl.arange(0, L), tl.arange(0, 2 * L), tl.arange(0, 4 * L)
    if APART:
        p_x = x_words + _record(i_r, records, o_4 // (128 * WR), WHOLE) * 128 + o_4 % 128
        p_d = x_d + _record(i_r, records, o // (32 * WR), WHOLE) * 8 + o % 4 * 2
        b_x = (tl.load(p_x), tl.load(p_d), tl.load(p_d + 1))
    else:
        # lane 4 n + t: columns 32 n + 2 t and on
        p_x = x + _record(i_r, records, o_2 // (64 * WR), WHOLE) * 256 + o_2 // 8 % 8 * 32 + o_2 % 8
        b_x = (tl.load(p_x), tl.load(p_x + 8), tl.load(p_x + 16), tl.load(p_x + 24))  # type: ignore[assignment]
    return b_x


@triton.jit
def _words_of(
    b_x, lane, i_r, records,
    FORMAT: tl.constexpr,
    SMALLEST: tl.constexpr,
    WR: tl.constexpr,
    APART: tl.constexpr,
    WHOLE: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """x as the tensor cores take it, and its d for sub-blocks 2t and 2t + 1."""
    if APART:
        words, xd0, xd1 = b_x
        words = four(words)
    else:
        x0, x1, x2, x3 = b_x
        words, xd0, xd1 = quantised(x0, x1, x2, x3, lane, FORMAT, SMALLEST, ASM)
    if not WHOLE:
        m = i_r + tl.arange(0, lane.shape[0]) // (32 * WR) < records
        xd0, xd1 = tl.where(m, xd0, 0.0), tl.where(m, xd1, 0.0)
    return words, xd0, xd1


@triton.jit
def _add(acc0, acc1, loaded, x, lane, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """acc of rows g and g + 8, of a lane's two sub-blocks, + a record."""
    w, more, scales, d = loaded
    words, xd0, xd1 = x
    y0, y1 = products(w, more, words, lane, FORMAT, ASM)
    s0, s1 = scales
    if FORMAT != "q8_0":
        t = sums(words, FORMAT, ASM)
    if FORMAT == "q6_k":
        d0, d1 = d
        acc0 = tl.fma(_scaled(y0, s0, t).to(tl.float32), d0.to(tl.float16, bitcast=True).to(tl.float32) * xd0, acc0)
        acc1 = tl.fma(_scaled(y1, s1, t).to(tl.float32), d1.to(tl.float16, bitcast=True).to(tl.float32) * xd0, acc1)
    elif FORMAT == "q4_k" or FORMAT == "q5_k":
        # nibbles left in the upper half count sixteen times
        part = xd0 * tl.where(lane % 2 == 1, 0.0625, 1.0) if FORMAT == "q4_k" else xd0
        d0, d1 = d
        acc0 = _less(acc0, y0, t, s0, d0, part, xd0)
        acc1 = _less(acc1, y1, t, s1, d1, part, xd0)
    else:
        g0, g1 = y0
        h0, h1 = y1
        if FORMAT == "q4_0":
            less, part = tl.where(lane % 2 == 1, 128, 8), tl.where(lane % 2 == 1, 0.0625, 1.0)
            t0, t1 = t
            g0, g1, h0, h1 = g0 - less * t0, g1 - less * t1, h0 - less * t0, h1 - less * t1
            xd0, xd1 = xd0 * part, xd1 * part
        a0, b0 = halves(s0)
        a1, b1 = halves(s1)
        acc0 = tl.fma(g0.to(tl.float32), a0.to(tl.float32) * xd0, acc0)
        acc0 = tl.fma(g1.to(tl.float32), b0.to(tl.float32) * xd1, acc0)
        acc1 = tl.fma(h0.to(tl.float32), a1.to(tl.float32) * xd0, acc1)
        acc1 = tl.fma(h1.to(tl.float32), b1.to(tl.float32) * xd1, acc1)
    return acc0, acc1


@triton.jit
def _scaled(y, s, t):
    """q6_k: the sums of four 16s, codes less 32, times their scales, bytes less 128."""
    y0, y1, y2, y3 = y
    t0, t1, t2, t3 = t
    total = (_byte(s, 0) - 128) * (y0 - 32 * t0) + (_byte(s, 1) - 128) * (y1 - 32 * t1)
    return total + (_byte(s, 2) - 128) * (y2 - 32 * t2) + (_byte(s, 3) - 128) * (y3 - 32 * t3)


@triton.jit
def _less(acc, y, t, s, d, part, xd):
    """q4_k, q5_k: two sums times scales, less x's sums times minimums; s holds scale, minimum, scale, minimum."""
    y0, y1 = y
    t0, t1 = t
    low, up = halves(d)
    y = _byte(s, 0) * y0 + _byte(s, 2) * y1
    acc = tl.fma(y.to(tl.float32), low.to(tl.float32) * part, acc)
    return tl.fma((_byte(s, 1) * t0 + _byte(s, 3) * t1).to(tl.float32), up.to(tl.float32) * -xd, acc)


@triton.jit
def _byte(w, I: tl.constexpr):
    return (w >> (8 * I)) & 255


@triton.jit
def tiled_int8(
    x,
    x_words,
    x_d,
    wide,
    residual,
    out,
    N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SMALLEST: tl.constexpr,
    SWIGLU: tl.constexpr,
    PAIR: tl.constexpr,
    W: tl.constexpr,
    WR: tl.constexpr,
    STAGES: tl.constexpr,
    APART: tl.constexpr,
    WHOLE: tl.constexpr,
    PDL: tl.constexpr,
    EVICT: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    KW: tl.constexpr = W // WR
    L: tl.constexpr = W * 32
    # 16 rows a warp; 32 as a pair: the next 16 rows, or SwiGLU's up rows
    ROWS: tl.constexpr = 16 * WR * (2 if PAIR and not SWIGLU else 1)
    i_n = tl.program_id(0)
    if PDL == 1:
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    block = (i_n % (64 // ROWS)) * (ROWS // 16)
    tile = (i_n // (64 // ROWS)).to(tl.int64)
    p = wide + tile * records * (RECORD // 4)
    if SWIGLU:
        p_two, block_two = wide + (tile + N // 64) * records * (RECORD // 4), block
    else:
        p_two, block_two = p, block + WR
    lane = lanes(W, ASM)
    acc0, acc1 = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    two0, two1 = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    a = _fetch(p, block, 0, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
    if PAIR:
        a_two = _fetch(p_two, block_two, 0, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
    if STAGES > 1:
        b = _fetch(p, block, KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
        if PAIR:
            b_two = _fetch(p_two, block_two, KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x_a = _fetch_x(x, x_words, x_d, 0, records, W, WR, APART, WHOLE)
    if STAGES > 1:
        x_b = _fetch_x(x, x_words, x_d, KW, records, W, WR, APART, WHOLE)
    i_r = 0
    for _ in range(1, tl.cdiv(tl.cdiv(records, KW), STAGES)):
        q = _words_of(x_a, lane, i_r, records, FORMAT, SMALLEST, WR, APART, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
        a = _fetch(p, block, i_r + STAGES * KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
        if PAIR:
            two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
            a_two = _fetch(p_two, block_two, i_r + STAGES * KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
        x_a = _fetch_x(x, x_words, x_d, i_r + STAGES * KW, records, W, WR, APART, WHOLE)
        if STAGES > 1:
            i_r += KW
            q = _words_of(x_b, lane, i_r, records, FORMAT, SMALLEST, WR, APART, WHOLE, ASM)
            acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
            b = _fetch(p, block, i_r + 2 * KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
            if PAIR:
                two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)
                b_two = _fetch(p_two, block_two, i_r + 2 * KW, records, FORMAT, RECORD, SCALES, D, W, WR, WHOLE, EVICT)
            x_b = _fetch_x(x, x_words, x_d, i_r + 2 * KW, records, W, WR, APART, WHOLE)
        i_r += KW
    q = _words_of(x_a, lane, i_r, records, FORMAT, SMALLEST, WR, APART, WHOLE, ASM)
    acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
    if PAIR:
        two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
    if STAGES > 1:
        q = _words_of(x_b, lane, i_r + KW, records, FORMAT, SMALLEST, WR, APART, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
        if PAIR:
            two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)

    if PDL == 2:
        tl.extra.cuda.gdc_launch_dependents()
    o_n = i_n * ROWS + tl.arange(0, 16 * WR)
    y = _rows(acc0, acc1, WR)
    if SWIGLU:
        y = y * tl.sigmoid(y) * _rows(two0, two1, WR)
    _store(y, residual, out, o_n)
    if PAIR and not SWIGLU:
        _store(_rows(two0, two1, WR), residual, out, o_n + 16 * WR)


@triton.jit
def _rows(acc0, acc1, WR: tl.constexpr):
    """Sums of rows g and g + 8 in every lane -> rows [16 WR]."""
    KW: tl.constexpr = acc0.shape[0] // (32 * WR)
    y = tl.sum(tl.reshape(tl.join(acc0, acc1), (KW, WR * 8, 4, 2)), 2)
    y = tl.permute(tl.reshape(tl.sum(y, 0), (WR, 8, 2)), (0, 2, 1))
    return tl.reshape(y, (16 * WR,))


@triton.jit
def _store(y, residual, out, o_n):
    if residual is not None:
        y += tl.load(residual + o_n).to(tl.float32)
    tl.store(out + o_n, y.to(out.dtype.element_ty))
