"""Rows of a quantised cache as left operands of wgmma, from codes in shared memory to registers: see one_pass.py.

    keys    [64 rows, 16 of a row's values]   words of a lane's two rows, held for a whole tile
    values  [128 of a row's values, 16 rows]  a lane's four values of four rows: a word each, and the pairs of two rows

A register holds a pair of f16: of keys two values of a row, of values one of two rows, so one routine unpacks both.
Which value a column of keys or a row of values is follows from how words fall apart: `queries_in_eights`, `in_order`.
"""

# ruff: noqa: RUF005
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .eights import lanes
from .operands import TQ3_TABLE, tq3_chosen, tq3_selectors

# $0, $1: nibbles 0 and 1, or 2 and 3, of the halves of $2, each less 8, times the pair of scales $3
_NIBBLES = [
    f"""
{{
.reg .b32 t, one, sixteenth, other;
mov.b32 one, 0x64086408;
mov.b32 sixteenth, 0x2C002C00;
mov.b32 other, 0xD480D480;
{move}
lop3.b32 $0, t, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $1, t, 0x00f000f0, 0x64006400, 0xEA;
sub.f16x2 $0, $0, one;
fma.rn.f16x2 $1, $1, sixteenth, other;
mul.rn.f16x2 $0, $0, $3;
mul.rn.f16x2 $1, $1, $3;
}}
"""
    for move in ("mov.b32 t, $2;", "shr.u32 t, $2, 8;")
]
_NIBBLES_0, _NIBBLES_1 = map(gl.constexpr, _NIBBLES)
# $0, $1: signed bytes 0 and 2, 1 and 3 of t, times a pair of scales
_SIGNED = """
lop3.b32 $0, t, 0x00ff00ff, 0x64806480, 0x6A;
shr.u32 t, t, 8;
lop3.b32 $1, t, 0x00ff00ff, 0x64806480, 0x6A;
sub.f16x2 $0, $0, one;
sub.f16x2 $1, $1, one;
mul.rn.f16x2 $0, $0, {scales};
mul.rn.f16x2 $1, $1, {scales};
}}
"""
_ONE = "{\n.reg .b32 t, one;\nmov.b32 one, 0x64806480;\n"
_BYTES = gl.constexpr(_ONE + "mov.b32 t, $2;" + _SIGNED.format(scales="$3"))
# the lower or upper bytes of $2 and $3
_BYTES_0 = gl.constexpr(_ONE + "prmt.b32 t, $2, $3, 0x5410;" + _SIGNED.format(scales="$4"))
_BYTES_1 = gl.constexpr(_ONE + "prmt.b32 t, $2, $3, 0x7632;" + _SIGNED.format(scales="$4"))
_SELECTORS = gl.constexpr("{" + tq3_selectors("$2", "$3", "$0", "$1") + "}")
# two codes of four that the selectors $2 are of, times the pair of scales $3
_CODES = [
    "{\n.reg .b32 t, u, w;" + TQ3_TABLE + f"shr.u32 w, $2, {shift};" + tq3_chosen("w", "$0", "$1")
    + "mul.rn.f16x2 $0, $0, $3;\nmul.rn.f16x2 $1, $1, $3;\n}"
    for shift in (0, 16)
]  # fmt: skip
_CODES_0, _CODES_1 = map(gl.constexpr, _CODES)
# a byte of each of $1 .. $4, rows 0, 1, 8 and 9, as $5 says: of rows 0, 8, 1, 9
_CHOSEN = gl.constexpr(
    """
{
.reg .b32 a, b;
prmt.b32 a, $1, $3, $5;
prmt.b32 b, $2, $4, $5;
prmt.b32 $0, a, b, 0x5410;
}
"""
)
# nibbles of bytes, those at bit $2: of bytes 0 and 1 in one, of bytes 2 and 3 in another
_PACKED = gl.constexpr(
    """
{
.reg .b32 t, u;
shr.u32 t, $1, $2;
and.b32 t, t, 0x0f0f0f0f;
shr.u32 u, t, 4;
lop3.b32 $0, t, u, 0x00ff00ff, 0xA8;
}
"""
)
# the lower or upper half of a word in both
_TWICE_0 = gl.constexpr("{\n.reg .b16 l, h;\nmov.b32 {l, h}, $1;\nmov.b32 $0, {l, l};\n}")
_TWICE_1 = gl.constexpr("{\n.reg .b16 l, h;\nmov.b32 {l, h}, $1;\nmov.b32 $0, {h, h};\n}")
# bytes 0 and 1, or 2 and 3, one in each half
_LOWER = gl.constexpr("prmt.b32 $0, $1, 0, 0x4140;")
_UPPER = gl.constexpr("prmt.b32 $0, $1, 0, 0x4342;")
_PICK = gl.constexpr("prmt.b32 $0, $1, $2, $3;")


