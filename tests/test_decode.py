"""The loop: what chain and tree commit is the target's own text, greedy token by token and sampled in distribution."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.models import decode, draft, gguf, qwen35, sampling, state, target, target_files
from draftwood.models.arithmetic import PRECISIONS
from draftwood.models.decode import Plan
from draftwood.models.generate import Generator
from draftwood.models.sampling import Sampling
from draftwood.models.synthetic import Weights
from draftwood.models.weights import Rows
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden" / "tiny-qwen35-q4_k_m.gguf"
SMALL = qwen35.Config(2, 64, 64, 97, 2, 1, 4, False, (True, False), D=32, Hk=2, K=16, V=16, rotary=8)
DRAFT = draft.Config(1, 64, 64, 2, 1, 32, 64, (0, 1), (0,), (False,), mask_token=90, theta=1e5, block=8)
# of the logits' spread: differences below it are ties between a row run alone and the same row in a batch
TIE = 1e-4
PLANS = {
    "chain": decode.chain(8),
    "chain-seeded tree": Plan("tree", budget=12, branches=4),
    "pure tree": Plan("tree", budget=12, branches=4, chain_seed=False),
    "tree rolled back from f16 states": Plan("tree", budget=12, branches=4, strategy="store_f16"),
    "tree rolled back by replay": Plan("tree", budget=40, branches=4, strategy="replay"),
}


@cache
def small() -> target.Target:
    return target.assemble(
        SMALL, Weights(SMALL, lambda name, i, n: "f32", CPU), CPU, "f32", "reference", captured=(0, 1)
    )


@cache
def golden() -> target.Target:
    return target_files.load(gguf.load(GOLDEN), CPU, "f32", "reference", captured=(0, 1))


def drafter(c: draft.Config, seed: int = 0) -> draft.Draft:
    generator = torch.Generator().manual_seed(seed)
    shapes = draft.tensors(c)
    return draft.assemble(
        c,
        lambda name: Rows(0.15 * torch.randn(shapes[name], generator=generator) + (len(shapes[name]) == 1), "f32"),
        CPU,
        PRECISIONS["f32"],
        "reference",
    )


def fresh(model: target.Target, context: int = 96) -> state.State:
    return state.fresh(model.config, context, CPU, torch.float32, captured=2, ring=64)


def autoregressive(model: target.Target, prompt: torch.Tensor, count: int) -> list[int]:
    held, choose = fresh(model), decode.greedy(model)
    held.root.copy_(choose(target.prefill(model, held, prompt), None))
    for _ in range(count):
        decode.autoregress(model, held, choose)
    return held.tokens[len(prompt) : len(prompt) + count].tolist()


def prophet(text: list[int], first: int, hit: float, generator: torch.Generator, vocab: int) -> decode.Propose:
    """A draft that knows the text that begins at position `first`, and names the right token now and then: walks of
    real length."""

    def propose(held: state.State) -> torch.Tensor:
        logits = torch.randn(7, vocab, generator=generator)
        begin = int(held.start) - first + 1
        for row, token in enumerate(text[begin : begin + 7]):
            if torch.rand(1, generator=generator) < hit:
                logits[row, token] += 6 * torch.rand(1, generator=generator).item()
        return logits

    return propose


def speculative(
    model: target.Target, prompt: torch.Tensor, count: int, plan: Plan, propose: decode.Propose
) -> tuple[list[int], int]:
    held, choose, steps = fresh(model), decode.greedy(model), 0
    held.root.copy_(choose(target.prefill(model, held, prompt), None))
    while int(held.start) < len(prompt) + count:
        decode.speculate(model, propose, held, plan, choose)
        steps += 1
    return held.tokens[len(prompt) : len(prompt) + count].tolist(), steps


def only_ties(model: target.Target, prompt: torch.Tensor, one: list[int], other: list[int]) -> bool:
    """Whether two texts are equal up to a first difference where the target's logits tie."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
    if at is None:
        return True
    text = torch.cat((prompt, torch.tensor(one[:at], dtype=torch.int32)))
    logits = target.prefill(model, fresh(model), text)[0]
    return (logits[one[at]] - logits[other[at]]).abs().item() <= TIE


def lossless(model: target.Target, prompts: int, count: int, hit: float = 0.9) -> float:
    """Chain and tree against the autoregressive text; tokens a step over all of it."""
    generator, tokens, steps = torch.Generator().manual_seed(0), 0, 0
    for number in range(prompts):
        length = int(torch.randint(1, 12, (1,), generator=generator))
        prompt = torch.randint(0, model.config.vocab, (length,), generator=generator).int()
        text = autoregressive(model, prompt, count + 8)
        name = list(PLANS)[number % len(PLANS)]
        propose = prophet(text, length, hit, generator, model.config.vocab)
        found, taken = speculative(model, prompt, count, PLANS[name], propose)
        assert only_ties(model, prompt, text[:count], found), (number, name)
        tokens, steps = tokens + count, steps + taken
    return tokens / steps


def test_greedy_chains_and_trees_commit_the_autoregressive_text():
    assert lossless(small(), 40, 12) > 1.8


