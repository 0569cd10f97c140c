"""y = silu(gate) * up, silu(g) = g / (1 + exp(-g))."""

from collections.abc import Callable

import torch

from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up: [M, F], rows at any stride -> [M, F] of gate's dtype."""
    wide = accumulator(gate, up)
    g, u = gate.to(wide), up.to(wide)
    return (g / (1 + torch.exp(-g)) * u).to(gate.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    M, F, dtype = case["M"], case["F"], DTYPES[case["dtype"]]

    def rows(stride: int) -> torch.Tensor:
        # gates reach far into both arms of silu in some rows and none of them in others
        scale = 10 ** torch.empty(M, 1).uniform_(-2, 1.3, generator=generator)
        x = torch.empty_strided((M, F), (stride, 1), dtype=dtype)
        return x.copy_(torch.randn(M, F, generator=generator) * scale)

    return {"gate": rows(F + case["gap"]), "up": rows(F + 2 * case["gap"])}


def _cost(case: Case) -> Cost:
    elements = case["M"] * case["F"]
    return Cost(bytes=3 * elements * DTYPES[case["dtype"]].itemsize, flops=4 * elements)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    return lambda: torch.nn.functional.silu(inputs["gate"]) * inputs["up"]


SPEC = Spec(
    op="swiglu",
    formula="y = silu(gate) * up",
    dims=(
        Dim("M", 1, 1 << 20, fuzz=9, doc="rows"),
        Dim("F", 1, 1 << 20, fuzz=300, doc="row length"),
        Dim("gap", 0, 1 << 20, fuzz=40, doc="elements between rows of gate; twice as many in up"),
    ),
    choices={"dtype": ("f32", "bf16", "f16")},
    inputs=_inputs,
    cases={
        "smoke": product(M=3, F=256, gap=0, dtype=("f32", "bf16")),
        "edge": (
            case(M=1, F=1, gap=0, dtype="f32"),
            case(M=2, F=1, gap=1, dtype="f32"),
            case(M=1, F=1023, gap=0, dtype="f32"),
            case(M=2, F=1024, gap=0, dtype="f16"),
            case(M=3, F=1025, gap=0, dtype="f32"),
            case(M=2, F=2500, gap=2500, dtype="bf16"),
        ),
        "qwen35": (*product(M=(1, 23), F=17408, gap=0, dtype="bf16"), case(M=23, F=17408, gap=17408, dtype="bf16")),
        "perf": product(M=(1, 9, 23, 64, 512), F=17408, gap=17408, dtype="bf16"),
    },
    cost=_cost,
    nonfinite=("gate", "up"),
    baselines={"torch": _torch},
)
