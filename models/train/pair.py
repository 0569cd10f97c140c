"""A small target and its draft from nothing but the standard library: text -> target -> its own text -> draft.

corpus     modules -> vocabulary -> tokens
target     windows of the corpus
written    what the target itself writes, greedily, after the beginnings of texts: the draft's job is to foresee this
draft      blocks at random anchors of what was written
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .. import draft as dflash
from .. import qwen35
from ..graph import capture
from . import blocks, corpus, finish, foresight, network
from .loop import Budget, Progress, Task, run
from .network import Weights

Tell = Callable[[dict[str, Any]], None]
# every four layers three are delta nets of three value heads a key head; K-quants want rows of 256
TARGET = qwen35.Config(
    4, 256, 256, 320, 2, 1, 6, True, qwen35.alternate(4), D=128, Hk=2, K=64, V=64, rotary=32, theta=1e4, context=4096
)
DRAFT = dflash.Config(3, 256, 512, 4, 2, 64, 256, (0, 1, 2, 3), *dflash.full(3), mask_token=319, theta=1e4)
# of the time given
TARGET_SHARE, DRAFT_SHARE = 0.35, 0.55


@dataclass(frozen=True)
class Sizes:
    """Of a step: B windows of T tokens for the target; for the draft B_draft texts of T_draft with A anchors each;
    texts: how many the target writes, after beginnings of `shortest` to `longest` tokens."""

    B: int = 64
    T: int = 1024
    B_draft: int = 64
    T_draft: int = 448
    A: int = 32
    texts: int = 24576
    together: int = 4096
    shortest: int = 32
    longest: int = 160
    held: int = 64


SMALL = Sizes(B=4, T=64, B_draft=4, T_draft=64, A=4, texts=16, together=8, shortest=4, longest=16, held=4)


def windows(data: torch.Tensor, B: int, T: int, random: torch.Generator) -> torch.Tensor:
    """[B, T] i64 out of the text, anywhere."""
    starts = torch.randint(len(data) - T + 1, (B,), generator=random).to(data.device)
    return data[starts[:, None] + torch.arange(T, device=data.device)].long()


def train_target(
    c: qwen35.Config,
    train: torch.Tensor,
    held: torch.Tensor,
    sizes: Sizes,
    budget: Budget,
    folder: Path,
    seed: int,
    tell: Tell,
) -> tuple[Weights, Progress]:
    device = train.device
    weights = {name: value.to(device) for name, value in network.fresh(c, seed).items()}
    tokens = torch.zeros(sizes.B, sizes.T + 1, dtype=torch.long, device=device)
    known = windows(held, max(1, min(64, len(held) // (sizes.T + 1))), sizes.T + 1, torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return perplexity(c, weights, tokens)

    @torch.no_grad()
    def look() -> dict[str, Any]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = [perplexity(c, weights, part).item() for part in known.split(16)]
        return {"held_out": round(sum(found) / len(found), 4)}

    def draw(random: torch.Generator) -> None:
        tokens.copy_(windows(train, sizes.B, sizes.T + 1, random))

    task = Task("target", weights, draw, loss, look, 3e-3)
    return weights, run(task, budget, folder, seed, tell)


def perplexity(c: qwen35.Config, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """Nats a token of texts [B, T + 1]."""
    hidden, _ = network.forward(c, weights, tokens[:, :-1])
    logits = network.head(c, weights, hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@dataclass(frozen=True)
class Written:
    """tokens: [n, T] i16; lengths: [n], how many of them were given."""

    tokens: torch.Tensor
    lengths: torch.Tensor


@torch.no_grad()
def write(c: qwen35.Config, weights: Weights, begun: torch.Tensor, lengths: torch.Tensor, together: int) -> Written:
    """Texts [n, T]: the first `lengths` tokens of each stay, the target goes on from there, greedily."""
    n, T = begun.shape
    device = begun.device
    writer = network.Writer(c, weights, min(together, n), T)
    out = torch.zeros(len(writer.tokens), T, dtype=torch.long, device=device)
    given, length = torch.zeros_like(out), torch.zeros(len(out), dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            logits = writer.step()
        # the logits that count are the f32 ones of equal inputs: ties are the reader's
        chosen = torch.where(writer.p < length, given.index_select(1, writer.p)[:, 0], logits.argmax(-1))
        writer.tokens.copy_(chosen)
        out.index_copy_(1, writer.p, chosen[:, None])

    captured, found = capture(step, device), []
    for rows, some in zip(begun.split(len(out)), lengths.split(len(out)), strict=True):
        writer.reset()
        given[: len(rows)], length[: len(rows)] = rows.long(), some
        writer.tokens.copy_(given[:, 0])
        out[:, 0] = given[:, 0]
        for _ in range(T - 1):
            captured()
        found.append(out[: len(rows)].short())
    return Written(torch.cat(found), lengths)


def written(
    c: qwen35.Config, weights: Weights, data: torch.Tensor, n: int, sizes: Sizes, seed: int, fixed: int = 0
) -> Written:
    """n texts that the target wrote after beginnings from the data; `fixed`: all of that length."""
    random = torch.Generator().manual_seed(seed)
    begun = windows(data, n, sizes.T_draft, random)
    lengths = torch.randint(sizes.shortest, sizes.longest + 1, (n,), generator=random).to(data.device)
    return write(c, weights, begun, lengths.fill_(fixed) if fixed else lengths, sizes.together)


def train_draft(
    c: dflash.Config,
    target: qwen35.Config,
    frozen: Weights,
    pool: Written,
    held: Written,
    sizes: Sizes,
    budget: Budget,
    folder: Path,
    seed: int,
    tell: Tell,
) -> tuple[Weights, Progress]:
    device = pool.tokens.device
    weights = {name: value.to(device) for name, value in blocks.fresh(c, seed).items()}
    tokens = torch.zeros(sizes.B_draft, pool.tokens.shape[1], dtype=torch.long, device=device)
    anchors = torch.zeros(sizes.B_draft, sizes.A, dtype=torch.long, device=device)

    def draw(random: torch.Generator) -> None:
        rows = torch.randint(len(pool.tokens), (sizes.B_draft,), generator=random).to(device)
        share = torch.rand(anchors.shape, generator=random).to(device)
        first = pool.lengths[rows, None]
        tokens.copy_(pool.tokens[rows])
        anchors.copy_(first + (share * (tokens.shape[1] - c.block + 1 - first)).long())

    def loss() -> torch.Tensor:
        with torch.no_grad():
            _, features = network.forward(target, frozen, tokens, c.captured)
        assert features is not None
        embedding = frozen["token_embd.weight"]
        hidden = blocks.forward(c, weights, embedding, features, tokens.gather(1, anchors), anchors)
        logits = network.head(target, frozen, hidden[:, :, 1:])
        return blocks.loss(logits, blocks.labels(tokens, anchors, c.block))

    def look() -> dict[str, Any]:
        found = foresight.measure(c, weights, target, frozen, held.tokens.long(), int(held.lengths[0]))
        return {"chain": found.chain, "tree": found.tree, "rows": found.rows}

    return weights, run(Task("draft", weights, draw, loss, look, 2e-3, 0.05), budget, folder, seed, tell)


def make(
    folder: Path,
    minutes: float,
    seed: int,
    device: torch.device,
    tell: Tell,
    library: Path | None = None,
    steps: int = 0,
    sizes: Sizes | None = None,
) -> list[Path]:
    """Everything, from the library's text to the files of the pair in `folder`; what is finished is not done again."""
    sizes, files, started = sizes or Sizes(), corpus.standard_library(library), time.perf_counter()
    texts, held_texts = corpus.divided(files)
    # a quarter of the files shows what is frequent
    words = corpus.vocabulary(texts[::4], TARGET.vocab)
    train, held = (words.encode(some).to(device) for some in (texts, held_texts))
    tell({"run": "corpus", "files": len(files), "tokens": len(train), "held_out_tokens": len(held)})
    budgets = [Budget(60 * minutes * share, steps) for share in (TARGET_SHARE, DRAFT_SHARE)]
    runs = folder / "runs"
    weights, of_target = train_target(TARGET, train, held, sizes, budgets[0], runs, seed, tell)
    pool = written(TARGET, weights, train, sizes.texts, sizes, seed + 1)
    seen = written(TARGET, weights, held, sizes.held, sizes, seed + 2, fixed=sizes.longest // 2)
    tell({"run": "written", "texts": len(pool.tokens), "seconds": round(time.perf_counter() - started, 1)})
    drafted, of_draft = train_draft(DRAFT, TARGET, weights, pool, seen, sizes, budgets[1], runs, seed + 3, tell)
    tokens, characters = len(held), sum(map(len, held_texts))
    last = of_target.log[-1]
    facts = {
        "name": finish.NAME,
        "data": {
            "source": f"the standard library of {library.name if library else f'python{platform.python_version()}'}",
            "files": len(files),
            "trained_tokens": len(train),
            "held_out": sorted(corpus.held_out()),
            "held_out_tokens": tokens,
        },
        "recipe": {
            "command": f"draftwood train --minutes {minutes:g} --seed {seed}"
            + (f" --library …/{library.name}" if library else ""),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - started, 1),
            "sizes": vars(sizes),
        },
        "target": {
            "config": vars(TARGET),
            "parameters": sum(weight.numel() for weight in weights.values()),
            "steps": of_target.step,
            "held_out_loss": last["held_out"],
            "held_out_bits_per_character": round(last["held_out"] / math.log(2) * tokens / characters, 4),
            "log": of_target.log,
        },
        "draft": {
            "config": vars(DRAFT),
            "parameters": sum(weight.numel() for weight in drafted.values()),
            "steps": of_draft.step,
            "accuracy_of_rows_1_2_4_8_15": of_draft.log[-1]["rows"],
            "accept_length": {mode: of_draft.log[-1][mode] for mode in ("chain", "tree")},
            "log": of_draft.log,
        },
    }
    return finish.write(folder, (TARGET, weights), (DRAFT, drafted), words, facts)
