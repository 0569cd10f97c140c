"""Properties of conv_commit."""

import pytest
import torch
from draftwood.kernels.conv_commit import Config
from draftwood.kernels.conv_commit import conv_commit as kernel
from draftwood.lab.check import target
from draftwood.reference.conv_commit import conv_commit as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("commit", [reference, kernel], ids=["reference", "kernel"])


def drawn(T: int, C: int = 20, W: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, state = torch.randn(1, T, C, generator=generator), torch.randn(1, W - 1, C, generator=generator)
    return u.to(target()), state.to(target())


def after(
    commit, u: torch.Tensor, state: torch.Tensor, path: list[int], length: int | None = None, **extra
) -> torch.Tensor:
    state = state.clone()
    ints = [
        torch.tensor(x, dtype=torch.int32, device=target()) for x in ([path], [len(path) if length is None else length])
    ]
    commit(u, state, *ints, **extra)
    return state


@either
@given(W=st.integers(2, 5), length=st.integers(1, 8), seed=st.integers(0, 999))
def test_the_state_ends_in_the_last_rows_of_history_and_path(commit, W, length, seed):
    u, state = drawn(16, W=W, seed=seed)
    path = sorted(torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:length].tolist())
    assert torch.equal(after(commit, u, state, path), torch.cat([state, u[:, path]], 1)[:, 1 - W :])


@either
@given(cut=st.integers(1, 4))
def test_a_path_in_two_parts_is_the_path_at_once(commit, cut):
    u, state = drawn(9)
    path = [0, 2, 3, 7, 8]
    halfway = after(commit, u, state, path[:cut])
    assert torch.equal(after(commit, u, halfway, path[cut:]), after(commit, u, state, path))


@either
def test_what_stands_behind_the_length_is_not_read(commit):
    u, state = drawn(9)
    assert torch.equal(after(commit, u, state, [0, 4, 1 << 30, -1], 2), after(commit, u, state, [0, 4]))


@either
def test_a_path_of_nothing_leaves_every_bit(commit):
    u, state = drawn(3)
    state[0, 1] = float("nan")
    assert torch.equal(after(commit, u, state, [1, 2], 0).view(torch.int32), state.view(torch.int32))


@pytest.mark.parametrize("BLOCK_C", [16, 64])
def test_the_blocks_of_a_config_do_not_change_a_bit(BLOCK_C):
    u, state = drawn(6, C=50)
    assert torch.equal(after(kernel, u, state, [0, 3], config=Config(BLOCK_C)), after(reference, u, state, [0, 3]))
