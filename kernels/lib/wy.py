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
def thirds(b_x, INFINITE: tl.constexpr = False):
    """x as the sum of three bf16, the leading one first; of a bf16 only that one counts.

    In integers: half the instructions of casts there and back. An infinity leaves NaN in the rest, unless INFINITE.
    """
    if b_x.dtype == tl.bfloat16:
        return b_x, b_x, b_x
    else:
        b_x = b_x.to(tl.float32)
        b_bits = b_x.to(tl.int32, bitcast=True)
        # rounded; a NaN may be lost here and stays in the second
        b_high = (b_bits + 0x8000) & -65536
        b_rest = b_x - b_high.to(tl.float32, bitcast=True)
        if INFINITE:
            b_rest = tl.where(b_x == b_high.to(tl.float32, bitcast=True), 0.0, b_rest)
        b_mid = b_rest.to(tl.int32, bitcast=True) & -65536
        b_low = (b_rest - b_mid.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)
        return _upper(b_high), _upper(b_mid), _upper(b_low)


@triton.jit
def _upper(b_bits):
    return (b_bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def power(b_most, UP: tl.constexpr):
    """The power of two that brings `b_most`, which is not negative, into [2^UP, 2^(UP+1)), and its inverse."""
    b_exponent = b_most.to(tl.float32).to(tl.int32, bitcast=True) >> 23
    b_exponent = tl.minimum(tl.maximum(b_exponent, UP + 1), UP + 253)
    b_up, b_down = (UP + 254 - b_exponent) << 23, (b_exponent - UP) << 23
    return b_up.to(tl.float32, bitcast=True), b_down.to(tl.float32, bitcast=True)


@triton.jit
def pair(b_x):
    """x as the sum of two f16: 22 bits where x is no smaller than 2^-3, an error of 2^-25 below."""
    b_high = b_x.to(tl.float16)
    return b_high, (b_x - b_high.to(tl.float32)).to(tl.float16)


@triton.jit
def outlined(b_a, b_b, b_acc, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """As `product`; unless EXACT only to the 16 bits that a sum rounded to a half needs."""
    half: tl.constexpr = b_a.dtype == b_b.dtype and b_a.dtype.primitive_bitwidth == 16
    if EXACT or half or PRECISION == "ieee":
        return product(b_a, b_b, b_acc, PRECISION)
    elif PRECISION == "bf16":
        a_high, a_mid, _ = thirds(b_a)
        b_high, b_mid, _ = thirds(b_b)
        if b_b.dtype != tl.bfloat16:
            b_acc = tl.dot(a_high, b_mid, b_acc)
        if b_a.dtype != tl.bfloat16:
            b_acc = tl.dot(a_mid, b_high, b_acc)
        return tl.dot(a_high, b_high, b_acc)
    else:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision=PRECISION)


@triton.jit
def coarse_fine(b_g):
    """Log decays as multiples of 2^-10, whose sums are exact in f32, and what is left, below 2^-10.

    So a difference of path sums keeps the small decays behind a large one. Below -110 a decay is 0 in any company.
    """
    b_g = tl.where(b_g < -110.0, -110.0, b_g)
    b_coarse = tl.floor(b_g * 1024.0) * (1.0 / 1024.0)
    return b_coarse, b_g - b_coarse


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
def unit_lower_inverse(b_a, BT: tl.constexpr, PRECISION: tl.constexpr):
    """(I + a)^-1 for a strictly lower [BT, BT] of 16, 32 or 64, from its 16 x 16 blocks up:

        [ X   0 ]^-1      [ X^-1              0   ]
        [ L   Y ]    =    [ -Y^-1 L X^-1    Y^-1  ]

    Unlike the product (I - a)(I + a^2)(I + a^4)..., whose terms grow like binomials and cancel where keys repeat,
    every factor here is itself an inverse, of the size of the result: no element is larger than beta <= 1.
    """
    # f16 pairs, for all that is no larger than 1 goes up by 2^11, where their lower half is not yet subnormal
    one = 2048.0 if PRECISION == "bf16" else 1.0
    b_a = tl.reshape(b_a * one, (1, BT, BT))
    if BT == 16:
        b_x = _inverse_16(b_a, one, 1, PRECISION)
    elif BT == 32:
        b_a, b_low = _quartered(b_a, 1, 16)
        b_x = _joined(_inverse_16(b_a, one, 2, PRECISION), b_low, 1, 16, PRECISION)
    else:
        b_a, b_lowest = _quartered(b_a, 1, 32)
        b_a, b_low = _quartered(b_a, 2, 16)
        b_x = _joined(_inverse_16(b_a, one, 4, PRECISION), b_low, 2, 16, PRECISION)
        b_x = _joined(b_x, b_lowest, 1, 32, PRECISION)
    return tl.reshape(b_x, (BT, BT)) * (1.0 / one)


@triton.jit
def _times(b_a, b_b, PRECISION: tl.constexpr):
    """a @ b, of factors and a result as large as `unit_lower_inverse` makes them."""
    zero = tl.zeros(b_a.shape, tl.float32)
    if PRECISION == "bf16":
        a_high, b_high = b_a.to(tl.float16), b_b.to(tl.float16)
        b_low = tl.dot((b_a - a_high.to(tl.float32)).to(tl.float16), b_high, zero)
        b_low = tl.dot(a_high, (b_b - b_high.to(tl.float32)).to(tl.float16), b_low)
        return tl.dot(a_high, b_high, b_low) * (1.0 / 2048)
    else:
        return product(b_a, b_b, zero, PRECISION)


@triton.jit
def _inverse_16(b_a, one, N: tl.constexpr, PRECISION: tl.constexpr):
    """N strictly lower 16 x 16 blocks: pairs inverted, then blocks of 2, 4 and 8 joined, by masks in place."""
    o_i, o_j = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    b_x = tl.where(o_i == o_j, one, 0.0) - tl.where(((o_i >> 1) == (o_j >> 1)) & (o_i > o_j), b_a, 0.0)
    # one block: its transpose beside it, for as a right operand a matrix lies in registers as its transpose does as a
    # result, and nothing passes through shared memory
    b_t = tl.permute(b_x, (0, 2, 1))
    for level in tl.static_range(1, 4):
        m_pair = ((o_i >> (level + 1)) == (o_j >> (level + 1))) & ((o_i >> level) > (o_j >> level))
        b_l = tl.where(m_pair, b_a, 0.0)
        if N == 1:
            b_lx = _times(b_t, tl.permute(b_l, (0, 2, 1)), PRECISION)
            b_new = b_x - _times(b_x, tl.permute(b_lx, (0, 2, 1)), PRECISION)
            if level < 3:
                b_t -= _times(b_lx, tl.permute(b_x, (0, 2, 1)), PRECISION)
            b_x = b_new
        else:
            b_x -= _times(b_x, _times(b_l, b_x, PRECISION), PRECISION)
    return b_x


@triton.jit
def _quartered(b_a, N: tl.constexpr, M: tl.constexpr):
    """[N, 2M, 2M] -> the blocks on the diagonal [2N, M, M], those below them [N, M, M]."""
    b_left, b_right = tl.split(tl.permute(tl.reshape(b_a, (N, 2, M, 2, M)), (0, 2, 4, 1, 3)))
    b_00, b_10 = tl.split(b_left)
    _, b_11 = tl.split(b_right)
    m_first = tl.arange(0, 2)[None, :, None, None] == 0
    return tl.reshape(tl.where(m_first, b_00[:, None, :, :], b_11[:, None, :, :]), (2 * N, M, M)), b_10


@triton.jit
def _joined(b_x, b_10, N: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr):
    """Inverses [2N, M, M] of the blocks on the diagonal, and those below as they were -> inverses [N, 2M, 2M]."""
    b_00, b_11 = tl.split(tl.permute(tl.reshape(b_x, (N, 2, M, M)), (0, 2, 3, 1)))
    if N == 1:
        # in two dimensions the warps share one product
        b_10 = _times(tl.reshape(b_10, (M, M)), tl.reshape(b_00, (M, M)), PRECISION)
        b_10 = tl.reshape(_times(tl.reshape(b_11, (M, M)), b_10, PRECISION), (1, M, M))
    else:
        b_10 = _times(b_11, _times(b_10, b_00, PRECISION), PRECISION)
    # selected, not joined: triton 3.6 gives a dot behind a join and a load of bytes an operand layout wider than 16
    m_top = tl.arange(0, 2)[None, :, None, None, None] == 0
    m_left = tl.arange(0, 2)[None, None, None, :, None] == 0
    b_left = tl.where(m_top, b_00[:, None, :, None, :], -b_10[:, None, :, None, :])
    b_right = tl.where(m_top, 0.0, b_11[:, None, :, None, :])
    return tl.reshape(tl.where(m_left, b_left, b_right), (N, 2 * M, 2 * M))
