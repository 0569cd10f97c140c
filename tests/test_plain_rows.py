"""Several rows against a plain matrix: equal to torch whatever the shape of the programs."""

import pytest
import torch
from draftwood.kernels.lib import plain_rows
from draftwood.lab.check import target
from draftwood.reference.dequant_matmul import dequant_matmul as reference
from hypothesis import given, settings
from hypothesis import strategies as st


def product(M: int, N: int, K: int, swiglu: bool = False, **how) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(M * N + K)
    x, weight = torch.randn(M, K, generator=generator).half(), torch.randn(N, K, generator=generator).half() / K**0.5
    x, weight = x.to(target()), weight.to(target())
    out = torch.empty(M, N // 2 if swiglu else N, device=target())
    plain_rows.multiply(x, weight, None, swiglu, out, **how)
    return out, reference(x, weight, "f16", swiglu=swiglu, out_dtype=torch.float32)


@given(M=st.integers(2, 70), N=st.integers(1, 40), K=st.integers(1, 40), swiglu=st.booleans())
@settings(max_examples=15)
def test_any_sizes_are_multiplied(M, N, K, swiglu):
    torch.testing.assert_close(*product(M, 2 * N, 32 * K, swiglu), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 64, 2, 4, 1), (32, 64, 2, 4, 4), (128, 128, 3, 8, 2)])
def test_how_programs_share_the_work_does_not_matter(shape):
    torch.testing.assert_close(*product(9, 128, 2048, shape=shape), rtol=1e-4, atol=1e-4)


def test_rows_of_another_type_are_left_to_others():
    x = torch.zeros(4, 32)
    assert plain_rows.fits(x.half(), x.half()) and not plain_rows.fits(x[:1].half(), x.half())
    assert not plain_rows.fits(x.half(), x.bfloat16()) and not plain_rows.fits(x, x)
