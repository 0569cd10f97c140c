"""Tiles of quantised cache rows as the left operand of a tensor-core product, in registers from the load on.

    keys    [BS, D]   S^T = K q^T        values  [D, BS]   O^T = V^T p^T       four warps, D = 256, products in f16

A lane's loads hold its own operand registers, so codes are unpacked where they arrive and nothing moves between lanes.
What one lane reads of one row at a time is a unit: 8 codes of q4_0 or tq3_0, 4 of q8_0. Two units make pairs,

    unit of E  | e7 .. e1 e0 |      unit of O  | o7 .. o1 o0 |      ->   f16 pairs (e0, o0), (e1, o1) ..

neighbours in a row for keys, rows 2i and 2i + 1 for values: so one routine serves both. The columns of keys, and the
rows of values, come in the order in which units fall apart: `key_order`, `value_order`. `ASM` picks packed PTX; its
plain twin gives the same bits anywhere.
"""

import torch
import triton
import triton.language as tl

from ...reference.quantisers import TQ3_CODES
from .cache_rows import SIZES

# $0..$7: nibbles of $8 and $9, each less 8, times the pair of scales $10
Q4_0 = tl.constexpr(
    """
{
.reg .b32 a, b, t;
.reg .b32 one, sixteenth, other;
mov.b32 one, 0x64086408;
mov.b32 sixteenth, 0x2C002C00;
mov.b32 other, 0xD480D480;
prmt.b32 a, $8, $9, 0x5410;
prmt.b32 b, $8, $9, 0x7632;
lop3.b32 $0, a, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $1, a, 0x00f000f0, 0x64006400, 0xEA;
shr.u32 t, a, 8;
lop3.b32 $2, t, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $3, t, 0x00f000f0, 0x64006400, 0xEA;
lop3.b32 $4, b, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $5, b, 0x00f000f0, 0x64006400, 0xEA;
shr.u32 t, b, 8;
lop3.b32 $6, t, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $7, t, 0x00f000f0, 0x64006400, 0xEA;
"""
    + "".join(f"sub.f16x2 ${j}, ${j}, one;\n" for j in (0, 2, 4, 6))
    + "".join(f"fma.rn.f16x2 ${j}, ${j}, sixteenth, other;\n" for j in (1, 3, 5, 7))
    + "".join(f"mul.rn.f16x2 ${j}, ${j}, $10;\n" for j in range(8))
    + "}"
)
# $0..$3: signed bytes of $4 and $5 times the pair of scales $6
Q8_0 = tl.constexpr(
    """
{
.reg .b32 a, b, one;
mov.b32 one, 0x64806480;
prmt.b32 a, $4, $5, 0x5410;
prmt.b32 b, $4, $5, 0x7632;
lop3.b32 $0, a, 0x00ff00ff, 0x64806480, 0x6A;
shr.u32 a, a, 8;
lop3.b32 $1, a, 0x00ff00ff, 0x64806480, 0x6A;
lop3.b32 $2, b, 0x00ff00ff, 0x64806480, 0x6A;
shr.u32 b, b, 8;
lop3.b32 $3, b, 0x00ff00ff, 0x64806480, 0x6A;
"""
    + "".join(f"sub.f16x2 ${j}, ${j}, one;\nmul.rn.f16x2 ${j}, ${j}, $6;\n" for j in range(4))
    + "}"
)

_BITS = [int(bits) & 0xFFFF for bits in torch.tensor(TQ3_CODES).half().view(torch.int16)]


def _bytes(shift: int, first: int) -> str:
    """Bytes of codes first .. first + 3 as one word."""
    return hex(sum((_BITS[first + i] >> shift & 255) << 8 * i for i in range(4)))


# the codebook's f16 as bytes: codes 0..3 and 4..7, high bytes and low bytes
TQ3_TABLE = f"""
.reg .b32 h0, h1, l0, l1;
mov.b32 h0, {_bytes(8, 0)};
mov.b32 h1, {_bytes(8, 4)};
mov.b32 l0, {_bytes(0, 0)};
mov.b32 l1, {_bytes(0, 4)};
"""


