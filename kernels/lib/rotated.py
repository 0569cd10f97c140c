"""The rotation of tq3_0 (fwht.py) in Gluon: signs by an element's place in its group, butterflies within a lane."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...reference.hadamard import SCALE
from .fwht import S1_HIGH, S1_LOW, S2_HIGH, S2_LOW

NORM = gl.constexpr(SCALE)
LOW_1, HIGH_1 = gl.constexpr(S1_LOW.value), gl.constexpr(S1_HIGH.value)
LOW_2, HIGH_2 = gl.constexpr(S2_LOW.value), gl.constexpr(S2_HIGH.value)


@gluon.jit
def sign(o_i, BITS: gl.constexpr):
    """1, or -1 where bit o_i of 64 is set."""
    bits = gl.full(o_i.shape, BITS, gl.int64, o_i.type.layout) >> o_i.to(gl.int64)
    return gl.where((bits & 1) == 1, -1.0, 1.0)


@gluon.jit
def signed(b_x, o_i, SECOND: gl.constexpr):
    """b_x times the sign s1 (s2 where SECOND) of element o_i of its group."""
    LOW: gl.constexpr = LOW_2 if SECOND else LOW_1
    HIGH: gl.constexpr = HIGH_2 if SECOND else HIGH_1
    low, high = gl.full(o_i.shape, LOW, gl.int64, o_i.type.layout), gl.full(o_i.shape, HIGH, gl.int64, o_i.type.layout)
    bits = gl.where(o_i < 64, low, high) >> (o_i & 63).to(gl.int64)
    return gl.where((bits & 1) == 1, -b_x, b_x)


@gluon.jit
def butterflies(b_x):
    """[N, A, B, U] -> sums and differences over all of U, which are a lane's own."""
    N: gl.constexpr = b_x.shape[0]
    A: gl.constexpr = b_x.shape[1]
    B: gl.constexpr = b_x.shape[2]
    U: gl.constexpr = b_x.shape[3]
    L: gl.constexpr = b_x.type.layout
    STEPS: gl.constexpr = U.bit_length() - 1
    for i in gl.static_range(STEPS):
        b_x = gl.permute(gl.reshape(b_x, (N, A, B, U // 2 >> i, 2, 1 << i)), (0, 1, 2, 3, 5, 4))
        a, b = gl.split(b_x)
        b_x = gl.reshape(gl.permute(gl.join(a + b, a - b), (0, 1, 2, 3, 5, 4)), (N, A, B, U))
    return gl.convert_layout(b_x, L)
