"""A small target and its draft from nothing but the standard library: text -> target -> its own text -> draft.

corpus     modules -> vocabulary -> tokens
target     windows of the corpus
written    what the target itself writes, greedily, after the beginnings of texts: the draft's job is to foresee this
draft      blocks at random anchors of what was written
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .. import draft as dflash
from .. import qwen35
from ..graph import capture
from . import blocks, foresight, network
from .loop import Budget, Progress, Task, run
from .network import Weights

Tell = Callable[[dict[str, Any]], None]
# every four layers three are delta nets of three value heads a key head; K-quants want rows of 256
TARGET = qwen35.Config(
    4, 256, 512, 512, 4, 2, 6, True, qwen35.alternate(4), D=64, Hk=2, K=64, V=64, rotary=16, theta=1e4, context=4096
)
DRAFT = dflash.Config(2, 256, 512, 4, 1, 64, 256, (0, 2, 3), *dflash.full(2), mask_token=511, theta=1e4)


@dataclass(frozen=True)
class Sizes:
    """Of a step: B windows of T tokens for the target; for the draft B_draft texts of T_draft with A anchors each;
    texts: how many the target writes, after beginnings of `shortest` to `longest` tokens."""

    B: int = 64
    T: int = 1024
    B_draft: int = 64
    T_draft: int = 640
    A: int = 24
    texts: int = 16384
    together: int = 2048
    shortest: int = 32
    longest: int = 256
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


def beginnings(texts: Sequence[str]) -> list[str]:
    """What a reader recognises as the beginning of a module: for show."""
    return [text[:200] for text in texts]
