"""Properties of rms_norm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.rms_norm import rms_norm as kernel
from draftwood.lab.check import target
from draftwood.reference.rms_norm import rms_norm as reference
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "norms.npz")
either = pytest.mark.parametrize("norm", [reference, kernel], ids=["reference", "kernel"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(target())


@either
def test_transformers_norm_with_its_one_folded_in_is_the_same(norm):
    x, weight, wanted = (torch.from_numpy(GOLDEN[name]).to(target()) for name in ("x", "weight", "normed"))
    torch.testing.assert_close(norm(x, weight, 1e-6), wanted, rtol=2e-6, atol=2e-6)


@either
@given(D=st.integers(1, 300), seed=st.integers(0, 1 << 16))
def test_a_row_leaves_with_unit_mean_square(norm, D, seed):
    y = norm(drawn(2, D, seed=seed), torch.ones(D, device=target()), 0.0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(2, device=target()), rtol=1e-5, atol=0)


@either
@given(exponent=st.integers(-30, 30))
def test_the_scale_of_a_row_is_forgotten(norm, exponent):
    # powers of two round nowhere
    x, weight = drawn(2, 65), drawn(65, seed=1)
    assert torch.equal(norm(x * 2.0**exponent, weight, 0.0), norm(x, weight, 0.0))


@either
def test_it_is_linear_in_the_weight(norm):
    x, weight, other = drawn(3, 130), drawn(130, seed=1), drawn(130, seed=2)
    assert torch.equal(norm(x, weight * 4), norm(x, weight) * 4)
    torch.testing.assert_close(norm(x, weight + other), norm(x, weight) + norm(x, other), rtol=1e-5, atol=1e-6)


@either
def test_the_order_of_a_row_does_not_matter(norm):
    x, weight = drawn(2, 100), drawn(100, seed=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2)).to(target())
    torch.testing.assert_close(norm(x[:, order], weight[order]), norm(x, weight)[:, order], rtol=1e-6, atol=1e-7)


@either
def test_rows_do_not_meet(norm):
    x, weight = drawn(4, 90), drawn(90, seed=1)
    together = norm(x, weight)
    for row in range(4):
        torch.testing.assert_close(norm(x[row : row + 1], weight)[0], together[row], rtol=1e-6, atol=1e-7)


@either
def test_eps_keeps_a_row_of_zeros_at_zero(norm):
    assert not norm(torch.zeros(2, 40, device=target()), drawn(40)).any()


@either
def test_rows_of_a_wider_tensor_are_taken_as_they_lie(norm):
    wide, weight = drawn(3, 200), drawn(64, seed=1)
    x = wide[:, 50:114]
    torch.testing.assert_close(norm(x, weight), norm(x.contiguous(), weight), rtol=1e-6, atol=1e-7)


@either
def test_a_row_beyond_the_range_of_the_output_is_normed_before_it_is_rounded(norm):
    x, weight = 1e6 * drawn(2, 70), drawn(70, seed=1)
    y = norm(x, weight, 1e-6, torch.float16)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, norm(x, weight).half(), rtol=1e-3, atol=1e-6)


def test_a_weight_of_another_length_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(31,\)"):
        kernel(drawn(2, 32), drawn(31))
