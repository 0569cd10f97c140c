"""Rows of codes where a warp's lanes multiply them: 16 keys [W, 16, 128] by halves, their values [W, 256, 16].

    a lane (g, q)    of K rows g, g + 8, a quarter of each;  of V rows 2q, 2q + 1, 2q + 8, 2q + 9, an eighth of each

These are the left operands of m16n8k16: nothing moves between lanes from the load on. Codes come as E and O, words of
one row for keys and of two rows for values: their pairs are the halves of a register. Columns of keys and channels of
values are in the order in which codes fall apart; `in_columns` brings queries into the one, `channels` sums out of the
other.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...reference.quantisers import TQ3_CODES
from .early import ASK
from .operands import Q4_0, Q8_0

# the codebook is taken so much larger that f16 holds it to 2^-15.6, and not 2^-11.8; whoever sums it takes that back
LARGER = 1.9652735
SMALLER = gl.constexpr(1 / LARGER)
_BITS = [int(x) & 0xFFFF for x in (torch.tensor(TQ3_CODES).double() * LARGER).half().view(torch.int16)]


def _bytes(shift: int, first: int) -> str:
    """Bytes of the f16 of codes first .. first + 3 as one word."""
    return hex(sum((_BITS[first + i] >> shift & 255) << 8 * i for i in range(4)))


# the codebook's low bytes of codes 0..3 and 4..7, and its high bytes; an addend that is 0 keeps them in registers
CODEBOOK = gl.constexpr(
    f"""
{{
.reg .b32 z;
shr.u32 z, $4, 31;
add.u32 $0, z, {_bytes(0, 0)};
add.u32 $1, z, {_bytes(0, 4)};
add.u32 $2, z, {_bytes(8, 0)};
add.u32 $3, z, {_bytes(8, 4)};
}}
"""
)
# $0..$15: the codebook's f16 of sixteen codes, those of E and of O by twos, times the pair of scales $19; $16, $17: low
# pairs of E and O, $18: their high bits in its halves, $20, $22, $24, $26: the codebook. Nibbles of E and O by turns
# make selectors of prmt
TQ3_0 = gl.constexpr(
    """
{
.reg .b32 a, b, z, t, u, s;
shl.b32 t, $17, 4;
lop3.b32 a, $16, t, 0x0f0f0f0f, 0xE4;
shr.u32 t, $16, 4;
lop3.b32 b, t, $17, 0x0f0f0f0f, 0xE4;
prmt.b32 z, $18, $18, 0x3120;
shr.u32 t, z, 4;
lop3.b32 t, z, t, 0x00f000f0, 0x28;
shl.b32 u, t, 4;
lop3.b32 z, z, t, u, 0x96;
"""
    + "".join(
        f"""{place}
and.b32 t, t, 0x44444444;
{low}
lop3.b32 s, s, 0x33333333, t, 0xEA;
prmt.b32 t, $20, $22, s;
prmt.b32 u, $24, $26, s;
prmt.b32 ${j}, t, u, 0x5140;
prmt.b32 ${j + 4}, t, u, 0x7362;
shr.u32 s, s, 16;
prmt.b32 t, $20, $22, s;
prmt.b32 u, $24, $26, s;
prmt.b32 ${j + 8}, t, u, 0x5140;
prmt.b32 ${j + 12}, t, u, 0x7362;
"""
        for j, (place, low) in enumerate(
            (
                ("shl.b32 t, z, 2;", "mov.b32 s, a;"),
                ("shl.b32 t, z, 1;", "shr.u32 s, a, 2;"),
                ("mov.b32 t, z;", "mov.b32 s, b;"),
                ("shr.u32 t, z, 1;", "shr.u32 s, b, 2;"),
            )
        )
    )
    + "".join(f"mul.rn.f16x2 ${j}, ${j}, $19;\n" for j in range(16))
    + "}"
)


@gluon.constexpr_function
def _sliced(L, dim):
    """The layout of one dimension of L's."""
    for d in reversed(range(L.rank)):
        if d != dim:
            L = gl.SliceLayout(d, L)
    return L


@gluon.constexpr_function
def bits(dim, rank, first, n):
    """Bases of n values along dim, from the place `first` on."""
    bases = []
    while n > 1:
        basis = [0] * rank
        basis[dim] = first
        bases.append(basis)
        first, n = first * 2, n // 2
    return bases


@gluon.jit
def along(n: gl.constexpr, dim: gl.constexpr, L: gl.constexpr):
    """0 .. n - 1 along one dimension of L's, 1 wide in the others."""
    RANK: gl.constexpr = L.rank
    o = gl.arange(0, n, _sliced(L, dim))
    for d in gl.static_range(RANK):
        if d != dim:
            o = gl.expand_dims(o, d)
    return o


@gluon.constexpr_function
def _key_lanes(W, U):
    """[W, 16 rows, 4, U]: a lane has U neighbours of two rows."""
    return gl.DistributedLinearLayout(
        reg_bases=[*bits(3, 4, 1, U), [0, 8, 0, 0]],
        lane_bases=bits(2, 4, 1, 4) + bits(1, 4, 1, 8),
        warp_bases=bits(0, 4, 1, W),
        block_bases=[],
        shape=[W, 16, 4, U],
    )


@gluon.constexpr_function
def value_lanes(W, U, paired):
    """[W, 16 rows, 8, U]: a lane has U neighbours of four rows; where paired, two rows as a register's halves."""
    pair, units = [[0, 1, 0, 0]], bits(3, 4, 1, U)
    return gl.DistributedLinearLayout(
        reg_bases=[*(pair + units if paired else units + pair), [0, 8, 0, 0]],
        lane_bases=bits(1, 4, 2, 4) + bits(2, 4, 1, 8),
        warp_bases=bits(0, 4, 1, W),
        block_bases=[],
        shape=[W, 16, 8, U],
    )


@gluon.constexpr_function
def words(FORMAT):
    """Words of the codes of 32 values; of tq3_0, of their low pairs."""
    return {"q8_0": 8, "q4_0": 4, "tq3_0": 2}[FORMAT]


@gluon.constexpr_function
def _blocks_apart(FORMAT):
    """How far apart in a row the two blocks of a lane's key lie, and those of neighbouring lanes."""
    return (1, 2) if FORMAT == "tq3_0" else (4, 1)


@gluon.jit
def read(p, row, stop, s: gl.constexpr, HALF: gl.constexpr, W: gl.constexpr, FORMAT: gl.constexpr):
    """16 rows a warp from `row` on, those before `stop`: units, high bits of tq3_0 and scales as they lie in memory.

    Of keys one half of every row; of values, where HALF is None, all of it.
    """
    U: gl.constexpr = words(FORMAT)
    L: gl.constexpr = value_lanes(W, U, False) if HALF is None else _key_lanes(W, U)
    o_row = row + along(W, 0, L) * 16 + along(16, 1, L)
    m, p, o_u = o_row < stop, p + o_row.to(gl.int64) * s, along(U, 3, L)
    if HALF is None:
        block = along(8, 2, L)
    else:
        block = HALF * _blocks_apart(FORMAT)[0] + along(4, 2, L) * _blocks_apart(FORMAT)[1]
    b_d = gl.load(p.to(gl.pointer_type(gl.float16)) + block, mask=m)
    b_w = gl.load((p + 16).to(gl.pointer_type(gl.int32)) + (block * U + o_u), mask=m)
    b_h = b_w
    if FORMAT == "tq3_0":
        b_h = gl.load((p + 80).to(gl.pointer_type(gl.int16)) + (block * U + o_u), mask=m)
    return b_w, b_h, b_d


@gluon.jit
def ahead(p, row, stop, s: gl.constexpr, ROWS: gl.constexpr):
    """A whole tile on its way to the L2."""
    if row + ROWS <= stop:
        at = p.to(gl.int64) + row.to(gl.int64) * s
        gl.inline_asm_elementwise(ASK, "=r,l,r", [at, ROWS * s], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _eight(o0, o1, o2, o3, o4, o5, o6, o7):
    """[.., 2, 2, 2], bits of the number from the lowest on."""
    return gl.join(gl.join(gl.join(o0, o1), gl.join(o2, o3)), gl.join(gl.join(o4, o5), gl.join(o6, o7)))


@gluon.jit
def _unpacked(b_w, b_h, b_d, codebook, FORMAT: gl.constexpr):
    """Units, neighbours in a register's halves, and their scales -> [.., j0, j1, ..]: code j of every unit."""
    b_d, b_w = gl.broadcast(b_d, b_w)
    if FORMAT == "q8_0":
        a, b, c, d = gl.inline_asm_elementwise(
            Q8_0, "=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d], (gl.float16, gl.float16, gl.float16, gl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
        b_x = gl.join(gl.join(a, b), gl.join(c, d))
    elif FORMAT == "q4_0":
        o0, o1, o2, o3, o4, o5, o6, o7 = gl.inline_asm_elementwise(
            Q4_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d],
            (gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
        b_x = _eight(o0, o1, o2, o3, o4, o5, o6, o7)
    else:
        o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, oa, ob, oc, od, oe, of = gl.inline_asm_elementwise(
            TQ3_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r",
            [b_w, b_h, b_d, codebook[0], codebook[1], codebook[2], codebook[3]],
            (gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16,
             gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
        b_x = gl.join(_eight(o0, o1, o2, o3, o4, o5, o6, o7), _eight(o8, o9, oa, ob, oc, od, oe, of))
    return b_x


@gluon.jit
def keys(b_w, b_h, b_d, codebook, W: gl.constexpr, FORMAT: gl.constexpr, L: gl.constexpr):
    """Half a row of each key -> [W, 16, 128] f16, columns [unit, code, lane, unit of a pair]."""
    b_x = _unpacked(b_w, b_h, b_d, codebook, FORMAT)
    if FORMAT == "q8_0":
        b_x = gl.permute(gl.reshape(b_x, (W, 16, 4, 4, 2, 2, 2)), (0, 1, 3, 6, 5, 2, 4))
    elif FORMAT == "q4_0":
        b_x = gl.permute(gl.reshape(b_x, (W, 16, 4, 2, 2, 2, 2, 2)), (0, 1, 3, 7, 6, 5, 2, 4))
    else:
        b_x = gl.permute(b_x, (0, 1, 7, 6, 5, 4, 2, 3))
    return gl.convert_layout(gl.reshape(b_x, (W, 16, 128)), gl.DotOperandLayout(0, L, 2))


@gluon.jit
def values(b_w, b_h, b_d, codebook, W: gl.constexpr, FORMAT: gl.constexpr, L: gl.constexpr):
    """-> [W, 256, 16] f16, channels [unit, code, lane]."""
    P: gl.constexpr = value_lanes(W, words(FORMAT), True)
    b_w, b_d = gl.convert_layout(b_w, P), gl.convert_layout(b_d, P)
    b_h = gl.convert_layout(b_h, P) if FORMAT == "tq3_0" else b_w
    b_x = _unpacked(b_w, b_h, b_d, codebook, FORMAT)
    if FORMAT == "q8_0":
        b_x = gl.permute(b_x, (0, 3, 5, 4, 2, 1))
    elif FORMAT == "q4_0":
        b_x = gl.permute(b_x, (0, 3, 6, 5, 4, 2, 1))
    else:
        b_x = gl.permute(b_x, (0, 3, 7, 6, 5, 4, 2, 1))
    return gl.convert_layout(gl.reshape(b_x, (W, 256, 16)), gl.DotOperandLayout(0, L, 2))


@gluon.jit
def in_columns(b_q, N: gl.constexpr, FORMAT: gl.constexpr):
    """[N, 4, 32]: a lane's block of each query -> [128, N] in the order of `keys`."""
    if FORMAT == "q8_0":  # 4 (2 x + p) + j
        b_q = gl.permute(gl.reshape(b_q, (N, 4, 4, 2, 4)), (2, 4, 1, 3, 0))
    else:  # 16 k + 4 (2 x + p) + j
        b_q = gl.permute(gl.reshape(b_q, (N, 4, 2, 2, 2, 4)), (3, 5, 2, 1, 4, 0))
    return gl.reshape(b_q, (128, N))


@gluon.jit
def channels(b_o, N: gl.constexpr, FORMAT: gl.constexpr):
    """[256, N], channels as `values` has them -> [N, 256] in order."""
    if FORMAT == "q4_0":  # unit, code in its half, half, block
        b_o = gl.permute(gl.reshape(b_o, (4, 4, 2, 8, N)), (4, 3, 2, 0, 1))
    else:
        b_o = gl.permute(gl.reshape(b_o, (32, 8, N)), (2, 1, 0))
    return gl.reshape(b_o, (N, 256))
