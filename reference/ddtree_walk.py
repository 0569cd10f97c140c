"""path, length, next_token = the branch of a verified tree that the target agrees with, from the root down."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from . import tree
from .spec import Bitwise, Call, Case, Cost, Dim, Inputs, Mismatch, Spec, case, product


def ddtree_walk(
    tokens: torch.Tensor, parents: torch.Tensor, posterior: torch.Tensor, depth_max: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, parents, posterior: [B, T] i32 -> path [B, depth_max] i32 padded with -1, length and next_token [B] i32.

    posterior[b, i] is the token that the target puts after node i. From slot 0, as long as a child of the node at hand
    holds its posterior, go to that child, the lowest slot where there are several; at most depth_max nodes, the root
    among them.
    """
    B = tokens.shape[0]
    path = torch.full((B, depth_max), -1, dtype=torch.int32, device=tokens.device)
    length = torch.zeros(B, dtype=torch.int32, device=tokens.device)
    next_token = torch.zeros_like(length)
    for b in range(B):
        token, parent, wanted = tokens[b].tolist(), parents[b].tolist(), posterior[b].tolist()
        node: int | None = 0
        walked: list[int] = []
        while node is not None and len(walked) < depth_max:
            walked.append(node)
            children = (child for child in range(len(token)) if parent[child] == node and token[child] == wanted[node])
            node = next(children, None)
        path[b, : len(walked)] = torch.tensor(walked, dtype=torch.int32)
        length[b], next_token[b] = len(walked), wanted[walked[-1]]
    return path, length, next_token


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, T = case["B"], case["T"]
    parents = tree.draw_batch(case["tree"], B, T, generator)
    # few tokens, so that siblings collide now and then and a walk goes on by chance
    tokens = torch.randint(0, 6, (B, T), generator=generator).int()
    posterior = torch.randint(0, 6, (B, T), generator=generator).int()
    # the target agrees with the drafter at most nodes: there it has the token of some child; elsewhere often token 0
    agrees = torch.rand(B, T, generator=generator) < 0.8
    posterior[~agrees & (posterior < 4)] = 0
    for b in range(B):
        for child in torch.randperm(T, generator=generator).tolist():
            if parents[b, child] >= 0 and agrees[b, parents[b, child]]:
                posterior[b, parents[b, child]] = tokens[b, child]
    return {"tokens": tokens, "parents": parents, "posterior": posterior, "depth_max": case["depth_max"]}


def _cost(case: Case) -> Cost:
    return Cost(bytes=4 * case["B"] * (3 * case["T"] + case["depth_max"] + 2))


def _descent(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """Judged by the path itself: each node is a child of the one before, holds its posterior, and no child goes on."""
    tokens, parents, posterior = (inputs[name].tolist() for name in ("tokens", "parents", "posterior"))
    paths, lengths, next_tokens = (out.tolist() for out in call("ddtree_walk", **inputs))
    for b, (path, length, next_token) in enumerate(zip(paths, lengths, next_tokens, strict=True)):
        for above, node in pairwise(path[:length]):
            if parents[b][node] != above:
                yield Mismatch(f"row {b}: the parent of node {node}", parents[b][node], above)
            if tokens[b][node] != posterior[b][above]:
                yield Mismatch(f"row {b}: the token of node {node}", tokens[b][node], posterior[b][above])
        last = path[length - 1]
        onward = [n for n, p in enumerate(parents[b]) if p == last and tokens[b][n] == posterior[b][last]]
        if onward and length < case["depth_max"]:
            yield Mismatch(f"row {b}: nodes on the path, where {onward[0]} follows {last}", length, length + 1)
        if next_token != posterior[b][last]:
            yield Mismatch(f"row {b}: the token after node {last}", next_token, posterior[b][last])


def _torch(inputs: Inputs) -> Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One step of every node at once, then as many look-ups as the walk is deep."""
    tokens, parents, posterior, depth_max = (inputs[k] for k in ("tokens", "parents", "posterior", "depth_max"))
    T = tokens.shape[1]
    slots = torch.arange(T, device=tokens.device)

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        child = (parents[:, None, :] == slots[None, :, None]) & (tokens[:, None, :] == posterior[:, :, None])
        down = torch.where(child.any(2), child.int().argmax(2), T)
        down = torch.nn.functional.pad(down, (0, 1), value=T)
        steps = [torch.zeros_like(down[:, :1])]
        for _ in range(depth_max - 1):
            steps.append(down.gather(1, steps[-1]))
        path = torch.cat(steps, 1)
        length = (path < T).sum(1)
        last = path.gather(1, length[:, None] - 1)
        return torch.where(path < T, path, -1).int(), length.int(), posterior.gather(1, last)[:, 0]

    return run


SPEC = Spec(
    op="ddtree_walk",
    formula="path, length, next_token = from the root, while a child holds the node's posterior token, go there",
    dims=(
        Dim("B", 1, 1024, fuzz=3, doc="sequences"),
        Dim("T", 1, 1024, fuzz=40, doc="tree slots, the root among them"),
        Dim("depth_max", 1, 1024, fuzz=9, doc="longest path, the root among them"),
    ),
    choices={"tree": tree.SHAPES},
    inputs=_inputs,
    outputs=("path", "length", "next_token"),
    tolerance=Bitwise(),
    cases={
        "smoke": product(B=3, T=23, depth_max=16, tree=("ddtree", "random")),
        "edge": (
            case(B=1, T=1, depth_max=1, tree="chain"),
            case(B=1, T=1, depth_max=3, tree="chain"),
            case(B=12, T=3, depth_max=2, tree="chain"),
            case(B=2, T=17, depth_max=17, tree="chain"),
            case(B=2, T=17, depth_max=5, tree="chain"),
            case(B=4, T=9, depth_max=3, tree="star"),
            case(B=3, T=15, depth_max=6, tree="binary"),
            case(B=3, T=33, depth_max=9, tree="padded"),
            case(B=3, T=32, depth_max=9, tree="forest"),
            case(B=1, T=257, depth_max=16, tree="ddtree"),
        ),
        "qwen35": product(B=1, T=(16, 23), depth_max=16, tree="ddtree"),
        "perf": product(B=1, T=(9, 23, 65, 257), depth_max=16, tree="ddtree"),
    },
    cost=_cost,
    oracles={"descent": _descent},
    baselines={"torch": _torch},
)