@pytest.mark.long
def test_two_hundred_prompts_of_the_golden_model_are_lossless():
    assert lossless(golden(), 200, 16) > 1.5


def test_two_runs_of_the_same_text_agree_with_each_other():
    prompt = torch.arange(5).int()
    assert autoregressive(small(), prompt, 12) == autoregressive(small(), prompt, 12)


def test_a_random_draft_loses_nothing_either():
    model, prompt = small(), torch.arange(3).int()
    text = autoregressive(model, prompt, 12)
    for mode, plan in (("chain", decode.chain(8)), ("tree", Plan("tree", budget=9, branches=3))):
        generator = Generator(model, drafter(DRAFT), plan, context=64)
        found = [token for part in generator.stream(prompt.tolist(), 12) for token in part]
        assert only_ties(model, prompt, text, found), mode
        assert generator.stats.tokens == 12 and sum(generator.stats.accepted) >= 12


def test_a_step_of_kernels_commits_what_a_step_of_references_does():
    texts = []
    for impl in ("reference", "kernels"):
        model = target.assemble(SMALL, Weights(SMALL, lambda name, i, n: "f32", CPU), CPU, "f32", impl, captured=(0, 1))
        prompt, text = torch.arange(4).int(), autoregressive(small(), torch.arange(4).int(), 10)
        propose = prophet(text, 4, 1.0, torch.Generator().manual_seed(1), 97)
        texts.append(speculative(model, prompt, 3, Plan("tree", budget=9, branches=3), propose))
    assert texts[0] == texts[1]


def test_the_accept_length_counts_the_root():
    """A draft that is always right commits whole blocks: 8 tokens a step of a chain of 7."""
    prompt = torch.arange(4).int()
    text = autoregressive(small(), prompt, 40)
    sure = lambda held: torch.nn.functional.one_hot(torch.tensor(text[int(held.start) - 3 :][:7]), 97).float() * 9
    assert speculative(small(), prompt, 32, decode.chain(8), sure) == (text[:32], 4)


def test_a_tree_of_the_largest_budget_loses_nothing():
    prompt = torch.arange(4).int()
    text = autoregressive(small(), prompt, 12)
    propose = prophet(text, 4, 1.0, torch.Generator().manual_seed(2), 97)
    assert speculative(small(), prompt, 6, Plan("tree", budget=256), propose)[0] == text[:6]


def test_a_plan_of_no_known_mode_is_refused():
    with pytest.raises(ValueError, match="a plan is ar, chain, tree with a budget of 1 to 256, not beam, 22"):
        Plan("beam")


# -- the stream --------------------------------------------------------------------------------------------------------


def test_a_stream_ends_before_a_stop_token_and_at_its_limit():
    generator = Generator(small(), context=64)
    prompt = [1, 2, 3]
    whole = [token for part in generator.stream(prompt, 10) for token in part]
    assert len(whole) == 10 and generator.stats.steps == 10 and generator.stats.accept_length == 1
    stopped = [token for part in generator.stream(prompt, 10, stops=[whole[4]]) for token in part]
    assert stopped == whole[: whole.index(whole[4])]


def test_a_generator_starts_each_prompt_afresh():
    generator = Generator(small(), context=64)
    first = [list(generator.stream([5, 6], 6)) for _ in range(2)]
    assert first[0] == first[1]


def test_a_prompt_too_long_for_the_context_is_refused():
    with pytest.raises(ValueError, match="a prompt of 60 and 10 tokens do not fit the context of 64"):
        next(Generator(small(), context=64).stream([1] * 60, 10))


def test_a_speculative_mode_without_a_draft_is_refused():
    with pytest.raises(ValueError, match="mode tree needs a draft"):
        Generator(small(), None, Plan("tree"))


# -- sampling ----------------------------------------------------------------------------------------------------------


def restricted_by_hand(row: list[float], top_k: int, top_p: float, min_p: float, temperature: float) -> np.ndarray:
    """One row, one token at a time."""
    order = sorted(range(len(row)), key=lambda i: -row[i])[: top_k or None]
    weights = {i: np.exp((row[i] - row[order[0]]) / temperature) for i in order}
    total, kept, mass = sum(weights.values()), {}, 0.0
    for i in order:
        if kept and mass >= top_p:
            break
        kept[i] = weights[i] / total
        mass += kept[i]
    best = max(kept.values())
    kept = {i: p for i, p in kept.items() if p >= min_p * best}
    return np.array([kept.get(i, 0.0) / sum(kept.values()) for i in range(len(row))])


@given(
    st.integers(0, 10**6),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([0.3, 1.0, 1.7]),
)
def test_restrictions_are_those_done_by_hand(seed, top_k, top_p, min_p, temperature):
    scores = 2 * torch.randn(3, 11, generator=torch.Generator().manual_seed(seed))
    found = sampling.restricted(scores, Sampling(temperature, top_k, top_p, min_p)).double()
    found /= found.sum(-1, keepdim=True)
    for row, wanted in zip(found, scores.tolist(), strict=True):
        assert np.allclose(row.numpy(), restricted_by_hand(wanted, top_k, top_p, min_p, temperature), atol=1e-5)


