"""16 rows of a tile (reference/tiles.py) x 256 columns of x in 8-bit integers, a warp's work on integer tensor cores.

    A   lane (g, t) holds words of rows g and g + 8 as it reads them; a mask leaves four codes a register, of two of the
        column groups j
    B   eight columns n, one for every 32 columns of W: lane (n, t) holds x where they are, zero where they are not
    C   lane (g, t) gets (row g, n = 2t), (row g, n = 2t + 1) and the same of row g + 8

A row's sums thus land where its scales 2t and 2t + 1 are read: sixteen weights cost two masks and one m16n8k32, no byte
and no sum moves between lanes. Half of C is not wanted: it mixes sub-blocks of j and j + 1, and a lane leaves it.

The instructions take element i of a tensor from lane i % 32, and `lanes` stops a program where that is not so. Without
PTX the same integers come from sums of products.
"""

import triton
import triton.language as tl


def _four(name: str) -> str:
    return "{" + ", ".join(f"{name}{i}" for i in range(4)) + "}"


def _mma(d: str, a: str, b: str, c: str, kind: str = "u8") -> str:
    return f"mma.sync.aligned.m16n8k32.row.col.s32.{kind}.s8.s32 {_four(d)}, {a}, {b}, {c};"


def _unpacked(format: str, e: int, v: int, word: str, high: int) -> list[str]:
    """A word's codes: of groups j = 0 and 2 to l, of 1 and 3 to u; those of "q4" stay in the high nibbles, times 16."""
    low, up, r1, r0 = f"l{e}{v}", f"u{e}{v}", v // 2, v % 2
    lines = [f".reg .b32 {low}, {up};", f"and.b32 {low}, {word}, 0x0f0f0f0f;"]
    if format == "q4":
        return [*lines, f"and.b32 {up}, {word}, 0xf0f0f0f0;"]
    # bits above the nibble lie in words of their own: one for the four v, or one for both rows
    shared, shift, mask = (e, v, "0x10101010") if format == "q5" else (2 * e + r1, 2 * r0, "0x30303030")
    lines += [f"shr.u32 {up}, {word}, 4;", f"and.b32 {up}, {up}, 0x0f0f0f0f;"]
    lines += [f"shl.b32 t, ${high + shared}, {4 - shift};", f"lop3.b32 {low}, t, {mask}, {low}, 0xEA;"]
    return [*lines, f"shr.u32 t, ${high + shared}, {shift};", f"lop3.b32 {up}, t, {mask}, {up}, 0xEA;"]


