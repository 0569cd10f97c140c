"""The rotation of tq3_0: R(x) = s2 * H(s1 * x) on every 128 consecutive values, undone by s1 * H(s2 * y).

H is the Walsh-Hadamard transform in natural order, scaled by 1/sqrt(128): orthonormal and its own inverse.
Seven stages:

    stride 1:  (0 1)(2 3)(4 5)...      pair (a, b) -> (a + b, a - b)
    stride 2:  (0 2)(1 3)(4 6)...      strides 1, 2, 4 ... 64, then the scale
"""

import torch

from .spec import accumulator

GROUP = 128
SCALE = 0.08838834764831845
# bit i, from the low end, is set where the sign of element i is negative
S1_BITS = 0x49F250A9_A4C63BBB_42F85949_E46A0359
S2_BITS = 0xBEA56562_B7A5357A_3F628FDC_16ACEE90


def fwht(x: torch.Tensor) -> torch.Tensor:
    """x: [..., 128 n] -> H of every group of 128, in x's dtype."""
    shape = x.shape
    if shape[-1] % GROUP:
        raise ValueError(f"the transform takes rows of a multiple of {GROUP} values, not {shape[-1]}")
    for stage in range(7):
        a, b = x.reshape(-1, 2, 1 << stage).unbind(1)
        x = torch.stack((a + b, a - b), dim=1)
    return x.reshape(shape) * SCALE


def rotate(x: torch.Tensor) -> torch.Tensor:
    """R on every 128 values of the last dimension; f32, or f64 where x is f64."""
    x = x.to(accumulator(x))
    return _signed(fwht(_signed(x, S1_BITS)), S2_BITS)


def unrotate(y: torch.Tensor) -> torch.Tensor:
    """The inverse of `rotate`."""
    y = y.to(accumulator(y))
    return _signed(fwht(_signed(y, S2_BITS)), S1_BITS)


def signs(bits: int) -> torch.Tensor:
    """[128] f32 of +1 and -1."""
    return torch.tensor([-1.0 if bits >> i & 1 else 1.0 for i in range(GROUP)])


def pairwise_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over the last dimension (a power of two long) in the order of the butterflies: neighbours first."""
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0]


def _signed(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x.unflatten(-1, (-1, GROUP)) * signs(bits).to(x)).flatten(-2)
