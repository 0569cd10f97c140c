"""y = x · Wᵀ for 2 to 64 rows of x in 8-bit integers, over tiles (reference/tiles.py), where `ring_int8` is not.

    program:  RB x 16 rows of W, by W warps        warp kw:  records kw, kw + W, ... of 256 columns

    record of W ──16 bytes a lane, a record ahead──> registers ──masks──> A ┐
    x, 8 bits, as B wants it ──16 bytes a lane, from the L1─────────────> B ┴─ m16n8k32 ─> integers [16, 8] of 32
                                                       columns, times their scale, summed; one multiply-add a record

x comes from a launch of `quantise_rows`. Minimums meet the sums of x in the same instruction, cut in two parts of seven
bits.
"""

# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton
import triton.language as tl

from .imma import bits_above, four, lanes, mma, quantised, sums, two_groups
from .tiles import HIGH, halves

_HIGH = tl.constexpr(HIGH)


@triton.jit
def _quantised(x, s_x_m, M, i_k, i_m, BY_32: tl.constexpr, SMALLEST: tl.constexpr):
    """256 columns of 8 rows: d [8 G] of rows and groups, codes' sums [8, 8], words [512] as lanes want them of B."""
    G: tl.constexpr = 8 if BY_32 else 1
    o_m = i_m * 8 + tl.arange(0, 8)
    p_x = x + o_m.to(tl.int64)[:, None] * s_x_m + i_k * 256 + tl.arange(0, 256)[None, :]
    b_x = tl.load(p_x, mask=(o_m < M)[:, None], other=0.0).to(tl.float32)
    b_x = tl.reshape(b_x, (8 * G, 256 // G))
    b_max = tl.max(tl.abs(b_x), 1)
    inverse = tl.where(b_max >= SMALLEST, tl.div_rn(tl.full((8 * G,), 127.0, tl.float32), b_max), 0.0)
    # adding 1.5 * 2^23 leaves no fraction bits: to the nearest, halves to even
    b_q = (b_x * inverse[:, None] + 12582912.0) - 12582912.0
    b_q = tl.where(tl.abs(b_q) <= 127.0, b_q, 0.0).to(tl.int32)
    # zero, or NaN where the group is not finite
    b_d = b_max * 0.007874015748031496 + tl.sum(b_x * 0.0, 1)
    b_q = tl.reshape(b_q, (8, 8, 32))
    # n q e r1 s t h -> byte 2 h + s of word (q, n, t, 2 e + r1)
    o = tl.arange(0, 2)
    bits = tl.reshape(o * 8, (1, 1, 1, 1, 2, 1, 1)) + tl.reshape(o * 16, (1, 1, 1, 1, 1, 1, 2))
    b_w = (tl.reshape(b_q, (8, 4, 2, 2, 2, 4, 2)) & 255) << bits
    b_w = tl.sum(tl.sum(b_w, 6), 4)  # n q e r1 t
    return b_d, tl.sum(b_q, 2), tl.reshape(tl.permute(b_w, (1, 0, 4, 2, 3)), (512,))


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def quantise_rows(
    x, s_x_m,
    words, d, sums,
    M,
    BY_32: tl.constexpr,
    SMALLEST: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A program 256 columns of 8 rows: words [4, 32 lanes, 4], d [8], sums [2, 32], as lanes of `rows_int8` want them.

    BY_32: d [8 groups, 8].
    """
    if EARLY != "no":
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i_k, i_m, records = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    at = (i_m * records + i_k).to(tl.int64)
    b_d, b_sum, b_w = _quantised(x, s_x_m, M, i_k, i_m, BY_32, SMALLEST)
    tl.store(words + at * 512 + tl.arange(0, 512), b_w)
    if not BY_32:
        tl.store(d + at * 8 + tl.arange(0, 8), b_d)
        high = (b_sum + 32) >> 6
        low = b_sum - high * 64
        shift = tl.reshape(tl.arange(0, 2), (1, 1, 2)) * 16 + 8
        low = tl.reshape(tl.sum((tl.reshape(low, (8, 4, 2)) & 255) << shift, 2), (32,))
        high = tl.reshape(tl.sum((tl.reshape(high, (8, 4, 2)) & 255) << shift, 2), (32,))
        tl.store(sums + at * 64 + tl.arange(0, 32), low)
        tl.store(sums + at * 64 + 32 + tl.arange(0, 32), high)
    else:
        b_d, b_sum = tl.permute(tl.reshape(b_d, (8, 8)), (1, 0)), tl.permute(b_sum, (1, 0))
        tl.store(d + at * 64 + tl.arange(0, 8)[:, None] * 8 + tl.arange(0, 8)[None, :], b_d)
        tl.store(sums + at * 64 + tl.arange(0, 8)[:, None] * 8 + tl.arange(0, 8)[None, :], b_sum)


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def quantise_pieces(
    x, s_x_m,
    pieces,
    M,
    FORMAT: tl.constexpr,
    PIECE: tl.constexpr,
    SMALLEST: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """A program 256 columns of 8 rows, a warp each, in one piece for `ring_int8`: i32 [K / 256, eights, PIECE / 4].

    words [4, 32 lanes, 4], then of q8_0 and q4_0 d [8 groups, 8], else but for q6_k sums [32 lanes, 2] as pairs of f16,
    and d [8]
    """
    if EARLY != "no":
        tl.extra.cuda.gdc_launch_dependents()
    lane = lanes(8, ASM)
    o, o_2 = tl.arange(0, 256), tl.arange(0, 512)
    i_k, i_m, eights = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    # lane 4 n + t: columns 32 n + 2 t and on, + 8, + 16, + 24
    o_m = i_m * 8 + o_2 // 64
    p_x = x + o_m.to(tl.int64) * s_x_m + i_k * 256 + o_2 // 8 % 8 * 32 + o_2 % 8
    row, n, t = o // 32, o // 4 % 8, o % 4
    p = pieces + (i_k * eights + i_m).to(tl.int64) * (PIECE // 4)
    p_w = p + n // 2 * 128 + row * 16 + t * 4 + n % 2 * 2
    if EARLY != "no":
        tl.extra.cuda.gdc_wait()
    x0 = tl.load(p_x, mask=o_m < M, other=0.0)
    x1 = tl.load(p_x + 8, mask=o_m < M, other=0.0)
    x2 = tl.load(p_x + 16, mask=o_m < M, other=0.0)
    x3 = tl.load(p_x + 24, mask=o_m < M, other=0.0)
    words, d0, d1 = quantised(x0, x1, x2, x3, lane, FORMAT, SMALLEST, ASM)
    tl.store(p_w[:, None] + tl.arange(0, 2)[None, :], tl.join(*words))
    d0, d1 = d0.to(tl.int32, bitcast=True), d1.to(tl.int32, bitcast=True)
    if FORMAT == "q8_0" or FORMAT == "q4_0":
        p_d = p + 512 + t * 16 + row
        tl.store(p_d, d0, mask=n == 0)
        tl.store(p_d + 8, d1, mask=n == 0)
    else:
        MINIMUMS: tl.constexpr = FORMAT != "q6_k"
        if MINIMUMS:
            # up to 4064: in f16 an even number is exact
            s0, s1 = sums(words, ASM)
            p_s = p + 512 + row * 8 + t * 2
            pairs = tl.join(_pair(s0 & -2, s1 & -2), _pair(s0 & 1, s1 & 1))
            tl.store(p_s[:, None] + tl.arange(0, 2)[None, :], pairs, mask=(n == 0)[:, None])
        tl.store(p + (576 if MINIMUMS else 512) + row, d0, mask=o % 32 == 0)


@triton.jit
def _pair(a, b):
    """Two integers as f16, in a word."""
    low = a.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (b.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _load(p):
    return tl.load(p, eviction_policy="evict_first")


@triton.jit
def record(i_r, records, W: tl.constexpr, WK: tl.constexpr, EACH: tl.constexpr):
    """A warp's record of a step, for EACH elements a lane; past the last one the last again, where x counts as zero."""
    i_r += tl.arange(0, W * 32 * EACH) // (32 * EACH) % WK
    return tl.minimum(i_r, records - 1)


@triton.jit
def _rows(first, RB: tl.constexpr, M: tl.constexpr, W: tl.constexpr, WK: tl.constexpr, EACH: tl.constexpr):
    """A warp's block M of 16 rows of W, for EACH elements a lane; `first`: the program's first."""
    return first + tl.arange(0, W * 32 * EACH) // (32 * EACH * WK) * RB + M


@triton.jit
def place(
    words, wide, first, records, N,
    SWIGLU: tl.constexpr, RB: tl.constexpr, M: tl.constexpr, W: tl.constexpr, WK: tl.constexpr,
    FORMAT: tl.constexpr, RECORD: tl.constexpr, SCALES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Where a warp's 16 rows begin, a lane's own codes, scales and d."""
    WORDS: tl.constexpr = RECORD // 4
    o, o_4 = tl.arange(0, W * 32), tl.arange(0, W * 128)
    b, b_4 = _rows(first, RB, M, W, WK, 1), _rows(first, RB, M, W, WK, 4)
    if SWIGLU:
        b, b_4 = _rows(first, 1, 0, W, WK, 1) + M * (N // 16), _rows(first, 1, 0, W, WK, 4) + M * (N // 16)
    tile, tile_4 = (b // 4).to(tl.int64) * records, (b_4 // 4).to(tl.int64) * records
    p = wide + tile_4 * WORDS + b_4 % 4 * 128 + o_4 % 128
    p_s = wide + tile_4 * WORDS + SCALES // 4 + b_4 % 4 * 64 + o_4 // 16 % 8 * 4 + o_4 % 4
    if FORMAT == "q6_k":
        p_d = words + tile * (2 * WORDS) + D // 2 + b % 4 * 16 + o // 4 % 8
    else:
        p_d = wide + tile * WORDS + D // 4 + b % 4 * 16 + o // 4 % 8
    return p, p_s, p_d


@triton.jit
def fetch(at, i_r, records, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr, WK: tl.constexpr):
    """A record of 16 rows: words c = 0..3, bits above, scales of rows g and g + 8, d."""
    WORDS: tl.constexpr = RECORD // 4
    p, p_s, p_d = at
    r_4 = record(i_r, records, W, WK, 4) * WORDS
    p += r_4
    w = (_load(p), _load(p + 512), _load(p + 1024), _load(p + 1536))
    above = ()
    if FORMAT == "q8_0":
        above = (_load(p + 2048), _load(p + 2560), _load(p + 3072), _load(p + 3584))
    if FORMAT == "q5_k":
        above = (_load(p + _HIGH // 4),)
    if FORMAT == "q6_k":
        above = (_load(p + _HIGH // 4), _load(p + _HIGH // 4 + 512))
    p_s += r_4
    s = (_load(p_s), _load(p_s + 32))
    if FORMAT == "q6_k":
        p_d += record(i_r, records, W, WK, 1) * (2 * WORDS)
        s = s + (_load(p_d).to(tl.int32), _load(p_d + 8).to(tl.int32))
    elif FORMAT == "q4_k" or FORMAT == "q5_k":
        p_d += record(i_r, records, W, WK, 1) * WORDS
        s = s + (_load(p_d), _load(p_d + 8))
    return w, above, s


@triton.jit
def _fetch_x(
    d, sums, first, i_r, records, lane,
    BY_32: tl.constexpr, W: tl.constexpr, WK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """d of rows 2t and 2t + 1 of x, of each group where groups have their own, and x's sums."""
    L: tl.constexpr = W * 32
    o = first + record(i_r, records, W, WK, 1)
    o_2 = first + record(i_r, records, W, WK, 2)
    pair = tl.arange(0, L * 2) // 2 % 4 * 2 + tl.arange(0, L * 2) % 2
    y, t = (), ()
    for b in tl.static_range(8 if BY_32 else 1):
        p = o_2 * (64 if BY_32 else 8) + b * 8 + pair
        d0, d1 = tl.split(tl.reshape(tl.load(d + p), (L, 2)))
        if not WHOLE:
            m = i_r + tl.arange(0, L) // 32 % WK < records
            d0, d1 = tl.where(m, d0, 0.0), tl.where(m, d1, 0.0)
        y = y + ((d0, d1),)
        if BY_32:
            t = t + (tl.split(tl.reshape(tl.load(sums + p), (L, 2))),)
    if not BY_32:
        t = (tl.load(sums + o * 64 + lane), tl.load(sums + o * 64 + 32 + lane))
    return y, t


@triton.jit
def _byte(w, I: tl.constexpr):
    return (w >> (8 * I)) & 255


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def rows_int8(
    words_x, d_x, sums_x,
    words,
    wide,
    residual, s_residual_m,
    out,
    M, N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SWIGLU: tl.constexpr,
    RB: tl.constexpr,
    NT: tl.constexpr,
    W: tl.constexpr,
    WK: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """With SWIGLU a program has 16 rows of gate and 16 of up, RB = 2. WHOLE: W divides the records."""
    L: tl.constexpr = W * 32
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    if EARLY == "start":
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    lane = lanes(W, ASM)
    acc, held, places = (), (), ()
    for m in tl.static_range(RB):
        first = i_n * ((1 if SWIGLU else RB) * (W // WK))
        places = places + (place(words, wide, first, records, N, SWIGLU, RB, m, W, WK, FORMAT, RECORD, SCALES, D),)
        for _ in tl.static_range(NT):
            z = tl.zeros((L,), tl.float32)
            acc = acc + ((z, z, z, z),)
    for e in tl.static_range(STAGES):
        held = held + (fetch_all(places, e * WK, records, FORMAT, RECORD, W, WK),)
    if EARLY != "no":
        tl.extra.cuda.gdc_wait()
    steps = tl.cdiv(records, WK)
    for i in range(0, steps // STAGES):
        ahead = ()
        for e in tl.static_range(STAGES):
            i_r = (i * STAGES + e) * WK
            acc = _step(acc, held[e], words_x, d_x, sums_x, i_m, i_r, records, lane, FORMAT, NT, W, WK, WHOLE, ASM)
            ahead = ahead + (fetch_all(places, i_r + STAGES * WK, records, FORMAT, RECORD, W, WK),)
        held = ahead
    if STAGES == 2:
        for _ in range(0, steps % 2):
            i_r = (steps - 1) * WK
            acc = _step(acc, held[0], words_x, d_x, sums_x, i_m, i_r, records, lane, FORMAT, NT, W, WK, WHOLE, ASM)
    if EARLY == "end":
        tl.extra.cuda.gdc_launch_dependents()
    store(acc, residual, s_residual_m, out, i_n, i_m, M, N, SWIGLU, RB, NT, W, WK)


@triton.jit
def store(
    acc, residual, s_residual_m, out, i_n, i_m, M, N,
    SWIGLU: tl.constexpr, RB: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, WK: tl.constexpr,
):  # fmt: skip
    """Sums of all warps, [RB, NT] of them."""
    BLOCKS: tl.constexpr = 1 if SWIGLU else RB
    o_r = tl.arange(0, W // WK * 16)
    for m in tl.static_range(BLOCKS):
        o_n = (i_n * (W // WK) + o_r // 16) * (BLOCKS * 16) + m * 16 + o_r % 16
        for n in tl.static_range(NT):
            total = _block(acc[m * NT + n], W, WK)
            if SWIGLU:
                total = total * tl.sigmoid(total) * _block(acc[NT + n], W, WK)
            o_m = (i_m * NT + n) * 8 + tl.arange(0, 8)
            m_out = (o_m < M)[None, :] & (o_n < N)[:, None]
            if residual is not None:
                p_r = residual + o_m.to(tl.int64)[None, :] * s_residual_m + o_n[:, None]
                total += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
            tl.store(out + o_m.to(tl.int64)[None, :] * N + o_n[:, None], total.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _block(c, W: tl.constexpr, WK: tl.constexpr):
    """Sums of all warps of the same rows, lanes (g, t) -> [rows, 8]."""
    c0, c1, c2, c3 = c
    y = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # lane, r0, h
    y = tl.sum(tl.reshape(y, (W // WK, WK, 8, 4, 2, 2)), 1)
    return tl.reshape(tl.permute(y, (0, 3, 1, 2, 4)), (W // WK * 16, 8))


@triton.jit
def fetch_all(
    places, i_r, records, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr, WK: tl.constexpr
):  # fmt: skip
    held = ()
    for m in tl.static_range(len(places)):
        held = held + (fetch(places[m], i_r, records, FORMAT, RECORD, W, WK),)
    return held


@triton.jit
def _step(
    acc, held, words_x, d_x, sums_x, i_m, i_r, records, lane,
    FORMAT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, WK: tl.constexpr, WHOLE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc + a record a warp."""
    RB: tl.constexpr = len(held)
    above, scales = (), ()
    for m in tl.static_range(RB):
        above = above + (bits_above(held[m][1], FORMAT),)
        scales = scales + ((four(held[m][2][0]), four(held[m][2][1])),)
    # four blocks of eight rows of x at a time: more sums than that do not fit beside a record
    total = ()
    for first in tl.static_range(0, NT, 4):
        total = total + _some_rows(
            acc, held, above, scales, words_x, d_x, sums_x, i_m, i_r, records, lane,
            first, NT - first if NT - first < 4 else 4, FORMAT, NT, W, WK, WHOLE, ASM,
        )  # fmt: skip
    # from order (n, m) to (m, n)
    y = ()
    for m in tl.static_range(RB):
        for n in tl.static_range(NT):
            y = y + (total[n * RB + m],)
    return y


@triton.jit
def _some_rows(
    acc, held, above, scales, words_x, d_x, sums_x, i_m, i_r, records, lane,
    FIRST: tl.constexpr, COUNT: tl.constexpr, FORMAT: tl.constexpr, NT: tl.constexpr, W: tl.constexpr,
    WK: tl.constexpr, WHOLE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc of blocks FIRST and on of x + a record, in order (n, m)."""
    BY_32: tl.constexpr = FORMAT == "q8_0" or FORMAT == "q4_0"
    RB: tl.constexpr = len(held)
    r_4, o_4 = record(i_r, records, W, WK, 4), tl.arange(0, W * 128) % 128
    sums, extra = (), ()
    for n in tl.static_range(COUNT):
        at = (i_m * NT + FIRST + n) * records
        if BY_32:
            extra = extra + (_fetch_x(d_x, sums_x, at, i_r, records, lane, BY_32, W, WK, WHOLE),)
        for m in tl.static_range(RB):
            sums = sums + (acc[m * NT + FIRST + n],)
    for c in tl.static_range(4):
        a, e, f = (), (), ()
        for m in tl.static_range(RB):
            a = a + (two_groups(held[m][0], held[m][1], above[m], c, FORMAT, ASM),)
            e, f = e + (_scales_of(scales[m][0][c], FORMAT),), f + (_scales_of(scales[m][1][c], FORMAT),)
        y = ()
        for n in tl.static_range(COUNT):
            x = four(tl.load(words_x + ((i_m * NT + FIRST + n) * records + r_4) * 512 + c * 128 + o_4))
            for m in tl.static_range(RB):
                if BY_32:
                    y = y + (_add_floats(sums[n * RB + m], a[m], e[m], f[m], x, extra[n], c, FORMAT, ASM),)
                elif c == 0:
                    y = y + (_add_integers((0, 0, 0, 0), a[m], e[m], f[m], x, FORMAT, ASM),)
                else:
                    y = y + (_add_integers(sums[n * RB + m], a[m], e[m], f[m], x, FORMAT, ASM),)
        sums = y
    if not BY_32:
        y = ()
        for n in tl.static_range(COUNT):
            at = (i_m * NT + FIRST + n) * records
            more = _fetch_x(d_x, sums_x, at, i_r, records, lane, BY_32, W, WK, WHOLE)
            for m in tl.static_range(RB):
                least = (_of(scales[m][0], lane % 4), _of(scales[m][1], lane % 4))
                s = _add_record(
                    acc[m * NT + FIRST + n], sums[n * RB + m], held[m][2], least, more, FORMAT, ASM
                )  # fmt: skip
                y = y + (s,)
        sums = y
    return sums


@triton.jit
def _scales_of(w, FORMAT: tl.constexpr):
    """Scales of groups 2c and 2c + 1, for q6_k of their four 16s, from word c of a row's."""
    if FORMAT == "q4_k":
        # the odd group counts sixteen times, so the even one must, too
        s = ((w << 4) & 0xFF0, _byte(w, 2))
    elif FORMAT == "q5_k":
        s = (_byte(w, 0), _byte(w, 2))
    elif FORMAT == "q6_k":
        s = (_byte(w, 0) - 128, _byte(w, 1) - 128, _byte(w, 2) - 128, _byte(w, 3) - 128)
    else:
        low, up = halves(w)
        s = (low.to(tl.float32), up.to(tl.float32) * (0.0625 if FORMAT == "q4_0" else 1.0))
    return s


@triton.jit
def _add_integers(s, a, y, z, x, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """s + codes times x times scale of two groups: below 2^30 over a record."""
    s0, s1, s2, s3 = s
    for i in tl.static_range(4 if FORMAT == "q6_k" else 2):
        if FORMAT == "q6_k":
            c0, c1, c2, c3 = mma((a[i // 2][i % 2 * 2], a[i // 2][i % 2 * 2 + 1]), (x[i],), True, ASM)
        else:
            c0, c1, c2, c3 = mma(a[i], (x[2 * i], x[2 * i + 1]), False, ASM)
        s0, s1, s2, s3 = s0 + c0 * y[i], s1 + c1 * y[i], s2 + c2 * z[i], s3 + c3 * z[i]
    return s0, s1, s2, s3


@triton.jit
def _add_record(acc, s, scales, least, extra, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """acc + a record's integers times d, less the minimums times the sums of x."""
    s0, s1, s2, s3 = s
    low0, up0 = halves(scales[2])
    low1, up1 = halves(scales[3])
    FACTOR: tl.constexpr = 0.0625 if FORMAT == "q4_k" else (0.25 if FORMAT == "q6_k" else 1.0)
    g, h = low0.to(tl.float32) * FACTOR, low1.to(tl.float32) * FACTOR
    f0, f1, f2, f3 = s0.to(tl.float32) * g, s1.to(tl.float32) * g, s2.to(tl.float32) * h, s3.to(tl.float32) * h
    d, t = extra
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        l0, l1, l2, l3 = mma(least, (t[0],), False, ASM)
        h0, h1, h2, h3 = mma(least, (t[1],), False, ASM)
        g, h = up0.to(tl.float32), up1.to(tl.float32)
        f0, f1 = f0 - (l0 + 64 * h0).to(tl.float32) * g, f1 - (l1 + 64 * h1).to(tl.float32) * g
        f2, f3 = f2 - (l2 + 64 * h2).to(tl.float32) * h, f3 - (l3 + 64 * h3).to(tl.float32) * h
    y0, y1, y2, y3 = acc
    d0, d1 = d[0]
    return tl.fma(f0, d0, y0), tl.fma(f1, d1, y1), tl.fma(f2, d0, y2), tl.fma(f3, d1, y3)


@triton.jit
def _add_floats(acc, a, y, z, x, extra, C: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """acc + two groups, where every 32 of x have a d of their own."""
    f0, f1, f2, f3 = acc
    d, t = extra
    for i in tl.static_range(2):
        c0, c1, c2, c3 = mma(a[i], (x[2 * i], x[2 * i + 1]), FORMAT == "q8_0", ASM)
        if FORMAT == "q4_0":
            t0, t1 = t[2 * C + i][0] * (128 if i else 8), t[2 * C + i][1] * (128 if i else 8)
            c0, c1, c2, c3 = c0 - t0, c1 - t1, c2 - t0, c3 - t1
        d0, d1 = d[2 * C + i]
        f0, f1 = tl.fma(c0.to(tl.float32), y[i] * d0, f0), tl.fma(c1.to(tl.float32), y[i] * d1, f1)
        f2, f3 = tl.fma(c2.to(tl.float32), z[i] * d0, f2), tl.fma(c3.to(tl.float32), z[i] * d1, f3)
    return f0, f1, f2, f3


@triton.jit
def _of(w, t):
    return tl.where(t < 2, tl.where(t == 0, w[0], w[1]), tl.where(t == 2, w[2], w[3]))
