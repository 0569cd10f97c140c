"""out = x with its first R dims turned by pos * inv_freq: pairs (i, i + R/2), as in GPT-NeoX; the other dims are
copied.

    dims      | 0 .. R/2-1 | R/2 .. R-1 | R .. D-1 |        a' = a cos - b sin
                     a            b        as it is         b' = b cos + a sin

With sections (interleaved M-RoPE, Qwen3.5) frequency i turns by one of three coordinates of the token, T, H or W:

    i          0 1 2 3 4 5 ..        H where i % 3 == 1 and i < 3 sections[1]
    axis       T H W T H W ..        W where i % 3 == 2 and i < 3 sections[2], else T
"""

from collections.abc import Callable

import torch

from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, accumulator, case


def rope(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, sections: tuple[int, ...] = ()
) -> torch.Tensor:
    """x: [T, H, D], tokens and heads at any stride; positions: [T] or, with sections, [3, T] i32; inv_freq: [R/2] f32.

    The angle is the f32 product of position and frequency, whatever x's dtype: at position 262143 its rounding is 0.008
    rad.
    """
    half = inv_freq.shape[0]
    coordinates = positions.expand(3, -1) if positions.dim() == 1 else positions
    angle = coordinates[axes(half, sections).to(positions.device)].t().float() * inv_freq.float()
    wide = x.to(accumulator(x))
    cos, sin = angle.to(wide).cos()[:, None], angle.to(wide).sin()[:, None]
    a, b, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1).to(x.dtype)


def axes(half: int, sections: tuple[int, ...]) -> torch.Tensor:
    """[half] i64: the coordinate (0 T, 1 H, 2 W) that each frequency turns by."""
    index = torch.arange(half)
    limits = 3 * torch.tensor([0, *sections[1:3]] if sections else [0, 0, 0])
    axis = index % 3
    return torch.where(index < limits[axis], axis, 0)


def frequencies(rotary: int, theta: float) -> torch.Tensor:
    """[rotary/2] f32: theta^(-2i/rotary)."""
    return (theta ** -(torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)).float()


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, H, D, R = case["T"], case["H"], case["D"], case["R"]
    x = torch.empty_strided((T, H, D), (H * (D + case["gap"]), D + case["gap"], 1), dtype=DTYPES[case["dtype"]])
    x.copy_(torch.randn(T, H, D, generator=generator) * 3)
    # text counts up; the three coordinates of an image's tokens are far apart here, or its slowest dims would not tell
    first = torch.randint(0, case["position"] + 1, (1 if case["axes"] == 1 else 3, 1), generator=generator)
    positions = (first + torch.arange(T)).clamp_max(case["position"]).to(torch.int32)
    positions = positions[0] if case["axes"] == 1 else positions
    positions.view(-1, T)[0, -1] = case["position"]
    # as the 27B divides its 32: 11, 11, 10
    third, half = R // 6, R // 2
    sections = ((half - third + 1) // 2, (half - third) // 2, third) if case["sections"] else ()
    return {"x": x, "positions": positions, "inv_freq": frequencies(R, 1e7), "sections": sections}


def _cost(case: Case) -> Cost:
    T, H, D, R = case["T"], case["H"], case["D"], case["R"]
    size = DTYPES[case["dtype"]].itemsize
    return Cost(bytes=2 * T * H * D * size + 4 * T * case["axes"] + 2 * R, flops=3 * T * H * R)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    x, inv_freq = inputs["x"], inputs["inv_freq"]
    R = 2 * inv_freq.shape[0]
    positions = inputs["positions"] if inputs["positions"].dim() == 1 else inputs["positions"][0]

    def run() -> torch.Tensor:
        angle = (positions[:, None].float() * inv_freq).repeat(1, 2)[:, None]
        turned, rest = x[..., :R], x[..., R:]
        half = torch.cat((-turned[..., R // 2 :], turned[..., : R // 2]), -1)
        return torch.cat((turned * angle.cos().to(x.dtype) + half * angle.sin().to(x.dtype), rest), -1)

    return run


def _illegal(case: Case) -> str | None:
    if case["R"] > case["D"]:
        return f"rope turns at most all {case['D']} dims, not R={case['R']}"
    if case["axes"] == 3 and not case["sections"]:
        return "rope needs sections to choose among 3 coordinates"
    return None


def _at(case: Case, dtypes: tuple[str, ...], **changes: int) -> tuple[Case, ...]:
    return tuple(case.but(**changes, dtype=dtype) for dtype in dtypes)


_SMALL = case(T=5, H=3, D=64, R=32, gap=0, position=40, axes=1, sections=False, dtype="f32")
# heads of the 27B: 24 of q at 2 * 256 apart (its gate lies between), 4 of k
_Q = case(T=23, H=24, D=256, R=64, gap=256, position=262143, axes=3, sections=True, dtype="bf16")
_K = _Q.but(H=4, gap=0)
_DRAFT = case(T=16, H=32, D=128, R=128, gap=0, position=262143, axes=1, sections=False, dtype="bf16")

SPEC = Spec(
    op="rope",
    formula="(a, b) of dims (i, i + R/2) -> (a cos - b sin, b cos + a sin), angle = pos * inv_freq",
    dims=(
        Dim("T", 1, 1 << 18, fuzz=9, doc="tokens"),
        Dim("H", 1, 256, fuzz=5, doc="heads"),
        Dim("D", 2, 512, fuzz=96, multiple=2, doc="head dim"),
        Dim("R", 2, 512, fuzz=96, multiple=2, doc="dims that are turned"),
        Dim("gap", 0, 1 << 16, fuzz=40, doc="elements between heads"),
        Dim("position", 0, (1 << 18) - 1, fuzz=262143, doc="largest position"),
    ),
    # axes 1: positions [T]; 3: [3, T]
    choices={"dtype": ("f32", "bf16", "f16"), "axes": (1, 3), "sections": (False, True)},
    inputs=_inputs,
    cases={
        "smoke": (*_at(_SMALL, ("f32", "bf16")), _SMALL.but(axes=3, sections=True, position=262143)),
        "edge": (
            _SMALL.but(T=1, H=1, D=2, R=2, position=0),
            _SMALL.but(T=1, H=1, D=66, R=66, gap=2, position=262143),
            _SMALL.but(T=2, H=5, D=34, R=6, gap=1, axes=3, sections=True, position=3),
            _SMALL.but(H=1, axes=1, sections=True, position=262143, dtype="f16"),
            _SMALL.but(T=3, H=24, D=256, R=64, gap=256, position=262143, axes=3, sections=True, dtype="bf16"),
            _SMALL.but(T=3, H=4, D=128, R=128, position=8191),
            _SMALL.but(T=3, H=7, D=100, R=98, position=65536),
        ),
        "qwen35": (_Q, _K, _DRAFT, _Q.but(T=1)),
        "perf": (_Q, _Q.but(T=1), _K, _DRAFT, _DRAFT.but(H=8)),
    },
    cost=_cost,
    illegal=_illegal,
    nonfinite=("x",),
    baselines={"torch": _torch},
)
