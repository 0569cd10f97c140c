"""y_t = silu(sum_w weight[:, w] * x_(t - (W-1-w))), x = state ++ u; then state = the last W-1 rows of x.

T tokens in a row, as in prefill and decode: `tree_conv` of a chain and the `conv_commit` of all of it.

W = 4, T = 2      x   s0 s1 s2 u0 u1        y_0 of s0 s1 s2 u0        state  s2 u0 u1
                                            y_1 of s1 s2 u0 u1
"""

from collections.abc import Callable
from typing import Any

import torch

from . import paths
from .spec import DTYPES, Bitwise, Calibrated, Case, Cost, Dim, Inputs, Spec, Tolerance, accumulator, case, product


def conv_line(u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """u: [B, T, C], rows at any stride; weight: [C, W] f32, tap W-1 is the token's own; state: [B, W-1, C], oldest row
    first, updated -> [B, T, C] of u's dtype."""
    (_, T, _), W = u.shape, weight.shape[1]
    wide = accumulator(u, weight, state)
    rows = torch.cat([state.to(wide), u.to(wide)], 1)
    total = torch.zeros(u.shape, dtype=wide, device=u.device)
    for tap in reversed(range(W)):
        total = total + weight[:, tap].to(wide) * rows[:, tap : tap + T]
    state.copy_(torch.cat([state, u.to(state.dtype)], 1)[:, T:])
    return (total * torch.sigmoid(total)).to(u.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    B, T, C, W = case["B"], case["T"], case["C"], case["W"]
    dtype = DTYPES[case["dtype"]]
    u = torch.empty_strided((B, T, C), (T * (C + case["gap"]), C + case["gap"], 1), dtype=dtype)
    u.copy_(torch.randn(B, T, C, generator=generator) * 10 ** torch.empty(C).uniform_(-1, 1, generator=generator))
    weight = torch.randn(C, W, generator=generator) / W
    state = torch.randn(B, W - 1, C, generator=generator).to(DTYPES[case["state"]])
    return {"u": u, "weight": weight, "state": state}


def _tolerance(case: Case) -> dict[str, Tolerance]:
    # a cast may change the bits of a NaN
    moved = Bitwise() if case["dtype"] == case["state"] else Calibrated(factor=1, ulps=0)
    return {"out": Calibrated(), "state": moved}


def _cost(case: Case) -> Cost:
    B, T, C, W = case["B"], case["T"], case["C"], case["W"]
    rows = 2 * T * DTYPES[case["dtype"]].itemsize + 2 * (W - 1) * DTYPES[case["state"]].itemsize
    return Cost(bytes=B * C * rows + 4 * C * W, flops=B * T * C * (2 * W + 4))


def _torch(inputs: Inputs) -> Callable[[], Any]:
    u, weight, state = inputs["u"], inputs["weight"], inputs["state"]
    C, W = weight.shape
    taps = weight.to(u.dtype)[:, None]

    def run() -> torch.Tensor:
        rows = torch.cat([state.to(u.dtype), u], 1)
        y = torch.nn.functional.conv1d(rows.transpose(1, 2), taps, groups=C).transpose(1, 2)
        state.copy_(rows[:, 1 - W :])
        return torch.nn.functional.silu(y)

    return run


_SMALL = case(B=2, T=7, C=129, W=4, gap=0, dtype="f32", state="f32")

SPEC = Spec(
    op="conv_line",
    formula="y_t = silu(sum_w weight[:, w] * x[t + w]), x = state ++ u; state = last W-1 rows of x",
    dims=(
        Dim("B", 1, 1 << 15, fuzz=3, doc="sequences"),
        Dim("T", 1, 1 << 16, fuzz=40, doc="tokens"),
        Dim("C", 1, 1 << 20, fuzz=300, doc="channels"),
        Dim("W", 2, 5, fuzz=5, doc="taps"),
        Dim("gap", 0, 1 << 16, fuzz=20, doc="elements between rows of u"),
    ),
    choices={"dtype": ("f32", "bf16", "f16"), "state": ("f32", "bf16", "f16")},
    inputs=_inputs,
    updates=("state",),
    tolerance=_tolerance,
    cases={
        "smoke": (_SMALL.but(B=1, T=1, C=256, dtype="f16", state="f16"), _SMALL.but(T=19, C=64, dtype="bf16")),
        "edge": (
            *(_SMALL.but(T=T) for T in (1, 2, 3, 4)),
            *(_SMALL.but(W=W, T=T, C=31, gap=2) for W, T in ((2, 1), (3, 1), (5, 3), (5, 9))),
            _SMALL.but(B=1, T=33, C=40, dtype="f16", gap=8),
            _SMALL.but(B=1, T=1, C=1, state="bf16"),
        ),
        "qwen35": product(B=1, T=(1, 64), C=10240, W=4, gap=6240, dtype="f16", state="f16"),
        "perf": product(B=1, T=(1, 512), C=10240, W=4, gap=6240, dtype="f16", state="f16"),
    },
    cost=_cost,
    nonfinite=("u", "weight", "state"),
    cold=("weight", "state"),
    oracles={"path": paths.conv_line},
    baselines={"torch": _torch},
)
