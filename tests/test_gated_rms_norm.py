"""Properties of gated_rms_norm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.gated_rms_norm import gated_rms_norm as kernel
from draftwood.lab.check import target
from draftwood.reference.gated_rms_norm import gated_rms_norm as reference
from draftwood.reference.rms_norm import rms_norm
from draftwood.reference.swiglu import swiglu

GOLDEN = np.load(Path(__file__).parent / "golden" / "norms.npz")
either = pytest.mark.parametrize("norm", [reference, kernel], ids=["reference", "kernel"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(target())


@either
def test_transformers_norm_of_the_delta_net_is_the_same(norm):
    x, gate, weight, wanted = (
        torch.from_numpy(GOLDEN[name]).to(target()) for name in ("heads", "gate", "scale", "gated")
    )
    torch.testing.assert_close(norm(x, gate, weight, 1e-6), wanted, rtol=2e-6, atol=2e-6)


@either
def test_it_is_rms_norm_then_swiglu(norm):
    x, gate, weight = drawn(3, 4, 60), drawn(3, 4, 60, seed=1), drawn(60, seed=2)
    normed = rms_norm(x.view(12, 60), weight)
    wanted = swiglu(gate.view(12, 60), normed).view(3, 4, 60)
    torch.testing.assert_close(norm(x, gate, weight), wanted, rtol=1e-5, atol=1e-6)


@either
def test_the_scale_of_a_head_is_forgotten_and_that_of_its_gate_is_not(norm):
    x, gate, weight = drawn(2, 3, 128), drawn(2, 3, 128, seed=1), drawn(128, seed=2)
    # powers of two round nowhere; without eps the norm of a head does not see them
    assert torch.equal(norm(x * 1024, gate, weight, 0.0), norm(x, gate, weight, 0.0))
    assert not torch.allclose(norm(x, gate * 2, weight), norm(x, gate, weight))


@either
def test_a_gate_of_zero_shuts_and_an_empty_head_stays_empty(norm):
    x, gate, weight = drawn(2, 2, 32), drawn(2, 2, 32, seed=1), drawn(32, seed=2)
    x[0, 1], gate[1, 0] = 0, 0
    y = norm(x, gate, weight)
    assert not y[0, 1].any() and not y[1, 0].any() and y[0, 0].any()


@either
def test_heads_do_not_meet(norm):
    x, gate, weight = drawn(3, 5, 100), drawn(3, 5, 100, seed=1), drawn(100, seed=2)
    together = norm(x, gate, weight)
    for m, h in ((0, 0), (1, 3), (2, 4)):
        alone = norm(x[m : m + 1, h : h + 1], gate[m : m + 1, h : h + 1], weight)
        torch.testing.assert_close(alone[0, 0], together[m, h], rtol=1e-6, atol=1e-7)


@either
def test_views_are_taken_as_they_lie(norm):
    wide, weight = drawn(3, 4, 2 * 64), drawn(64, seed=2)
    x, gate = wide[..., :64], wide[..., 64:]
    apart = norm(x.contiguous(), gate.contiguous(), weight)
    torch.testing.assert_close(norm(x, gate, weight), apart, rtol=1e-6, atol=1e-7)


def test_shapes_that_disagree_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"\(2, 3, 33\)"):
        kernel(drawn(2, 3, 32), drawn(2, 3, 33), drawn(32))