def tq3_selectors(low: str, high: str, even: str, odd: str) -> str:
    """Of low pairs and high bits, each of E and O in its halves: codes 0 2, 4 6 and 1 3, 5 7 as what `prmt` chooses."""
    return f"""
.reg .b32 z, y, s, v;
prmt.b32 z, {low}, {low}, 0x3120;
shr.u32 s, z, 4;
lop3.b32 s, z, s, 0x00f000f0, 0x28;
shl.b32 v, s, 4;
lop3.b32 z, z, s, v, 0x96;
shr.u32 s, {high}, 12;
lop3.b32 s, {high}, s, 0x000000f0, 0x28;
shl.b32 v, s, 12;
lop3.b32 y, {high}, s, v, 0x96;
shl.b32 s, y, 6;
lop3.b32 y, y, s, 0x00ff00ff, 0xE4;
shl.b32 s, y, 2;
and.b32 v, z, 0x33333333;
lop3.b32 {even}, v, s, 0x44444444, 0xF8;
shl.b32 s, y, 1;
shr.u32 v, z, 2;
and.b32 v, v, 0x33333333;
lop3.b32 {odd}, v, s, 0x44444444, 0xF8;
"""


def tq3_chosen(selectors: str, a: str, b: str) -> str:
    """The pairs of two codes."""
    return f"""
prmt.b32 t, l0, l1, {selectors};
prmt.b32 u, h0, h1, {selectors};
prmt.b32 {a}, t, u, 0x5140;
prmt.b32 {b}, t, u, 0x7362;
"""


# $0..$7: codes of low pairs $8 and high bits $9, looked up and multiplied with the pair of scales $10
TQ3_0 = tl.constexpr(
    "{\n.reg .b32 t, u, even, odd;"
    + TQ3_TABLE
    + tq3_selectors("$8", "$9", "even", "odd")
    + tq3_chosen("even", "$0", "$2")
    + tq3_chosen("odd", "$1", "$3")
    + "shr.u32 even, even, 16;\nshr.u32 odd, odd, 16;\n"
    + tq3_chosen("even", "$4", "$6")
    + tq3_chosen("odd", "$5", "$7")
    + "".join(f"mul.rn.f16x2 ${j}, ${j}, $10;\n" for j in range(8))
    + "}"
)


@triton.jit
def _tq3_0_plain(b_l, b_h, j: tl.constexpr):
    b_low, b_sign = (b_l >> 2 * j) & 3, (b_h >> j) & 1
    b_k = tl.where(b_sign == 1, b_low, 3 - b_low)
    b_size = tl.where(b_k < 2, tl.where(b_k == 0, SIZES[0], SIZES[1]), tl.where(b_k == 2, SIZES[2], SIZES[3]))
    return tl.where(b_sign == 1, b_size, -b_size).to(tl.float16)


