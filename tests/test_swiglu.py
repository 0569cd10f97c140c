"""Properties of swiglu."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.swiglu import swiglu as kernel
from draftwood.lab.check import target
from draftwood.reference.swiglu import swiglu as reference

GOLDEN = np.load(Path(__file__).parent / "golden" / "norms.npz")
either = pytest.mark.parametrize("swiglu", [reference, kernel], ids=["reference", "kernel"])


def drawn(M: int, F: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(M, F, generator=torch.Generator().manual_seed(seed)) * 4).to(target())


@either
def test_transformers_mlp_activates_the_same(swiglu):
    gate, up = torch.from_numpy(GOLDEN["halves"]).to(target()).split(64, dim=1)
    wanted = torch.from_numpy(GOLDEN["activated"]).to(target())
    torch.testing.assert_close(swiglu(gate, up), wanted, rtol=1e-6, atol=1e-6)


@either
def test_it_is_linear_in_up(swiglu):
    gate, up, other = drawn(2, 300), drawn(2, 300, 1), drawn(2, 300, 2)
    # a power of two rounds nowhere
    assert torch.equal(swiglu(gate, up * 8), swiglu(gate, up) * 8)
    torch.testing.assert_close(swiglu(gate, up + other), swiglu(gate, up) + swiglu(gate, other), rtol=1e-5, atol=1e-5)


@either
def test_silu_of_a_gate_less_that_of_its_negative_is_the_gate(swiglu):
    gate, up = drawn(2, 300), drawn(2, 300, 1)
    torch.testing.assert_close(swiglu(gate, up) - swiglu(-gate, up), gate * up, rtol=1e-5, atol=1e-5)


@either
def test_far_gates_are_open_or_shut(swiglu):
    gate = torch.tensor([[200.0, 0.0, -200.0]], device=target())
    up = torch.tensor([[3.0, 5.0, 7.0]], device=target())
    assert swiglu(gate, up).tolist() == [[600.0, 0.0, 0.0]]


@either
def test_halves_of_one_tensor_are_taken_as_they_lie(swiglu):
    both = drawn(3, 2 * 130)
    gate, up = both[:, :130], both[:, 130:]
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))


def test_shapes_that_disagree_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        kernel(drawn(2, 4), drawn(2, 5))
