"""The gated delta rule in blocks of tokens: UT transform instead of a loop over time.

For tokens i of a block and j above i (for a chain: before i), with D_ij = exp(sum of g on the way from j, exclusive, to
i, inclusive) and G_i the sum of g over i and all that is above it:

    A_ij = beta_i D_ij k^_i.k^_j  (j a proper ancestor)      (I + A) U = beta (V - e^G K^ S^T)
    P_ij = D_ij q^_i.k^_j         (j = i included)                 O = e^G Q^ S^T + P U
"""

import triton
import triton.language as tl


@triton.jit
def product(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """acc + a @ b as exact as f32 allows.

    ieee     in f32 without tensor cores, everywhere
    tf32x3   three tf32 products; two equal half types go through their own tensor cores, exactly
    bf16     an f32 is the sum of three bf16: three products with a bf16, six with an f32, on bf16 tensor cores
    """
    half: tl.constexpr = b_a.dtype == b_b.dtype and b_a.dtype.primitive_bitwidth == 16
    if PRECISION != "ieee" and half:
        return tl.dot(b_a, b_b, b_acc)
    elif PRECISION == "bf16":
        a_high, a_mid, a_low = thirds(b_a)
        b_high, b_mid, b_low = thirds(b_b)
        # the small terms first; those of a bf16 are zero
        if b_b.dtype != tl.bfloat16:
            b_acc = tl.dot(a_high, b_low, b_acc)
        if b_a.dtype != tl.bfloat16:
            b_acc = tl.dot(a_low, b_high, b_acc)
        if b_a.dtype != tl.bfloat16 and b_b.dtype != tl.bfloat16:
            b_acc = tl.dot(a_mid, b_mid, b_acc)
        if b_b.dtype != tl.bfloat16:
            b_acc = tl.dot(a_high, b_mid, b_acc)
        if b_a.dtype != tl.bfloat16:
            b_acc = tl.dot(a_mid, b_high, b_acc)
        return tl.dot(a_high, b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision=PRECISION)


@triton.jit
def thirds(b_x):
    """x as the sum of three bf16, the leading one first."""
    b_x = b_x.to(tl.float32)
    b_high = b_x.to(tl.bfloat16)
    b_rest = b_x - b_high.to(tl.float32)
    b_mid = b_rest.to(tl.bfloat16)
    return b_high, b_mid, (b_rest - b_mid.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def span(m_ij, m_jj, b_g, BT: tl.constexpr, PRECISION: tl.constexpr):
    """[BT, BT]: for rows i and columns j, the sum of g over the nodes of j's block on the way from j, exclusive, to i.

    Summed, not taken as a difference of path sums: that would lose the small decays behind a large one. Never positive,
    so no exponential of it overflows, related or not.
    """
    b_above = tl.where(m_ij != 0, b_g[None, :], 0.0)
    # zeros and ones are exact in a bf16
    b_below = tl.where(tl.trans(m_jj) != 0, 0.0, 1.0).to(tl.bfloat16)
    return product(b_above, b_below, tl.zeros((BT, BT), tl.float32), PRECISION)


@triton.jit
def unit_lower_inverse(b_a, BT: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + a)^-1 for a strictly lower [BT, BT], BT = 2^LEVELS, by doubling the diagonal blocks that are inverted:

        [ X   0 ]^-1      [ X^-1              0   ]
        [ L   Y ]    =    [ -Y^-1 L X^-1    Y^-1  ]      a level is two dots for all blocks at once

    Unlike the product (I - a)(I + a^2)(I + a^4)..., whose terms grow like binomials and cancel where keys repeat,
    every factor here is itself an inverse, of the size of the result.
    """
    o_i = tl.arange(0, BT)[:, None]
    o_j = tl.arange(0, BT)[None, :]
    m_pair = ((o_i >> 1) == (o_j >> 1)) & (o_i > o_j)
    b_x = tl.where(o_i == o_j, 1.0, 0.0) - tl.where(m_pair, b_a, 0.0)
    for level in range(1, LEVELS):
        m_pair = ((o_i >> (level + 1)) == (o_j >> (level + 1))) & ((o_i >> level) > (o_j >> level))
        b_lx = product(tl.where(m_pair, b_a, 0.0), b_x, tl.zeros((BT, BT), tl.float32), PRECISION)
        b_x = product(-b_x, b_lx, b_x, PRECISION)
    return b_x