@triton.jit
def unpack8(b_w, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Units [.., 2], E and O last, and their scales -> eight f16 tensors of their shape, code j of each unit."""
    if FORMAT == "q4_0":
        if ASM:
            o = tl.inline_asm_elementwise(
                Q4_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d],
                (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True, pack=2,
            )  # fmt: skip
            o0, o1, o2, o3, o4, o5, o6, o7 = o
        else:
            o0 = ((b_w & 15) - 8).to(tl.float16) * b_d
            o1 = ((b_w >> 4 & 15) - 8).to(tl.float16) * b_d
            o2 = ((b_w >> 8 & 15) - 8).to(tl.float16) * b_d
            o3 = ((b_w >> 12 & 15) - 8).to(tl.float16) * b_d
            o4 = ((b_w >> 16 & 15) - 8).to(tl.float16) * b_d
            o5 = ((b_w >> 20 & 15) - 8).to(tl.float16) * b_d
            o6 = ((b_w >> 24 & 15) - 8).to(tl.float16) * b_d
            o7 = ((b_w >> 28 & 15) - 8).to(tl.float16) * b_d
    else:
        if ASM:
            o = tl.inline_asm_elementwise(
                TQ3_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_h, b_d],
                (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True, pack=2,
            )  # fmt: skip
            o0, o1, o2, o3, o4, o5, o6, o7 = o
        else:
            o0 = _tq3_0_plain(b_w, b_h, 0) * b_d
            o1 = _tq3_0_plain(b_w, b_h, 1) * b_d
            o2 = _tq3_0_plain(b_w, b_h, 2) * b_d
            o3 = _tq3_0_plain(b_w, b_h, 3) * b_d
            o4 = _tq3_0_plain(b_w, b_h, 4) * b_d
            o5 = _tq3_0_plain(b_w, b_h, 5) * b_d
            o6 = _tq3_0_plain(b_w, b_h, 6) * b_d
            o7 = _tq3_0_plain(b_w, b_h, 7) * b_d
    # j2 outermost of the joined: [.., 2, j0, j1, j2]
    return tl.join(tl.join(tl.join(o0, o1), tl.join(o2, o3)), tl.join(tl.join(o4, o5), tl.join(o6, o7)))


@triton.jit
def unpack4(b_w, b_d, ASM: tl.constexpr):
    """Words [.., 2] of q8_0 -> [.., 2, j0, j1]."""
    if ASM:
        o0, o1, o2, o3 = tl.inline_asm_elementwise(
            Q8_0, "=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d], (tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
    else:
        o0 = ((b_w & 255 ^ 128) - 128).to(tl.float16) * b_d
        o1 = ((b_w >> 8 & 255 ^ 128) - 128).to(tl.float16) * b_d
        o2 = ((b_w >> 16 & 255 ^ 128) - 128).to(tl.float16) * b_d
        o3 = ((b_w >> 24 & 255 ^ 128) - 128).to(tl.float16) * b_d
    return tl.join(tl.join(o0, o1), tl.join(o2, o3))


@triton.jit
def key_order(o, FORMAT: tl.constexpr):
    """Which value of a row columns o of `keys` hold."""
    if FORMAT == "q8_0":  # [ur 4, v 2, j1, j0, q 4, pair]
        p, q, j, v, r = o & 1, o >> 1 & 3, o >> 3 & 3, o >> 5 & 1, o >> 6
        o = 4 * (16 * r + 4 * q + 2 * v + p) + j
    elif FORMAT == "q4_0":  # [ur 2, v 2, j 8, q 4, pair]
        p, q, j, v, r = o & 1, o >> 1 & 3, o >> 3 & 7, o >> 6 & 1, o >> 7
        u = 16 * r + 4 * q + 2 * v + p
        o = 32 * (u >> 2) + 4 * (u & 3) + (j >> 1) + 16 * (j & 1)
    elif FORMAT == "tq3_0":  # [ur 2, v 2, j 8, q 4, pair]
        p, q, j, v, r = o & 1, o >> 1 & 3, o >> 3 & 7, o >> 6 & 1, o >> 7
        o = 8 * (16 * r + 4 * q + 2 * v + p) + j
    return o


@triton.jit
def value_rows(b_acc, FORMAT: tl.constexpr):
    """[D, N] with rows as `values` has them -> [N, D] in order."""
    D: tl.constexpr = b_acc.shape[0]
    N: tl.constexpr = b_acc.shape[1]
    if FORMAT == "q8_0":  # [x 2, j1, w 4, j0, l 8] -> x w l j1 j0
        b_acc = tl.permute(tl.reshape(b_acc, (D // 128, 2, 4, 2, 8, N)), (5, 0, 2, 4, 1, 3))
    elif FORMAT == "q4_0":  # [j2, j1, w 4, j0, l2, l10] -> w l2 j0 l10 j2 j1
        b_acc = tl.permute(tl.reshape(b_acc, (2, 2, 4, 2, 2, 4, N)), (6, 2, 4, 3, 5, 0, 1))
    elif FORMAT == "tq3_0":  # [j2, j1, w 4, j0, l 8] -> w l j2 j1 j0
        b_acc = tl.permute(tl.reshape(b_acc, (2, 2, 4, 2, 8, N)), (5, 2, 4, 0, 1, 3))
    else:
        b_acc = tl.trans(b_acc)
    return tl.reshape(b_acc, (N, D))


@triton.jit
def load_keys(p, s: tl.constexpr, first, m, HALF: tl.constexpr, BS: tl.constexpr, FORMAT: tl.constexpr,
              D: tl.constexpr):  # fmt: skip
    """Rows first .. first + BS - 1 of a head, zeros where m is off: words, high bits of tq3_0, scales [BS, ..].

    HALF: 0 or 1, that half of every row; None: all of it.
    """
    NB: tl.constexpr = D // 32
    PARTS: tl.constexpr = 1 if HALF is None else 2
    SKIP: tl.constexpr = 0 if HALF is None else HALF
    BITS: tl.constexpr = 8 if FORMAT == "q8_0" else (4 if FORMAT == "q4_0" else 2)
    WORDS: tl.constexpr = D * BITS // 32 // PARTS
    ZERO: tl.constexpr = 0 if m is not None else None
    p = p + tl.cast(first, tl.int64) * s + (tl.arange(0, BS) * s)[:, None]
    p_d = p.to(tl.pointer_type(tl.float16)) + (SKIP * (NB // 2) + tl.arange(0, NB // PARTS))[None, :]
    b_d = tl.load(p_d, mask=m, other=ZERO)
    p_w = (p + 2 * NB).to(tl.pointer_type(tl.int32)) + (SKIP * WORDS + tl.arange(0, WORDS))[None, :]
    b_w = tl.load(p_w, mask=m, other=ZERO)
    b_h = b_w
    if FORMAT == "tq3_0":
        p_h = (p + 2 * NB + D // 4).to(tl.pointer_type(tl.int32))
        b_h = tl.load(p_h + (SKIP * (NB // 2) + tl.arange(0, NB // PARTS))[None, :], mask=m, other=ZERO)
    return b_w, b_h, b_d


@triton.jit
def load_values(p, s: tl.constexpr, first, m, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr):
    """As `load_keys`, but unit by unit: words are shared by lanes where units are smaller."""
    NB: tl.constexpr = D // 32
    ZERO: tl.constexpr = 0 if m is not None else None
    if FORMAT == "tq3_0":
        p = p + tl.cast(first, tl.int64) * s + (tl.arange(0, BS) * s)[:, None]
        o_u = tl.arange(0, D // 8)[None, :]
        b_d = tl.load(p.to(tl.pointer_type(tl.float16)) + tl.arange(0, NB)[None, :], mask=m, other=ZERO)
        b_w = tl.load((p + 2 * NB).to(tl.pointer_type(tl.int16)) + o_u, mask=m, other=ZERO)
        b_h = tl.load(p + (2 * NB + D // 4) + o_u, mask=m, other=ZERO)
    else:
        b_w, b_h, b_d = load_keys(p, s, first, m, None, BS, FORMAT, D)
    return b_w, b_h, b_d


@triton.jit
def _unpacked(b_w, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Units and scales -> [BS, U, j0, j1, (j2)]: code j of each unit times its scale."""
    BS: tl.constexpr = b_w.shape[0]
    U: tl.constexpr = b_w.shape[1]
    NB: tl.constexpr = b_d.shape[1]
    b_d = tl.reshape(tl.broadcast_to(b_d[:, :, None], (BS, NB, U // NB)), (BS, U))
    if FORMAT == "q8_0":
        b_x = unpack4(b_w, b_d, ASM)
    else:
        b_x = unpack8(b_w, b_h, b_d, FORMAT, ASM)
    return b_x


@triton.jit
def keys(b_w, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """What `load_keys` read -> [BS, D or half of it] f16, columns in `key_order`."""
    BS: tl.constexpr = b_w.shape[0]
    U: tl.constexpr = b_w.shape[1] * (2 if FORMAT == "tq3_0" else 1)
    if FORMAT == "tq3_0":
        b_w = tl.reshape(tl.join(b_w.to(tl.int16), (b_w >> 16).to(tl.int16)), (BS, U))
        b_h = tl.join(tl.join(b_h & 255, b_h >> 16 & 255), tl.join(b_h >> 8 & 255, b_h >> 24 & 255))
        b_h = tl.reshape(b_h, (BS, U)).to(tl.int16)
    b_x = _unpacked(b_w, b_h, b_d, FORMAT, ASM)
    if FORMAT == "q8_0":  # row ur q v pair j0 j1
        b_x = tl.permute(tl.reshape(b_x, (BS, U // 16, 4, 2, 2, 2, 2)), (0, 1, 3, 6, 5, 2, 4))
    else:  # row ur q v pair j0 j1 j2
        b_x = tl.permute(tl.reshape(b_x, (BS, U // 16, 4, 2, 2, 2, 2, 2)), (0, 1, 3, 7, 6, 5, 2, 4))
    return tl.reshape(b_x, (BS, b_x.numel // BS))


@triton.jit
def values(b_w, b_h, b_d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """What `load_values` read -> [D, BS] f16, rows in an order that `value_rows` puts right."""
    BS: tl.constexpr = b_w.shape[0]
    U: tl.constexpr = b_w.shape[1]
    if FORMAT == "tq3_0":
        b_h = b_h.to(tl.int16)
    b_x = _unpacked(b_w, b_h, b_d, FORMAT, ASM)
    if FORMAT == "q8_0":  # row x w l j0 j1
        b_x = tl.permute(tl.reshape(b_x, (BS, U // 32, 4, 8, 2, 2)), (1, 5, 2, 4, 3, 0))
    else:  # row x w l j0 j1 j2
        b_x = tl.permute(tl.reshape(b_x, (BS, U // 32, 4, 8, 2, 2, 2)), (1, 6, 5, 2, 4, 3, 0))
    return tl.reshape(b_x, (b_x.numel // BS, BS))
