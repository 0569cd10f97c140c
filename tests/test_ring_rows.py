"""Properties of ring_rows."""

import pytest
import torch
from draftwood.kernels.ring_rows import ring_rows as kernel
from draftwood.lab.check import target
from draftwood.reference.ring_rows import ring_rows as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("rows", [reference, kernel], ids=["reference", "kernel"])


def called(rows, drafted: int, start: int, N: int, B: int) -> list[list[int]]:
    ints = [torch.tensor([n], dtype=torch.int32, device=target()) for n in (drafted, start)]
    return [found.tolist() for found in rows(*ints, N, B)]


@either
@given(start=st.integers(0, 100), behind=st.integers(0, 8), N=st.integers(8, 40))
def test_after_each_step_the_ring_holds_the_newest_rows_of_the_context(rows, start, behind, N):
    ring = {p % N: p for p in range(max(0, start - behind))}
    positions, slots, _ = called(rows, max(0, start - behind), start, N, 8)
    ring |= {slot: p for p, slot in zip(positions[:8], slots[:8], strict=True) if slot >= 0}
    assert sorted(ring.values()) == list(range(max(0, start - N), start))


@either
@given(start=st.integers(0, 100), N=st.integers(1, 40), B=st.integers(1, 9))
def test_the_block_follows_what_the_ring_holds_and_takes_none_of_it(rows, start, N, B):
    positions, slots, (begin,) = called(rows, start, start, N, B)
    assert positions[B:] == list(range(start, start + B))
    assert slots[B:] == list(range(begin, begin + B)) and begin == min(start, N)
    assert slots[:B] == [-1] * B


def test_a_length_that_is_no_tensor_of_one_is_refused():
    two = torch.zeros(2, dtype=torch.int32, device=target())
    with pytest.raises(ValueError, match=r"\(2,\)"):
        kernel(two, two, 8, 4)
