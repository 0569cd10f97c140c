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
from .share import seen

# $0..$7: nibbles of $8 and $9, each less 8, times the pair of scales $10
_Q4_0 = tl.constexpr(
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
_Q8_0 = tl.constexpr(
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


# the codebook's f16 as bytes: codes 0..3 and 4..7, high bytes and low bytes; $0..$7: codes of low pairs $8 and high
# bits $9, each of E and O in its halves, looked up and multiplied with the pair of scales $10
_TQ3_0 = tl.constexpr(
    f"""
{{
.reg .b32 z, y, t, u, even, odd, h0, h1, l0, l1;
prmt.b32 z, $8, $8, 0x3120;
shr.u32 t, z, 4;
lop3.b32 t, z, t, 0x00f000f0, 0x28;
shl.b32 u, t, 4;
lop3.b32 z, z, t, u, 0x96;
shr.u32 t, $9, 12;
lop3.b32 t, $9, t, 0x000000f0, 0x28;
shl.b32 u, t, 12;
lop3.b32 y, $9, t, u, 0x96;
shl.b32 t, y, 6;
lop3.b32 y, y, t, 0x00ff00ff, 0xE4;
shl.b32 t, y, 2;
and.b32 even, z, 0x33333333;
lop3.b32 even, even, t, 0x44444444, 0xF8;
shl.b32 t, y, 1;
shr.u32 odd, z, 2;
and.b32 odd, odd, 0x33333333;
lop3.b32 odd, odd, t, 0x44444444, 0xF8;
mov.b32 h0, {_bytes(8, 0)};
mov.b32 h1, {_bytes(8, 4)};
mov.b32 l0, {_bytes(0, 0)};
mov.b32 l1, {_bytes(0, 4)};
"""
    + "".join(
        f"""{shift}
prmt.b32 t, l0, l1, {chosen};
prmt.b32 u, h0, h1, {chosen};
prmt.b32 ${a}, t, u, 0x5140;
prmt.b32 ${b}, t, u, 0x7362;
"""
        for chosen, shift, a, b in (
            ("even", "", 0, 2),
            ("even", "shr.u32 even, even, 16;", 4, 6),
            ("odd", "", 1, 3),
            ("odd", "shr.u32 odd, odd, 16;", 5, 7),
        )
    )
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
                _Q4_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d],
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
                _TQ3_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_h, b_d],
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
            _Q8_0, "=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d], (tl.float16, tl.float16, tl.float16, tl.float16),
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
        o = 4 * (16 * r + 4 * (q ^ 1) + 2 * v + p) + j
    elif FORMAT == "q4_0":  # [ur 2, v 2, j 8, q 4, pair]
        p, q, j, v, r = o & 1, o >> 1 & 3, o >> 3 & 7, o >> 6 & 1, o >> 7
        u = 16 * r + 4 * (q ^ 1) + 2 * v + p
        o = 32 * (u >> 2) + 4 * (u & 3) + (j >> 1) + 16 * (j & 1)
    elif FORMAT == "tq3_0":  # [ur 2, v 2, j 8, q 4, pair]
        p, q, j, v, r = o & 1, o >> 1 & 3, o >> 3 & 7, o >> 6 & 1, o >> 7
        o = 8 * (16 * r + 4 * (q ^ 1) + 2 * v + p) + j
    return o


@triton.jit
def value_rows(b_acc, FORMAT: tl.constexpr):
    """[D, N] with rows as `values` has them -> [N, D / C, C], runs of C neighbours, as `value_order` has them."""
    D: tl.constexpr = b_acc.shape[0]
    N: tl.constexpr = b_acc.shape[1]
    if FORMAT == "q8_0":  # [x 2, j1, w 4, j0, l 8] -> x w l | j1 j0
        b_acc = tl.permute(tl.reshape(b_acc, (D // 128, 2, 4, 2, 8, N)), (5, 0, 2, 4, 1, 3))
        b_acc = tl.reshape(b_acc, (N, D // 4, 4))
    elif FORMAT == "q4_0":  # [j2, j1, w 4, j0, l2, l10] -> w l2 j0 l10 | j2 j1
        b_acc = tl.permute(tl.reshape(b_acc, (2, 2, 4, 2, 2, 4, N)), (6, 2, 4, 3, 5, 0, 1))
        b_acc = tl.reshape(b_acc, (N, D // 4, 4))
    elif FORMAT == "tq3_0":  # [j2, j1, w 4, j0, l 8] -> w l | j2 j1 j0
        b_acc = tl.permute(tl.reshape(b_acc, (2, 2, 4, 2, 8, N)), (5, 2, 4, 0, 1, 3))
        b_acc = tl.reshape(b_acc, (N, D // 8, 8))
    else:
        b_acc = tl.reshape(tl.trans(b_acc), (N, D // 4, 4))
    return b_acc


@triton.jit
def value_order(FORMAT: tl.constexpr, D: tl.constexpr):
    """[D / C, C]: which value of a row each element of a row of `value_rows` is."""
    C: tl.constexpr = 8 if FORMAT == "tq3_0" else 4
    o_c = tl.arange(0, D // C)
    if FORMAT == "q8_0" or FORMAT == "q4_0" or FORMAT == "tq3_0":
        o_c = o_c ^ 1
    return o_c[:, None] * C + tl.arange(0, C)[None, :]


@triton.jit
def load_keys(p_k, s_k: tl.constexpr, first, m_nodes, T, ancestors, BS: tl.constexpr, FORMAT: tl.constexpr,
              D: tl.constexpr, HALF: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Codes, high bits of tq3_0 and scales of rows first .. first + BS - 1 of a head: what `keys` takes.

    HALF: 0 or 1, that half of the columns of `key_order`; None: all.
    """
    NB: tl.constexpr = D // 32
    UNIT: tl.constexpr = 4 if FORMAT == "q8_0" else 8
    VEC: tl.constexpr = 4
    # q l w rb r3 ur v: lanes and warps first; out of order, so that lanes take turns and not runs
    o_q = (tl.arange(0, 4) ^ 1)[:, None, None, None, None, None, None]
    o_l = tl.arange(0, 8)[None, :, None, None, None, None, None]
    o_w = tl.arange(0, 4)[None, None, :, None, None, None, None]
    o_rb = tl.arange(0, BS // 64)[None, None, None, :, None, None, None]
    o_r3 = tl.arange(0, 2)[None, None, None, None, :, None, None]
    UR: tl.constexpr = D // UNIT // (4 * VEC)
    if HALF is None:
        o_ur = tl.arange(0, UR)[None, None, None, None, None, :, None]
    else:
        o_ur = (HALF * (UR // 2) + tl.arange(0, UR // 2))[None, None, None, None, None, :, None]
    o_v = tl.arange(0, VEC)[None, None, None, None, None, None, :]
    # what differs between lanes first, what differs within a lane last: the load takes that as a constant
    o_lane, o_own = (o_w * 16 + o_l) * s_k, (o_rb * 64 + o_r3 * 8) * s_k
    m = None
    if MASKED:
        m = seen(first + (o_rb * 64 + o_w * 16 + o_r3 * 8 + o_l), m_nodes, T, ancestors)
    ZERO: tl.constexpr = 0 if MASKED else None
    p_k = p_k + tl.cast(first, tl.int64) * s_k
    p_d = p_k + (o_lane + 2 * (o_q * VEC * UNIT // 32)) + (o_own + 2 * (o_ur * (4 * VEC * UNIT // 32)))
    b_d = tl.load(p_d.to(tl.pointer_type(tl.float16)), mask=m, other=ZERO)
    if FORMAT == "tq3_0":
        p_w = p_k + 2 * NB + (o_lane + 2 * VEC * o_q) + (o_own + 8 * VEC * o_ur)
        b_w = tl.load(p_w.to(tl.pointer_type(tl.int16)) + o_v, mask=m, other=ZERO)
        p_h = p_k + (2 * NB + D // 4) + (o_lane + VEC * o_q) + (o_own + 4 * VEC * o_ur)
        b_h = tl.load(p_h + o_v, mask=m, other=ZERO)
    else:
        p_w = p_k + 2 * NB + (o_lane + 4 * VEC * o_q) + (o_own + 16 * VEC * o_ur)
        b_w = tl.load(p_w.to(tl.pointer_type(tl.int32)) + o_v, mask=m, other=ZERO)
        b_h = b_d
    return b_w, b_h, b_d


@triton.jit
def keys(b_w, b_h, b_d, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr):
    """What `load_keys` read -> [BS, D or half of it] f16, columns in `key_order`."""
    VEC: tl.constexpr = 4
    UR: tl.constexpr = b_w.shape[5]
    SHAPE: tl.constexpr = (4, 8, 4, BS // 64, 2, UR, VEC // 2, 2)
    b_d = tl.reshape(tl.broadcast_to(b_d, (4, 8, 4, BS // 64, 2, UR, VEC)), SHAPE)
    b_w = tl.reshape(b_w, SHAPE)
    if FORMAT == "q8_0":
        b_x = unpack4(b_w, b_d, ASM)  # q l w rb r3 ur v pair j0 j1
        b_x = tl.permute(b_x, (3, 2, 4, 1, 5, 6, 9, 8, 0, 7))
    else:
        b_h = tl.reshape(b_h.to(tl.int16), SHAPE) if FORMAT == "tq3_0" else b_w
        b_x = unpack8(b_w, b_h, b_d, FORMAT, ASM)  # q l w rb r3 ur v pair j0 j1 j2
        b_x = tl.permute(b_x, (3, 2, 4, 1, 5, 6, 10, 9, 8, 0, 7))
    return tl.reshape(b_x, (BS, b_x.numel // BS))


@triton.jit
def load_values(p_v, s_v: tl.constexpr, first, m_nodes, T, ancestors, BS: tl.constexpr, FORMAT: tl.constexpr,
                D: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Codes, high bits of tq3_0 and scales of rows first .. first + BS - 1 of a head: what `values` takes."""
    UNIT: tl.constexpr = 4 if FORMAT == "q8_0" else 8
    # q l w x ks h: lanes and warps first; out of order, so that lanes take turns and not runs
    o_q = tl.arange(0, 4)[:, None, None, None, None, None]
    o_l = (tl.arange(0, 8) ^ 1)[None, :, None, None, None, None]
    o_w = tl.arange(0, 4)[None, None, :, None, None, None]
    o_x = tl.arange(0, D // UNIT // 32)[None, None, None, :, None, None]
    o_ks = tl.arange(0, BS // 16)[None, None, None, None, :, None]
    o_h = tl.arange(0, 2)[None, None, None, None, None, :]
    p_v = p_v + tl.cast(first, tl.int64) * s_v
    o_lane, o_u, o_own = o_q * 2 * s_v, o_w * 8 + o_l, o_ks * 16 + o_h * 8
    m_even, m_odd = None, None
    if MASKED:
        o_row = first + o_own + o_q * 2
        m_even, m_odd = seen(o_row, m_nodes, T, ancestors), seen(o_row + 1, m_nodes, T, ancestors)
    b_we, b_he, b_de = _unit(p_v, o_lane, o_u, o_x, o_own * s_v, m_even, FORMAT, D)
    b_wo, b_ho, b_do = _unit(p_v + s_v, o_lane, o_u, o_x, o_own * s_v, m_odd, FORMAT, D)
    return tl.join(b_we, b_wo), tl.join(b_he, b_ho), tl.join(b_de, b_do)


@triton.jit
def _unit(p_v, o_lane, o_u, o_x, o_own, m, FORMAT: tl.constexpr, D: tl.constexpr):
    """Units 32 x + o_u of rows: codes, high bits of tq3_0, scales."""
    NB: tl.constexpr = D // 32
    UNIT: tl.constexpr = 4 if FORMAT == "q8_0" else 8
    ZERO: tl.constexpr = 0 if m is not None else None
    p_d = p_v + (o_lane + 2 * (o_u * UNIT // 32)) + (o_own + 2 * UNIT * o_x)
    b_d = tl.load(p_d.to(tl.pointer_type(tl.float16)), mask=m, other=ZERO)
    if FORMAT == "tq3_0":
        p_w = p_v + 2 * NB + (o_lane + 2 * o_u) + o_own
        b_w = tl.load(p_w.to(tl.pointer_type(tl.int16)), mask=m, other=ZERO)
        b_h = tl.load(p_v + (2 * NB + D // 4) + (o_lane + o_u) + o_own, mask=m, other=ZERO)
    else:
        p_w = p_v + 2 * NB + (o_lane + 4 * o_u) + (o_own + 128 * o_x)
        b_w = tl.load(p_w.to(tl.pointer_type(tl.int32)), mask=m, other=ZERO)
        b_h = b_d
    return b_w, b_h, b_d


@triton.jit
def values(b_w, b_h, b_d, BS: tl.constexpr, FORMAT: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr):
    """What `load_values` read -> [D, BS] f16, rows in order of `value_rows`."""
    if FORMAT == "q8_0":
        b_x = unpack4(b_w, b_d, ASM)  # q l w x ks h pair j0 j1
        b_x = tl.permute(b_x, (3, 8, 2, 7, 1, 4, 5, 0, 6))
    else:
        b_h = b_h.to(tl.int16) if FORMAT == "tq3_0" else b_w
        b_x = unpack8(b_w, b_h, b_d, FORMAT, ASM)  # q l w x ks h pair j0 j1 j2
        b_x = tl.permute(b_x, (3, 9, 8, 2, 7, 1, 4, 5, 0, 6))
    return tl.reshape(b_x, (D, BS))
