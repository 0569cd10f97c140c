"""m16n8k32 in 8-bit integers on words of a tile (reference/tiles.py), a warp's work, and x as it takes it.

    A   lane (g, t) holds words of rows g and g + 8 as it reads them; a mask leaves the codes of one group of 32 columns
    B   eight columns n: rows of x, or of one row the eight groups of 32; lane (n, t) holds eight of its 32 values
    C   lane (g, t) gets (row g, n = 2t), (row g, n = 2t + 1) and the same of row g + 8

So no byte and no sum moves between lanes: thirty-two weights cost a mask for every four and one instruction.

The instruction takes element i of a tensor from lane i % 32, and `lanes` stops a program where that is not so. Without
PTX the same integers come from sums of products.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton
import triton.language as tl

_MMA = (
    "{{ .reg .b32 z; mov.b32 z, 0; mma.sync.aligned.m16n8k{0}.row.col.s32.{1}.s8.s32 {{$0, $1, $2, $3}}, {2}, "
    "{{z, z, z, z}}; }}"
)
_BY_32, _BY_16 = "{$4, $5, $6, $7}, {$8, $9}", "{$4, $5}, {$6}"
_U8_32, _S8_32 = tl.constexpr(_MMA.format(32, "u8", _BY_32)), tl.constexpr(_MMA.format(32, "s8", _BY_32))
_U8_16, _S8_16 = tl.constexpr(_MMA.format(16, "u8", _BY_16)), tl.constexpr(_MMA.format(16, "s8", _BY_16))
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
_BYTES = tl.constexpr(
    "{ .reg .b32 t, u; prmt.b32 t, $1, $2, 0x0040; prmt.b32 u, $3, $4, 0x0040; prmt.b32 $0, t, u, 0x5410; }"
)


# two fields of two words, the top bit of every byte turned
_FIELDS = tl.constexpr(
    "{ .reg .b32 t, c; mov.b32 c, 0x80808080; lop3.b32 t, $1, 0x3c3c3c3c, c, 0x6A; "
    "lop3.b32 $0, $2, 0xc0c0c0c0, t, 0x6A; }"
)


@triton.jit
def lanes(W: tl.constexpr, ASM: tl.constexpr):
    """[32 W]: the lane that holds an element."""
    lane = tl.arange(0, W * 32) % 32
    if ASM:
        lane = tl.inline_asm_elementwise(_LANES, "=r,r", [lane], tl.int32, is_pure=False, pack=1)
    return lane


@triton.jit
def four(w):
    """[4 L] words, four a lane -> each [L]."""
    even, odd = tl.split(tl.reshape(w, (w.shape[0] // 4, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def bits_above(more, FORMAT: tl.constexpr):
    above = ()
    if FORMAT == "q5_k":
        above = four(more[0])
    if FORMAT == "q6_k":
        above = four(more[0]) + four(more[1])
    return above


@triton.jit
def two_groups(w, more, above, C: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Words [4 L] of c = 0..3, those of q8_0's second plane, `bits_above` -> A of groups 2 C and 2 C + 1.

    The odd groups of q4_k and q4_0 count sixteen times, q6_k's codes are signed and count four times.
    """
    v = four(w[C])
    if FORMAT == "q8_0":
        a = (v, four(more[C]))
    elif FORMAT == "q5_k":
        a = (_fifth(v, above[C], 0), _fifth(v, above[C], 1))
    elif FORMAT == "q6_k":
        h0, h1 = above[2 * C], above[2 * C + 1]
        a = (_sixth(v, h0, h1, 0, ASM), _sixth(v, h0, h1, 1, ASM))
    else:
        a = (_masked(v, 0x0F0F0F0F), _masked(v, -0x0F0F0F10))
    return a


@triton.jit
def _masked(v, MASK: tl.constexpr):
    return v[0] & MASK, v[1] & MASK, v[2] & MASK, v[3] & MASK


@triton.jit
def _fifth(v, h, P: tl.constexpr):
    """Nibbles P of four words, and bit 2 r1 + r0 above each."""
    y = ()
    for i in tl.static_range(4):
        bits = ((h >> i) if P else (h << (4 - i))) & 0x10101010
        y = y + (((v[i] >> (4 * P)) & 0x0F0F0F0F) | bits,)
    return y


