"""Training of the small pair: its mathematics against the ops' own, what a draft may see, files that say what was
trained, runs that go on where they stopped."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from draftwood.models import api, draft, draft_files, export, gguf, qwen35, state, target, target_files
from draftwood.models.arithmetic import PRECISIONS
from draftwood.models.train import blocks, corpus, delta, foresight, loop, network, pair
from draftwood.reference import delta_rule
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")
TARGET = qwen35.Config(
    4, 64, 64, 300, 2, 1, 6, True, qwen35.alternate(4), D=32, Hk=2, K=16, V=16, rotary=8, theta=1e4, context=256
)
DRAFT = draft.Config(2, 64, 64, 2, 1, 32, 64, (0, 2, 3), *draft.full(2), mask_token=299, theta=1e4, block=8)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stirred(weights: network.Weights) -> network.Weights:
    """With norms that are not all 1."""
    return {n: w + 0.2 * noise(*w.shape, dtype=w.dtype) if n.endswith("norm.weight") else w for n, w in weights.items()}


def save(folder: Path, c: qwen35.Config, weights: network.Weights, mix: qwen35.Mix | None = None) -> Path:
    words = export.tokenizer_metadata(*vocabulary(), 296, corpus.PRE)
    file = folder / "target.gguf"
    export.target(file, c, network.stored(weights), words, "tiny", mix or export.all_in("f32"), "f32")
    return file


def vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], list[int]]:
    found = corpus.vocabulary([Path(__file__).read_text()], 300)
    return found.tokens, found.merges, found.kinds


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[target.Target, network.Weights]:
    weights = stirred(network.fresh(TARGET, 0))
    file = gguf.load(save(tmp_path_factory.mktemp("target"), TARGET, weights))
    return target_files.load(file, CPU, "f32", "reference", DRAFT.captured), weights


# -- mathematics -------------------------------------------------------------------------------------------------------


def drawn(T: int, seed: int) -> tuple[torch.Tensor, ...]:
    B, H, K, V = 2, 2, 8, 16
    q, k, v = noise(B, T, H, K, seed=seed), noise(B, T, H, K, seed=seed + 1), noise(B, T, H, V, seed=seed + 2)
    g, beta = -noise(B, T, H, seed=seed + 3).exp(), noise(B, T, H, seed=seed + 4).sigmoid()
    return q, k / k.norm(dim=-1, keepdim=True), v, g, beta


def stepped(q, k, v, g, beta) -> torch.Tensor:
    """The reference's recurrence, token by token."""
    S, rows = q.new_zeros(*q.shape[::2], v.shape[-1], q.shape[-1]), []
    for t in range(q.shape[1]):
        o, _, S = delta_rule.step(S, *(x[:, t] for x in (q, k, v, g, beta)))
        rows.append(o)
    return torch.stack(rows, 1)


@given(st.integers(1, 100), st.sampled_from((16, 32, 64)), st.integers(0, 99))
def test_chunks_of_the_delta_rule_do_what_its_recurrence_does(T, chunk, seed):
    inputs = drawn(T, seed)
    assert torch.allclose(delta.chunked(*inputs, chunk), stepped(*inputs), rtol=0, atol=1e-12)


def test_chunks_have_the_gradients_of_the_recurrence():
    grads = []
    for rule in (lambda *x: delta.chunked(*x, 16), stepped):
        inputs = [x.requires_grad_() for x in drawn(40, 7)]
        grads.append(torch.autograd.grad(rule(*inputs).sin().sum(), inputs))
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_one_step_in_place_is_the_references():
    q, k, v, g, beta = (x[:, 0] for x in drawn(1, 3))
    S = noise(2, 2, 8, 16)
    o, _, later = delta_rule.step(S.mT, q, k, v, g, beta)
    assert torch.allclose(delta.recurrent(S, q, k, v, g, beta), o) and torch.allclose(S.mT, later)


