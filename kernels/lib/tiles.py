"""Tiles of a rearranged weight (reference/tiles.py) in registers: 64 rows x 256 columns at a time, by four warps.

A lane's 16-byte loads hold the operand registers of its own tensor-core instructions, so nothing moves between lanes:

    i16 word  | j=3 | j=2 | j=1 | j=0 |   0x6400 | code  is 1024 + code in f16,  0x6400 | code << 4  is 1024 + 16 code

Two words share a register and an instruction: a mask, a subtraction and a multiply-add for two weights, where byte-wise
conversion runs at a quarter of the rate. `ASM` picks that; its plain twin gives the same bits on any target.
"""

import triton
import triton.language as tl

# a record's planes, in bytes from its start: codes at 0, then bits above the nibble, scales, and d (q4_k, q5_k, q6_k)
HIGH = 8192
SCALES = {"q4_k": 8192, "q5_k": 10240, "q6_k": 12288, "q8_0": 16384, "q4_0": 8192}
D = {"q4_k": 9216, "q5_k": 11264, "q6_k": 13312, "q8_0": 0, "q4_0": 0}

# $0..$3: codes of nibbles 0..3 from a word $4, less {less}; the f16 pair is 1024 + code, or 64 + code after a
# multiply-add by 1/16
_NIBBLES = """
{{
.reg .b32 t, one, sixteenth, other, high;
mov.b32 one, {one};
mov.b32 sixteenth, 0x2C002C00;
mov.b32 other, {other};
lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xEA;
shr.u32 t, $4, 8;
lop3.b32 $2, t, 0x000f000f, 0x64006400, 0xEA;
lop3.b32 $3, t, 0x00f000f0, 0x64006400, 0xEA;
{high}
sub.f16x2 $0, $0, one;
sub.f16x2 $2, $2, one;
fma.rn.f16x2 $1, $1, sixteenth, other;
fma.rn.f16x2 $3, $3, sixteenth, other;
}}
"""
# bits above the nibble, from a word $5 shared by several: one shift serves two nibbles
_ABOVE = """
shl.b32 high, $5, {left};
lop3.b32 $0, high, {low}, $0, 0xEA;
lop3.b32 $1, high, {up}, $1, 0xEA;
shr.u32 high, $5, {right};
lop3.b32 $2, high, {low}, $2, 0xEA;
lop3.b32 $3, high, {up}, $3, 0xEA;
"""


def _above(shift: int, low: str, up: str) -> str:
    return _ABOVE.format(left=4 - shift, right=4 + shift, low=low, up=up)


# 1024 and -64, in f16 pairs; 1032 and -72 take 8 off a code, 1040 and -80 take 16, 1056 and -96 take 32
_Q4_0 = tl.constexpr(_NIBBLES.format(one="0x64086408", other="0xD480D480", high=""))
_Q5 = [
    _NIBBLES.format(one="0x64106410", other="0xD500D500", high=_above(v, "0x00100010", "0x01000100")) for v in range(4)
]
_Q6 = [
    _NIBBLES.format(one="0x64206420", other="0xD600D600", high=_above(2 * r, "0x00300030", "0x03000300"))
    for r in (0, 1)
]
_Q5_0, _Q5_1, _Q5_2, _Q5_3 = (tl.constexpr(text) for text in _Q5)
_Q6_0, _Q6_1 = (tl.constexpr(text) for text in _Q6)
# two bytes of a word: 1024 + byte, the top bit flipped where they are signed
_BYTES = """
{{
.reg .b32 t, one;
mov.b32 one, {one};
lop3.b32 $0, $2, 0x00ff00ff, {magic}, {table};
shr.u32 t, $2, 8;
lop3.b32 $1, t, 0x00ff00ff, {magic}, {table};
sub.f16x2 $0, $0, one;
sub.f16x2 $1, $1, one;
}}
"""
_UNSIGNED = tl.constexpr(_BYTES.format(one="0x64006400", magic="0x64006400", table="0xEA"))
_SIGNED = tl.constexpr(_BYTES.format(one="0x64806480", magic="0x64806480", table="0x6A"))
_BIASED = tl.constexpr(_BYTES.format(one="0x64806480", magic="0x64006400", table="0xEA"))


