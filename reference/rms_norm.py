"""y = x * rsqrt(mean(x^2) + eps) * weight, row by row."""

from collections.abc import Callable

import torch

from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x: [M, D], rows at any stride; weight: [D] f32 as multiplied (GGUF has HF's 1 + w folded in) -> [M, D] of
    out_dtype or x's."""
    wide = x.to(accumulator(x))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return y.to(torch.float64 if x.dtype == torch.float64 else out_dtype or x.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    M, D = case["M"], case["D"]
    # residual streams grow with depth, in f32 past what f16 holds; and now and then an all-zero row
    most = 6.0 if case["dtype"] == "f32" else 2.0
    scale = 10 ** torch.empty(M, 1).uniform_(-2, most, generator=generator)
    scale[-1] = 10**most
    rows = torch.randn(M, D, generator=generator) * scale
    rows[torch.rand(M, generator=generator) < 0.05] = 0
    x = torch.empty_strided((M, D), (D + case["gap"], 1), dtype=DTYPES[case["dtype"]])
    x.copy_(rows)
    weight = 1 + 0.2 * torch.randn(D, generator=generator)
    return {"x": x, "weight": weight, "eps": 1e-6, "out_dtype": DTYPES.get(case["out"])}


def _cost(case: Case) -> Cost:
    elements, read = case["M"] * case["D"], DTYPES[case["dtype"]]
    written = DTYPES.get(case["out"], read)
    return Cost(bytes=elements * (read.itemsize + written.itemsize) + 4 * case["D"], flops=4 * elements)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    x, eps = inputs["x"], inputs["eps"]
    weight, out = inputs["weight"].to(x.dtype), inputs["out_dtype"] or x.dtype
    return lambda: torch.nn.functional.rms_norm(x, weight.shape, weight, eps).to(out)


SPEC = Spec(
    op="rms_norm",
    formula="y = x * rsqrt(mean(x^2) + eps) * weight",
    dims=(
        Dim("M", 1, 1 << 20, fuzz=9, doc="rows"),
        Dim("D", 1, 16384, fuzz=300, doc="row length"),
        Dim("gap", 0, 1 << 16, fuzz=40, doc="elements between rows"),
    ),
    # out "same": of x's dtype
    choices={"dtype": ("f32", "bf16", "f16"), "out": ("same", "bf16", "f16")},
    inputs=_inputs,
    cases={
        "smoke": product(M=3, D=256, gap=0, dtype=("f32", "bf16"), out="same"),
        "edge": (
            *product(M=(1, 2), D=(1, 127, 128, 129), gap=0, dtype="f32", out="same"),
            case(M=5, D=257, gap=3, dtype="f16", out="same"),
            case(M=5, D=256, gap=256, dtype="bf16", out="f16"),
            case(M=2, D=300, gap=1, dtype="f32", out="f16"),
            case(M=1, D=65, gap=0, dtype="f32", out="bf16"),
        ),
        "qwen35": (
            *product(M=(1, 23), D=5120, gap=0, dtype="f32", out="f16"),
            *product(M=(1, 16), D=5120, gap=0, dtype="bf16", out="same"),
            case(M=24 * 23, D=256, gap=256, dtype="f16", out="same"),
        ),
        "perf": product(M=(1, 9, 23, 64, 512), D=5120, gap=0, dtype="f32", out="f16"),
    },
    cost=_cost,
    nonfinite=("x", "weight"),
    baselines={"torch": _torch},
)