def test_token_by_token_the_target_says_what_it_says_of_the_whole_text():
    weights, tokens = stirred(network.fresh(TARGET, 1)), torch.randint(0, 290, (2, 20))
    hidden, _ = network.forward(TARGET, weights, tokens)
    writer, rows = network.Writer(TARGET, weights, 2, 20), []
    for t in range(20):
        writer.tokens.copy_(tokens[:, t])
        rows.append(writer.step())
    assert torch.allclose(torch.stack(rows, 1), network.head(TARGET, weights, hidden), atol=1e-4)


# -- what was trained is what runs -------------------------------------------------------------------------------------


def test_an_exported_target_computes_what_was_trained(saved):
    model, weights = saved
    tokens = torch.randint(0, 290, (1, 70), generator=torch.Generator().manual_seed(0))
    hidden, features = network.forward(TARGET, weights, tokens, DRAFT.captured)
    held = state.fresh(TARGET, 80, CPU, torch.float32, ("f16", "f16"), 3)
    rows, trail = target.forward(model, held, target.line(held, tokens[0].int()))
    wanted = network.head(TARGET, weights, hidden)[0]
    assert wanted.std() > 0.3 and torch.allclose(target.logits(model, rows), wanted, atol=2e-3)
    assert torch.allclose(torch.cat(trail.features, 1), features[0], atol=5e-3)


@pytest.mark.parametrize("anchor", [1, 2, 9, 30])
def test_an_exported_draft_proposes_what_was_trained(saved, tmp_path, anchor):
    """Position for position: what a block sees in training is what it sees in a step."""
    model, weights = saved
    drafted = stirred(blocks.fresh(DRAFT, 2))
    export.draft_gguf(tmp_path / "draft.gguf", DRAFT, drafted, "tiny", export.all_in("f32"), "f32")
    drafter = draft_files.load(tmp_path / "draft.gguf", CPU, PRECISIONS["f32"], "reference")
    tokens = torch.randint(0, 290, (1, 40), generator=torch.Generator().manual_seed(1))
    _, features = network.forward(TARGET, weights, tokens, DRAFT.captured)
    at = torch.tensor([[anchor]])
    # rings hold features as bf16
    near = features.bfloat16().float()
    hidden = blocks.forward(DRAFT, drafted, weights["token_embd.weight"], near, tokens.gather(1, at), at)
    rings = draft.rings(DRAFT, CPU, torch.float16, 64)
    held = state.fresh(TARGET, 64, CPU, torch.float32, ("f16", "f16"), 3, 64, rings)
    target.prefill(model, held, tokens[0, :anchor].int())
    draft.absorb(drafter, held, 0, anchor)
    held.root.copy_(tokens[0, anchor])
    found = draft.forward(drafter, model, held)
    assert torch.allclose(found, network.head(TARGET, weights, hidden[0, 0, 1:]), atol=0.03)


def test_a_draft_in_safetensors_is_the_one_in_gguf(tmp_path):
    drafted = {name: weight.bfloat16().float() for name, weight in stirred(blocks.fresh(DRAFT, 2)).items()}
    export.draft_gguf(tmp_path / "draft.gguf", DRAFT, drafted, "tiny", export.all_in("bf16"), "bf16")
    export.draft_safetensors(tmp_path / "draft", DRAFT, drafted)
    one, other = (
        draft_files.load(tmp_path / name, CPU, PRECISIONS["f32"], "reference") for name in ("draft.gguf", "draft")
    )
    # a GGUF's eps is an f32
    assert dataclasses.replace(one.config, eps=DRAFT.eps) == other.config == DRAFT
    assert torch.equal(one.fc.data, other.fc.data) and torch.equal(one.layers[1].down.data, other.layers[1].down.data)


