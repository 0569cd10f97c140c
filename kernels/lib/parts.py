"""A product as several of fewer columns each, where whole rows of both sides do not fit a lane's registers.

    acc [M, N] + a [M, C] b [C, N]  =  (acc + a_0 b_0) + a_1 b_1 + ..      each of C / PARTS columns

Tensor cores share the rows of a product among the lanes of a warp; without them (sm75) a lane holds whole ones, and
those of RDNA have half the registers.
"""

import torch
import triton
import triton.language as tl

from .device import has_few_registers, lacks_dot


def parts_of(device: torch.device) -> int:
    """Into how many a product over 256 columns falls there."""
    return 8 if lacks_dot(device) else 2 if has_few_registers(device) else 1


@triton.jit
def _halves(b_x):
    """[R, C] -> its left and its right half."""
    return tl.split(tl.permute(tl.reshape(b_x, (b_x.shape[0], 2, b_x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def in_parts(b_acc, b_x, b_w, PARTS: tl.constexpr):
    """acc [M, N] + x [M, C] · w [N, C]^T."""
    if PARTS == 1:
        b_acc = tl.dot(b_x, tl.trans(b_w), b_acc, input_precision="ieee")
    else:
        x_left, x_right = _halves(b_x)
        w_left, w_right = _halves(b_w)
        b_acc = in_parts(b_acc, x_left, w_left, PARTS // 2)
        b_acc = in_parts(b_acc, x_right, w_right, PARTS // 2)
    return b_acc


@triton.jit
def read_in_parts(b_acc, b_w, p_x, m_m, PARTS: tl.constexpr):
    """acc [N, M] + w [N, C] · x [C, M], whose rows of M are read part by part; p_x: to the first of them [1, M]."""
    C: tl.constexpr = b_w.shape[1]
    if PARTS == 1:
        b_x = tl.load(p_x + tl.arange(0, C)[:, None], mask=m_m[None, :], other=0.0)  # [C, M]
        b_acc = tl.dot(b_w.to(b_x.dtype), b_x, b_acc)
    else:
        w_left, w_right = _halves(b_w)
        b_acc = read_in_parts(b_acc, w_left, p_x, m_m, PARTS // 2)
        b_acc = read_in_parts(b_acc, w_right, p_x + C // 2, m_m, PARTS // 2)
    return b_acc
