"""y = W · x for one row x in 8-bit integers, over tiles (reference/tiles.py).

    program:  16 rows of W, or 32, by W warps        warp kw:  records kw, kw + W, ... of 256 columns

    record of W  ──16 bytes a lane, a step or two ahead──>  registers  ──masks──>  A  ┐
    256 of x     ──────────────────────────────────────>  8 bits and a scale  ────>  B  ┴─ m16n8k32 ─> integers,
                                                            times the 6-bit scales still integers, then one multiply-add

The eight columns of B are the groups of 32 of the one row, so a row's sums land where its scales are read. A warp
quantises its own piece of x while its weights are in flight: no launch before this one and no sum that two programs
share, so what decides is how many bytes are in flight. Which lane holds what: `imma.py`.

With a norm it is x * norm that is quantised; the squares' sum, of all warps, makes the factor of what comes of the row.
x and the norm in f32 are four times the bytes of x in f16: worth a launch where a program has 32 rows of W.
"""

import triton
import triton.language as tl

from .imma import lanes, products, quantised, sums
from .tiles import HIGH, halves

_HIGH = tl.constexpr(HIGH)


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
    WHOLE: tl.constexpr,
):  # fmt: skip
    """What a warp reads of its record of a step: words, bits above, scales and d of rows g and g + 8.

    p: the first record of a tile's rows, in words; i_r: the step's first record, a warp takes one of the next W.
    """
    L: tl.constexpr = W * 32
    o, o_4 = tl.arange(0, L), tl.arange(0, 4 * L)
    if WHOLE:
        p += i_r * (RECORD // 4)
        i_r = 0
    p_w = p + _record(i_r, records, o_4 // 128, WHOLE) * (RECORD // 4) + block * 128 + o_4 % 128
    w = (
        tl.load(p_w, eviction_policy="evict_first"),
        tl.load(p_w + 512, eviction_policy="evict_first"),
        tl.load(p_w + 1024, eviction_policy="evict_first"),
        tl.load(p_w + 1536, eviction_policy="evict_first"),
    )
    more = w
    if FORMAT == "q8_0":
        more = (
            tl.load(p_w + 2048, eviction_policy="evict_first"),
            tl.load(p_w + 2560, eviction_policy="evict_first"),
            tl.load(p_w + 3072, eviction_policy="evict_first"),
            tl.load(p_w + 3584, eviction_policy="evict_first"),
        )
    if FORMAT == "q5_k":
        more = (tl.load(p_w + _HIGH // 4, eviction_policy="evict_first"),)  # type: ignore[assignment]
    if FORMAT == "q6_k":
        p_h = p_w + _HIGH // 4
        more = (tl.load(p_h, eviction_policy="evict_first"), tl.load(p_h + 512, eviction_policy="evict_first"))  # type: ignore[assignment]
    # lane 4 g + t: word t of row g, and of row g + 8
    o_r = _record(i_r, records, o // 32, WHOLE) * (RECORD // 4)
    p_s = p + SCALES // 4 + o_r + block * 64 + o % 32
    scales = (tl.load(p_s, eviction_policy="evict_first"), tl.load(p_s + 32, eviction_policy="evict_first"))
    d = scales
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        p_d = p + D // 4 + o_r + block * 16 + o % 32 // 4
        d = (tl.load(p_d, eviction_policy="evict_first"), tl.load(p_d + 8, eviction_policy="evict_first"))
    if FORMAT == "q6_k":
        p_d = p.to(tl.pointer_type(tl.int16)) + D // 2 + 2 * o_r + block * 16 + o % 32 // 4
        d = (tl.load(p_d, eviction_policy="evict_first"), tl.load(p_d + 8, eviction_policy="evict_first"))
    return w, more, scales, d


@triton.jit
def _fetch_x(x, i_r, records, W: tl.constexpr, WHOLE: tl.constexpr):
    """A warp's 256 columns of x, eight a lane."""
    o_2 = tl.arange(0, 2 * W * 32)
    # lane 4 n + t: columns 32 n + 2 t and on
    p = x + _record(i_r, records, o_2 // 64, WHOLE) * 256 + o_2 // 8 % 8 * 32 + o_2 % 8
    return tl.load(p), tl.load(p + 8), tl.load(p + 16), tl.load(p + 24)


@triton.jit
def _words_of(
    b_x, b_n, squares, lane, i_r, records,
    NORMED: tl.constexpr,
    FORMAT: tl.constexpr,
    SMALLEST: tl.constexpr,
    WHOLE: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """x, if NORMED times b_n, as the tensor cores take it, and its d for groups 2t and 2t + 1; the sum of squares."""
    x0, x1, x2, x3 = b_x
    if NORMED:
        x0, x1, x2, x3 = x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32), x3.to(tl.float32)
        more = tl.sum(tl.reshape(x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3, (lane.shape[0], 2)), 1)
        n0, n1, n2, n3 = b_n
        x0, x1, x2, x3 = x0 * n0, x1 * n1, x2 * n2, x3 * n3
    words, xd0, xd1 = quantised(x0, x1, x2, x3, lane, FORMAT, SMALLEST, ASM)
    if not WHOLE:
        m = i_r + tl.arange(0, lane.shape[0]) // 32 < records
        xd0, xd1 = tl.where(m, xd0, 0.0), tl.where(m, xd1, 0.0)
    if NORMED:
        squares += more if WHOLE else tl.where(m, more, 0.0)
    return (words, xd0, xd1), squares


@triton.jit
def _add(acc0, acc1, loaded, x, lane, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """acc of rows g and g + 8, of a lane's two groups, + a record."""
    w, more, scales, d = loaded
    words, xd0, xd1 = x
    y0, y1 = products(w, more, words, lane, FORMAT, ASM)
    s0, s1 = scales
    if FORMAT == "q6_k":
        d0, d1 = d
        part = xd0 * 0.25
        acc0 = tl.fma(_scaled(y0, s0).to(tl.float32), d0.to(tl.float16, bitcast=True).to(tl.float32) * part, acc0)
        acc1 = tl.fma(_scaled(y1, s1).to(tl.float32), d1.to(tl.float16, bitcast=True).to(tl.float32) * part, acc1)
    elif FORMAT == "q4_k" or FORMAT == "q5_k":
        t = sums(words, ASM)
        d0, d1 = d
        acc0 = _less(acc0, y0, t, s0, d0, xd0, FORMAT)
        acc1 = _less(acc1, y1, t, s1, d1, xd0, FORMAT)
    else:
        g0, g1 = y0
        h0, h1 = y1
        if FORMAT == "q4_0":
            t0, t1 = sums(words, ASM)
            g0, g1, h0, h1 = g0 - 8 * t0, g1 - 128 * t1, h0 - 8 * t0, h1 - 128 * t1
            xd1 = xd1 * 0.0625
        a0, b0 = halves(s0)
        a1, b1 = halves(s1)
        acc0 = tl.fma(g0.to(tl.float32), a0.to(tl.float32) * xd0, acc0)
        acc0 = tl.fma(g1.to(tl.float32), b0.to(tl.float32) * xd1, acc0)
        acc1 = tl.fma(h0.to(tl.float32), a1.to(tl.float32) * xd0, acc1)
        acc1 = tl.fma(h1.to(tl.float32), b1.to(tl.float32) * xd1, acc1)
    return acc0, acc1


@triton.jit
def _scaled(y, s):
    """q6_k: the sums of four 16s times their scales, bytes less 128."""
    y0, y1, y2, y3 = y
    total = (_byte(s, 0) - 128) * y0 + (_byte(s, 1) - 128) * y1
    return total + (_byte(s, 2) - 128) * y2 + (_byte(s, 3) - 128) * y3


@triton.jit
def _less(acc, y, t, s, d, xd, FORMAT: tl.constexpr):
    """q4_k, q5_k: two sums times scales, less x's sums times minimums; s holds scale, minimum, scale, minimum."""
    y0, y1 = y
    t0, t1 = t
    low, up = halves(d)
    if FORMAT == "q4_k":
        # the odd group counts sixteen times, so the even one must, too
        y, part = ((s << 4) & 0xFF0) * y0 + _byte(s, 2) * y1, xd * 0.0625
    else:
        y, part = _byte(s, 0) * y0 + _byte(s, 2) * y1, xd
    acc = tl.fma(y.to(tl.float32), low.to(tl.float32) * part, acc)
    return tl.fma((_byte(s, 1) * t0 + _byte(s, 3) * t1).to(tl.float32), up.to(tl.float32) * -xd, acc)


@triton.jit
def _byte(w, I: tl.constexpr):
    return (w >> (8 * I)) & 255


@triton.jit
def row_int8(
    x,
    norm, eps,
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
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    L: tl.constexpr = W * 32
    # 16 rows a warp; 32 as a pair: the next 16 rows, or SwiGLU's up rows
    ROWS: tl.constexpr = 32 if PAIR and not SWIGLU else 16
    i_n = tl.program_id(0)
    if EARLY == "start":
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    block = (i_n % (64 // ROWS)) * (ROWS // 16)
    tile = (i_n // (64 // ROWS)).to(tl.int64)
    p = wide + tile * records * (RECORD // 4)
    if SWIGLU:
        p_two, block_two = wide + (tile + N // 64) * records * (RECORD // 4), block
    else:
        p_two, block_two = p, block + 1
    lane = lanes(W, ASM)
    NORMED: tl.constexpr = norm is not None
    squares = tl.zeros((L,), tl.float32)
    acc0, acc1 = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    two0, two1 = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    a = _fetch(p, block, 0, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    if PAIR:
        a_two = _fetch(p_two, block_two, 0, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    if STAGES > 1:
        b = _fetch(p, block, W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        if PAIR:
            b_two = _fetch(p_two, block_two, W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    n_a = _fetch_x(norm, 0, records, W, WHOLE) if NORMED else ()
    if STAGES > 1:
        n_b = _fetch_x(norm, W, records, W, WHOLE) if NORMED else ()
    if EARLY != "no":
        tl.extra.cuda.gdc_wait()
    x_a = _fetch_x(x, 0, records, W, WHOLE)
    if STAGES > 1:
        x_b = _fetch_x(x, W, records, W, WHOLE)
    i_r = 0
    for _ in range(1, tl.cdiv(tl.cdiv(records, W), STAGES)):
        q, squares = _words_of(x_a, n_a, squares, lane, i_r, records, NORMED, FORMAT, SMALLEST, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
        a = _fetch(p, block, i_r + STAGES * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        if PAIR:
            two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
            a_two = _fetch(p_two, block_two, i_r + STAGES * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        x_a = _fetch_x(x, i_r + STAGES * W, records, W, WHOLE)
        if NORMED:
            n_a = _fetch_x(norm, i_r + STAGES * W, records, W, WHOLE)
        if STAGES > 1:
            i_r += W
            q, squares = _words_of(x_b, n_b, squares, lane, i_r, records, NORMED, FORMAT, SMALLEST, WHOLE, ASM)
            acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
            b = _fetch(p, block, i_r + 2 * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
            if PAIR:
                two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)
                b_two = _fetch(p_two, block_two, i_r + 2 * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
            x_b = _fetch_x(x, i_r + 2 * W, records, W, WHOLE)
            if NORMED:
                n_b = _fetch_x(norm, i_r + 2 * W, records, W, WHOLE)
        i_r += W
    q, squares = _words_of(x_a, n_a, squares, lane, i_r, records, NORMED, FORMAT, SMALLEST, WHOLE, ASM)
    acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
    if PAIR:
        two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
    if STAGES > 1:
        q, squares = _words_of(x_b, n_b, squares, lane, i_r + W, records, NORMED, FORMAT, SMALLEST, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
        if PAIR:
            two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)

    if EARLY == "end":
        tl.extra.cuda.gdc_launch_dependents()
    o_n = i_n * ROWS + tl.arange(0, 16)
    y = _rows(acc0, acc1)
    if PAIR:
        y_two = _rows(two0, two1)
    if NORMED:
        # the norm's factor, which rounding to 8 bits does not change
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
        y *= scale
        if PAIR:
            y_two *= scale
    if SWIGLU:
        y = y * tl.sigmoid(y) * y_two
    _store(y, residual, out, o_n)
    if PAIR and not SWIGLU:
        _store(y_two, residual, out, o_n + 16)


@triton.jit
def _rows(acc0, acc1):
    """Sums of rows g and g + 8 in every lane -> rows [16]."""
    y = tl.sum(tl.reshape(tl.join(acc0, acc1), (acc0.shape[0] // 32, 8, 4, 2)), 2)
    return tl.reshape(tl.permute(tl.sum(y, 0), (1, 0)), (16,))


@triton.jit
def _store(y, residual, out, o_n):
    if residual is not None:
        y += tl.load(residual + o_n).to(tl.float32)
    tl.store(out + o_n, y.to(out.dtype.element_ty))
