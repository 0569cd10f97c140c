"""y = x * rsqrt(mean(x^2) + eps) * weight, row by row."""

from collections.abc import Callable

import torch

from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x: [M, D], rows at any stride; weight: [D] f32 as multiplied (GGUF has HF's 1 + w folded in) -> [M, D] of x's
    dtype."""
    wide = x.to(accumulator(x))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return y.to(x.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    M, D = case["M"], case["D"]
    # residual streams grow with depth: row scales over four decades, and now and then an all-zero row
    scale = 10 ** torch.empty(M, 1).uniform_(-2, 2, generator=generator)
    rows = torch.randn(M, D, generator=generator) * scale
    rows[torch.rand(M, generator=generator) < 0.05] = 0
    x = torch.empty_strided((M, D), (D + case["gap"], 1), dtype=DTYPES[case["dtype"]])
    x.copy_(rows)
    weight = 1 + 0.2 * torch.randn(D, generator=generator)
    return {"x": x, "weight": weight, "eps": 1e-6}


def _cost(case: Case) -> Cost:
    elements = case["M"] * case["D"]
    return Cost(bytes=2 * elements * DTYPES[case["dtype"]].itemsize + 4 * case["D"], flops=4 * elements)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    weight = inputs["weight"].to(inputs["x"].dtype)
    return lambda: torch.nn.functional.rms_norm(inputs["x"], weight.shape, weight, inputs["eps"])


SPEC = Spec(
    op="rms_norm",
    formula="y = x * rsqrt(mean(x^2) + eps) * weight",
    dims=(
        Dim("M", 1, 1 << 20, fuzz=9, doc="rows"),
        Dim("D", 1, 16384, fuzz=300, doc="row length"),
        Dim("gap", 0, 1 << 16, fuzz=40, doc="elements between rows"),
    ),
    choices={"dtype": ("f32", "bf16", "f16")},
    inputs=_inputs,
    cases={
        "smoke": product(M=3, D=256, gap=0, dtype=("f32", "bf16")),
        "edge": (
            *product(M=(1, 2), D=(1, 127, 128, 129), gap=0, dtype="f32"),
            case(M=5, D=257, gap=3, dtype="f16"),
            case(M=5, D=256, gap=256, dtype="bf16"),
        ),
        "qwen35": (*product(M=(1, 23), D=5120, gap=0, dtype="bf16"), case(M=24 * 23, D=256, gap=256, dtype="bf16")),
        "perf": product(M=(1, 9, 23, 64, 512), D=5120, gap=0, dtype="bf16"),
    },
    cost=_cost,
    nonfinite=("x", "weight"),
    baselines={"torch": _torch},
)
