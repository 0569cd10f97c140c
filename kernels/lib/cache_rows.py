"""A tile of cache rows as numbers: [BS, D] of TYPE (f16, bf16 or f32), whatever the format; tq3_0 stays rotated.

    q8_0   | D/32 f16 scales | D int8 |                          x = d * q
    q4_0   | D/32 f16 scales | D/2 bytes: low j, high j + 16 |   x = d * (q - 8)
    tq3_0  | D/32 f16 norms  | D/4 low pairs | D/8 high bits |   x = norm * codebook[q]

Codes are unpacked two at a time, in the halves of 32-bit words, and never converted: that runs at a quarter rate.

    q4_0 word  | n7 n6 n5 n4 n3 n2 n1 n0 |   & 0x000F000F | 0x64006400  =  the f16 pair (1024 + n0, 1024 + n4)

So the columns of a tile come in the order in which words fall apart, `columns`; blocks of 32 stay together. A product
over D does not mind if its other side has the same order, and one with D columns is put right where it is stored.
In f16 a value is rounded once, after the scale; in f32 it is exact but for the product with tq3_0's codebook.
"""

import torch
import triton
import triton.language as tl

from ...reference.cache import FORMATS, QUANTISED, row_size
from ...reference.formats import find
from ...reference.quantisers import TQ3_CODES

# sizes of the codes 4 .. 7; codes 3 .. 0 are their negatives
SIZES = tl.constexpr(TQ3_CODES[4:])
SIZE_BITS = [int(bits) for bits in torch.tensor(TQ3_CODES[4:]).half().view(torch.int16)]
# the f16 bits of size k = 2 b1 + b0 and sign n are FIRST + PER_K k + PER_1 b1 + PER_ANY (b0 | b1) + 0x8000 n, no term
# negative: so two of them add up in the halves of one word, and no table is needed
FIRST = tl.constexpr(SIZE_BITS[0] * 0x10001)
PER_K = tl.constexpr(SIZE_BITS[3] - SIZE_BITS[2])
PER_ANY = tl.constexpr(SIZE_BITS[1] - SIZE_BITS[0] - SIZE_BITS[3] + SIZE_BITS[2])
PER_1 = tl.constexpr(SIZE_BITS[2] - SIZE_BITS[1] - SIZE_BITS[3] + SIZE_BITS[2])


@triton.jit
def columns(FORMAT: tl.constexpr, D: tl.constexpr):
    """[D]: which value of a row each column of its tile holds."""
    o_n = tl.arange(0, D)
    if FORMAT == "q8_0":
        o_n = (o_n & -4) | (o_n & 1) << 1 | (o_n >> 1 & 1)
    elif FORMAT == "q4_0":
        o_n = (o_n & -32) | (o_n >> 2 & 1) << 4 | (o_n >> 3 & 3) << 2 | (o_n & 1) << 1 | (o_n >> 1 & 1)
    elif FORMAT == "tq3_0":
        o_n = (o_n & -16) | (o_n & 1) << 3 | (o_n >> 1 & 7)
    return o_n