@triton.jit
def _sixth(v, h0, h1, P: tl.constexpr, ASM: tl.constexpr):
    """Nibbles P of four words and two bits above each, h0 for r1 = 0: codes less 32, times four."""
    y = ()
    for i in tl.static_range(4):
        low, up = (v[i] >> 2) if P else (v[i] << 2), (h1 if i > 1 else h0) << (6 - 4 * P - i % 2 * 2)
        # the top bit turned is 32 less
        if ASM:
            w = tl.inline_asm_elementwise(_FIELDS, "=r,r,r", [low, up], tl.int32, is_pure=True, pack=1)
        else:
            w = (low & 0x3C3C3C3C) ^ (up & -0x3F3F3F40) ^ -0x7F7F7F80
        y = y + (w,)
    return y


@triton.jit
def mma(a, b, SIGNED: tl.constexpr, ASM: tl.constexpr):
    """Products over 32 columns, over 16 where a has two registers; a's bytes are signed or not, b's are."""
    if len(a) == 4:
        a0, a1, a2, a3 = a
        b0, b1 = b
        if ASM:
            TEXT: tl.constexpr = _S8_32 if SIGNED else _U8_32
            c0, c1, c2, c3 = tl.inline_asm_elementwise(
                TEXT, "=r,=r,=r,=r,r,r,r,r,r,r", [a0, a1, a2, a3, b0, b1],
                (tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
        else:
            c0, c1, c2, c3 = _plain(tl.join(tl.join(a0, a2), tl.join(a1, a3)), tl.join(b0, b1), SIGNED)
    else:
        a0, a1 = a
        (b0,) = b
        if ASM:
            TEXT: tl.constexpr = _S8_16 if SIGNED else _U8_16
            c0, c1, c2, c3 = tl.inline_asm_elementwise(
                TEXT, "=r,=r,=r,=r,r,r,r", [a0, a1, b0],
                (tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
        else:
            c0, c1, c2, c3 = _plain(tl.reshape(tl.join(a0, a1), (a0.shape[0], 1, 2)), b0[:, None], SIGNED)
    return c0, c1, c2, c3


@triton.jit
def _unpacked(w, SIGNED: tl.constexpr):
    """[..] words -> bytes [.., 4]."""
    b = (w[:, :, :, None] >> (8 * tl.arange(0, 4))) & 255
    return (b ^ 128) - 128 if SIGNED else b


@triton.jit
def _plain(a, b, SIGNED: tl.constexpr):
    """What the instruction gives, of a [L, r1, r0] and b [L, r1]."""
    W: tl.constexpr = a.shape[0] // 32
    R1: tl.constexpr = b.shape[1]
    a = tl.permute(tl.reshape(a, (W, 8, 4, R1, 2)), (0, 4, 1, 3, 2))
    b = tl.permute(tl.reshape(b, (W, 8, 4, R1)), (0, 1, 3, 2))
    a = tl.reshape(_unpacked(tl.reshape(a, (W, 16, R1 * 4)), SIGNED), (W, 16, 1, R1 * 16))
    b = tl.reshape(_unpacked(tl.reshape(b, (W, 8, R1 * 4)), True), (W, 1, 8, R1 * 16))
    y = tl.reshape(tl.sum(a * b, 3), (W, 2, 8, 4, 2))  # W r0 g t and a pair of n
    even, odd = tl.split(tl.reshape(tl.permute(y, (0, 2, 3, 1, 4)), (W * 32, 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def products(w, more, x, lane, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Words as `two_groups` takes them and one row of x (two of [L]) -> sums [L] of row g, of g + 8.

    They are over groups 2t and 2t + 1, for q6_k over their four 16s; multiples as `two_groups` has them.
    """
    above = bits_above(more, FORMAT)
    t = lane % 4
    g, h = (), ()
    for c in tl.static_range(4):
        a = two_groups(w, more, above, c, FORMAT, ASM)
        y, z = (), ()
        for i in tl.static_range(4 if FORMAT == "q6_k" else 2):
            if FORMAT == "q6_k":
                s = mma((a[i // 2][i % 2 * 2], a[i // 2][i % 2 * 2 + 1]), (x[i % 2],), True, ASM)
                s = _column(s, i // 2)
            else:
                s = _column(mma(a[i], x, FORMAT == "q8_0", ASM), i)
            # column n of C is of use where n is the group of A
            if c == 0:
                y, z = y + (s[0],), z + (s[1],)
            else:
                y, z = y + (tl.where(t == c, s[0], g[i]),), z + (tl.where(t == c, s[1], h[i]),)
        g, h = y, z
    return g, h


@triton.jit
def _column(c, P: tl.constexpr):
    """Rows g and g + 8 of column 2t + P."""
    return c[P], c[P + 2]


@triton.jit
def sums(x, ASM: tl.constexpr):
    """x's own sums over groups 2t and 2t + 1."""
    one = tl.full(x[0].shape, 0x01010101, tl.int32)
    s0, s1, _, _ = mma((one, one, one, one), x, False, ASM)
    return s0, s1


@triton.jit
def _halves(b):
    """[2 L] -> even and odd elements, in f32."""
    low, up = tl.split(tl.reshape(b, (b.shape[0] // 2, 2)))
    return low.to(tl.float32), up.to(tl.float32)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bytes(a0, a1, b0, b1, inverse, ASM: tl.constexpr):
    """Four values times inverse, to the nearest integer: a word of a0, a1, b0, b1."""
    # adding 1.5 * 2^23 leaves no fraction bits: to the nearest, halves to even
    a0 = (a0 * inverse + 12582912.0).to(tl.int32, bitcast=True)
    a1 = (a1 * inverse + 12582912.0).to(tl.int32, bitcast=True)
    b0 = (b0 * inverse + 12582912.0).to(tl.int32, bitcast=True)
    b1 = (b1 * inverse + 12582912.0).to(tl.int32, bitcast=True)
    if ASM:
        word = tl.inline_asm_elementwise(_BYTES, "=r,r,r,r,r", [a0, a1, b0, b1], tl.int32, is_pure=True, pack=1)
    else:
        word = (a0 & 255) | ((a1 & 255) << 8) | ((b0 & 255) << 16) | (b1 << 24)
    return word


@triton.jit
def quantised(x0, x1, x2, x3, lane, FORMAT: tl.constexpr, SMALLEST: tl.constexpr, ASM: tl.constexpr):
    """Pairs [2 L] of columns 32 n + 2 t and on, + 8, + 16 and + 24 -> B of the groups n, and d of groups 2t, 2t + 1."""
    a0, b0 = _halves(x0)
    a1, b1 = _halves(x1)
    a2, b2 = _halves(x2)
    a3, b3 = _halves(x3)
    W: tl.constexpr = x0.shape[0] // 64
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
        bits = tl.max(tl.reshape(bits, (W * GROUPS, 32 // GROUPS)), 1)
        bits = tl.reshape(tl.broadcast_to(bits[:, None], (W * GROUPS, 32 // GROUPS)), (W * 32,))
    b_max = bits.to(tl.float32, bitcast=True)
    inverse = tl.where(b_max >= SMALLEST, tl.div_rn(tl.full((W * 32,), 127.0, tl.float32), b_max), 0.0)
    d0 = tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, float("nan"))
    d1 = d0
    if BY_32:
        if ASM:
            d0, d1 = tl.inline_asm_elementwise(
                _TURN, "=&f,=&f,f,r", [d0, lane], (tl.float32, tl.float32), is_pure=True, pack=1
            )
        else:
            # the four lanes of an n hold the same; a sum keeps a NaN
            d = tl.reshape(tl.sum(tl.reshape(d0, (W, 8, 4)), 2) * 0.25, (W, 1, 4, 2))
            d0, d1 = tl.split(tl.reshape(tl.broadcast_to(d, (W, 8, 4, 2)), (W * 32, 2)))
    return (_bytes(a0, a1, b0, b1, inverse, ASM), _bytes(a2, a3, b2, b3, inverse, ASM)), d0, d1
