"""q = rope(rms_norm(q) * w_q), k = rope(rms_norm(k) * w_k): the heads of a layer before they meet.

    head     | 0 .. R/2-1 | R/2 .. R-1 | R .. D-1 |     normed over all D, then pairs (i, i + R/2) turned as in `rope`

Between the two nothing is rounded to the heads' dtype.
"""

from collections.abc import Callable

import torch

from .rope import frequencies, rope
from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case


def qk_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q: [T, H, D], k: [T, Hkv, D], rows and heads at any stride; weights: [D] f32 as multiplied; positions: [T] i32;
    inv_freq: [R/2] f32 -> both as they came, dense."""

    def turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.to(accumulator(x))
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
        return rope(y, positions, inv_freq).to(x.dtype)

    return turned(q, q_weight), turned(k, k_weight)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, D, gap = case["T"], case["D"], case["gap"]

    def heads(H: int) -> torch.Tensor:
        x = torch.empty_strided((T, H, D), (H * (D + gap) + gap, D + gap, 1), dtype=DTYPES[case["dtype"]])
        rows = torch.randn(T, H, D, generator=generator) * 10 ** torch.empty(T, H, 1).uniform_(
            -2, 2, generator=generator
        )
        rows[torch.rand(T, H, generator=generator) < 0.05] = 0
        return x.copy_(rows)

    first = int(torch.randint(0, case["position"] + 1, (1,), generator=generator))
    positions = (first + torch.arange(T)).clamp_max(case["position"]).to(torch.int32)
    positions[-1] = case["position"]
    return {
        "q": heads(case["H"]),
        "k": heads(case["Hkv"]),
        "q_weight": 1 + 0.2 * torch.randn(D, generator=generator),
        "k_weight": 1 + 0.2 * torch.randn(D, generator=generator),
        "positions": positions,
        "inv_freq": frequencies(case["R"], 1e7),
        "eps": 1e-6,
    }


def _cost(case: Case) -> Cost:
    elements = case["T"] * (case["H"] + case["Hkv"]) * case["D"]
    size = DTYPES[case["dtype"]].itemsize
    return Cost(bytes=2 * elements * size + 8 * case["D"] + 4 * case["T"] + 2 * case["R"], flops=7 * elements)


def _torch(inputs: Inputs) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    q, k, inv_freq, positions = (inputs[name] for name in ("q", "k", "inv_freq", "positions"))
    weights = [inputs[name].to(q.dtype) for name in ("q_weight", "k_weight")]
    R, D = 2 * len(inv_freq), q.shape[-1]

    def turn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.rms_norm(x, (D,), weight, inputs["eps"])
        angle = (positions[:, None].float() * inv_freq).repeat(1, 2)[:, None]
        turned, rest = x[..., :R], x[..., R:]
        half = torch.cat((-turned[..., R // 2 :], turned[..., : R // 2]), -1)
        return torch.cat((turned * angle.cos().to(x.dtype) + half * angle.sin().to(x.dtype), rest), -1)

    return lambda: (turn(q, weights[0]), turn(k, weights[1]))


def _illegal(case: Case) -> str | None:
    if case["R"] > case["D"]:
        return f"qk_rope turns at most all {case['D']} dims, not R={case['R']}"
    return None


_SMALL = case(T=5, H=6, Hkv=2, D=64, R=32, gap=0, position=40, dtype="f32")
# heads of the 27B lie 2 * 256 apart in q: its gate is between
_TARGET = case(T=23, H=24, Hkv=4, D=256, R=64, gap=256, position=262143, dtype="f16")
_DRAFT = case(T=32, H=32, Hkv=8, D=128, R=128, gap=0, position=262143, dtype="bf16")

SPEC = Spec(
    op="qk_rope",
    formula="q, k = rope(rms_norm(q) * w_q), rope(rms_norm(k) * w_k)",
    dims=(
        Dim("T", 1, 1 << 18, fuzz=9, doc="tokens"),
        Dim("H", 1, 256, fuzz=7, doc="heads of q"),
        Dim("Hkv", 1, 256, fuzz=5, doc="heads of k"),
        Dim("D", 2, 512, fuzz=96, multiple=2, doc="head dim"),
        Dim("R", 2, 512, fuzz=96, multiple=2, doc="dims that are turned"),
        Dim("gap", 0, 1 << 16, fuzz=40, doc="elements between heads"),
        Dim("position", 0, (1 << 18) - 1, fuzz=262143, doc="largest position"),
    ),
    choices={"dtype": ("f32", "bf16", "f16")},
    inputs=_inputs,
    outputs=("q_out", "k_out"),
    cases={
        "smoke": (_SMALL, _SMALL.but(dtype="f16", position=262143)),
        "edge": (
            _SMALL.but(T=1, H=1, Hkv=1, D=2, R=2, position=0),
            _SMALL.but(T=1, H=1, Hkv=1, D=66, R=66, gap=2, position=262143),
            _SMALL.but(T=2, H=5, Hkv=5, D=34, R=6, gap=1, position=3),
            _SMALL.but(T=3, H=24, Hkv=4, D=256, R=64, gap=256, position=262143, dtype="f16"),
            _SMALL.but(T=3, H=4, Hkv=2, D=128, R=128, position=8191, dtype="bf16"),
            _SMALL.but(T=3, H=7, Hkv=1, D=100, R=98, position=65536),
        ),
        "qwen35": (_TARGET, _TARGET.but(T=1), _DRAFT),
        "perf": (_TARGET.but(T=1), _TARGET, _TARGET.but(T=512), _DRAFT),
    },
    cost=_cost,
    illegal=_illegal,
    nonfinite=("q", "k", "q_weight", "k_weight"),
    baselines={"torch": _torch},
)
