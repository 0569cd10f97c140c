"""Sine and cosine of a large angle, without the table in memory through which the library reduces one.

    angle, f32 of up to 2^18 rad -- f64 --> turns -- less whole quarters --> within pi/4 of 0, 90, 180 or 270 degrees

In f64 the reduction loses nothing that an f32 holds. Within pi/4 the first terms of the series are exact to an f32.
"""

import triton
import triton.language as tl


@triton.jit
def cos_sin(b_angle):
    b_turns = b_angle.to(tl.float64) * 0.15915494309189535
    b_quarter = tl.floor(b_turns * 4 + 0.5)
    b_x = ((b_turns * 4 - b_quarter) * 1.5707963267948966).to(tl.float32)
    b_2 = b_x * b_x
    b_sin = b_x + b_x * b_2 * (-1 / 6 + b_2 * (1 / 120 + b_2 * (-1 / 5040 + b_2 * (1 / 362880))))
    b_cos = 1 + b_2 * (-1 / 2 + b_2 * (1 / 24 + b_2 * (-1 / 720 + b_2 * (1 / 40320 - b_2 * (1 / 3628800)))))
    b_n = b_quarter.to(tl.int32)
    m_odd = (b_n & 1) == 1
    b_c, b_s = tl.where(m_odd, b_sin, b_cos), tl.where(m_odd, b_cos, b_sin)
    return tl.where(((b_n + 1) & 2) != 0, -b_c, b_c), tl.where((b_n & 2) != 0, -b_s, b_s)