def test_a_foreseen_accept_length_is_the_one_that_decoding_has(saved, tmp_path):
    """On a text that the target wrote, chain and tree keep as many tokens as was computed without running them."""
    weights = saved[1]
    sizes = dataclasses.replace(pair.SMALL, T_draft=60, together=2)
    begun = torch.randint(0, 290, (2, 200), generator=torch.Generator().manual_seed(3)).flatten()
    pool = pair.written(TARGET, weights, begun, 6, sizes, 0, fixed=10)
    # the draft learns the texts by heart: then there is something to accept
    drafted, _ = pair.train_draft(
        DRAFT, TARGET, weights, pool, pool, sizes, loop.Budget(0, 40), tmp_path, 0, lambda row: None
    )
    found = foresight.measure(DRAFT, drafted, TARGET, weights, pool.tokens[:1].long(), 10)
    export.draft_gguf(tmp_path / "draft.gguf", DRAFT, drafted, "tiny", export.all_in("f32"), "f32")
    file = save(tmp_path, TARGET, weights)
    span = pool.tokens.shape[1] - DRAFT.block + 1 - 10
    for mode, wanted in (("chain", found.chain), ("tree", found.tree)):
        generator = api.open_text(file, tmp_path / "draft.gguf", mode=mode, context=128, kv="f16").generator
        tokens = [token for part in generator.stream(pool.tokens[0, :10].tolist(), span) for token in part]
        assert tokens == pool.tokens[0, 10 : 10 + span].tolist()
        assert generator.stats.accept_length == pytest.approx(wanted, abs=0.01), mode
    assert found.tree >= found.chain > 1.2


def test_a_written_file_is_one_that_others_read(tmp_path):
    import gguf as peer

    weights = network.fresh(TARGET, 0)
    file = save(tmp_path, TARGET, weights, export.mixed(qwen35.q4_k_m, tied=True))
    reader = peer.GGUFReader(file)
    assert reader.fields["qwen35.ssm.time_step_rank"].contents() == 6
    assert reader.fields["qwen35.attention.recurrent_layers"].contents() == [True, True, True, False]
    assert reader.fields["tokenizer.ggml.tokens"].contents() == list(vocabulary()[0])
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert set(held) == set(qwen35.tensors(TARGET))
    # rows of 64 are no K-quants
    assert held["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0" and held["blk.0.ssm_a"].tensor_type.name == "F32"
    values = peer.dequantize(held["blk.0.ffn_up.weight"].data, held["blk.0.ffn_up.weight"].tensor_type)
    assert abs(values - weights["blk.0.ffn_up.weight"].numpy()).max() < 0.01
    assert gguf.load(file).metadata["tokenizer.ggml.merges"] == [" ".join(pair) for pair in vocabulary()[1]]


def test_a_text_has_the_same_tokens_in_training_and_from_the_file(tmp_path):
    from draftwood.models import text

    words = text.load(gguf.load(save(tmp_path, TARGET, network.fresh(TARGET, 0))))
    found = corpus.vocabulary([Path(__file__).read_text()], 300)
    source = "def f(x):\n    return x + 12  # é\n"
    ids = found.encode([source]).tolist()
    assert words.encode(source) == ids[:-1] and ids[-1] in words.ends and words.decode(ids[:-1]) == source


# -- leaks -------------------------------------------------------------------------------------------------------------


def gradient(anchors: torch.Tensor, block: int, T: int = 30) -> torch.Tensor:
    """[T]: how much the loss of one block depends on the features of each position."""
    drafted = stirred(blocks.fresh(DRAFT, 0))
    features = noise(1, T, 3 * 64, dtype=torch.float32).requires_grad_()
    roots = torch.arange(anchors.shape[1])[None]
    embedding = noise(300, 64, seed=1, dtype=torch.float32)
    hidden = blocks.forward(DRAFT, drafted, embedding, features, roots, anchors)
    logits = (hidden[:, block : block + 1, 1:] @ embedding.T) / 8
    loss = blocks.loss(logits, torch.ones(1, 1, DRAFT.block - 1, dtype=torch.long))
    return torch.autograd.grad(loss, features)[0][0].abs().amax(-1)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 5))
def test_no_feature_at_or_after_the_anchor_reaches_a_blocks_loss(anchors, which):
    """However blocks overlap: what counts is the position, not the block's number."""
    which %= len(anchors)
    seen = gradient(torch.tensor([anchors]), which)
    assert seen[anchors[which] :].max() == 0
    # nor is one too few visible: the feature just before the anchor does reach it
    assert bool((seen[: anchors[which]] > 0).all())


