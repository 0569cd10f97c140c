"""How far a draft foresees texts that are already written: accept lengths of chain and tree, without running a step.

A greedy walk keeps what the text says, so the text itself is the target's answer: from a position on, the tokens kept
are the longest path of the proposal that the text agrees with, and the next step begins after them and the root.
"""

from dataclasses import dataclass

import torch

from .. import draft as dflash
from .. import qwen35
from ..ops import table
from . import blocks, network
from .network import Weights


@dataclass(frozen=True)
class Foresight:
    """Tokens a step of chain and tree; `rows`: share of rows 1, 2, 4, 8, 15 that name the right token."""

    chain: float
    tree: float
    rows: tuple[float, ...]


@torch.no_grad()
def measure(
    c: dflash.Config,
    weights: Weights,
    target: qwen35.Config,
    frozen: Weights,
    tokens: torch.Tensor,
    begin: int,
    budget: int = 22,
    branches: int = 8,
) -> Foresight:
    """tokens: [B, T], of which the first `begin` were given; every later position begins a block here."""
    device, span = tokens.device, tokens.shape[1] - c.block + 1 - begin
    guesses = []
    for some in tokens.split(4):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            anchors = (begin + torch.arange(span, device=device)).expand(len(some), -1)
            _, features = network.forward(target, frozen, some, c.captured)
            assert features is not None
            roots = some.gather(1, anchors)
            hidden = blocks.forward(c, weights, frozen["token_embd.weight"], features, roots, anchors)
            guesses.append(network.head(target, frozen, hidden[:, :, 1:]).float().log_softmax(-1))
    logits = torch.cat(guesses)
    anchors = (begin + torch.arange(span, device=device)).expand(len(tokens), -1)
    right = blocks.labels(tokens, anchors, c.block)
    logprobs, ids = logits.topk(branches, -1)
    hits = ids[..., 0] == right
    chain = hits.long().cumprod(-1).sum(-1)
    tree = _kept(logprobs.flatten(0, 1), ids.flatten(0, 1), right.flatten(0, 1), budget).view_as(chain)
    rows = tuple(round(hits[..., k - 1].float().mean().item(), 4) for k in (1, 2, 4, 8, c.block - 1) if k < c.block)
    return Foresight(_walked(chain), _walked(tree), rows)


def _kept(logprobs: torch.Tensor, ids: torch.Tensor, right: torch.Tensor, budget: int) -> torch.Tensor:
    """[N]: tokens of trees, from logprobs and ids [N, L, K], that agree with the texts `right` [N, L]."""
    ops = table("kernels" if ids.is_cuda else "reference")
    root = torch.zeros(len(ids), dtype=torch.int32, device=ids.device)
    tokens, parents = ops.ddtree(logprobs.contiguous(), ids.int().contiguous(), root, budget, True)
    depth = torch.zeros_like(parents)
    agrees = torch.zeros(parents.shape, dtype=torch.bool, device=ids.device)
    agrees[:, 0] = True
    for node in range(1, parents.shape[1]):
        parent = parents[:, node : node + 1].clamp_min(0).long()
        depth[:, node] = depth.gather(1, parent)[:, 0] + 1
        wanted = right.gather(1, (depth[:, node : node + 1].long() - 1).clamp_max(right.shape[1] - 1))[:, 0]
        agrees[:, node] = agrees.gather(1, parent)[:, 0] & (tokens[:, node] == wanted) & (parents[:, node] >= 0)
    return (depth * agrees).amax(1)


def _walked(kept: torch.Tensor) -> float:
    """kept: [B, span] after every position -> tokens a step of walks from the first position on."""
    span = kept.shape[1]
    steps = tokens = 0
    for row in kept.tolist():
        at = 0
        while at < span:
            at, steps = at + row[at] + 1, steps + 1
        tokens += min(at, span)
    return round(tokens / steps, 3)
