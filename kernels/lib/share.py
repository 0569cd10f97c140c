"""Which rows of the cache a program of tree_attention walks, what its queries see, and how it weighs them.

The first tile of a share sets the maximum of each query, 2^6 above its own, and nothing is rescaled: weights up to 2^15
fit f16. A share in which a later score makes a larger one is walked again from the highest score that was found.
"""

import triton
import triton.language as tl

from .softmax import LOWEST

# in units of log 2: the first tile's maximum is taken for so much more, and weights are numbers of f16 up to MOST
ABOVE = tl.constexpr(6.0)
MOST = tl.constexpr(15.0)


@triton.jit
def share(start, window, i_split, splits, BS: tl.constexpr):
    """Which rows are program i_split's: whole tiles begin .. end - 1 of committed rows, none for i_split == splits.

    That one takes what is left of them, from `rest`, and the nodes. Returns start's value first.
    """
    first = tl.load(start)
    low = tl.where(window > 0, tl.maximum(first - window, 0), 0)
    whole = (first - low) // BS
    begin = low + i_split * whole // splits * BS
    end = tl.where(i_split < splits, low + (i_split + 1) * whole // splits * BS, begin)
    return first, begin, end, low + whole * BS


@triton.jit
def seen(o_row, first, T, ancestors):
    """Whether any query sees these rows: committed, or a node, which is its own ancestor."""
    o_j = tl.maximum(o_row - first, 0)
    b_a = tl.load(ancestors + o_j.to(tl.int64) * (T + 1), mask=o_row - first < T, other=0)
    return (o_row < first) | (b_a != 0)


@triton.jit
def mask(o_row, first, o_m, rows, T, ancestors, G: tl.constexpr):
    """[BS, N]: committed rows are seen by all, nodes by their descendants."""
    o_j, i_t = (o_row - first)[:, None], (o_m // G)[None, :]
    m = (o_j >= 0) & (o_j < T) & (o_m < rows)[None, :]
    return (o_j < 0) | (tl.load(ancestors + i_t.to(tl.int64) * T + o_j, mask=m, other=0) != 0)


@triton.jit
def passed(b_peak):
    """Whether a score, in units of log 2 above the maximum, makes a weight that f16 does not hold."""
    return tl.max(b_peak) > MOST


@triton.jit
def top(b_s, scale, axis: tl.constexpr):
    """The maximum of each query in a tile of scores, in units of log 2."""
    return tl.maximum(tl.max(b_s, axis) * scale, LOWEST)


@triton.jit
def mean(b_acc, b_l):
    """b_acc / b_l, 0 where nothing was seen."""
    return b_acc * tl.where(b_l > 0.0, 1 / b_l, b_l)