@gluon.constexpr_function
def _bits(N):
    return [[0, 1 << i] for i in range(N.bit_length() - 1)]


@gluon.constexpr_function
def _of_keys(N):
    """[64, N]: a lane's N / 4 neighbours of its two rows."""
    lanes = [[0, N // 4], [0, N // 2], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(_bits(N // 4) + [[8, 0]], lanes, [[16, 0], [32, 0]], [], [64, N])


@gluon.constexpr_function
def _of_halves():
    """[64, 4 words], less the lanes t that share them: blocks t and t + 4 of two rows."""
    P = gl.DistributedLinearLayout(
        [[0, 2, 0], [8, 0, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]], [[16, 0, 0], [32, 0, 0]], [],
        [64, 4, 2],
    )  # fmt: skip
    return gl.SliceLayout(2, P)


@gluon.constexpr_function
def _of_values(N):
    """[16, N], less the lanes that share a word: of rows 2 t, 2 t + 1 and 8 more, the word with a lane's values."""
    shared = 64 // N
    g = [([0, 0, 1 << i] if 1 << i < shared else [0, (1 << i) // shared, 0]) for i in range(3)]
    warps = [([0, 0, 8 << i] if 8 << i < shared else [0, (8 << i) // shared, 0]) for i in range(3)]
    P = gl.DistributedLinearLayout([[1, 0, 0], [8, 0, 0]], [[2, 0, 0], [4, 0, 0]] + g, warps, [], [16, N, shared])
    return gl.SliceLayout(2, P)


@gluon.constexpr_function
def values_product(N):
    return gl.NVMMADistributedLayout([3, 0], [8, 1], [16, N, 16])


@gluon.jit
def _two(x, W: gl.constexpr):
    a, b = gl.split(gl.reshape(x, (W, 32, 2)))
    return gl.convert_layout(a, lanes(W)), gl.convert_layout(b, lanes(W))


@gluon.jit
def _four(x, W: gl.constexpr):
    """[W, 32, 4] -> each [W, 32]."""
    even, odd = gl.split(gl.reshape(x, (W, 32, 2, 2)))
    x0, x2 = _two(even, W)
    x1, x3 = _two(odd, W)
    return x0, x1, x2, x3


@gluon.jit
def _eight(x, W: gl.constexpr):
    even, odd = gl.split(gl.reshape(x, (W, 32, 4, 2)))
    x0, x2, x4, x6 = _four(even, W)
    x1, x3, x5, x7 = _four(odd, W)
    return x0, x1, x2, x3, x4, x5, x6, x7


@gluon.jit
def _sixteen(x, W: gl.constexpr):
    even, odd = gl.split(gl.reshape(x, (W, 32, 8, 2)))
    a = _eight(even, W)
    b = _eight(odd, W)
    return (
        a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3], a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]
    )  # fmt: skip


@gluon.jit
def _rows(memory):
    """[64, N] -> [4, 32 lanes, N / 4 of row g and of row g + 8 by turns]."""
    N: gl.constexpr = memory.shape[1]
    x = gl.permute(gl.reshape(memory.load(_of_keys(N)), (4, 2, 8, 4, N // 4)), (0, 2, 3, 4, 1))
    return gl.reshape(x, (4, 32, N // 2))


@gluon.jit
def key_scales(memory, FORMAT: gl.constexpr):
    """Of a lane's two blocks, of row g and row g + 8 by turns: twice in a word."""
    if FORMAT == "q8_0":
        L: gl.constexpr = lanes(4)
        t = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :] + gl.zeros((4, 32), gl.int32, L)
        half = gl.where(t % 2 == 1, 0x3232, 0x1010)
        x = gl.expand_dims(memory.load(_of_halves()), 2).broadcast_to((64, 4, 2))
        x = gl.permute(gl.reshape(x, (4, 2, 8, 2, 4)), (0, 2, 4, 3, 1))
        x = _four(gl.reshape(x, (4, 32, 4)), 4)
        s = (
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [x[0], x[0], half], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [x[1], x[1], half], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [x[2], x[2], half], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [x[3], x[3], half], gl.int32, is_pure=True, pack=1),
        )
    else:
        x = _two(_rows(memory), 4)
        s = (
            gl.inline_asm_elementwise(_TWICE_0, "=r,r", [x[0]], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_TWICE_0, "=r,r", [x[1]], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_TWICE_1, "=r,r", [x[0]], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_TWICE_1, "=r,r", [x[1]], gl.int32, is_pure=True, pack=1),
        )
    return s


@gluon.jit
def key_words(codes, high, FORMAT: gl.constexpr):
    """A lane's words of a tile of K, and of its high bits; of q8_0 those of half the columns."""
    w, h = (), ()
    if FORMAT == "tq3_0":
        w = _eight(_rows(codes), 4)
        h = _four(_rows(high), 4)
    else:
        w = _sixteen(_rows(codes), 4)
    return w, h


@gluon.jit
def _unpacked(TEXT: gl.constexpr, w, s):
    return gl.inline_asm_elementwise(TEXT, "=&r,=&r,r,r", [w, s], (gl.int32, gl.int32), is_pure=True, pack=1)


@gluon.jit
def _of_row(words, s, r: gl.constexpr, c: gl.constexpr, FORMAT: gl.constexpr):
    """Two pairs of columns c of row g + 8 r."""
    w, h = words
    scales = s[c // 8 * 2 + r]
    if FORMAT == "q4_0":
        TEXT: gl.constexpr = _NIBBLES_1 if c % 2 else _NIBBLES_0
        o = _unpacked(TEXT, w[c // 2 * 2 + r], scales)
    elif FORMAT == "q8_0":
        o = _unpacked(_BYTES, w[c % 8 * 2 + r], scales)
    else:
        LIFT: gl.constexpr = _UPPER if c // 4 % 2 else _LOWER
        above = gl.inline_asm_elementwise(LIFT, "=r,r", [h[c // 8 * 2 + r]], gl.int32, is_pure=True, pack=1)
        chosen = _unpacked(_SELECTORS, w[c // 4 * 2 + r], above)
        CODES: gl.constexpr = _CODES_1 if c // 2 % 2 else _CODES_0
        o = _unpacked(CODES, chosen[c % 2], scales)
    return o


@gluon.jit
def key_registers(words, s, c: gl.constexpr, FORMAT: gl.constexpr):
    """Columns c of a tile, sixteen: four registers a lane, as eights.py has them."""
    a, b = _of_row(words, s, 0, c, FORMAT), _of_row(words, s, 1, c, FORMAT)
    return a[0], b[0], a[1], b[1]


@gluon.jit
def offset_registers():
    """2^15, 2^4, 2^-6 and zeros in every row: [64, 16]."""
    L: gl.constexpr = lanes(4)
    t = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :] % 4 + gl.zeros((4, 32), gl.int32, L)
    # pairs of f16: 2^15 and 2^4, 2^-6 and 0
    x = gl.where(t == 0, 0x4C007800, gl.where(t == 1, 0x2400, 0))
    return x, x, x * 0, x * 0


@gluon.constexpr_function
def asked_by_eight(FORMAT):
    """[16, 256 values] in eight warps: a lane has what is in 16 bytes of a row of `queries_in_eights`, once or more,
    and eight lanes the rows of eight queries, one after the other in shared memory."""
    # bits of a value's number: a lane's, those that tell its warp's lanes apart, and its warps
    own, lanes, warps = {
        "f16": ([0, 1, 2], [3, 4], [5, 6, 7]),
        "q8_0": ([0, 1, 5, 6], [2, 3], [4, 7]),
        "q4_0": ([0, 1, 6, 7], [2, 3], [4, 5]),
        "tq3_0": ([0, 1, 3, 6, 7], [2, 4], [5]),
    }[FORMAT]
    held, beside, more = ([[0, 1 << i] for i in bits] for bits in (own, lanes, warps))
    return gl.DistributedLinearLayout(
        held if len(more) < 3 else [*held, [8, 0]], [[1, 0], [2, 0], [4, 0], *beside], [*more, [8, 0], [0, 0]][:3], [],
        [16, 256],
    )  # fmt: skip


@gluon.jit
def _by_columns(x, FORMAT: gl.constexpr):
    """[N, 256 values] -> [16, N, 16]: queries of columns 0, then of columns 1, as `key_registers` has them."""
    N: gl.constexpr = x.shape[0]
    if FORMAT == "q4_0":  # t j k i p e
        x = gl.permute(gl.reshape(x, (N, 4, 2, 2, 4, 2, 2)), (2, 4, 6, 0, 3, 1, 5))
    elif FORMAT == "q8_0":  # x t n p k
        x = gl.permute(gl.reshape(x, (N, 2, 4, 8, 2, 2)), (1, 3, 0, 5, 2, 4))
    elif FORMAT == "f16":
        x = gl.permute(gl.reshape(x, (N, 16, 16)), (1, 0, 2))
    else:  # t m p j k e
        x = gl.permute(gl.reshape(x, (N, 4, 4, 2, 2, 2, 2)), (2, 4, 6, 0, 5, 1, 3))
    return gl.reshape(x, (16, N, 16))


@gluon.jit
def queries_in_eights(x, FORMAT: gl.constexpr):
    """[N, 256 values] -> [16 N, 16]: of eight queries a row each of columns 0, then of columns 1 .., then of others."""
    N: gl.constexpr = x.shape[0]
    x = gl.permute(gl.reshape(_by_columns(x, FORMAT), (16, N // 8, 8, 16)), (1, 0, 2, 3))
    return gl.reshape(x, (16 * N, 16))


@gluon.jit
def _columns(memory):
    """[16, N] -> of rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 the word with a lane's values."""
    N: gl.constexpr = memory.shape[1]
    x = gl.expand_dims(memory.load(_of_values(N)), 2).broadcast_to((16, N, 64 // N))
    x = gl.permute(gl.reshape(x, (2, 4, 2, 8, 8)), (3, 4, 1, 0, 2))
    return _four(gl.reshape(x, (8, 32, 4)), 8)


@gluon.jit
def value_words(codes, high, scales, c: gl.constexpr, FORMAT: gl.constexpr):
    """A lane's words of rows 16 c .. 16 c + 15 of a tile of V, those of two rows together, and pairs of scales."""
    L: gl.constexpr = lanes(8)
    g = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :] // 4 + gl.zeros((8, 32), gl.int32, L)
    warp = gl.arange(0, 8, gl.SliceLayout(1, L))[:, None] + gl.zeros((8, 32), gl.int32, L)
    # a warp's values are of one block
    half = gl.where(warp % 2 == 1, 0x7632, 0x5410)
    s = _columns(scales.slice(16 * c, 16))
    s0 = gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [s[0], s[1], half], gl.int32, is_pure=True, pack=1)
    s1 = gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [s[2], s[3], half], gl.int32, is_pure=True, pack=1)
    w = _columns(codes.slice(16 * c, 16))
    if FORMAT == "q4_0":
        # the half of a word that holds a lane's four values
        half = gl.where(g % 2 == 1, 0x7632, 0x5410)
        w = (
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [w[0], w[1], half], gl.int32, is_pure=True, pack=1),
            gl.inline_asm_elementwise(_PICK, "=r,r,r,r", [w[2], w[3], half], gl.int32, is_pure=True, pack=1),
        )
    elif FORMAT == "tq3_0":
        h = _columns(high.slice(16 * c, 16))
        byte = g % 4 * 17 + 64
        low = gl.inline_asm_elementwise(
            _CHOSEN, "=r,r,r,r,r,r", [w[0], w[1], w[2], w[3], byte], gl.int32, is_pure=True, pack=1
        )
        byte = g // 2 * 17 + 64
        above = gl.inline_asm_elementwise(
            _CHOSEN, "=r,r,r,r,r,r", [h[0], h[1], h[2], h[3], byte], gl.int32, is_pure=True, pack=1
        )
        above = gl.inline_asm_elementwise(_PACKED, "=r,r,r", [above, g % 2 * 4], gl.int32, is_pure=True, pack=1)
        w = _unpacked(_SELECTORS, low, above)
    return w, (s0, s1)


@gluon.jit
def value_registers(words, r: gl.constexpr, FORMAT: gl.constexpr):
    """Half r of the values of a row, of sixteen rows: four registers a lane."""
    w, s = words
    if FORMAT == "q4_0":
        TEXT: gl.constexpr = _NIBBLES_1 if r else _NIBBLES_0
        a, b = _unpacked(TEXT, w[0], s[0]), _unpacked(TEXT, w[1], s[1])
    elif FORMAT == "q8_0":
        BYTES: gl.constexpr = _BYTES_1 if r else _BYTES_0
        a = gl.inline_asm_elementwise(
            BYTES, "=&r,=&r,r,r,r", [w[0], w[1], s[0]], (gl.int32, gl.int32), is_pure=True, pack=1
        )
        b = gl.inline_asm_elementwise(
            BYTES, "=&r,=&r,r,r,r", [w[2], w[3], s[1]], (gl.int32, gl.int32), is_pure=True, pack=1
        )
    else:
        a, b = _unpacked(_CODES_0, w[r], s[0]), _unpacked(_CODES_1, w[r], s[1])
    return a[0], a[1], b[0], b[1]


@gluon.jit
def in_order(x0, x1, FORMAT: gl.constexpr):
    """[128 rows of `value_registers`, N] of both halves -> [N, 256 values]."""
    N: gl.constexpr = x0.shape[1]
    x = gl.reshape(gl.join(x0, x1), (8, 2, 8, N, 2))  # w b g . r
    if FORMAT == "f16":
        x = gl.permute(x, (3, 4, 0, 1, 2))
    elif FORMAT == "q4_0":
        x = gl.permute(x, (3, 0, 1, 2, 4))
    elif FORMAT == "q8_0":
        x = gl.permute(x, (3, 0, 2, 4, 1))
    else:
        x = gl.permute(x, (3, 0, 2, 1, 4))
    return gl.reshape(x, (N, 256))
