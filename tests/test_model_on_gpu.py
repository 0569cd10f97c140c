"""The whole model by its kernels on a GPU: parity, losslessness, states, captured steps. Without a GPU, skipped."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.models import decode, draft, gguf, state, target, target_files
from draftwood.models.arithmetic import Precision
from draftwood.models.decode import Plan
from draftwood.models.generate import Generator
from draftwood.models.graph import capture
from draftwood.models.sampling import Sampling
from draftwood.models.weights import Rows
from draftwood.perf.waterfall import profile
from draftwood.reference import tree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GOLDEN = Path(__file__).parent / "golden"
GPU = torch.device("cuda")
CAPTURED = (0, 1, 3)
PLANS = {
    "chain": decode.chain(8),
    "tree": Plan("tree", budget=22),
    "pure tree": Plan("tree", budget=12, branches=4, chain_seed=False),
    "replayed": Plan("tree", budget=22, strategy="replay"),
}
# rms of the logits' error; what a row alone and the same row in a batch may differ by
LIMITS = {"f32": (5e-4, 2e-3), "exact": (0.045, 0.05), "bf16": (0.045, 0.2), "int8": (0.10, 0.6)}


@cache
def golden(precision: str) -> target.Target:
    return target_files.load(gguf.load(GOLDEN / "tiny-qwen35-q4_k_m.gguf"), GPU, precision, captured=CAPTURED)


@cache
def drafter() -> draft.Draft:
    c = draft.Config(2, 256, 256, 4, 2, 64, 256, CAPTURED, (0, 8), (False, True), mask_token=300, theta=1e7)
    shapes, generator = draft.tensors(c), torch.Generator().manual_seed(0)

    def take(name: str) -> Rows:
        noise = torch.randn(shapes[name], generator=generator)
        return (
            Rows((0.05 * noise).bfloat16().to(GPU), "bf16")
            if noise.dim() == 2
            else Rows(1 + 0.1 * noise.to(GPU), "f32")
        )

    return draft.assemble(c, take, GPU, Precision(torch.bfloat16, torch.bfloat16))


def fresh(model: target.Target, context: int = 512) -> state.State:
    return state.fresh(model.config, context, GPU, model.do.precision.activations, captured=len(CAPTURED), ring=512)


@pytest.mark.parametrize("precision", LIMITS)
def test_prefill_and_decoding_give_the_golden_logits(precision):
    expected = np.load(GOLDEN / "tiny-qwen35-expected.npz")
    ids, wanted = torch.from_numpy(expected["ids"]).int().to(GPU), torch.from_numpy(expected["logits"])
    model = golden(precision)
    for sizes in ([96], [33, 63], [1] * 96):
        held, found = fresh(model), []
        for part in ids[:96].split(sizes):
            batch = target.line(held, part)
            hidden, trail = target.forward(model, held, batch)
            target.commit_line(model, held, batch, trail, held.root)
            found.append(target.logits(model, hidden).float().cpu())
        error = (torch.cat(found) - wanted[:96]).double()
        assert error.square().mean().sqrt() <= LIMITS[precision][0], sizes
        assert precision != "f32" or error.abs().max() <= 5e-3


def knowing(text: list[int], first: int, vocab: int) -> decode.Propose:
    """A draft that knows the text from position `first` on, and is wrong now and then."""

    def propose(held: state.State) -> torch.Tensor:
        begin = int(held.start) - first + 1
        rows = torch.tensor([*text[begin : begin + 7], *[0] * 7][:7], device=GPU)
        rows[(begin * 5) % 11 % 7 :] += begin % 3
        return 9 * torch.nn.functional.one_hot(rows % vocab, vocab).half()

    return propose


def autoregressive(model: target.Target, prompt: torch.Tensor, count: int) -> list[int]:
    held, choose = fresh(model), decode.greedy(model)
    held.root.copy_(choose(target.prefill(model, held, prompt), None))
    for _ in range(count):
        decode.autoregress(model, held, choose)
    return held.tokens[len(prompt) : len(prompt) + count].tolist()


@pytest.mark.parametrize("precision", ["f32", "exact"])
def test_greedy_chains_and_trees_commit_the_autoregressive_text_up_to_ties(precision):
    model, generator, count, steps = golden(precision), torch.Generator().manual_seed(0), 24, 0
    vocab = model.config.vocab
    for number in range(40):
        prompt = torch.randint(0, vocab, (1 + number % 9,), generator=generator).int().to(GPU)
        text = autoregressive(model, prompt, count + 8)
        if number == 0:
            assert autoregressive(model, prompt, count + 8) == text
        plan, held, choose = list(PLANS.values())[number % len(PLANS)], fresh(model), decode.greedy(model)
        held.root.copy_(choose(target.prefill(model, held, prompt), None))
        while int(held.start) < len(prompt) + count:
            decode.speculate(model, knowing(text, len(prompt), vocab), held, plan, choose)
            steps += 1
        found = held.tokens[len(prompt) : len(prompt) + count].tolist()
        at = next((i for i, (a, b) in enumerate(zip(text, found, strict=False)) if a != b), None)
        if at is not None:
            context = torch.cat((prompt, torch.tensor(text[:at], dtype=torch.int32, device=GPU)))
            logits = target.prefill(model, fresh(model), context)[0].float()
            assert (logits[text[at]] - logits[found[at]]).abs() <= LIMITS[precision][1], (number, at)
    assert 40 * count / steps > 1.5


@pytest.mark.parametrize("strategy", ["wy", "replay"])
def test_a_hundred_steps_of_trees_end_in_the_state_of_their_text_run_as_a_line(strategy):
    generator, model = torch.Generator().manual_seed(7), golden("f32")
    held, alone = fresh(model, 1024), fresh(model, 1024)
    for _ in range(100):
        parents = tree.draw("ddtree", 12, generator)
        tokens = torch.randint(0, model.config.vocab, (12,), generator=generator).int().to(GPU)
        path = tree.path(parents, int(torch.randint(0, 12, (1,), generator=generator)))
        batch = target.tree(model.do.ops, held, tokens[None], parents[None].to(GPU))
        _, trail = target.forward(model, held, batch, strategy)
        padded = torch.tensor([[*path, *[-1] * (16 - len(path))]], dtype=torch.int32, device=GPU)
        length = torch.tensor([len(path)], dtype=torch.int32, device=GPU)
        target.commit(model, held, batch, trail, padded, length, held.root, strategy)
    n = int(held.start)
    target.prefill(model, alone, held.tokens[:n].clone(), chunk=64)
    assert n > 200 and int(alone.start) == n and torch.equal(alone.tokens[:n], held.tokens[:n])
    for one, other in zip(held.layers, alone.layers, strict=True):
        for name, value in vars(one).items():
            rows = slice(None) if name in ("conv", "delta") else (slice(None), slice(0, n))
            torch.testing.assert_close(value[rows], getattr(other, name)[rows], rtol=0.02, atol=0.02)
    torch.testing.assert_close(held.features.float(), alone.features.float(), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("mode", ["ar", "chain", "tree"])
def test_a_captured_step_makes_the_host_wait_for_nothing(mode):
    plan = {"ar": Plan("ar"), "chain": decode.chain(), "tree": Plan("tree", budget=22)}[mode]
    writer = Generator(golden("exact"), drafter(), plan, context=512)
    prompt = list(range(7))
    first = [token for part in writer.stream(prompt, 40) for token in part]
    assert first == [token for part in writer.stream(prompt, 40) for token in part]
    _, calls = profile(writer.step, GPU)
    assert calls.pop("cudaGraphLaunch") == 1
    assert not [name for name in calls if "Synchronize" in name or "Memcpy" in name], calls
    torch.cuda.set_sync_debug_mode("error")
    try:
        writer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sampled_steps_are_repeatable_and_draw_anew():
    rule = Sampling(1.0, 40, 0.9, 0.02, 1.1, 0.1, 0.1, seed=5)
    for plan in (Plan("ar"), Plan("tree", budget=22)):
        writer = Generator(golden("exact"), drafter(), plan, rule, context=256)
        texts = [[token for part in writer.stream([1, 2, 3], 32) for token in part] for _ in range(2)]
        assert texts[0] == texts[1] and len(set(texts[0])) > 8


def test_a_step_of_any_kind_is_captured_as_it_runs():
    """One captured step leaves what the same step leaves when it is launched kernel by kernel."""
    model = golden("exact")
    states = []
    for captured in (False, True):
        held = fresh(model)
        choose = decode.greedy(model)
        held.root.copy_(choose(target.prefill(model, held, torch.arange(9, device=GPU).int()), None))
        kept = [tensor.clone() for tensor in held.tensors()]

        def act(held: state.State = held, choose: decode.Choose = choose) -> None:
            decode.autoregress(model, held, choose)

        run = capture(act, GPU) if captured else act
        for tensor, value in zip(held.tensors(), kept, strict=True):
            tensor.copy_(value)
        for _ in range(20):
            run()
        states.append(held)
    assert all(torch.equal(a, b) for a, b in zip(*(held.tensors() for held in states), strict=True))