def _text(format: str, half: int) -> str:
    """Eight words of column blocks 2 half and 2 half + 1, words above the nibble, four of x, and a lane's t % 2.

    Out: rows g and g + 8 over sub-block 2t + half; for "q6" over its first 16 columns, then over the others.
    """
    outs = 4 if format == "q6" else 2
    high = outs + 8
    x = high + {"q5": 2, "q6": 4}.get(format, 0)
    lines = [".reg .pred p;", ".reg .b32 t, zero;", "mov.b32 zero, 0;", f"setp.ne.s32 p, ${x + 4}, 0;"]
    sides = ("l",) if format == "q8" else ("l", "u")
    for e in range(2):
        words = [f"${outs + 4 * e + v}" for v in range(4)]
        if format != "q8":
            for v, word in enumerate(words):
                lines += _unpacked(format, e, v, word, high)
        for side in sides:
            lines.append(".reg .b32 " + _four(f"d{side}{e}")[1:-1] + ";")
            before = _four(f"d{side}0") if e and format != "q6" else "{zero, zero, zero, zero}"
            a, kind = ("{" + ", ".join(words) + "}", "s8") if format == "q8" else (_four(f"{side}{e}"), "u8")
            lines.append(_mma(f"d{side}{e}", a, f"{{${x + 2 * e}, ${x + 2 * e + 1}}}", before, kind))
    for out in range(outs):
        e, i = (out // 2 if format == "q6" else 1), 2 * (out % 2) + half
        lines.append(f"mov.b32 ${out}, dl{e}{i};" if format == "q8" else f"selp.b32 ${out}, du{e}{i}, dl{e}{i}, p;")
    return "{\n" + "\n".join(lines) + "\n}"


def _sums(six: bool) -> str:
    """Ones · x: the sums of x over sub-blocks 2t and 2t + 1, or over the four 16s of them."""
    outs = 4 if six else 2
    lines = [".reg .b32 zero, one;", "mov.b32 zero, 0;", "mov.b32 one, 0x01010101;"]
    for e in range(2):
        lines.append(".reg .b32 " + _four(f"d{e}")[1:-1] + ";")
        before = _four("d0") if e and not six else "{zero, zero, zero, zero}"
        lines.append(_mma(f"d{e}", "{one, one, one, one}", f"{{${outs + 2 * e}, ${outs + 2 * e + 1}}}", before))
    for out in range(outs):
        lines.append(f"mov.b32 ${out}, d{out % 2 if six else 1}{out // 2 if six else out};")
    return "{\n" + "\n".join(lines) + "\n}"


_Q4_0, _Q4_1 = tl.constexpr(_text("q4", 0)), tl.constexpr(_text("q4", 1))
_Q5_0, _Q5_1 = tl.constexpr(_text("q5", 0)), tl.constexpr(_text("q5", 1))
_Q6_0, _Q6_1 = tl.constexpr(_text("q6", 0)), tl.constexpr(_text("q6", 1))
_Q8_0, _Q8_1 = tl.constexpr(_text("q8", 0)), tl.constexpr(_text("q8", 1))
_SUMS, _SUMS_16 = tl.constexpr(_sums(False)), tl.constexpr(_sums(True))
_LANES = tl.constexpr(
    "{ .reg .pred p; .reg .b32 l; mov.u32 l, %laneid; setp.ne.u32 p, l, $1; @p trap; mov.b32 $0, $1; }"
)
# the largest of a warp's, and of four lanes'
_LARGEST = tl.constexpr("redux.sync.max.u32 $0, $1, 0xffffffff;")
_LARGEST_4 = tl.constexpr(
    """
    {
    .reg .b32 t;
    shfl.sync.bfly.b32 t, $1, 1, 31, 0xffffffff;
    max.u32 $0, $1, t;
    shfl.sync.bfly.b32 t, $0, 2, 31, 0xffffffff;
    max.u32 $0, $0, t;
    }
    """
)
# from lanes (n, t) to lanes (g, n / 2)
_TURN = tl.constexpr(
    """
    {
    .reg .b32 n;
    and.b32 n, $3, 3;
    shl.b32 n, n, 3;
    shfl.sync.idx.b32 $0, $2, n, 31, 0xffffffff;
    add.u32 n, n, 4;
    shfl.sync.idx.b32 $1, $2, n, 31, 0xffffffff;
    }
    """
)


@triton.jit
def lanes(W: tl.constexpr, ASM: tl.constexpr):
    """[32 W]: the lane that holds an element."""
    lane = tl.arange(0, W * 32) % 32
    if ASM:
        lane = tl.inline_asm_elementwise(_LANES, "=r,r", [lane], tl.int32, is_pure=True, pack=1)
    return lane


@triton.jit
def four(w):
    """[4 L] words, four a lane -> each [L]."""
    even, odd = tl.split(tl.reshape(w, (w.shape[0] // 4, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _pair(a, b, x, odd, HALF: tl.constexpr, FORMAT: tl.constexpr):
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    x0, x1, x2, x3 = x
    if FORMAT == "q8_0":
        TEXT: tl.constexpr = _Q8_1 if HALF else _Q8_0
    else:
        TEXT: tl.constexpr = _Q4_1 if HALF else _Q4_0  # type: ignore[no-redef]
    return tl.inline_asm_elementwise(
        TEXT,
        "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, b0, b1, b2, b3, x0, x1, x2, x3, odd],
        (tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _pair_five(a, b, h0, h1, x, odd, HALF: tl.constexpr):
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    x0, x1, x2, x3 = x
    return tl.inline_asm_elementwise(
        _Q5_1 if HALF else _Q5_0,
        "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, b0, b1, b2, b3, h0, h1, x0, x1, x2, x3, odd],
        (tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _pair_six(a, b, high, x, odd, HALF: tl.constexpr):
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    h0, h1, h2, h3 = high
    x0, x1, x2, x3 = x
    return tl.inline_asm_elementwise(
        _Q6_1 if HALF else _Q6_0,
        "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, b0, b1, b2, b3, h0, h1, h2, h3, x0, x1, x2, x3, odd],
        (tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def products(w, more, x, lane, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Words [4 L] of column blocks c = 0..3, those of `more` and x (four of [M, L]) -> sums [M, L] of row g, of g + 8.

    They are over sub-blocks 2t and 2t + 1, for q6_k over their four 16s; q4_k's and q4_0's times 16 where t is odd.

    more: q5_k the bits above, one [4 L]; q6_k two; q8_0 the words of columns 128 and on.
    """
    w0, w1, w2, w3 = w
    if not ASM:
        s = _plain(w, more, x, FORMAT)  # [M, L, e, half, row]
        g, h = tl.split(s)
        if FORMAT != "q6_k":
            g, h = tl.sum(g, 2), tl.sum(h, 2)
            y = tl.split(g), tl.split(h)
        else:
            first, second = tl.split(g)
            g0, g1 = tl.split(first)
            g2, g3 = tl.split(second)
            first, second = tl.split(h)
            h0, h1 = tl.split(first)
            h2, h3 = tl.split(second)
            y = (g0, g1, g2, g3), (h0, h1, h2, h3)
    elif FORMAT == "q6_k":
        high_0, high_1 = more
        g0, h0, g1, h1 = _pair_six(four(w0), four(w1), four(high_0), x, lane % 2, 0)
        g2, h2, g3, h3 = _pair_six(four(w2), four(w3), four(high_1), x, lane % 2, 1)
        y = (g0, g1, g2, g3), (h0, h1, h2, h3)
    elif FORMAT == "q5_k":
        c0, c1, c2, c3 = four(more[0])
        g0, h0 = _pair_five(four(w0), four(w1), c0, c1, x, lane % 2, 0)
        g1, h1 = _pair_five(four(w2), four(w3), c2, c3, x, lane % 2, 1)
        y = (g0, g1), (h0, h1)
    else:
        g0, h0 = _pair(four(w0), four(w1), x, lane % 2, 0, FORMAT)
        g1, h1 = _pair(four(w2), four(w3), x, lane % 2, 1, FORMAT)
        if FORMAT == "q8_0":
            v0, v1, v2, v3 = more
            i0, j0 = _pair(four(v0), four(v1), x, lane, 0, FORMAT)
            i1, j1 = _pair(four(v2), four(v3), x, lane, 1, FORMAT)
            # lanes t = 2 and 3 hold columns 128 and on
            up = lane % 4 >= 2
            g0, h0, g1, h1 = tl.where(up, i0, g0), tl.where(up, j0, h0), tl.where(up, i1, g1), tl.where(up, j1, h1)
        y = (g0, g1), (h0, h1)
    return y


@triton.jit
def _joined(w0, w1, w2, w3):
    """Number 2 i + j of four tensors at [..., i, j]."""
    return tl.join(tl.join(w0, w2), tl.join(w1, w3))


@triton.jit
def _plain(w, more, x, FORMAT: tl.constexpr):
    """What the tensor cores give, [M, L, e, half, row]: by code, M, W g j, e half r0, t r1 h."""
    w0, w1, w2, w3 = w
    x0, x1, x2, x3 = x
    M: tl.constexpr = x0.shape[0]
    W: tl.constexpr = x0.shape[1] // 32
    WORDS: tl.constexpr = (W * 8, 4, 2, 2, 2, 2)  # W g, t r1 r0 half e: as words lie
    word = tl.permute(tl.reshape(_joined(w0, w1, w2, w3), WORDS), (0, 5, 4, 3, 1, 2))
    word = tl.reshape(word, (W * 8, 1, 8, 8, 1))
    o = tl.arange(0, 4)
    j = tl.reshape(o, (1, 4, 1, 1, 1))
    h = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 2))
    r0 = tl.reshape(tl.arange(0, 8) % 2, (1, 1, 8, 1, 1))
    r1 = tl.reshape(tl.arange(0, 8) % 2, (1, 1, 1, 8, 1))
    side = j // 2
    if FORMAT == "q8_0":
        v0, v1, v2, v3 = more
        side = j % 2
        last = tl.permute(tl.reshape(_joined(v0, v1, v2, v3), WORDS), (0, 5, 4, 3, 1, 2))
        word = tl.where(j < 2, word, tl.reshape(last, (W * 8, 1, 8, 8, 1)))
        code = (((word >> (16 * h + 8 * side)) & 255) ^ 128) - 128
    else:
        place = 16 * h + 8 * side + 4 * (j % 2)
        code = (word >> place) & 15
        if FORMAT == "q5_k":
            high = tl.reshape(more[0], (W * 8, 4, 2, 2, 1, 1))  # W g, t half e
            high = tl.broadcast_to(tl.permute(high, (0, 3, 2, 4, 1, 5)), (W * 8, 2, 2, 2, 4, 2))
            code += ((tl.reshape(high, (W * 8, 1, 8, 8, 1)) >> (place + 2 * r1 + r0)) & 1) << 4
        elif FORMAT == "q6_k":
            high = tl.reshape(tl.join(more[0], more[1]), (W * 8, 4, 2, 2, 2, 1))  # W g, t e r1 half
            high = tl.broadcast_to(tl.permute(high, (0, 2, 4, 5, 1, 3)), (W * 8, 2, 2, 2, 4, 2))
            code += ((tl.reshape(high, (W * 8, 1, 8, 8, 1)) >> (place + 2 * r0)) & 3) << 4
        else:
            code = code << (4 * (j % 2))
    x = tl.reshape(_joined(x0, x1, x2, x3), (M, W, 4, 2, 4, 2, 2))  # M W, j half t e r1
    x = tl.reshape(tl.permute(x, (0, 1, 2, 5, 3, 4, 6)), (M * W, 1, 4, 4, 1, 8, 1))
    shift = tl.reshape(16 * h + 8 * side, (1, 1, 4, 1, 1, 1, 2))
    x = (((x >> shift) & 255) ^ 128) - 128  # M W, g j, e half, r0, t r1, h
    code = tl.reshape(code, (1, W, 8, 4, 4, 2, 16))
    y = tl.reshape(x, (M, W, 1, 4, 4, 1, 16)) * code
    return tl.reshape(tl.sum(tl.reshape(y, (M, W * 32, 8, 16)), 3), (M, W * 32, 2, 2, 2))


@triton.jit
def sums(x, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """x's own sums over sub-blocks 2t and 2t + 1, for q6_k over their four 16s."""
    x0, x1, x2, x3 = x
    M: tl.constexpr = x0.shape[0]
    W: tl.constexpr = x0.shape[1] // 32
    if not ASM:
        o_byte = tl.reshape(tl.arange(0, 4), (1, 1, 1, 1, 4))
        s = tl.reshape(_joined(x0, x1, x2, x3), (M * W * 8, 4, 2, 2, 1))  # M W n, t e r1
        s = tl.permute((((s >> (8 * o_byte)) & 255) ^ 128) - 128, (0, 2, 1, 3, 4))
        s = tl.sum(tl.reshape(s, (M * W * 8, 2, 32)), 2)
        s = tl.broadcast_to(tl.reshape(s, (M * W, 1, 4, 2, 2)), (M * W, 8, 4, 2, 2))
        even, odd = tl.split(tl.reshape(s, (M, W * 32, 2, 2)))
        if FORMAT == "q6_k":
            s0, s2 = tl.split(even)
            s1, s3 = tl.split(odd)
            y = s0, s1, s2, s3
        else:
            y = tl.split(even + odd)
    elif FORMAT == "q6_k":
        y = tl.inline_asm_elementwise(
            _SUMS_16,
            "=&r,=&r,=&r,=&r,r,r,r,r",
            [x0, x1, x2, x3],
            (tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        y = tl.inline_asm_elementwise(
            _SUMS, "=&r,=&r,r,r,r,r", [x0, x1, x2, x3], (tl.int32, tl.int32), is_pure=True, pack=1
        )
    return y


@triton.jit
def _halves(b):
    """[M, 2 L] -> even and odd elements, in f32."""
    low, up = tl.split(tl.reshape(b, (b.shape[0], b.shape[1] // 2, 2)))
    return low.to(tl.float32), up.to(tl.float32)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bytes(a, b, inverse, side, ASM: tl.constexpr):
    """a and b times inverse, to the nearest integer: bytes 0 and 2 of a word, or 1 and 3."""
    # adding 1.5 * 2^23 leaves no fraction bits: to the nearest, halves to even
    a = (a * inverse + 12582912.0).to(tl.int32, bitcast=True)
    b = (b * inverse + 12582912.0).to(tl.int32, bitcast=True)
    if ASM:
        choice, mask = tl.where(side == 1, 0x4000, 0x0400), tl.where(side == 1, 0xFF00FF00 - (1 << 32), 0x00FF00FF)
        word = tl.inline_asm_elementwise(
            "{ .reg .b32 t; prmt.b32 t, $1, $2, $3; and.b32 $0, t, $4; }", "=r,r,r,r,r", [a, b, choice, mask],
            tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        word = ((a & 255) | ((b & 255) << 16)) << (8 * side)
    return word


@triton.jit
def quantised(x0, x1, x2, x3, lane, FORMAT: tl.constexpr, SMALLEST: tl.constexpr, ASM: tl.constexpr):
    """Pairs [M, 2 L] of columns 32 n + 16 e + 8 r1 + 2 t and on, in order of (e, r1) -> words of x and d.

    Words hold x in the bytes that meet the codes of n; d is that of sub-blocks 2t and 2t + 1.
    """
    a0, b0 = _halves(x0)
    a1, b1 = _halves(x1)
    a2, b2 = _halves(x2)
    a3, b3 = _halves(x3)
    M: tl.constexpr = x0.shape[0]
    W: tl.constexpr = x0.shape[1] // 64
    b_max = _larger(_larger(tl.abs(a0), tl.abs(b0)), _larger(tl.abs(a1), tl.abs(b1)))
    b_max = _larger(b_max, _larger(_larger(tl.abs(a2), tl.abs(b2)), _larger(tl.abs(a3), tl.abs(b3))))
    # as integers positive floats keep their order, and a NaN beats all
    bits = b_max.to(tl.int32, bitcast=True)
    BY_32: tl.constexpr = FORMAT == "q8_0" or FORMAT == "q4_0"
    GROUPS: tl.constexpr = 8 if BY_32 else 1
    if ASM:
        bits = tl.inline_asm_elementwise(
            _LARGEST_4 if BY_32 else _LARGEST, "=&r,r", [bits], tl.int32, is_pure=True, pack=1
        )
    else:
        bits = tl.max(tl.reshape(bits, (M * W * GROUPS, 32 // GROUPS)), 1)
        bits = tl.reshape(tl.broadcast_to(bits[:, None], (M * W * GROUPS, 32 // GROUPS)), (M, W * 32))
    b_max = bits.to(tl.float32, bitcast=True)
    inverse = tl.where(b_max >= SMALLEST, tl.div_rn(tl.full((M, W * 32), 127.0, tl.float32), b_max), 0.0)
    d0 = tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, float("nan"))
    d1 = d0
    if BY_32:
        if ASM:
            d0, d1 = tl.inline_asm_elementwise(
                _TURN, "=&f,=&f,f,r", [d0, lane], (tl.float32, tl.float32), is_pure=True, pack=1
            )
        else:
            # the four lanes of an n hold the same; a sum keeps a NaN
            d = tl.reshape(tl.sum(tl.reshape(d0, (M * W, 8, 4)), 2) * 0.25, (M * W, 1, 4, 2))
            d0, d1 = tl.split(tl.reshape(tl.broadcast_to(d, (M * W, 8, 4, 2)), (M, W * 32, 2)))
    side = lane // 8 % 2 if FORMAT == "q8_0" else lane // 16
    words = (
        _bytes(a0, b0, inverse, side, ASM),
        _bytes(a1, b1, inverse, side, ASM),
        _bytes(a2, b2, inverse, side, ASM),
        _bytes(a3, b3, inverse, side, ASM),
    )
    return words, d0, d1