def test_penalties_count_the_text_and_a_rows_own_ancestors():
    model, held = small(), fresh(small())
    target.prefill(model, held, torch.tensor([7, 8, 7]).int())
    batch = target.tree(model.do.ops, held, torch.tensor([[9, 7, 5]]).int(), torch.tensor([[-1, 0, 0]]).int())
    found = sampling.counts(held, batch, torch.Size((3, 97)), last=256)
    assert [found[1, t].item() for t in (5, 7, 8, 9)] == [0, 3, 1, 1]
    assert [found[2, t].item() for t in (5, 7, 8, 9)] == [1, 2, 1, 1]
    assert sampling.counts(held, None, torch.Size((1, 97)), last=2)[0, 7].item() == 1
    scores = torch.tensor([[2.0, -2.0, 2.0]])
    count = torch.tensor([[1.0, 2.0, 0.0]])
    penalties = Sampling(1.0, repetition=2.0, frequency=0.5, presence=0.25)
    assert sampling.penalised(scores, count, penalties).tolist() == [[0.25, -5.25, 2.0]]


def test_ids_past_the_vocabulary_are_never_chosen():
    model, held = small(), fresh(small())
    choose = sampling.sampler(Sampling(vocab=10), model, held, torch.Generator())
    assert choose(torch.arange(97.0)[None], None).item() == 9


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Standard deviations above the mean of the chi-square statistic, bins of few expected draws joined."""
    expected = p * counts.sum()
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 10]
    bins = [(counts[rare].sum(), expected[rare].sum())] if len(rare) and expected[rare].sum() > 0 else []
    bins += [(counts[i], expected[i]) for i in order if i not in rare]
    x = sum((found - wanted) ** 2 / wanted for found, wanted in bins)
    return (x - (len(bins) - 1)) / np.sqrt(2 * (len(bins) - 1))


def test_draws_follow_their_distribution():
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(40, generator=generator).exp()
    found = sampling.drawn(p.expand(100_000, -1), generator)
    counts = np.bincount(found.numpy(), minlength=40)
    assert chi_square(counts, (p / p.sum()).double().numpy()) < 4
    assert chi_square(counts, np.full(40, 1 / 40)) > 100


def test_a_single_row_draws_from_what_the_restrictions_leave_of_its_distribution():
    held, rule = fresh(small()), Sampling(temperature=0.7, top_k=12, top_p=0.95)
    logits = target.prefill(small(), held, torch.arange(5).int())
    choose = sampling.sampler(rule, small(), held, torch.Generator().manual_seed(3))
    found = torch.cat([choose(logits.expand(10_000, -1), None) for _ in range(10)])
    p = sampling.restricted(logits.float(), rule)[0]
    counts = np.bincount(found.numpy(), minlength=97)
    assert counts[(p == 0).numpy()].sum() == 0
    assert chi_square(counts, (p / p.sum()).double().numpy()) < 4


@pytest.mark.parametrize("plan", ["chain", "chain-seeded tree", "pure tree"])
def test_a_walk_commits_tokens_distributed_as_the_target_draws_them(plan):
    """Two tokens after the root, drawn through trees 10^5 times over a vocabulary of 6: the pairs' frequencies are the
    product of the target's conditional probabilities, which depend on the path."""
    T, V, draws = PLANS[plan].budget + 1, 6, 100_000
    ops, generator = small().do.ops, torch.Generator().manual_seed(11)
    table = torch.randn(V, V, generator=generator).softmax(-1)
    guesses = torch.randn(2, V, generator=generator)
    ids, logprobs = ops.topk_logprobs(guesses, 1 if plan == "chain" else 4)
    root = torch.tensor([2], dtype=torch.int32)
    tokens, parents = ops.ddtree(logprobs[None], ids[None], root, T - 1, PLANS[plan].chain_seed)
    # the target of this test is a Markov chain: what follows a node depends on its token alone
    posterior = sampling.drawn(table[tokens[0].long()].repeat(draws, 1), generator).view(draws, T)
    many = tokens.expand(draws, -1).contiguous(), parents.expand(draws, -1).contiguous()
    path, length, following = walked(*many, posterior)
    second = torch.where(length > 1, many[0].gather(1, path[:, 1:2].clamp_min(0).long())[:, 0], following)
    assert chi_square(np.bincount(second.numpy(), minlength=V), table[2].double().numpy()) < 4
    further = length > 1
    third = torch.where(length > 2, many[0].gather(1, path[:, 2:3].clamp_min(0).long())[:, 0], following)
    for token in second[further].unique():
        of_it = third[further & (second == token)].numpy()
        assert chi_square(np.bincount(of_it, minlength=V), table[token].double().numpy()) < 4


def walked(tokens: torch.Tensor, parents: torch.Tensor, posterior: torch.Tensor):
    """ddtree_walk for one tree and many posteriors: each distinct posterior is walked once."""
    distinct, which = posterior.unique(dim=0, return_inverse=True)
    n = len(distinct)
    path, length, following = small().do.ops.ddtree_walk(tokens[:n], parents[:n], distinct, 8)
    return path[which], length[which], following[which]
