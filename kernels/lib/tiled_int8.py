"""y = W · x for one row x in 8-bit integers, over tiles (reference/tiles.py).

    program:  16 rows of W, or 32, by W warps        warp kw:  records kw, kw + W, ... of 256 columns

    record of W  ──16 bytes a lane, a step or two ahead──>  registers  ──masks──>  A  ┐
    256 of x     ──────────────────────────────────────>  8 bits and a scale  ────>  B  ┴─ m16n8k32 ─> integers,
                                                            times the 6-bit scales still integers, then one multiply-add

A warp quantises its own piece of x while its weights are in flight: no launch before this one and no sum that two
programs share, so what decides is how many bytes are in flight. `APART` takes x from a launch of `quantise` instead.
Which lane holds what: `imma.py`.
"""

import triton
import triton.language as tl

from .imma import lanes, products, quantised, sums
from .tiles import HIGH, halves

_HIGH = tl.constexpr(HIGH)


@triton.jit
def quantise(
    x, s_x_m,
    words, d,
    FORMAT: tl.constexpr,
    SMALLEST: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """A program 256 columns of a row: words [32 lanes, 4] and d [8], as a lane of `tiled_int8` wants them."""
    if EARLY != "no":
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i_k, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, 32)
    o_2 = tl.arange(0, 64)[None, :]
    p_x = x + i_m * s_x_m + i_k * 256 + o_2 // 8 * 32 + o_2 % 8
    b_w, d0, d1 = quantised(
        tl.load(p_x), tl.load(p_x + 8), tl.load(p_x + 16), tl.load(p_x + 24), lane, FORMAT, SMALLEST, ASM
    )
    w0, w1, w2, w3 = b_w
    at = i_m * tl.num_programs(0) + i_k
    w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (128,))
    tl.store(words + at * 128 + tl.arange(0, 128), w)
    m_d = (lane < 4)[None, :]
    tl.store(d + at * 8 + 2 * lane[None, :], d0, mask=m_d)
    tl.store(d + at * 8 + 2 * lane[None, :] + 1, d1, mask=m_d)


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
def _fetch_x(
    x, s_x_m, x_words, x_d, M, i_r, records,
    BM: tl.constexpr,
    W: tl.constexpr,
    APART: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """A warp's 256 columns of every row of x: eight a lane, or words of them with d."""
    L: tl.constexpr = W * 32
    o, o_2, o_4 = tl.arange(0, L), tl.arange(0, 2 * L), tl.arange(0, 4 * L)
    if APART:
        p_x = x_words + _record(i_r, records, o_4 // 128, WHOLE) * 128 + o_4 % 128
        # lane (g, t): those of 2t and 2t + 1
        p_d = x_d + _record(i_r, records, o // 32, WHOLE) * 8 + o % 4 * 2
        d = _stacked(p_d, records * 8, M, BM), _stacked(p_d + 1, records * 8, M, BM)
        b_x = _stacked(p_x, records * 128, M, BM), d
    else:
        # lane 4 n + t: columns 32 n + 2 t and on
        p_x = x + _record(i_r, records, o_2 // 64, WHOLE) * 256 + o_2 // 8 % 8 * 32 + o_2 % 8
        first = _stacked(p_x, s_x_m, M, BM), _stacked(p_x + 8, s_x_m, M, BM)
        b_x = first, (_stacked(p_x + 16, s_x_m, M, BM), _stacked(p_x + 24, s_x_m, M, BM))
    return b_x


@triton.jit
def _stacked(p, s_m, M, BM: tl.constexpr):
    """[n] of every row -> [BM, n], a lane with the same of all; past the last row the last again, for nothing."""
    if BM == 1:
        b = tl.load(p[None, :])
    elif BM == 2:
        b = tl.permute(tl.join(tl.load(p), tl.load(p + s_m)), (1, 0))
    else:
        two, three = tl.load(p + 2 * s_m), tl.load(p + tl.minimum(M - 1, 3) * s_m)
        b = tl.join(tl.join(tl.load(p), two), tl.join(tl.load(p + s_m), three))
        b = tl.reshape(tl.permute(b, (1, 2, 0)), (4, p.shape[0]))
    return b


@triton.jit
def _unstacked(b):
    """[BM, n] -> BM times [n]."""
    BM: tl.constexpr = b.shape[0]
    if BM == 1:
        y = (tl.reshape(b, (b.shape[1],)),)
    elif BM == 2:
        y = tl.split(tl.permute(b, (1, 0)))
    else:
        even, odd = tl.split(tl.permute(tl.reshape(b, (2, 2, b.shape[1])), (2, 0, 1)))
        y0, y2 = tl.split(even)
        y1, y3 = tl.split(odd)
        y = (y0, y1, y2, y3)  # type: ignore[assignment]
    return y


@triton.jit
def _words_of(
    b_x, lane, i_r, records,
    FORMAT: tl.constexpr,
    SMALLEST: tl.constexpr,
    APART: tl.constexpr,
    WHOLE: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """x as the tensor cores take it, and its d for sub-blocks 2t and 2t + 1."""
    if APART:
        words, d = b_x
        xd0, xd1 = d
        even, odd = tl.split(tl.reshape(words, (xd0.shape[0], xd0.shape[1], 2, 2)))
        w0, w2 = tl.split(even)
        w1, w3 = tl.split(odd)
        words = (w0, w1, w2, w3)
    else:
        first, last = b_x
        x0, x1 = first
        x2, x3 = last
        words, xd0, xd1 = quantised(x0, x1, x2, x3, lane, FORMAT, SMALLEST, ASM)
    if not WHOLE:
        m = i_r + tl.arange(0, lane.shape[0]) // 32 < records
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
    x, s_x_m,
    x_words,
    x_d,
    wide,
    residual, s_residual_m,
    out,
    M, N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SMALLEST: tl.constexpr,
    SWIGLU: tl.constexpr,
    PAIR: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    STAGES: tl.constexpr,
    APART: tl.constexpr,
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
    acc0, acc1 = tl.zeros((BM, L), tl.float32), tl.zeros((BM, L), tl.float32)
    two0, two1 = tl.zeros((BM, L), tl.float32), tl.zeros((BM, L), tl.float32)
    a = _fetch(p, block, 0, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    if PAIR:
        a_two = _fetch(p_two, block_two, 0, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    if STAGES > 1:
        b = _fetch(p, block, W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        if PAIR:
            b_two = _fetch(p_two, block_two, W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
    if EARLY != "no":
        tl.extra.cuda.gdc_wait()
    x_a = _fetch_x(x, s_x_m, x_words, x_d, M, 0, records, BM, W, APART, WHOLE)
    if STAGES > 1:
        x_b = _fetch_x(x, s_x_m, x_words, x_d, M, W, records, BM, W, APART, WHOLE)
    i_r = 0
    for _ in range(1, tl.cdiv(tl.cdiv(records, W), STAGES)):
        q = _words_of(x_a, lane, i_r, records, FORMAT, SMALLEST, APART, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
        a = _fetch(p, block, i_r + STAGES * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        if PAIR:
            two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
            a_two = _fetch(p_two, block_two, i_r + STAGES * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
        x_a = _fetch_x(x, s_x_m, x_words, x_d, M, i_r + STAGES * W, records, BM, W, APART, WHOLE)
        if STAGES > 1:
            i_r += W
            q = _words_of(x_b, lane, i_r, records, FORMAT, SMALLEST, APART, WHOLE, ASM)
            acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
            b = _fetch(p, block, i_r + 2 * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
            if PAIR:
                two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)
                b_two = _fetch(p_two, block_two, i_r + 2 * W, records, FORMAT, RECORD, SCALES, D, W, WHOLE)
            x_b = _fetch_x(x, s_x_m, x_words, x_d, M, i_r + 2 * W, records, BM, W, APART, WHOLE)
        i_r += W
    q = _words_of(x_a, lane, i_r, records, FORMAT, SMALLEST, APART, WHOLE, ASM)
    acc0, acc1 = _add(acc0, acc1, a, q, lane, FORMAT, ASM)
    if PAIR:
        two0, two1 = _add(two0, two1, a_two, q, lane, FORMAT, ASM)
    if STAGES > 1:
        q = _words_of(x_b, lane, i_r + W, records, FORMAT, SMALLEST, APART, WHOLE, ASM)
        acc0, acc1 = _add(acc0, acc1, b, q, lane, FORMAT, ASM)
        if PAIR:
            two0, two1 = _add(two0, two1, b_two, q, lane, FORMAT, ASM)

    if EARLY == "end":
        tl.extra.cuda.gdc_launch_dependents()
    o_n = i_n * ROWS + tl.arange(0, 16)
    acc0, acc1, two0, two1 = _unstacked(acc0), _unstacked(acc1), _unstacked(two0), _unstacked(two1)
    for i_m in tl.static_range(BM):
        if i_m < M:
            y = _rows(acc0[i_m], acc1[i_m])
            if SWIGLU:
                y = y * tl.sigmoid(y) * _rows(two0[i_m], two1[i_m])
            _store(y, residual, s_residual_m, out, i_m, o_n, N)
            if PAIR and not SWIGLU:
                _store(_rows(two0[i_m], two1[i_m]), residual, s_residual_m, out, i_m, o_n + 16, N)


@triton.jit
def _rows(acc0, acc1):
    """Sums of rows g and g + 8 in every lane -> rows [16]."""
    y = tl.sum(tl.reshape(tl.join(acc0, acc1), (acc0.shape[0] // 32, 8, 4, 2)), 2)
    return tl.reshape(tl.permute(tl.sum(y, 0), (1, 0)), (16,))


@triton.jit
def _store(y, residual, s_residual_m, out, i_m, o_n, N):
    if residual is not None:
        y += tl.load(residual + i_m * s_residual_m + o_n).to(tl.float32)
    tl.store(out + i_m * N + o_n, y.to(out.dtype.element_ty))
