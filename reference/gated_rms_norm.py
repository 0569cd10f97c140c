"""y = x * rsqrt(mean(x^2) + eps) * weight * silu(gate), over the last axis: norm before gate."""

from collections.abc import Callable

import torch

from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x, gate: [M, H, D], rows and heads at any stride; weight: [D] f32 of every head -> [M, H, D] of x's dtype."""
    wide = accumulator(x, gate)
    w, g = x.to(wide), gate.to(wide)
    y = w * torch.rsqrt(w.square().mean(-1, keepdim=True) + eps) * weight
    return (y * (g / (1 + torch.exp(-g)))).to(x.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    M, H, D, dtype = case["M"], case["H"], case["D"], DTYPES[case["dtype"]]

    def heads(low: float, high: float, gap: int) -> torch.Tensor:
        scale = 10 ** torch.empty(M, H, 1).uniform_(low, high, generator=generator)
        rows = torch.randn(M, H, D, generator=generator) * scale
        rows[torch.rand(M, H, generator=generator) < 0.05] = 0
        x = torch.empty_strided((M, H, D), (H * (D + gap) + gap, D + gap, 1), dtype=dtype)
        return x.copy_(rows)

    # a delta net's outputs are far below 1 until its state has filled
    return {
        "x": heads(-5, 1, case["gap"]),
        "gate": heads(-1, 1, 2 * case["gap"]),
        "weight": 1 + 0.2 * torch.randn(D, generator=generator),
        "eps": 1e-6,
    }


def _cost(case: Case) -> Cost:
    elements = case["M"] * case["H"] * case["D"]
    return Cost(bytes=3 * elements * DTYPES[case["dtype"]].itemsize + 4 * case["D"], flops=9 * elements)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    x, gate, eps = inputs["x"], inputs["gate"], inputs["eps"]
    weight = inputs["weight"].to(x.dtype)
    functional = torch.nn.functional
    return lambda: functional.rms_norm(x, weight.shape, weight, eps) * functional.silu(gate)


SPEC = Spec(
    op="gated_rms_norm",
    formula="y = x * rsqrt(mean(x^2) + eps) * weight * silu(gate)",
    dims=(
        Dim("M", 1, 1 << 20, fuzz=5, doc="rows"),
        Dim("H", 1, 1024, fuzz=5, doc="heads"),
        Dim("D", 1, 8192, fuzz=200, doc="head length"),
        Dim("gap", 0, 1 << 20, fuzz=40, doc="elements between rows and between heads of x; twice as many in gate"),
    ),
    choices={"dtype": ("f32", "bf16", "f16")},
    inputs=_inputs,
    cases={
        "smoke": product(M=3, H=4, D=128, gap=0, dtype=("f32", "bf16")),
        "edge": (
            case(M=1, H=1, D=1, gap=0, dtype="f32"),
            case(M=1, H=3, D=127, gap=0, dtype="f32"),
            case(M=5, H=1, D=128, gap=0, dtype="f16"),
            case(M=3, H=5, D=129, gap=0, dtype="f32"),
            case(M=2, H=3, D=128, gap=7, dtype="f16"),
            case(M=3, H=16, D=128, gap=128, dtype="bf16"),
        ),
        "qwen35": (
            *product(M=(1, 23), H=48, D=128, gap=0, dtype="bf16"),
            case(M=23, H=48, D=128, gap=0, dtype="f32"),
        ),
        "perf": product(M=(1, 9, 23, 64, 512), H=48, D=128, gap=0, dtype="bf16"),
    },
    cost=_cost,
    nonfinite=("x", "gate", "weight"),
    baselines={"torch": _torch},
)