def test_no_block_sees_another():
    drafted, features = stirred(blocks.fresh(DRAFT, 0)), noise(1, 30, 3 * 64, dtype=torch.float32)
    embedding, anchors = noise(300, 64, seed=1, dtype=torch.float32), torch.tensor([[9, 9, 12, 3]])
    outs = [
        blocks.forward(DRAFT, drafted, embedding, features, torch.tensor([roots]), anchors)
        for roots in ([5, 6, 7, 8], [5, 9, 10, 11])
    ]
    assert torch.equal(outs[0][:, 0], outs[1][:, 0]) and not torch.allclose(outs[0][:, 1], outs[1][:, 1])


def test_a_block_is_given_its_root_and_masks_and_asked_for_what_follows():
    tokens, anchors = torch.arange(100, 130)[None], torch.tensor([[4, 20]])
    assert blocks.labels(tokens, anchors, 4).tolist() == [[[105, 106, 107], [121, 122, 123]]]
    logits = torch.zeros(1, 1, 7, 300)
    logits[..., 0, 5] = 100.0
    early = blocks.loss(logits, torch.full((1, 1, 7), 5))
    logits = logits.flip(2)
    # the first row weighs most
    assert early < blocks.loss(logits, torch.full((1, 1, 7), 5))


# -- data and runs -----------------------------------------------------------------------------------------------------


def test_a_file_belongs_to_the_module_at_the_top_of_its_path_and_tests_to_what_they_test():
    of = {"csv.py": "csv", "json/decoder.py": "json", "test/test_csv.py": "csv", "test/test_json/test_dump.py": "json"}
    assert {path: corpus.module(Path(path)) for path in of} == of


def test_nothing_of_the_modules_held_out_is_trained_on():
    names = ("csv.py", "heapq.py", "json/decoder.py", "ast.py", "test/test_csv.py", "test/test_ast.py")
    train, held = corpus.divided({Path(name): name for name in names})
    assert train == ["ast.py", "test/test_ast.py"] and held == ["csv.py", "heapq.py", "json/decoder.py"]


def test_the_library_is_read_from_the_interpreter_and_holds_every_module_held_out():
    found = corpus.standard_library(modules=corpus.held_out())
    assert {corpus.module(path) for path in found} == corpus.held_out() and len(corpus.held_out()) >= 20
    assert not any(corpus.LEFT_OUT & set(path.parts) for path in found)
    assert "class JSONDecoder" in found[Path("json/decoder.py")]


def tokens_of(text: str) -> torch.Tensor:
    return corpus.Vocabulary(*vocabulary()[:2]).encode([text])


def test_a_target_learns_a_text_by_heart(tmp_path):
    data = tokens_of("for name, value in sorted(found.items()):\n    print(name, value)\n" * 20)
    told: list[dict] = []
    sizes = dataclasses.replace(pair.SMALL, T=48)
    _, progress = pair.train_target(TARGET, data, data, sizes, loop.Budget(0, 40), tmp_path, 0, told.append)
    assert progress.log[-1]["held_out"] < 1 and told[-1]["run"] == "target" and progress.step == 40


def test_a_run_goes_on_where_it_stopped(tmp_path):
    data, finals = tokens_of("import sys\n" * 200), []
    for stops in ((6,), (3, 6)):
        folder = tmp_path / str(len(stops))
        for stop in stops:
            # the schedule is that of six steps; stopping is what a kill would do
            budget = loop.Budget(0, 6)
            weights, progress = train_until(data, budget, folder, stop)
        assert progress.step == 6
        finals.append(weights)
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def train_until(data: torch.Tensor, budget: loop.Budget, folder: Path, stop: int):
    class Enough(Exception):
        pass

    def tell(row):
        if row["step"] == stop < budget.steps:
            raise Enough

    weights = network.fresh(TARGET, 0)
    tokens = torch.zeros(2, 33, dtype=torch.long)
    task = loop.Task(
        "target",
        weights,
        lambda random: tokens.copy_(pair.windows(data, 2, 33, random)),
        lambda: pair.perplexity(TARGET, weights, tokens),
        dict,
        1e-3,
    )
    progress = loop.Progress()
    with contextlib.suppress(Enough):
        progress = loop.run(task, budget, folder, 0, tell, every=0)
    return {name: weight.detach() for name, weight in weights.items()}, progress
