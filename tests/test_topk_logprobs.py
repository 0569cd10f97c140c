"""Properties of topk_logprobs."""

import math

import pytest
import torch
from draftwood.kernels.topk_logprobs import Config
from draftwood.kernels.topk_logprobs import topk_logprobs as kernel
from draftwood.lab.check import target
from draftwood.reference.topk_logprobs import topk_logprobs as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("topk", [reference, kernel], ids=["reference", "kernel"])


def drawn(R: int, V: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(R, V, generator=torch.Generator().manual_seed(seed)) * 3).to(target())


@either
def test_where_no_logits_are_equal_it_is_log_softmax_and_topk(topk):
    logits = drawn(2, 4500)
    ids, logprobs = topk(logits, 5, 0.7)
    best = (logits.double() / 0.7).log_softmax(-1).topk(5)
    assert torch.equal(ids.long(), best.indices)
    torch.testing.assert_close(logprobs.double(), best.values, rtol=1e-6, atol=1e-6)


@either
@given(
    V=st.integers(1, 200),
    values=st.integers(1, 4),
    seed=st.integers(0, 1 << 16),
    k=st.integers(1, 9),
)
def test_equal_logits_come_in_the_order_of_their_ids(topk, V, values, seed, k):
    k = min(k, V)
    logits = torch.randint(0, values, (1, V), generator=torch.Generator().manual_seed(seed)).float().to(target())
    ids, _ = topk(logits, k)
    wanted = sorted(range(V), key=lambda token: (-logits[0, token].item(), token))[:k]
    assert ids[0].tolist() == wanted


@either
def test_fewer_are_the_first_of_more(topk):
    logits = drawn(2, 300).round()
    ids, logprobs = topk(logits, 7)
    for k in (1, 4):
        fewer = topk(logits, k)
        assert torch.equal(fewer[0], ids[:, :k])
        torch.testing.assert_close(fewer[1], logprobs[:, :k], rtol=1e-6, atol=1e-6)


@either
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_probabilities_of_a_whole_vocabulary_sum_to_one(topk, temperature):
    _, logprobs = topk(drawn(3, 16), 16, temperature)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(3, device=target()), rtol=1e-5, atol=0)
    assert (logprobs.diff(dim=-1) <= 0).all()


@either
def test_a_constant_added_to_all_logits_changes_nothing(topk):
    # quarters stay exact under the shift
    logits = (drawn(2, 500) * 4).round() / 4
    ids, logprobs = topk(logits, 6)
    shifted = topk(logits + 64, 6)
    assert torch.equal(ids, shifted[0]) and torch.equal(logprobs, shifted[1])


@either
def test_temperature_never_changes_the_ids(topk):
    # neighbouring floats, which a division would make equal
    step = torch.tensor(3.0).nextafter(torch.tensor(4.0))
    logits = torch.tensor([[3.0, step.item(), 1.0]], device=target())
    for temperature in (0.0, 0.1, 0.7, 3.0):
        assert topk(logits, 2, temperature)[0].tolist() == [[1, 0]]


@either
def test_a_temperature_of_zero_is_a_thousandth(topk):
    logits = drawn(1, 40) / 1000
    for ours, theirs in zip(topk(logits, 3, 0.0), topk(logits, 3, 1e-3), strict=True):
        assert torch.equal(ours, theirs)


@either
def test_tokens_of_minus_infinity_are_as_if_they_were_not_there(topk):
    logits = drawn(2, 100)
    masked = torch.cat([logits, torch.full((2, 5000), -math.inf, device=target())], 1)
    ids, logprobs = topk(logits, 4)
    widened = topk(masked, 4)
    assert torch.equal(ids, widened[0])
    torch.testing.assert_close(logprobs, widened[1], rtol=1e-6, atol=1e-6)


@either
def test_a_nan_ranks_last_and_spoils_the_log_probs_of_its_row_alone(topk):
    logits = torch.tensor([[1.0, math.nan, 3.0], [1.0, 2.0, 3.0]], device=target())
    ids, logprobs = topk(logits, 3)
    assert ids.tolist() == [[2, 0, 1], [2, 1, 0]]
    assert logprobs[0].isnan().all() and logprobs[1].isfinite().all()


@either
def test_a_row_of_nothing_gives_ids_in_order_and_no_number(topk):
    ids, logprobs = topk(torch.full((1, 9), -math.inf, device=target()), 3)
    assert ids.tolist() == [[0, 1, 2]] and logprobs.isnan().all()


def test_the_cut_into_chunks_changes_no_id():
    logits = drawn(1, 3000).round()
    ids, logprobs = kernel(logits, 5)
    for config in (Config(GROUPS=16, GROUP=64), Config(GROUPS=64, GROUP=16), Config(GROUPS=256, GROUP=64)):
        cut = kernel(logits, 5, config=config)
        assert torch.equal(ids, cut[0])
        torch.testing.assert_close(logprobs, cut[1], rtol=1e-6, atol=1e-6)


def test_more_than_the_vocabulary_is_refused_with_its_value():
    with pytest.raises(ValueError, match="k 5"):
        kernel(drawn(1, 4), 5)