@triton.jit
def nibbles(w, TEXT: tl.constexpr, LESS: tl.constexpr, ASM: tl.constexpr):
    """i16 words -> the codes of nibbles 0..3 in f16, less LESS."""
    if ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            TEXT, "=&r,=&r,=&r,=&r,r", [w], (tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        a = ((w & 15) - LESS).to(tl.float16)
        b = (((w >> 4) & 15) - LESS).to(tl.float16)
        c = (((w >> 8) & 15) - LESS).to(tl.float16)
        d = (((w >> 12) & 15) - LESS).to(tl.float16)
    return a, b, c, d


@triton.jit
def wider(w, high, SHIFT: tl.constexpr, BITS: tl.constexpr, TEXT: tl.constexpr, LESS: tl.constexpr, ASM: tl.constexpr):
    """As `nibbles`, with BITS more bits a code in `high`: nibble j's at 8 (j / 2) + 4 (j % 2) + SHIFT."""
    if ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            TEXT,
            "=&r,=&r,=&r,=&r,r,r",
            [w, high],
            (tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        MASK: tl.constexpr = (1 << BITS) - 1
        a = ((w & 15) + ((high >> SHIFT) & MASK) * 16 - LESS).to(tl.float16)
        b = (((w >> 4) & 15) + ((high >> (4 + SHIFT)) & MASK) * 16 - LESS).to(tl.float16)
        c = (((w >> 8) & 15) + ((high >> (8 + SHIFT)) & MASK) * 16 - LESS).to(tl.float16)
        d = (((w >> 12) & 15) + ((high >> (12 + SHIFT)) & MASK) * 16 - LESS).to(tl.float16)
    return a, b, c, d


@triton.jit
def byte_pair(w, KIND: tl.constexpr, ASM: tl.constexpr):
    """i16 words -> low and high byte in f16: unsigned, signed, or biased (an unsigned byte less 128)."""
    if ASM:
        TEXT: tl.constexpr = _UNSIGNED if KIND == "unsigned" else (_SIGNED if KIND == "signed" else _BIASED)
        a, b = tl.inline_asm_elementwise(TEXT, "=&r,=&r,r", [w], (tl.float16, tl.float16), is_pure=True, pack=2)
    else:
        a, b = w & 255, (w >> 8) & 255
        if KIND == "signed":
            a, b = (a ^ 128) - 128, (b ^ 128) - 128
        if KIND == "biased":
            a, b = a - 128, b - 128
        a, b = a.to(tl.float16), b.to(tl.float16)
    return a, b


@triton.jit
def operand(a, b, c, d):
    """Nibbles 0..3, each [4096] in word order -> [64, 256]. Registers only: no byte moves between lanes."""
    q = tl.join(tl.join(a, c), tl.join(b, d))
    q = tl.reshape(q, (4, 4, 8, 4, 2, 2, 2, 2, 2))  # c w lhi llo r1 r0 h, then j / 2, j % 2
    return tl.reshape(tl.permute(q, (1, 5, 2, 0, 8, 4, 7, 3, 6)), (64, 256))


@triton.jit
def halves(w):
    """i32 words -> their two f16."""
    low = (w & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    return low, (w >> 16).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def codes(w, high, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Words of one record -> integer codes around 0, [64, 256] f16. `high`: of q5_k and q6_k."""
    if FORMAT == "q5_k":
        # word pairs v = (r1, r0) share a word of high bits: take them apart, put them back
        w = tl.permute(tl.reshape(w, (4, 4, 32, 2, 2, 2)), (0, 1, 2, 5, 3, 4))  # c w l h r1 r0
        high = tl.permute(tl.reshape(high, (4, 32, 4, 2)), (2, 0, 1, 3))  # c w l h
        even, odd = tl.split(w)
        w0, w2 = tl.split(even)
        w1, w3 = tl.split(odd)
        a0, b0, c0, d0 = wider(w0, high, 0, 1, _Q5_0, 16, ASM)
        a1, b1, c1, d1 = wider(w1, high, 1, 1, _Q5_1, 16, ASM)
        a2, b2, c2, d2 = wider(w2, high, 2, 1, _Q5_2, 16, ASM)
        a3, b3, c3, d3 = wider(w3, high, 3, 1, _Q5_3, 16, ASM)
        a = _four(a0, a1, a2, a3)
        b = _four(b0, b1, b2, b3)
        c = _four(c0, c1, c2, c3)
        d = _four(d0, d1, d2, d3)
    elif FORMAT == "q6_k":
        w = tl.permute(tl.reshape(w, (4, 4, 32, 2, 2, 2)), (0, 1, 2, 3, 5, 4))  # c w l r1 h r0
        high = tl.permute(tl.reshape(high, (2, 4, 32, 2, 2, 2)), (0, 3, 1, 2, 4, 5))  # c/2 c%2 w l r1 h
        high = tl.reshape(high, (4, 4, 32, 2, 2))
        w0, w1 = tl.split(w)
        a0, b0, c0, d0 = wider(w0, high, 0, 2, _Q6_0, 32, ASM)
        a1, b1, c1, d1 = wider(w1, high, 2, 2, _Q6_1, 32, ASM)
        a, b, c, d = _two(a0, a1), _two(b0, b1), _two(c0, c1), _two(d0, d1)
    elif FORMAT == "q8_0":
        low, up = byte_pair(w, "signed", ASM)  # [8192]: two planes
        a, b = tl.split(tl.permute(tl.reshape(low, (2, 4096)), (1, 0)))
        c, d = tl.split(tl.permute(tl.reshape(up, (2, 4096)), (1, 0)))
    else:
        a, b, c, d = nibbles(w, _Q4_0, 8, ASM)
    return operand(a, b, c, d)


@triton.jit
def _four(v0, v1, v2, v3):
    """[c, w, l, h] of four register pairs -> words in order."""
    v = tl.join(tl.join(v0, v2), tl.join(v1, v3))  # c w l h r1 r0
    return tl.reshape(tl.permute(v, (0, 1, 2, 4, 5, 3)), (4096,))


@triton.jit
def _two(v0, v1):
    """[c, w, l, r1, h] of two register pairs -> words in order."""
    return tl.reshape(tl.permute(tl.join(v0, v1), (0, 1, 2, 3, 5, 4)), (4096,))


@triton.jit
def weights(w, high, scales, d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """One record's planes -> its weights [64, 256] in f16: scale and minimum are rounded to f16 once, the weight once.

    w: i16 [4096 or 8192]; high: i16; scales: i16 [64, 8]; d: i32 or i16 [64], for q4_k, q5_k and q6_k.
    """
    q = codes(w, high, FORMAT, ASM)
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        b_scale, b_min = byte_pair(scales, "unsigned", ASM)  # [64, 8]
        b_d, b_dmin = halves(d)
        # 31 times the rounding of a scale is much: codes around 0 take half of it, the middle goes to the minimum
        b_middle = (16.0 if FORMAT == "q5_k" else 8.0) * b_scale.to(tl.float32) * b_d.to(tl.float32)[:, None]
        b_less = (b_min.to(tl.float32) * b_dmin.to(tl.float32)[:, None] - b_middle).to(tl.float16)
        q = tl.reshape(q, (64, 8, 32)) * (b_scale * b_d[:, None])[:, :, None] - b_less[:, :, None]
    elif FORMAT == "q6_k":
        even, odd = byte_pair(scales, "biased", ASM)
        b_scale = tl.reshape(tl.join(even, odd), (64, 16)) * d.to(tl.float16, bitcast=True)[:, None]
        q = tl.reshape(q, (64, 16, 16)) * b_scale[:, :, None]
    else:
        q = tl.reshape(q, (64, 8, 32)) * scales.to(tl.float16, bitcast=True)[:, :, None]
    return tl.reshape(q, (64, 256))


@triton.jit
def scales_of(scales, d, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Planes as `weights` takes them -> scale and minimum of every group of `codes`, [64, 8 or 16] f32, not rounded."""
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        b_scale, b_min = byte_pair(scales, "unsigned", ASM)
        b_d, b_dmin = halves(d)
        b_scale = b_scale.to(tl.float32) * b_d.to(tl.float32)[:, None]
        # codes are around 0
        b_min = b_min.to(tl.float32) * b_dmin.to(tl.float32)[:, None] - (16.0 if FORMAT == "q5_k" else 8.0) * b_scale
    elif FORMAT == "q6_k":
        even, odd = byte_pair(scales, "biased", ASM)
        b_scale = tl.reshape(tl.join(even, odd), (64, 16)).to(tl.float32)
        b_scale = b_scale * d.to(tl.float16, bitcast=True).to(tl.float32)[:, None]
        b_min = b_scale
    else:
        b_scale = scales.to(tl.float16, bitcast=True).to(tl.float32)
        b_min = b_scale
    return b_scale, b_min
