"""f32 as integers of the same order: the larger float is the larger i32, so a key can hold a tie-break below a value.

order    -inf -> -0x7F800001  ..  -1.0  ..  0.0 and -0.0 -> 0  ..  +inf -> 0x7F800000        NaN counts as -inf
NOTHING  below all of them: the key of a lane that holds no value
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(1 << 31))
NOTHING_64 = tl.constexpr(-(1 << 63))


@triton.jit
def order(b_x):
    b_x = tl.where(b_x == b_x, b_x, float("-inf"))
    b_bits = tl.where(b_x == 0.0, 0.0, b_x).to(tl.int32, bitcast=True)
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value(b_order):
    """The float whose `order` this is."""
    return (b_order ^ ((b_order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
