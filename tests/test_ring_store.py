"""Properties of ring_store."""

import pytest
import torch
from draftwood.kernels.ring_store import Config
from draftwood.kernels.ring_store import ring_store as kernel
from draftwood.lab.check import target
from draftwood.reference.ring_store import ring_store as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("store", [reference, kernel], ids=["reference", "kernel"])


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=target())


def after(store, x: torch.Tensor, R: int, paths: list[list[int]], **extra) -> torch.Tensor:
    """A ring into which the paths went one after another."""
    ring, start = torch.full((R, x.shape[1]), -1.0, device=target()), 0
    for path in paths:
        store(x, ring, ints(*path, -1), ints(len(path)), ints(start), **extra)
        start += len(path)
    return ring


@either
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_the_ring_holds_the_last_rows_that_joined(store, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 5, generator=generator).to(target())
    paths = [torch.randperm(9, generator=generator)[:n].sort().values.tolist() for n in sizes]
    joined = [node for path in paths for node in path]
    ring = after(store, x, 7, paths)
    for p in range(max(0, len(joined) - 7), len(joined)):
        assert torch.equal(ring[p % 7], x[joined[p]])
    if len(joined) < 7:
        assert (ring[len(joined) :] == -1).all()


@pytest.mark.parametrize("BLOCK_C", [16, 64])
def test_the_blocks_of_a_config_do_not_change_a_bit(BLOCK_C):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(target())
    assert torch.equal(after(kernel, x, 7, [[0, 3]], config=Config(BLOCK_C)), after(reference, x, 7, [[0, 3]]))


def test_a_path_that_laps_the_ring_is_refused():
    with pytest.raises(ValueError, match="at most R"):
        kernel(torch.zeros(9, 4), torch.zeros(2, 4), ints(0, 1, 2), ints(3), ints(0))
