"""Properties of conv_line."""

import pytest
import torch
from draftwood.kernels.conv_line import Config
from draftwood.kernels.conv_line import conv_line as kernel
from draftwood.lab.check import target
from draftwood.reference.conv_commit import conv_commit
from draftwood.reference.conv_line import conv_line as reference
from draftwood.reference.tree_conv import tree_conv
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("conv", [reference, kernel], ids=["reference", "kernel"])


def drawn(T: int, C: int = 20, W: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, T, C), (C, W), (1, W - 1, C))
    u, weight, state = (torch.randn(shape, generator=generator).to(target()) for shape in shapes)
    return u, weight, state


@either
@given(T=st.integers(1, 21), W=st.integers(2, 5), seed=st.integers(0, 999))
def test_a_line_is_a_tree_without_branches_all_of_which_is_committed(conv, T, W, seed):
    u, weight, state = drawn(T, W=W, seed=seed)
    rows = torch.arange(T, dtype=torch.int32, device=target())[None]
    want, moved = tree_conv(u, weight, state, rows - 1), state.clone()
    conv_commit(u, moved, rows, torch.tensor([T], device=target()))
    torch.testing.assert_close(conv(u, weight, state), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, moved)


@either
@given(cut=st.integers(1, 16))
def test_a_line_in_two_parts_is_the_line_at_once(conv, cut):
    u, weight, state = drawn(17)
    parts = state.clone()
    whole = conv(u, weight, state)
    halves = [conv(part, weight, parts) for part in (u[:, :cut], u[:, cut:])]
    torch.testing.assert_close(torch.cat(halves, 1), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(parts, state)


@either
def test_nothing_later_is_seen(conv):
    u, weight, state = drawn(9)
    before = conv(u, weight, state.clone())
    u[:, 5:] = 7.0
    assert torch.equal(conv(u, weight, state.clone())[:, :5], before[:, :5])


@either
def test_channels_do_not_meet(conv):
    u, weight, state = drawn(6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3)).to(target())
    mixed = conv(u[..., order].contiguous(), weight[order].contiguous(), state[..., order].contiguous())
    torch.testing.assert_close(mixed, conv(u, weight, state)[..., order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("BLOCK_T", [4, 16])
def test_the_blocks_of_a_config_do_not_change_a_bit(BLOCK_T):
    u, weight, state = drawn(19, C=50)
    other = state.clone()
    assert torch.equal(kernel(u, weight, state, config=Config(BLOCK_T, 32)), kernel(u, weight, other))
    assert torch.equal(state, other)


def test_a_state_of_another_depth_is_refused_with_the_shapes():
    u, weight, state = drawn(3)
    with pytest.raises(ValueError, match=r"\(1, 2, 20\)"):
        kernel(u, weight, state[:, 1:])
