"""out = 2 x: an op whose configs carry planted faults (autotune/double_rows.py)."""

import torch
from draftwood.reference.spec import Case, Cost, Dim, Inputs, Spec, accumulator, product


def double_rows(x: torch.Tensor) -> torch.Tensor:
    """x: [M, N] f32 -> [M, N] f32."""
    return (2 * x.to(accumulator(x))).to(x.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {"x": torch.randn(case["M"], case["N"], generator=generator)}


SPEC = Spec(
    op="double_rows",
    formula="out = 2 x",
    dims=(Dim("M", 1, 64, fuzz=8), Dim("N", 1, 4096, fuzz=40)),
    inputs=_inputs,
    cases={"smoke": product(M=3, N=20), "edge": product(M=1, N=33), "perf": product(M=4, N=40)},
    cost=lambda case: Cost(bytes=8 * case["M"] * case["N"]),
    nonfinite=("x",),
)
