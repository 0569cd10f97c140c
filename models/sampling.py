"""Which token the target chooses: the most probable, or one drawn from its distribution after the usual restrictions.

    logits -> penalties -> top-k -> softmax(. / temperature) -> top-p -> min-p -> draw

All on the device and of fixed shapes, so that it is part of a captured step. A row of a tree is chosen for as if its
path were the text: penalties count the committed tokens and the row's own ancestors. Since every row draws by the
target's own rule, what a walk through the tree commits is distributed as if drawn token by token.
"""

from dataclasses import dataclass

import torch

from .decode import Choose, greedy
from .state import State
from .target import Batch, Target


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is the most probable token; top_k 0, top_p 1, min_p 0, repetition 1, frequency 0 and presence 0
    change nothing; `last` tokens of the text count for penalties; ids from `vocab` on are never drawn (0: all are)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    last: int = 256
    vocab: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = 0 <= self.top_p <= 1 and 0 <= self.min_p <= 1 and self.repetition > 0
        if not (ranges and self.temperature >= 0 and self.top_k >= 0 and self.last >= 1):
            raise ValueError(f"no such sampling: {self}")

    @property
    def penalises(self) -> bool:
        return (self.repetition, self.frequency, self.presence) != (1.0, 0.0, 0.0)


def sampler(sampling: Sampling, target: Target, state: State, generator: torch.Generator) -> Choose:
    """The rule as a function of logits [T, vocab] and the rows they belong to."""
    if sampling.temperature == 0 and not sampling.penalises and not sampling.vocab:
        return greedy(target)

    def choose(logits: torch.Tensor, batch: Batch | None) -> torch.Tensor:
        scores = logits.float()
        if sampling.vocab:
            scores[:, sampling.vocab :] = float("-inf")
        if sampling.penalises:
            scores = penalised(scores, counts(state, batch, scores.shape, sampling.last), sampling)
        if sampling.temperature == 0:
            return scores.argmax(-1).int()
        return drawn(restricted(scores, sampling), generator)

    return choose


def counts(state: State, batch: Batch | None, shape: torch.Size, last: int) -> torch.Tensor:
    """[T, vocab] f32: how often each token stands among the last committed ones and the row's ancestors."""
    rows = state.start - 1 - state.counting[:last]
    tokens, real = state.tokens[rows.clamp_min(0).long()].long(), (rows >= 0).float()
    found = torch.zeros(shape, device=tokens.device)
    found += torch.zeros(shape[1], device=tokens.device).index_add_(0, tokens, real)
    if batch is not None and batch.ancestors is not None:
        above = batch.tokens.long().expand(shape[0], -1)
        found.scatter_add_(1, above, batch.ancestors[0].float())
    return found


def penalised(scores: torch.Tensor, count: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores of tokens in the text divided by `repetition` where positive and multiplied where not, then less
    `frequency` a time they stand there and `presence` once."""
    scaled = torch.where(scores > 0, scores / sampling.repetition, scores * sampling.repetition)
    scores = torch.where(count > 0, scaled, scores)
    return scores - sampling.frequency * count - sampling.presence * (count > 0)


def restricted(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[T, vocab] scores -> what is drawn from, not normalised: zero for tokens outside top-k, top-p or min-p."""
    if 0 < sampling.top_k < scores.shape[1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    p = (scores / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        best, order = p.sort(descending=True, stable=True)
        # the first tokens that together reach top_p, the one that reaches it included, and always the best
        kept = best.cumsum(-1) - best < sampling.top_p
        kept[:, 0] = True
        p = torch.zeros_like(p).scatter_(1, order, best * kept)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), 0)
    return p


def drawn(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[T] i32, row t's token with probability p[t] / sum(p[t]): the first of clocks with rates p to ring."""
    clocks = torch.empty_like(p).exponential_(generator=generator)
    return (p / clocks).argmax(-1).int()
