"""Properties of advance."""

import pytest
import torch
from draftwood.kernels.advance import advance as kernel
from draftwood.lab.check import target
from draftwood.reference.advance import advance as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("step", [reference, kernel], ids=["reference", "kernel"])


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=target())


@either
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_what_the_host_is_told_step_by_step_is_the_context(step, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    context, emitted, start, root = ints(*[-1] * 40), ints(*[-1] * 9), ints(0), ints(0)
    told: list[int] = []
    for n in sizes:
        tokens = torch.randint(0, 100, (8,), generator=generator).int().to(target())
        path = torch.randperm(8, generator=generator)[:n].sort().values.tolist()
        step(tokens, ints(*path, -1), ints(n), ints(100 + n), context, emitted, start, root)
        count, *rest = emitted.tolist()
        told += rest[:count]
        assert count == n and root.tolist() == [100 + n] and rest[:n] == tokens[path].tolist()
    assert context.tolist() == told + [-1] * (40 - len(told)) and start.tolist() == [len(told)]


@either
def test_a_root_may_stay_what_it_is(step):
    context, emitted, start, root = ints(0, 0), ints(0, 0), ints(0), ints(7)
    step(ints(5), ints(0), ints(1), root, context, emitted, start, root)
    assert root.tolist() == [7] and context.tolist() == [5, 0]


def test_counts_of_another_type_are_refused():
    with pytest.raises(ValueError, match="i32"):
        kernel(ints(1).long(), *[ints(0)] * 7)
