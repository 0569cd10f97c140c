"""state = the last W-1 rows of (state ++ u[accepted path]): the convolution's history after some nodes are accepted.

W = 4, path = [0, 2, 5], length = 2:      state  s0 s1 s2  ->  s2 u0 u2
"""

from collections.abc import Callable
from typing import Any

import torch

from . import paths, tree
from .spec import DTYPES, Bitwise, Calibrated, Case, Cost, Dim, Inputs, Spec, Tolerance, case, product


def conv_commit(u: torch.Tensor, state: torch.Tensor, path: torch.Tensor, length: torch.Tensor) -> None:
    """u: [B, T, C], rows at any stride; state: [B, W-1, C], oldest row first, updated; path: [B, D] i32, nodes from the
    root down, then -1; length: [B] i32 of them are accepted, 0 leaves the state as it is."""
    for b, accepted in enumerate(length.tolist()):
        rows = torch.cat([state[b], u[b, path[b, :accepted].long()].to(state.dtype)])
        state[b] = rows[accepted:]


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, T, C, W, D = case["B"], case["T"], case["C"], case["W"], case["D"]
    u = torch.empty_strided((B, T, C), (T * (C + case["gap"]), C + case["gap"], 1), dtype=DTYPES[case["dtype"]])
    u.copy_(torch.randn(B, T, C, generator=generator))
    state = torch.randn(B, W - 1, C, generator=generator).to(DTYPES[case["state"]])
    path, length = paths.accepted(tree.draw_batch(case["shape"], B, T, generator), D, case["accept"], generator)
    return {"u": u, "state": state, "path": path, "length": length}


def _tolerance(case: Case) -> Tolerance:
    # a cast may change the bits of a NaN
    return Bitwise() if case["dtype"] == case["state"] else Calibrated(factor=1, ulps=0)


def _cost(case: Case) -> Cost:
    B, C, W = case["B"], case["C"], case["W"]
    moved = min(W - 1, case["D"]) * DTYPES[case["dtype"]].itemsize + (W - 1) * DTYPES[case["state"]].itemsize
    return Cost(bytes=B * C * moved)


def _torch(inputs: Inputs) -> Callable[[], Any]:
    u, state, path, length = (inputs[name] for name in ("u", "state", "path", "length"))
    B, rows, C = state.shape
    history = torch.arange(rows, device=u.device).expand(B, rows)

    def run() -> None:
        slots = torch.cat([history, path.long() + rows], 1).gather(1, length.long()[:, None] + history)
        state.copy_(torch.cat([state, u.to(state.dtype)], 1).gather(1, slots[..., None].expand(B, rows, C)))

    return run


SPEC = Spec(
    op="conv_commit",
    formula="state = last W-1 rows of (state ++ u[path[:length]])",
    dims=(
        Dim("B", 1, 1 << 15, fuzz=3, doc="sequences"),
        Dim("T", 1, 1 << 16, fuzz=24, doc="slots of a tree"),
        Dim("C", 1, 1 << 20, fuzz=300, doc="channels"),
        Dim("W", 2, 5, fuzz=5, doc="taps"),
        Dim("D", 1, 1 << 16, fuzz=12, doc="slots of the path"),
        Dim("gap", 0, 1 << 16, fuzz=20, doc="elements between rows of u"),
    ),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "state": ("f32", "bf16", "f16"),
        "shape": tree.SHAPES,
        "accept": paths.ACCEPT,
    },
    inputs=_inputs,
    outputs=(),
    updates=("state",),
    cases={
        "smoke": (
            case(B=2, T=9, C=256, W=4, D=9, gap=0, dtype="f32", state="f32", shape="random", accept="random"),
            case(B=3, T=12, C=64, W=4, D=6, gap=0, dtype="bf16", state="f32", shape="ddtree", accept="leaf"),
        ),
        "edge": (
            *product(B=2, T=5, C=129, W=4, D=4, gap=0, dtype="f32", state="f32", shape="chain", accept=paths.ACCEPT),
            *product(B=1, T=6, C=31, W=(2, 3, 5), D=3, gap=2, dtype="f32", state="bf16", shape="chain", accept="leaf"),
            case(B=2, T=6, C=31, W=5, D=6, gap=0, dtype="f16", state="f16", shape="star", accept="leaf"),
            case(B=1, T=1, C=1, W=4, D=1, gap=0, dtype="f32", state="f32", shape="chain", accept="leaf"),
            case(B=2, T=8, C=16, W=4, D=8, gap=0, dtype="f32", state="f16", shape="padded", accept="random"),
        ),
        "qwen35": product(
            B=1, T=23, C=10240, W=4, D=16, gap=0, dtype="bf16", state="f32", shape="ddtree", accept=("random", "leaf")
        ),
        "perf": (case(B=1, T=23, C=10240, W=4, D=16, gap=0, dtype="bf16", state="f32", shape="ddtree", accept="leaf"),),
    },
    cost=_cost,
    tolerance=_tolerance,
    nonfinite=("u", "state"),
    cold=("state",),
    oracles={"path": paths.conv_commit},
    baselines={"torch": _torch},
)
