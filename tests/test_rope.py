"""Properties of rope."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.rope import rope as kernel
from draftwood.lab.check import target
from draftwood.reference.rope import axes, frequencies
from draftwood.reference.rope import rope as reference
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "attention.npz")
SECTIONS = (11, 11, 10)
either = pytest.mark.parametrize("turn", [reference, kernel], ids=["reference", "kernel"])


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name]).to(target())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(target())


def at(*positions: int) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.int32, device=target())


@either
@pytest.mark.parametrize("of", ["text", "image"])
def test_transformers_turns_qwen35_heads_to_the_same(turn, of):
    positions = golden(f"rope_{of}_positions").contiguous()
    out = turn(golden("rope_x").float(), positions, golden("rope_inv_freq"), SECTIONS)
    torch.testing.assert_close(out, golden(f"rope_{of}_out"), rtol=1e-5, atol=1e-5)


@either
def test_position_zero_changes_nothing(turn):
    x = normal(3, 2, 32)
    assert torch.equal(turn(x, at(0, 0, 0), frequencies(16, 1e4).to(target())), x)


@either
def test_equal_coordinates_turn_as_one_position_does(turn):
    x, text = normal(4, 2, 64), at(7, 8, 9, 262143)
    inv_freq = frequencies(64, 1e7).to(target())
    assert torch.equal(turn(x, text.expand(3, -1).contiguous(), inv_freq, SECTIONS), turn(x, text, inv_freq))


@either
def test_the_dot_product_of_query_and_key_depends_on_their_distance(turn):
    q, k = normal(1, 1, 64, seed=1), normal(1, 1, 64, seed=2)
    inv_freq = frequencies(64, 1e4).to(target())

    def dot(a: int, b: int) -> float:
        return float((turn(q, at(a), inv_freq) * turn(k, at(b), inv_freq)).sum())

    assert dot(5, 2) == pytest.approx(dot(1003, 1000), abs=2e-3)
    assert abs(dot(5, 2) - dot(5, 3)) > 0.05


@given(position=st.integers(0, 262143), seed=st.integers(0, 99))
def test_a_turn_keeps_the_length_of_every_pair(position, seed):
    x = normal(1, 2, 40, seed=seed)
    out = kernel(x, at(position), frequencies(32, 1e7).to(target()))
    pairs = [(t[..., :16] ** 2 + t[..., 16:32] ** 2) for t in (x, out)]
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(out[..., 32:], x[..., 32:])


def test_the_axes_of_qwen35_take_turns_until_h_and_w_have_had_their_share():
    assert "".join("THW"[axis] for axis in axes(32, SECTIONS).tolist()) == "THW" * 10 + "TH"
    # ggml gives a fourth section, for an axis that text and images do not have
    assert torch.equal(axes(32, (11, 11, 10, 0)), axes(32, SECTIONS))
    assert not axes(32, ()).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": torch.zeros(3, 2, dtype=torch.int32)}, "with sections"),
        ({"positions": torch.zeros(5, dtype=torch.int32)}, "for 2 tokens"),
        ({"inv_freq": torch.ones(9)}, "at most D/2"),
        ({"x": torch.zeros(16, 2, 1).permute(1, 2, 0)}, "unit stride"),
    ],
)
def test_what_it_cannot_turn_is_refused_in_a_sentence(change, words):
    sound: dict[str, Any] = {"x": torch.zeros(2, 1, 16), "positions": at(0, 1).cpu(), "inv_freq": torch.ones(8)}
    with pytest.raises(ValueError, match=words):
        kernel(**{**sound, **change})
