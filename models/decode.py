"""The decode loop. Each step runs on the device from end to end: lengths, choices and states stay there.

    autoregressive     root -> target -> next root
    speculative        root -> draft -> tree (or chain) -> target over the tree -> walk -> commit -> next root

A step commits the root and what it accepted after it; the target's own choice after the last accepted token is the next
root, committed by the next step. The committed text is the target's, whatever the draft proposes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import target as qwen
from .state import LONGEST, State
from .target import Batch, Target

MODES = ("ar", "chain", "tree")
# what may follow the root: logits [n, vocab], row i for the (i + 1)th token after it
Propose = Callable[[State], torch.Tensor]
# the target's token after each row of a batch, or after the context alone: logits [T, vocab] -> [T] i32
Choose = Callable[[torch.Tensor, Batch | None], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """mode: ar, chain or tree; budget: nodes below the root; chain_seed: the tree holds the best chain first; branches:
    candidates a position; sharpness: the draft's logits are divided by it; strategy: how states are rolled back."""

    mode: str = "tree"
    budget: int = 22
    chain_seed: bool = True
    branches: int = 8
    sharpness: float = 1.0
    strategy: str = "wy"

    def __post_init__(self) -> None:
        if self.mode not in MODES or not 1 <= self.budget <= 256:
            raise ValueError(f"a plan is {', '.join(MODES)} with a budget of 1 to 256, not {self.mode}, {self.budget}")


def chain(block: int = LONGEST) -> Plan:
    """One candidate a position: the block itself."""
    return Plan("chain", budget=block - 1, branches=1)


def greedy(target: Target) -> Choose:
    """The most probable token, the lower id of equals."""

    def choose(logits: torch.Tensor, _batch: Batch | None) -> torch.Tensor:
        return target.do.ops.topk_logprobs(logits, 1)[0][:, 0]

    return choose


def autoregress(target: Target, state: State, choose: Choose) -> None:
    """Commit the root; the target's choice after it is the next."""
    batch = qwen.line(state, state.root)
    hidden, trail = qwen.forward(target, state, batch)
    posterior = choose(qwen.logits(target, hidden), batch)
    qwen.commit_line(target, state, batch, trail, posterior)


def speculate(target: Target, propose: Propose, state: State, plan: Plan, choose: Choose) -> None:
    """Commit the root and what the target agrees with of the tree that grows under it from the proposal."""
    ops = target.do.ops
    guesses = propose(state)
    ids, logprobs = ops.topk_logprobs(guesses, plan.branches, plan.sharpness)
    tokens, parents = ops.ddtree(logprobs[None], ids[None], state.root, plan.budget, plan.chain_seed)
    batch = qwen.tree(ops, state, tokens, parents)
    hidden, trail = qwen.forward(target, state, batch, plan.strategy)
    posterior = choose(qwen.logits(target, hidden), batch)
    path, length, root = ops.ddtree_walk(tokens, parents, posterior[None], len(guesses) + 1)
    qwen.commit(target, state, batch, trail, path, length, root, plan.strategy)