@triton.jit
def _halves(b_w, BS: tl.constexpr, D: tl.constexpr):
    """Words of two halves -> [BS, D/32, 32] u16, the low half first."""
    return tl.reshape(tl.join(b_w.to(tl.uint16), (b_w >> 16).to(tl.uint16)), (BS, D // 32, 32))


@triton.jit
def _pair(b_w, b_n, i: tl.constexpr, EXACT: tl.constexpr):
    """Codes i and i + 8 of every sixteen as f16 bits, or as sign and size; b_w counts sizes from zero outwards."""
    b_k, b_s = b_w >> 2 * i & 0x30003, b_n >> i & 0x10001
    if EXACT:
        b_bits = b_k | b_s << 2
    else:
        b_1 = b_k >> 1
        b_bits = FIRST + b_k * PER_K + (b_1 & 0x10001) * PER_1 + ((b_k | b_1) & 0x10001) * PER_ANY + b_s * 0x8000
    return b_bits


@triton.jit
def _tq3_0(b_w, b_h, BS: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr):
    """b_w: 16 low pairs a word, b_h: their 16 high bits -> [BS, D/32, 32] of the codebook's numbers."""
    # below zero the sizes are counted downwards: both bits turned over where the high bit is off
    b_n = (b_h | b_h << 8) & 0x00FF00FF ^ 0x00FF00FF
    b_s = (b_n | b_n << 4) & 0x0F0F0F0F
    b_s = (b_s | b_s << 2) & 0x33333333
    b_s = (b_s | b_s << 1) & 0x55555555
    b_w ^= b_s | b_s << 1
    b_04 = tl.join(_pair(b_w, b_n, 0, EXACT), _pair(b_w, b_n, 4, EXACT))
    b_26 = tl.join(_pair(b_w, b_n, 2, EXACT), _pair(b_w, b_n, 6, EXACT))
    b_15 = tl.join(_pair(b_w, b_n, 1, EXACT), _pair(b_w, b_n, 5, EXACT))
    b_37 = tl.join(_pair(b_w, b_n, 3, EXACT), _pair(b_w, b_n, 7, EXACT))
    b_q = _halves(tl.join(tl.join(b_04, b_26), tl.join(b_15, b_37)), BS, D)
    if EXACT:
        b_low = tl.where((b_q & 1) == 1, SIZES[1], SIZES[0])
        b_size = tl.where((b_q & 2) == 2, tl.where((b_q & 1) == 1, SIZES[3], SIZES[2]), b_low)
        b_x = tl.where((b_q & 4) == 4, -b_size, b_size)
    else:
        b_x = b_q.to(tl.float16, bitcast=True)
    return b_x


@triton.jit
def load_rows(p_row, m_s, FORMAT: tl.constexpr, D: tl.constexpr, TYPE: tl.constexpr):
    """p_row: [BS] pointers to rows -> [BS, D], columns in the order of `columns`; zeros where m_s is off, if any."""
    return load_part(p_row, m_s, FORMAT, D, TYPE, 0, D)


@triton.jit
def load_part(
    p_row, m_s, FORMAT: tl.constexpr, D: tl.constexpr, TYPE: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr
):
    """Of rows of D their columns FIRST .. FIRST + WIDTH - 1, whole blocks of 32: [BS, WIDTH]."""
    BS: tl.constexpr = p_row.shape[0]
    NB: tl.constexpr = D // 32
    p_row = p_row[:, None]
    m = m_s[:, None] if m_s is not None else None
    ZERO: tl.constexpr = 0 if m_s is not None else None
    if FORMAT == "f16" or FORMAT == "bf16":
        b_x = tl.load(p_row + (tl.arange(0, WIDTH) + FIRST)[None, :], mask=m, other=ZERO).to(TYPE)
    else:
        # pointers take their type before their offsets: so the compiler sees that neighbours are neighbours
        p_d = p_row.to(tl.pointer_type(tl.float16)) + (tl.arange(0, WIDTH // 32) + FIRST // 32)[None, :]
        b_d = tl.load(p_d, mask=m, other=ZERO)  # [BS, WIDTH / 32]
        p_w = (p_row + 2 * NB).to(tl.pointer_type(tl.uint32))
        if FORMAT == "q8_0":
            o_w = (tl.arange(0, WIDTH // 4) + FIRST // 4)[None, :]
            b_w = tl.load(p_w + o_w, mask=m, other=ZERO)  # [BS, WIDTH / 4]
            # two's complement plus 128: 1024 + 128 + q
            b_w = tl.join(b_w & 0x00FF00FF ^ 0x64806480, b_w >> 8 & 0x00FF00FF ^ 0x64806480)
            b_x = _halves(b_w, BS, WIDTH).to(tl.float16, bitcast=True) - 1152.0
        elif FORMAT == "q4_0":
            o_w = (tl.arange(0, WIDTH // 8) + FIRST // 8)[None, :]
            b_w = tl.load(p_w + o_w, mask=m, other=ZERO)  # [BS, WIDTH / 8]
            b_even = tl.join(b_w & 0x000F000F, b_w >> 4 & 0x000F000F)
            b_odd = tl.join(b_w >> 8 & 0x000F000F, b_w >> 12 & 0x000F000F)
            b_x = _halves(tl.join(b_even, b_odd) | 0x64006400, BS, WIDTH).to(tl.float16, bitcast=True) - 1032.0
        else:
            o_w = (tl.arange(0, WIDTH // 16) + FIRST // 16)[None, :]
            b_w = tl.load(p_w + o_w, mask=m, other=ZERO)  # [BS, WIDTH / 16]
            p_h = (p_row + 2 * NB + D // 4).to(tl.pointer_type(tl.uint16))
            b_h = tl.load(p_h + o_w, mask=m, other=ZERO)  # [BS, WIDTH / 16]
            b_x = _tq3_0(b_w, b_h.to(tl.uint32), BS, WIDTH, tl.float32 == TYPE)
        b_x = tl.reshape(b_x.to(TYPE) * b_d.to(TYPE)[:, :, None], (BS, WIDTH))
    return b_x


def require_caches(
    op: str,
    q: torch.Tensor,
    gate: torch.Tensor | None,
    cache_k: torch.Tensor,
    format_k: str,
    cache_v: torch.Tensor,
    format_v: str,
) -> None:
    """Raise unless q and gate are [T, H, D] and the caches [Hkv, S, row] of their formats, heads in whole groups."""
    (T, H, D), (Hkv, S) = q.shape, cache_k.shape[:2]
    for x in (q, gate):
        if x is not None and (x.shape != (T, H, D) or x.stride(2) != 1):
            raise ValueError(f"{op} takes q and gate [T, H, D] with dense rows, not {tuple(x.shape)} {x.stride()}")
    for cache, format in ((cache_k, format_k), (cache_v, format_v)):
        if (
            format not in FORMATS
            or D not in (32, 64, 128, 256)
            or D % {"tq3_0": 128, "q8_0": 64, "q4_0": 64}.get(format, 32)
        ):
            raise ValueError(f"{op} reads rows of 32 to 256 values in {', '.join(FORMATS)}, not {D} in {format}")
        whole = format not in QUANTISED or (cache.stride(0) % 4 == 0 and cache.stride(1) % 4 == 0)
        kind = find(format).dtype or torch.uint8
        shaped = cache.shape == (Hkv, S, row_size(format, D)) and cache.dtype == kind
        if H % Hkv or not shaped or cache.stride(2) != 1 or not whole:
            given = f"{cache.dtype} {tuple(cache.shape)} strides {cache.stride()} for {H} heads"
            raise ValueError(f"{op} takes {format} caches [Hkv, S, row], rows dense and 4 bytes aligned, not {given}")
