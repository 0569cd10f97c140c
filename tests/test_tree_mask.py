"""Properties of tree_mask."""

import pytest
import torch
from draftwood.kernels.tree_mask import Config
from draftwood.kernels.tree_mask import tree_mask as kernel
from draftwood.lab.check import target
from draftwood.reference import tree
from draftwood.reference.tree_mask import SPEC
from draftwood.reference.tree_mask import tree_mask as reference
from hypothesis import given
from hypothesis import strategies as st

TREES = 10_000
either = pytest.mark.parametrize("mask", [reference, kernel], ids=["reference", "kernel"])


def drawn(shape: str, T: int, seed: int, B: int = 1) -> torch.Tensor:
    return tree.draw_batch(shape, B, T, torch.Generator().manual_seed(seed)).to(target())


@either
@given(shape=st.sampled_from(tree.SHAPES), T=st.integers(1, 40), seed=st.integers(0, 1 << 16))
def test_a_node_has_its_parents_ancestors_and_itself(mask, shape, T, seed):
    parents = drawn(shape, T, seed)
    ancestors, depth = mask(parents)
    for node, parent in enumerate(parents[0].tolist()):
        own = torch.zeros(T, dtype=torch.uint8, device=target())
        own[node] = parent != tree.PAD
        above = ancestors[0, parent] if parent >= 0 else torch.zeros_like(own)
        assert torch.equal(ancestors[0, node], above + own)
        assert depth[0, node] == (depth[0, parent] + 1 if parent >= 0 else 0 if parent == tree.ROOT else -1)


@either
def test_a_chain_is_the_causal_mask(mask):
    ancestors, depth = mask(drawn("chain", 35, 0))
    assert torch.equal(ancestors[0], torch.ones_like(ancestors[0]).tril()) and depth[0].tolist() == list(range(35))


@either
@given(T=st.integers(1, 40), seed=st.integers(0, 1 << 16))
def test_being_an_ancestor_is_transitive(mask, T, seed):
    above = mask(drawn("forest", T, seed))[0].float()
    assert torch.equal(((above @ above) > 0).float(), above)


@either
def test_trees_of_a_batch_do_not_meet(mask):
    parents = drawn("random", 19, 5, B=3)
    together = mask(parents)
    for b in range(3):
        alone = mask(parents[b : b + 1])
        assert all(torch.equal(x[b], y[0]) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("BLOCK_I", [2, 8, 64])
def test_the_blocks_of_a_config_do_not_change_a_bit(BLOCK_I):
    parents = drawn("ddtree", 13, 1, B=2)
    for got, want in zip(kernel(parents, Config(BLOCK_I=BLOCK_I)), reference(parents), strict=True):
        assert torch.equal(got, want)


def test_a_parent_that_is_not_smaller_ends_the_walk_instead_of_hanging_it():
    ancestors, _ = kernel(torch.tensor([[-1, 2, 1, 3]], dtype=torch.int32, device=target()))
    assert ancestors[0].cpu().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


@pytest.mark.long
@pytest.mark.parametrize("shape", tree.SHAPES)
def test_ten_thousand_trees_mark_exactly_their_paths(shape):
    case = SPEC.cases["smoke"][0].but(B=TREES // len(tree.SHAPES) + 1, T=24, shape=shape)
    inputs = {"parents": drawn(shape, 24, 7, B=case["B"])}
    mask = reference if target() == "cpu" else kernel
    assert not list(SPEC.oracles["path"](lambda _op, parents: mask(parents), inputs, case, 7))
