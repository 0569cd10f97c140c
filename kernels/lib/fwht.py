"""The rotation of tq3_0: R(x) = s2 * H(s1 * x), R^-1(y) = s1 * H(s2 * y), H the 128-point Walsh-Hadamard transform.

    fwht        seven butterflies in the reference's order, bit for bit: (a, b) -> (a + b, a - b) at strides
                1, 2 .. 64, each value with the partner it gathers from its own warp
    a product   the same sums in any order, with H[i, j] = (-1)^popcount(i & j): what tensor cores do at once

What is stored is made by butterflies; attention takes the product where its operands are halves anyway. H is the same
matrix if the bits of both its indices are permuted alike: so columns may come in an order that permutes bits.
"""

import triton
import triton.language as tl

from ...reference.hadamard import S1_BITS, S2_BITS, SCALE

HALVES = [bits >> shift & 0xFFFFFFFFFFFFFFFF for bits in (S1_BITS, S2_BITS) for shift in (0, 64)]
# as i64 has them
S1_LOW, S1_HIGH, S2_LOW, S2_HIGH = (tl.constexpr(half - (half >> 63 << 64)) for half in HALVES)
NORM = tl.constexpr(SCALE)


@triton.jit
def signed(b_x, o_i, SECOND: tl.constexpr):
    """b_x times the sign s1 (s2 where SECOND) of element o_i of its group."""
    b_low = tl.full(o_i.shape, S2_LOW if SECOND else S1_LOW, tl.int64)
    b_high = tl.full(o_i.shape, S2_HIGH if SECOND else S1_HIGH, tl.int64)
    b_bits = tl.where(o_i < 64, b_low, b_high) >> (o_i & 63).to(tl.int64)
    return tl.where((b_bits & 1) == 1, -b_x, b_x)


@triton.jit
def fwht(b_x):
    """[R, 128] f32 -> H of each row."""
    o_i = tl.broadcast_to(tl.arange(0, 128)[None, :], b_x.shape)
    for i in tl.static_range(7):
        b_pair = tl.gather(b_x, o_i ^ (1 << i), axis=1)
        b_x = tl.where((o_i >> i & 1) == 1, b_pair - b_x, b_x + b_pair)
    return b_x * NORM


@triton.jit
def pairwise_sum(b_x):
    """[R, 128] -> [R, 1], neighbours first, as the reference adds."""
    R: tl.constexpr = b_x.shape[0]
    for i in tl.static_range(7):
        b_x = tl.sum(tl.reshape(b_x, (R, 64 >> i, 2)), axis=2)
    return b_x


@triton.jit
def _odd(b_bits):
    """Whether the number of bits set below 128 is odd."""
    b_bits ^= b_bits >> 4
    b_bits ^= b_bits >> 2
    return (b_bits ^ b_bits >> 1) & 1


@triton.jit
def _transform(b_x, o_n, TYPE: tl.constexpr):
    """[R, 128] of TYPE -> H of each row, f32: by butterflies in f32, else as a product with the matrix."""
    if tl.float32 == TYPE:
        b_y = fwht(b_x)
    else:
        b_h = tl.where(_odd(o_n[:, None] & o_n[None, :]) == 1, -1.0, 1.0)
        b_y = tl.dot(b_x, b_h.to(TYPE)) * NORM
    return b_y


@triton.jit
def rotate(b_x, o_n, TYPE: tl.constexpr):
    """[R, D] -> R of every group of 128 columns, f32. o_n: [128], which element of the group a column holds."""
    R: tl.constexpr = b_x.shape[0]
    D: tl.constexpr = b_x.shape[1]
    b_x = signed(tl.reshape(b_x.to(TYPE), (R * D // 128, 128)), o_n[None, :], False)
    return tl.reshape(signed(_transform(b_x, o_n, TYPE), o_n[None, :], True), (R, D))


@triton.jit
def unrotate(b_y, o_n, TYPE: tl.constexpr):
    """The inverse of `rotate`."""
    R: tl.constexpr = b_y.shape[0]
    D: tl.constexpr = b_y.shape[1]
    b_y = signed(tl.reshape(b_y.to(TYPE), (R * D // 128, 128)), o_n[None, :], True)
    return tl.reshape(signed(_transform(b_y, o_n, TYPE), o_n[None, :], False), (R, D))
