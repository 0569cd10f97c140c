"""One step of softmax(q k^T) v over a tile of rows, with a running maximum, and the type its products are taken in.

    m' = max(m, max s)    p = 2^(s - m')    l' = l 2^(m - m') + sum p    acc' = acc 2^(m - m') + p v

Scores come in units of log 2. A row that sees nothing keeps m = LOWEST, l = 0 and acc = 0.
"""

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
LOG2E = 1.4426950408889634


@triton.jit
def attend(b_q, b_k, b_v, m, scale, b_m, b_l, b_acc):
    """b_q [BM, D], b_k [BS, D] of one type, b_v [BS, D], m [BM, BS] or broadcastable: what queries see, if not all."""
    return weigh(tl.dot(b_q, tl.trans(b_k), input_precision="ieee"), b_v, m, scale, b_m, b_l, b_acc)


@triton.jit
def weigh(b_s, b_v, m, scale, b_m, b_l, b_acc):
    """The same of scores [BM, BS]."""
    if m is not None:
        b_s = tl.where(m, b_s, float("-inf"))  # [BM, BS]
    b_top = tl.maximum(b_m, tl.max(b_s, 1) * scale)
    b_p = tl.exp2(b_s * scale - b_top[:, None])
    b_old = tl.exp2(b_m - b_top)
    b_l = b_l * b_old + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_old[:, None], input_precision="ieee")
    return b_top, b_l, b_acc


def product_type(q: torch.dtype, format: str) -> tl.dtype:
    """What the products of queries with a cache of `format` are taken in: a type that holds the values of both."""
    if q == torch.float32 or (q == torch.float16 and format == "bf16"):
        return tl.float32
    return tl.bfloat16 if format == "bf16" else tl.float16


def rows_in_tile(block: int, q: torch.dtype) -> int:
    """Half as many where tiles are f32, which take twice the memory; 16 is the least a product takes."""
    return max(16, block // 2) if q == torch.float32 else block
