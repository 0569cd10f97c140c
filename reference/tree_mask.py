"""Who descends from whom in a token tree, and how deep.

parents = [-1, 0, 0, 1, PAD]      ancestors = 1 . . . .      depth = 0
        0                                     1 1 . . .              1
       / \\                                    1 . 1 . .              1
      1   2                                   1 1 . 1 .              2
     /                                        . . . . .             -1
    3
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import tree
from .spec import Bitwise, Case, Cost, Dim, Inputs, Mismatch, Spec, case, product


def tree_mask(parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """parents: [B, T] i32 -> ancestors [B, T, T] u8 (1: j is i or above; padding 0), depth [B, T] i32 (padding -1)."""
    B, T = parents.shape
    ancestors = torch.zeros(B, T, T, dtype=torch.uint8, device=parents.device)
    batch = torch.arange(B, device=parents.device)
    for node in range(T):
        parent = parents[:, node].long()
        above = ancestors[batch, parent.clamp_min(0)] * (parent >= 0)[:, None]
        ancestors[:, node] = above
        ancestors[:, node, node] = parent != tree.PAD
    depth = ancestors.sum(-1, dtype=torch.int32) - 1
    return ancestors, depth


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {"parents": tree.draw_batch(case["shape"], case["B"], case["T"], generator)}


def _cost(case: Case) -> Cost:
    B, T = case["B"], case["T"]
    return Cost(bytes=B * (8 * T + T * T))


def _path(call: Callable[..., Any], inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """Row i marks exactly the nodes met on the way from i to the root, and depth counts them."""
    ancestors, depth = (out.cpu() for out in call("tree_mask", **inputs))
    for b, parents in enumerate(inputs["parents"].cpu()):
        for node in range(len(parents)):
            path = tree.path(parents, node) if parents[node] != tree.PAD else []
            if depth[b, node] != len(path) - 1:
                yield Mismatch(f"depth[{b}, {node}]", float(depth[b, node]), len(path) - 1)
            row = torch.zeros(len(parents), dtype=torch.uint8)
            row[path] = 1
            for other in (ancestors[b, node] != row).nonzero().flatten().tolist():
                yield Mismatch(f"ancestors[{b}, {node}, {other}]", float(ancestors[b, node, other]), float(row[other]))


def _torch(inputs: Inputs) -> Callable[[], Any]:
    parents = inputs["parents"]
    T = parents.shape[1]
    real = parents != tree.PAD
    eye = torch.eye(T, device=parents.device)
    rounds = max(1, (T - 1).bit_length())

    def run() -> Any:
        hop = torch.nn.functional.one_hot(parents.long().clamp_min(0), T) * (parents >= 0)[..., None]
        reach = hop + eye
        for _ in range(rounds):
            reach = (reach @ reach).clamp_max(1)
        ancestors = (reach * real[..., None]).to(torch.uint8)
        return ancestors, ancestors.sum(-1, dtype=torch.int32) - 1

    return run


SPEC = Spec(
    op="tree_mask",
    formula="ancestors[i, j] = j is i or above i;  depth[i] = how many are above i",
    dims=(Dim("B", 1, 1 << 16, fuzz=4, doc="trees"), Dim("T", 1, 1024, fuzz=40, doc="slots of a tree")),
    choices={"shape": tree.SHAPES},
    inputs=_inputs,
    outputs=("ancestors", "depth"),
    cases={
        "smoke": (case(B=1, T=9, shape="ddtree"), case(B=3, T=23, shape="random")),
        "edge": (
            *product(B=1, T=(1, 2), shape="chain"),
            *product(B=2, T=(15, 16, 17), shape=("padded", "forest")),
            case(B=1, T=33, shape="chain"),
            case(B=1, T=33, shape="star"),
            case(B=2, T=65, shape="binary"),
            case(B=2, T=1, shape="padded"),
        ),
        "qwen35": (*product(B=1, T=(1, 9, 23, 64), shape="ddtree"), case(B=1, T=65, shape="padded")),
        "perf": product(B=1, T=(9, 23, 64, 129), shape="ddtree"),
    },
    cost=_cost,
    tolerance=Bitwise(),
    oracles={"path": _path},
    baselines={"torch": _torch},
)
