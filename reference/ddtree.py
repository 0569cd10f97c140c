"""tokens, parents = the `budget` most probable prefixes under one candidate list a depth, best first.

DDTree, arXiv 2604.12989. A prefix is a tuple of ranks (r_1 .. r_d): candidate r_i of depth i. Its log-weight is
lp[1][r_1] + lp[2][r_2] + .. summed from the root down in f32; NaN counts as -inf. Among equal log-weights the smaller
tuple comes first.

    chain_seed=False    best first from the root
    chain_seed=True     the chain of rank 0 first, of min(L, budget) nodes, then best first among what branches off it
"""

import heapq
from collections.abc import Callable, Iterator

import torch

from . import tree
from .spec import Bitwise, Call, Case, Cost, Dim, Inputs, Mismatch, Spec, case, product
from .tree import PAD, ROOT

Ranks = tuple[int, ...]


def ddtree(
    logprobs: torch.Tensor, ids: torch.Tensor, root: torch.Tensor, budget: int, chain_seed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """logprobs: [B, L, K] f32, best first; ids: [B, L, K] i32; root: [B] i32 -> tokens, parents [B, budget + 1] i32.

    Slot 0 is the root token. Where the candidates run out the token is 0 and the parent PAD.
    """
    B = logprobs.shape[0]
    tokens = torch.zeros((B, budget + 1), dtype=torch.int32, device=ids.device)
    parents = torch.full_like(tokens, PAD)
    tokens[:, 0], parents[:, 0] = root, ROOT
    for b in range(B):
        for node, (ranks, parent) in enumerate(grow(logprobs[b].float().cpu(), budget, chain_seed), start=1):
            tokens[b, node] = ids[b, len(ranks) - 1, ranks[-1]]
            parents[b, node] = parent
    return tokens, parents


def grow(logprobs: torch.Tensor, budget: int, chain_seed: bool) -> list[tuple[Ranks, int]]:
    """The nodes after the root, in order: their ranks and the slot of their parent."""
    L, K = logprobs.shape
    nodes: list[tuple[Ranks, int]] = []
    heap: list[tuple[float, Ranks, int, float]] = []

    def weight(above: float, ranks: Ranks) -> float:
        total = (torch.tensor(above) + logprobs[len(ranks) - 1, ranks[-1]]).item()
        return total if total == total else float("-inf")

    def push(above: float, ranks: Ranks, parent: int) -> None:
        heapq.heappush(heap, (-weight(above, ranks), ranks, parent, above))

    if chain_seed:
        above = 0.0
        for depth in range(min(L, budget)):
            spine = (0,) * depth
            if K > 1:
                push(above, (*spine, 1), depth)
            nodes.append(((*spine, 0), depth))
            above = weight(above, (*spine, 0))
    else:
        push(0.0, (0,), 0)
    while heap and len(nodes) < budget:
        minus_weight, ranks, parent, above = heapq.heappop(heap)
        nodes.append((ranks, parent))
        if ranks[-1] + 1 < K:
            push(above, (*ranks[:-1], ranks[-1] + 1), parent)
        if len(ranks) < L:
            push(-minus_weight, (*ranks, 0), len(nodes))
    return nodes


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, L, K = case["B"], case["L"], case["K"]
    # a drafter is sure of the next token and less so of each one after it
    sharpness = torch.linspace(6, 1.5, L).view(L, 1) * torch.empty(B, L, 1).uniform_(0.3, 1.5, generator=generator)
    logits = torch.randn(B, L, 4096, generator=generator) * sharpness
    match case["candidates"]:
        case "ties":
            # sums of halves are exact in f32: many prefixes weigh the same
            logprobs = -torch.randint(1, 4, (B, L, K), generator=generator).sort(-1).values / 2.0
            ids = logits.topk(K).indices
        case "equal":
            logprobs, ids = torch.full((B, L, K), -0.6931472), logits.topk(K).indices
        case _:
            logprobs, ids = logits.log_softmax(-1).topk(K)
            if case["candidates"] == "impossible":
                logprobs[..., K // 2 :] = float("-inf")
    root = torch.randint(0, 248320, (B,), generator=generator)
    return {
        "logprobs": logprobs,
        "ids": ids.int(),
        "root": root.int(),
        "budget": case["budget"],
        "chain_seed": case["chain_seed"],
    }


def _cost(case: Case) -> Cost:
    return Cost(bytes=case["B"] * (8 * case["L"] * case["K"] + 4 + 8 * (case["budget"] + 1)))


def _optimal(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """Judged by the weights alone: a spine where asked for, then heaviest first, and nothing heavier is left out."""
    tokens, parents = (out.cpu() for out in call("ddtree", **inputs))
    spine = min(case["L"], case["budget"]) if case["chain_seed"] else 0
    for b in range(case["B"]):
        yield from (
            Mismatch(f"row {b}, {found.where}", found.got, found.want)
            for found in _judged(
                tokens[b].tolist(), parents[b], inputs["logprobs"][b].tolist(), inputs["ids"][b].tolist(), spine
            )
        )


def _judged(
    tokens: list[int], parents: torch.Tensor, logprobs: list[list[float]], ids: list[list[int]], spine: int
) -> Iterator[Mismatch]:
    tree.check(parents)
    L, K = len(ids), len(ids[0])
    depth, weight, children = [0], [0.0], [0]
    lightest = float("inf")
    nodes = [node for node, parent in enumerate(parents.tolist()) if parent >= 0]
    for node in nodes:
        parent = int(parents[node])
        rank = children[parent]
        if depth[parent] == L or rank == K or tokens[node] != ids[depth[parent]][rank]:
            yield Mismatch(f"node {node}: its token is not the best child of {parent} yet to come", tokens[node], rank)
            return
        children[parent] += 1
        depth.append(depth[parent] + 1)
        weight.append(weight[parent] + logprobs[depth[parent]][rank])
        children.append(0)
        if node <= spine:
            if parent != node - 1:
                yield Mismatch(f"node {node} of the spine: its parent", parent, node - 1)
        else:
            if weight[node] > lightest + 1e-4:
                yield Mismatch(f"node {node}: it outweighs the one before", weight[node], lightest)
            lightest = weight[node]
    full = len(nodes) + 1 == len(tokens)
    for node, rank in enumerate(children):
        if depth[node] < L and rank < K:
            left_out = weight[node] + logprobs[depth[node]][rank]
            if not full or left_out > lightest + 1e-4:
                yield Mismatch(f"child {rank} of node {node}: left out for a lighter node", left_out, lightest)


def _torch(inputs: Inputs) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """The frontier as tensors, an argmax a node, no host synchronisation; equal weights in any order."""
    logprobs, ids, root, budget = inputs["logprobs"], inputs["ids"], inputs["root"], inputs["budget"]
    B, L, K = logprobs.shape
    rows = torch.arange(B, device=logprobs.device)
    table = torch.nn.functional.pad(logprobs, (0, 1, 0, 1), value=float("-inf"))
    spine = min(L, budget) if inputs["chain_seed"] else 0

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.zeros((B, budget + 1), dtype=torch.int32, device=ids.device)
        parents = torch.full_like(tokens, ROOT)
        depth, rank = torch.zeros_like(tokens).long(), torch.zeros_like(tokens).long()
        above = torch.zeros((B, budget + 1), device=ids.device)
        best = torch.full_like(above, float("-inf"))
        tokens[:, 0], best[:, 0] = root, table[:, 0, 0]
        for node in range(1, budget + 1):
            weight, parent = best.max(1)
            if node <= spine:
                weight, parent = best[:, node - 1].clone(), torch.full_like(parent, node - 1)
            d, r = depth[rows, parent], rank[rows, parent]
            tokens[:, node], parents[:, node] = ids[rows, d.clamp(max=L - 1), r.clamp(max=K - 1)], parent
            rank[rows, parent] = r + 1
            best[rows, parent] = above[rows, parent] + table[rows, d, (r + 1).clamp(max=K)]
            depth[:, node], above[:, node] = (d + 1).clamp(max=L), weight
            best[:, node] = weight + table[rows, (d + 1).clamp(max=L), 0]
        return tokens, parents

    return run


SPEC = Spec(
    op="ddtree",
    formula="tokens, parents = the budget most probable prefixes of the candidates, best first",
    dims=(
        Dim("B", 1, 1024, fuzz=2, doc="sequences"),
        Dim("L", 1, 15, fuzz=5, doc="depths: the draft's block less one"),
        Dim("K", 1, 15, fuzz=5, doc="candidates a depth"),
        Dim("budget", 0, 256, fuzz=24, doc="nodes besides the root"),
    ),
    choices={"chain_seed": (True, False), "candidates": ("draft", "ties", "equal", "impossible")},
    inputs=_inputs,
    outputs=("tokens", "parents"),
    tolerance=Bitwise(),
    cases={
        "smoke": product(B=2, L=6, K=4, budget=14, chain_seed=(True, False), candidates="draft"),
        "edge": (
            case(B=1, L=1, K=1, budget=0, chain_seed=False, candidates="draft"),
            case(B=1, L=1, K=1, budget=1, chain_seed=True, candidates="draft"),
            case(B=1, L=2, K=2, budget=8, chain_seed=False, candidates="equal"),
            case(B=2, L=3, K=1, budget=5, chain_seed=True, candidates="draft"),
            case(B=1, L=15, K=15, budget=33, chain_seed=False, candidates="ties"),
            case(B=1, L=15, K=8, budget=32, chain_seed=True, candidates="ties"),
            case(B=1, L=15, K=8, budget=14, chain_seed=True, candidates="draft"),
            case(B=1, L=3, K=15, budget=17, chain_seed=True, candidates="equal"),
            case(B=2, L=4, K=5, budget=16, chain_seed=False, candidates="impossible"),
        ),
        "qwen35": (
            case(B=1, L=15, K=8, budget=22, chain_seed=True, candidates="draft"),
            case(B=1, L=15, K=8, budget=22, chain_seed=False, candidates="draft"),
            case(B=1, L=15, K=1, budget=15, chain_seed=True, candidates="draft"),
        ),
        "perf": (
            *product(B=1, L=15, K=8, budget=(8, 22, 64, 256), chain_seed=True, candidates="draft"),
            *product(B=1, L=15, K=8, budget=(22, 256), chain_seed=False, candidates="draft"),
            case(B=16, L=15, K=8, budget=22, chain_seed=True, candidates="draft"),
        ),
    },
    cost=_cost,
    nonfinite=("logprobs",),
    oracles={"optimal": _optimal},
    baselines={"torch": _torch},
)
