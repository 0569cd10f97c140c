"""Properties of qk_rope."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.qk_rope import Config
from draftwood.kernels.qk_rope import qk_rope as kernel
from draftwood.lab.check import target
from draftwood.reference.qk_rope import qk_rope as reference
from draftwood.reference.rms_norm import rms_norm
from draftwood.reference.rope import frequencies, rope
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "attention.npz")
either = pytest.mark.parametrize("turn", [reference, kernel], ids=["reference", "kernel"])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(target())


def at(*positions: int) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.int32, device=target())


@either
@given(T=st.integers(1, 4), H=st.integers(1, 6), half=st.integers(1, 16), seed=st.integers(0, 99))
def test_it_is_rms_norm_then_rope_of_each(turn, T, H, half, seed):
    q, k = normal(T, H, 40, seed=seed), normal(T, 2, 40, seed=seed + 1)
    weights, inv_freq = (normal(40, seed=2), normal(40, seed=3)), frequencies(2 * half, 1e7).to(target())
    positions = at(*range(1000 * seed, 1000 * seed + T))
    for x, weight, out in zip((q, k), weights, turn(q, k, *weights, positions, inv_freq), strict=True):
        normed = rms_norm(x.reshape(-1, 40), weight).view(x.shape)
        torch.testing.assert_close(out, rope(normed, positions, inv_freq), rtol=1e-5, atol=1e-5)


@either
def test_a_head_that_is_normed_already_turns_as_in_transformers(turn):
    # the golden heads came from transformers after its norm; their own rms is put back as a weight
    x = torch.from_numpy(GOLDEN["rope_x"]).float().to(target())[:1]
    positions = torch.from_numpy(GOLDEN["rope_text_positions"]).to(target())
    positions = (positions if positions.dim() == 1 else positions[0])[:1].contiguous()
    wanted = torch.from_numpy(GOLDEN["rope_text_out"]).to(target())[:1]
    inv_freq = torch.from_numpy(GOLDEN["rope_inv_freq"]).to(target())
    for head in range(x.shape[1]):
        one = x[:, head : head + 1]
        weight = one.square().mean().sqrt().expand(one.shape[-1]).contiguous()
        out, _ = turn(one, one, weight, weight, positions, inv_freq, 0.0)
        torch.testing.assert_close(out, wanted[:, head : head + 1], rtol=2e-5, atol=2e-5)


@either
@given(position=st.integers(0, 262143))
def test_every_head_leaves_with_unit_mean_square(turn, position):
    ones = torch.ones(64, device=target())
    out = turn(normal(1, 3, 64), normal(1, 1, 64, seed=1), ones, ones, at(position), frequencies(64, 1e7).to(target()))
    for heads in out:
        torch.testing.assert_close(heads.square().mean(-1), torch.ones_like(heads[..., 0]), rtol=1e-5, atol=0)


@either
def test_heads_of_a_wider_tensor_are_taken_as_they_lie(turn):
    wide, k = normal(3, 4, 128), normal(3, 2, 64, seed=1)
    args = (normal(64, seed=2), normal(64, seed=3), at(1, 2, 3), frequencies(32, 1e7).to(target()))
    for out, want in zip(turn(wide[..., :64], k, *args), turn(wide[..., :64].contiguous(), k, *args), strict=True):
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("BLOCK_H", [1, 8])
def test_the_blocks_of_a_config_do_not_change_a_bit(BLOCK_H):
    given = (normal(2, 5, 32), normal(2, 3, 32, seed=1), normal(32, seed=2), normal(32, seed=3), at(5, 6))
    inv_freq = frequencies(16, 1e7).to(target())
    for out, want in zip(kernel(*given, inv_freq, config=Config(BLOCK_H)), kernel(*given, inv_freq), strict=True):
        assert torch.equal(out, want)


def test_heads_of_two_lengths_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1, 16\)"):
        kernel(normal(2, 3, 32), normal(2, 1, 16), normal(32), normal(32), at(0, 1), frequencies(16, 1e7))
