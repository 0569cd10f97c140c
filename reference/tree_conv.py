"""y_i = silu(sum_w weight[:, w] * u[ancestor W-1-w steps above i]): a causal depthwise convolution down every path.

W = 4, parents = [-1, 0, 0, 1, 3]                      taps of node 4: u[4] u[3] u[1] u[0]
                                                       taps of node 2: u[2] u[0] state[2] state[1]
state [W-1]:  0   1   2 | 0 - 1 - 3 - 4                above a root lies the state, newest row first
           oldest        \\  2
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import paths, tree
from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def tree_conv(u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """u: [B, T, C], rows at any stride; weight: [C, W] f32, tap W-1 is the node's own; state: [B, W-1, C], oldest row
    first, unchanged; parents: [B, T] i32 -> [B, T, C] of u's dtype, padding 0."""
    B, T, _ = u.shape
    W = weight.shape[1]
    wide = accumulator(u, weight, state)
    # slot s is row W-1 + s: nodes from 0 up, -1 the newest row of the state
    rows = torch.cat([state.to(wide), u.to(wide)], 1)
    batch = torch.arange(B, device=u.device)
    y = torch.zeros(u.shape, dtype=wide, device=u.device)
    for node in range(T):
        real = parents[:, node] != tree.PAD
        slot = torch.full((B,), node, device=u.device)
        total = torch.zeros_like(rows[:, 0])
        for tap in reversed(range(W)):
            total = total + weight[:, tap].to(wide) * rows[batch, W - 1 + slot]
            slot = torch.where(slot >= 0, parents[batch, slot.clamp_min(0)], slot - 1).clamp_min(1 - W)
        y[:, node] = torch.where(real[:, None], total * torch.sigmoid(total), 0)
    return y.to(u.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, T, C, W = case["B"], case["T"], case["C"], case["W"]
    dtype = DTYPES[case["dtype"]]
    u = torch.empty_strided((B, T, C), (T * (C + case["gap"]), C + case["gap"], 1), dtype=dtype)
    u.copy_(torch.randn(B, T, C, generator=generator) * 10 ** torch.empty(C).uniform_(-1, 1, generator=generator))
    weight = torch.randn(C, W, generator=generator) / W
    state = torch.randn(B, W - 1, C, generator=generator).to(DTYPES[case["state"]])
    return {"u": u, "weight": weight, "state": state, "parents": tree.draw_batch(case["shape"], B, T, generator)}


def _cost(case: Case) -> Cost:
    B, T, C, W = case["B"], case["T"], case["C"], case["W"]
    rows = 2 * T * DTYPES[case["dtype"]].itemsize + (W - 1) * DTYPES[case["state"]].itemsize
    return Cost(bytes=B * C * rows + 4 * C * W + 4 * B * T, flops=B * T * C * (2 * W + 4))


def _torch(inputs: Inputs) -> Callable[[], Any]:
    u, weight, state, parents = (inputs[name] for name in ("u", "weight", "state", "parents"))
    B, T, C = u.shape
    W = weight.shape[1]
    taps = weight.to(u.dtype)
    node = torch.arange(T, device=u.device).expand(B, T)

    def run() -> torch.Tensor:
        rows, slot = torch.cat([state.to(u.dtype), u], 1), node
        y = torch.zeros_like(u)
        for tap in reversed(range(W)):
            y = torch.addcmul(y, taps[:, tap], rows.gather(1, (W - 1 + slot)[..., None].expand(B, T, C)))
            slot = torch.where(slot >= 0, parents.long().gather(1, slot.clamp_min(0)), slot - 1).clamp_min(1 - W)
        return torch.nn.functional.silu(y) * (parents != tree.PAD)[..., None]

    return run


SPEC = Spec(
    op="tree_conv",
    formula="y_i = silu(sum_w weight[:, w] * u[ancestor W-1-w steps above i])",
    dims=(
        Dim("B", 1, 1 << 15, fuzz=3, doc="sequences"),
        Dim("T", 1, 1 << 16, fuzz=24, doc="slots of a tree"),
        Dim("C", 1, 1 << 20, fuzz=300, doc="channels"),
        Dim("W", 2, 5, fuzz=5, doc="taps"),
        Dim("gap", 0, 1 << 16, fuzz=20, doc="elements between rows of u"),
    ),
    choices={"dtype": ("f32", "bf16", "f16"), "state": ("f32", "bf16", "f16"), "shape": tree.SHAPES},
    inputs=_inputs,
    cases={
        "smoke": (
            case(B=1, T=9, C=256, W=4, gap=0, dtype="f32", state="f32", shape="ddtree"),
            case(B=2, T=11, C=64, W=4, gap=0, dtype="bf16", state="bf16", shape="random"),
        ),
        "edge": (
            *product(B=1, T=1, C=(1, 127, 257), W=4, gap=0, dtype="f32", state="f32", shape="chain"),
            *product(B=2, T=(7, 8, 9), C=33, W=4, gap=3, dtype="f16", state="f32", shape=("forest", "padded")),
            *product(B=1, T=6, C=40, W=(2, 3, 5), gap=0, dtype="f32", state="f32", shape="binary"),
            case(B=1, T=12, C=40, W=5, gap=0, dtype="f32", state="bf16", shape="star"),
            case(B=2, T=1, C=16, W=3, gap=0, dtype="f32", state="f32", shape="padded"),
        ),
        "qwen35": product(B=1, T=(1, 9, 23, 64), C=10240, W=4, gap=0, dtype="bf16", state="f32", shape="ddtree"),
        "perf": product(B=1, T=(1, 9, 23, 32), C=10240, W=4, gap=0, dtype="bf16", state="f32", shape="ddtree"),
    },
    cost=_cost,
    nonfinite=("u", "weight", "state"),
    cold=("weight", "state"),
    oracles={"path": partial(paths.conv, draw=_inputs)},
    baselines={"torch": _torch},
)
