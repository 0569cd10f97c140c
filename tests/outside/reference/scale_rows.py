"""out[m, n] = x[m, n] * s[m]: an op that lives outside the repository's folders, as a user's would."""

import torch
from draftwood.reference.spec import Case, Cost, Dim, Inputs, Spec, accumulator, product


def scale_rows(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """x: [M, N] f32, s: [M] f32 -> [M, N] f32."""
    return (x.to(accumulator(x)) * s[:, None]).to(x.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {
        "x": torch.randn(case["M"], case["N"], generator=generator),
        "s": torch.randn(case["M"], generator=generator),
    }


SPEC = Spec(
    op="scale_rows",
    formula="out = x * s[:, None]",
    dims=(Dim("M", 1, 4096, fuzz=8), Dim("N", 1, 4096, fuzz=40)),
    inputs=_inputs,
    cases={"smoke": product(M=3, N=20), "edge": product(M=(1, 5), N=(1, 33)), "perf": product(M=512, N=4096)},
    cost=lambda case: Cost(bytes=8 * case["M"] * case["N"] + 4 * case["M"], flops=case["M"] * case["N"]),
    nonfinite=("x", "s"),
)
