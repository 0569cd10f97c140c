"""Properties of ddtree: what makes a tree the best one, whatever builds it."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.kernels.ddtree import ddtree as kernel
from draftwood.lab.check import target
from draftwood.reference import tree
from draftwood.reference.ddtree import ddtree as reference
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "ddtree.npz")
TREES = sorted({name.split("_")[0] for name in GOLDEN})
either = pytest.mark.parametrize("ddtree", [reference, kernel], ids=["reference", "kernel"])


def candidates(L: int, K: int, seed: int, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One sequence's log-probs, ids and root; with ties, log-probs are few multiples of a half."""
    generator = torch.Generator().manual_seed(seed)
    if ties:
        logprobs = -torch.randint(0, 4, (1, L, K), generator=generator).sort(-1).values / 2
    else:
        logprobs = (torch.randn(1, L, 50, generator=generator) * 2).log_softmax(-1).topk(K).values
    ids = torch.stack([torch.randperm(1000, generator=generator)[:K] for _ in range(L)])[None].int()
    return logprobs.to(target()), ids.to(target()), torch.tensor([7], dtype=torch.int32, device=target())


def prefixes(tokens: torch.Tensor, parents: torch.Tensor) -> list[tuple[int, ...]]:
    """Each node's tokens from the root's child down, in slot order."""
    nodes = range(1, int((parents[0] != tree.PAD).sum()))
    return [tuple(tokens[0, tree.path(parents[0].cpu(), node)[1:]].tolist()) for node in nodes]


def exhaustive(logprobs: torch.Tensor, ids: torch.Tensor, budget: int) -> list[tuple[int, ...]]:
    """All prefixes there are, heaviest first, equals by their ranks; the first `budget` of them."""
    L, K = ids.shape[1:]
    found = []
    for depth in range(1, L + 1):
        for ranks in product(range(K), repeat=depth):
            weight = torch.zeros((), device=logprobs.device)
            for level, rank in enumerate(ranks):
                weight = weight + logprobs[0, level, rank]
            found.append((-weight.item(), ranks))
    return [tuple(int(ids[0, d, r]) for d, r in enumerate(ranks)) for _, ranks in sorted(found)[:budget]]


@either
@given(
    L=st.integers(1, 3),
    K=st.integers(1, 4),
    budget=st.integers(0, 12),
    seed=st.integers(0, 1 << 16),
    ties=st.booleans(),
)
def test_without_a_seed_chain_the_tree_is_the_most_probable_prefixes_of_all(ddtree, L, K, budget, seed, ties):
    logprobs, ids, root = candidates(L, K, seed, ties)
    assert prefixes(*ddtree(logprobs, ids, root, budget, False)) == exhaustive(logprobs, ids, budget)


@either
@given(
    L=st.integers(1, 5),
    K=st.integers(1, 4),
    budget=st.integers(1, 12),
    seed=st.integers(0, 1 << 16),
    ties=st.booleans(),
)
def test_a_seeded_tree_is_the_spine_and_the_best_of_what_branches_off_it(ddtree, L, K, budget, seed, ties):
    logprobs, ids, root = candidates(L, K, seed, ties)
    tokens, parents = ddtree(logprobs, ids, root, budget, True)
    tree.check(parents.cpu())
    spine = min(L, budget)
    assert parents[0, 1 : spine + 1].tolist() == list(range(spine))
    assert tokens[0, 1 : spine + 1].tolist() == ids[0, :spine, 0].tolist()
    found = prefixes(tokens, parents)
    assert len(set(found)) == len(found) <= budget
    # what branches off the spine is what would be there without it, the spine itself let through
    free = prefixes(*reference(logprobs, ids, root, min(256, budget + spine + K**L), False))
    seeded = set(found[:spine])
    assert found[spine:] == [prefix for prefix in free if prefix not in seeded][: budget - spine]


@either
def test_a_larger_budget_only_adds_nodes(ddtree):
    inputs = candidates(6, 5, seed=3)
    for chain_seed in (False, True):
        tokens, parents = ddtree(*inputs, 15, chain_seed)
        for budget in (6, 7):
            fewer = ddtree(*inputs, budget, chain_seed)
            assert torch.equal(fewer[0], tokens[:, : budget + 1]) and torch.equal(fewer[1], parents[:, : budget + 1])


@either
def test_a_budget_of_nothing_leaves_the_root(ddtree):
    for chain_seed in (False, True):
        tokens, parents = ddtree(*candidates(4, 3, seed=1), 0, chain_seed)
        assert tokens.tolist() == [[7]] and parents.tolist() == [[tree.ROOT]]


@either
@pytest.mark.parametrize("chain_seed", [False, True])
def test_when_the_candidates_run_out_the_rest_is_padding(ddtree, chain_seed):
    tokens, parents = ddtree(*candidates(2, 3, seed=5), 17, chain_seed)
    tree.check(parents.cpu())
    assert len(prefixes(tokens, parents)) == 3 + 3 * 3
    assert set(tokens[0, 13:].tolist()) == {0} and set(parents[0, 13:].tolist()) == {tree.PAD}


@either
def test_one_candidate_a_depth_is_a_chain(ddtree):
    logprobs, ids, root = candidates(15, 1, seed=2)
    for chain_seed in (False, True):
        tokens, parents = ddtree(logprobs, ids, root, 15, chain_seed)
        assert parents.tolist() == [list(range(-1, 15))] and tokens[0, 1:].tolist() == ids.flatten().tolist()


@either
def test_the_names_of_tokens_do_not_shape_the_tree(ddtree):
    logprobs, ids, root = candidates(5, 4, seed=8)
    tokens, parents = ddtree(logprobs, ids, root, 20, True)
    renamed, same = ddtree(logprobs, ids * 3 + 1, root, 20, True)
    assert torch.equal(parents, same) and torch.equal(renamed[:, 1:], tokens[:, 1:] * 3 + 1)


@either
def test_sequences_of_a_batch_do_not_meet(ddtree):
    rows = [candidates(4, 3, seed) for seed in (1, 2, 3)]
    together = ddtree(*(torch.cat(parts) for parts in zip(*rows, strict=True)), 7, False)
    for b, row in enumerate(rows):
        alone = ddtree(*row, 7, False)
        assert torch.equal(alone[0][0], together[0][b]) and torch.equal(alone[1][0], together[1][b])


@either
@pytest.mark.parametrize("name", TREES)
def test_the_published_builders_make_the_same_tree(ddtree, name):
    logprobs, ids, tokens, parents = (
        torch.from_numpy(GOLDEN[f"{name}_{part}"]).to(target()) for part in ("logprobs", "ids", "tokens", "parents")
    )
    budget, chain_seed = GOLDEN[f"{name}_budget"].tolist()
    built = ddtree(logprobs[None], ids[None], tokens[:1], budget, bool(chain_seed))
    assert torch.equal(built[0][0, : len(tokens)], tokens) and torch.equal(built[1][0, : len(parents)], parents)
    assert (built[1][0, len(parents) :] == tree.PAD).all()


def test_unsupported_sizes_are_refused_with_their_values():
    logprobs, ids, root = candidates(4, 3, seed=1)
    with pytest.raises(ValueError, match="300"):
        kernel(logprobs, ids, root, 300, True)
    with pytest.raises(ValueError, match=r"\(1, 4, 2\)"):
        kernel(logprobs, ids[..., :2], root, 4, True)
