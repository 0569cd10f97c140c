"""Properties of ddtree_walk: what acceptance means, whatever shape the tree has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.ddtree_walk import ddtree_walk as kernel
from draftwood.lab.check import target
from draftwood.reference import tree
from draftwood.reference.ddtree_walk import ddtree_walk as reference
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "ddtree.npz")
TREES = sorted({name.split("_")[0] for name in GOLDEN})
either = pytest.mark.parametrize("walk", [reference, kernel], ids=["reference", "kernel"])


def row(*values: int) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.int32, device=target())


def drawn(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, parents and posterior of a random tree that the target half agrees with."""
    generator = torch.Generator().manual_seed(seed)
    parents = tree.draw("random", size, generator)
    tokens, posterior = torch.randint(0, 3, (2, size), generator=generator).int()
    return tokens[None].to(target()), parents[None].to(target()), posterior[None].to(target())


@either
@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=8), agreed=st.integers(0, 8))
def test_on_a_chain_the_longest_agreeing_prefix_is_accepted(walk, text, agreed):
    agreed = min(agreed, len(text) - 1)
    # the target would have written the draft's first tokens and then something else
    wanted = text[1 : agreed + 1] + [9] * (len(text) - agreed)
    path, length, next_token = walk(row(*text), row(*range(-1, len(text) - 1)), row(*wanted), 9)
    assert length.item() == agreed + 1 and next_token.item() == 9
    assert path[0].tolist() == [*range(agreed + 1), *[-1] * (8 - agreed)]


@either
@given(size=st.integers(1, 20), seed=st.integers(0, 1 << 16), padding=st.integers(1, 9))
def test_padding_changes_nothing(walk, size, seed, padding):
    tokens, parents, posterior = drawn(size, seed)
    tail = row(*[0] * padding)
    padded = walk(torch.cat([tokens, tail], 1), torch.cat([parents, tail - 2], 1), torch.cat([posterior, tail], 1), 6)
    for ours, theirs in zip(walk(tokens, parents, posterior, 6), padded, strict=True):
        assert torch.equal(ours, theirs)


@either
@given(size=st.integers(1, 20), seed=st.integers(0, 1 << 16))
def test_a_shorter_limit_cuts_the_path_and_predicts_from_where_it_was_cut(walk, size, seed):
    tokens, parents, posterior = drawn(size, seed)
    path, length, _ = walk(tokens, parents, posterior, 20)
    for limit in (1, 2, 3):
        cut, cut_length, next_token = walk(tokens, parents, posterior, limit)
        assert torch.equal(cut, path[:, :limit]) and cut_length.item() == min(limit, length.item())
        assert next_token.item() == posterior[0, cut[0, cut_length.item() - 1]].item()


@either
def test_sibling_order_does_not_change_the_accepted_tokens(walk):
    #     0           0
    #    / \    and  / \    with the names of the branches exchanged
    #   a   b       b   a
    #   |   |       |   |
    #   c   d       d   c
    one = row(9, 1, 2, 3, 4), row(-1, 0, 0, 1, 2), row(2, 7, 4, 7, 8)
    other = row(9, 2, 1, 4, 3), row(-1, 0, 0, 1, 2), row(2, 4, 7, 8, 7)
    for tokens, parents, posterior in (one, other):
        path, length, next_token = walk(tokens, parents, posterior, 4)
        accepted = tokens[0, path[0, : length.item()]].tolist()
        assert accepted == [9, 2, 4] and next_token.item() == 8


@either
def test_of_children_with_one_token_the_lowest_slot_is_taken(walk):
    path, _, next_token = walk(row(9, 5, 5, 5), row(-1, 0, 0, 0), row(5, 1, 2, 3), 3)
    assert path.tolist() == [[0, 1, -1]] and next_token.item() == 1


@either
def test_a_cousin_with_the_wanted_token_is_not_a_child(walk):
    path, length, next_token = walk(row(9, 1, 2, 5), row(-1, 0, 0, 2), row(1, 5, 5, 5), 4)
    assert path.tolist() == [[0, 1, -1, -1]] and length.item() == 2 and next_token.item() == 5


@either
@pytest.mark.parametrize("name", TREES)
def test_the_published_walks_accept_the_same_nodes(walk, name):
    tokens, parents, posterior = (
        torch.from_numpy(GOLDEN[f"{name}_{part}"])[None].to(target()) for part in ("tokens", "parents", "posterior")
    )
    *wanted, following = GOLDEN[f"{name}_path"].tolist()
    path, length, next_token = walk(tokens, parents, posterior, 16)
    assert path[0, : length.item()].tolist() == wanted and next_token.item() == following


def test_shapes_that_disagree_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        kernel(row(1, 2, 3), row(-1, 0), row(1, 2, 3), 3)
