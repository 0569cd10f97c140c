"""Queries against a tile of cache rows, where registers do not hold both over a whole head: half a head at a time.

q  [BM, D]   | 0 .. 127 | 128 .. 255 |        S [BM, BS]  =  q_0 k_0^T + q_1 k_1^T
k  [BS, D]   | 0 .. 127 |                     a half of the rows is read and unpacked when it is multiplied
"""

import triton
import triton.language as tl

from .cache_rows import columns, load_part
from .fwht import rotate


@triton.jit
def load_queries(p_q, m, FORMAT: tl.constexpr, D: tl.constexpr, TYPE: tl.constexpr, FEW: tl.constexpr):
    """p_q: [BM] pointers -> the halves of rows [BM, D], columns in the order of K's tiles; unless FEW all, twice."""
    WIDTH: tl.constexpr = 128 if FEW and D > 128 else D
    b_q = _part(p_q, m, FORMAT, TYPE, FEW, 0, WIDTH)
    b_q2 = b_q
    if WIDTH < D:
        b_q2 = _part(p_q, m, FORMAT, TYPE, FEW, WIDTH, WIDTH)
    return b_q, b_q2


@triton.jit
def _part(
    p_q, m, FORMAT: tl.constexpr, TYPE: tl.constexpr, FEW: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr
):
    o_d = columns(FORMAT, WIDTH) + FIRST
    b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m[:, None], other=0.0).to(TYPE)  # [BM, WIDTH]
    if FORMAT == "tq3_0":
        # butterflies hold a row, a product the matrix too
        b_q = rotate(b_q, columns(FORMAT, 128), tl.float32 if FEW else TYPE).to(TYPE)
    return b_q


@triton.jit
def scores(b_q, b_q2, p_row, m_s, FORMAT: tl.constexpr, D: tl.constexpr, TYPE: tl.constexpr):
    """[BM, BS]: the halves of q, or all of it, against the rows at p_row."""
    WIDTH: tl.constexpr = b_q.shape[1]
    b_k = load_part(p_row, m_s, FORMAT, D, TYPE, 0, WIDTH)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    if WIDTH < D:
        b_k = load_part(p_row, m_s, FORMAT, D, TYPE, WIDTH, WIDTH)
        b_s = tl.dot(b_q2, tl.trans(b_k), b_s, input_precision="ieee")
    return b_s
