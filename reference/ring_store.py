"""ring[(start + d) % R] = x[path[d]] for d < length: rows of an accepted path join a ring, in the ring's dtype.

x     | 0 | 1 | 2 | 3 | 4 |   path 0 2 4, start = R - 1      ring   | x2 | x4 | ...    | x0 |
"""

from collections.abc import Callable
from typing import Any

import torch

from .spec import DTYPES, Bitwise, Calibrated, Case, Cost, Dim, Inputs, Spec, Tolerance, case


def ring_store(
    x: torch.Tensor, ring: torch.Tensor, path: torch.Tensor, length: torch.Tensor, start: torch.Tensor
) -> None:
    """x: [T, E], ring: [R, E] updated, rows of both at any stride; path: [D] i32, D at most R, rows of x, the first
    `length` [1] i32 of which count; start: [1] i32."""
    n = int(length)
    slots = (int(start) + torch.arange(n, device=x.device)) % len(ring)
    ring[slots] = x[path[:n].long()].to(ring.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, E, R, D, gap = (case[name] for name in ("T", "E", "R", "D", "gap"))

    def rows(n: int, dtype: str) -> torch.Tensor:
        x = torch.empty_strided((n, E), (E + gap, 1), dtype=DTYPES[dtype])
        return x.copy_(torch.randn(n, E, generator=generator))

    length = min(D, T, case["length"])
    path = torch.full((D,), -1, dtype=torch.int32)
    path[:length] = torch.randperm(T, generator=generator)[:length].sort().values.int()
    return {
        "x": rows(T, case["dtype"]),
        "ring": rows(R, case["ring"]),
        "path": path,
        "length": torch.tensor([length], dtype=torch.int32),
        "start": torch.tensor([case["start"]], dtype=torch.int32),
    }


def _tolerance(case: Case) -> Tolerance:
    # a cast may change the bits of a NaN
    return Bitwise() if case["dtype"] == case["ring"] else Calibrated(factor=1, ulps=0)


def _torch(inputs: Inputs) -> Callable[[], Any]:
    x, ring, path, length, start = (inputs[name] for name in ("x", "ring", "path", "length", "start"))
    n, slots = int(length), (int(start) + torch.arange(int(length), device=ring.device)) % len(ring)
    return lambda: ring.index_copy_(0, slots, x[path[:n].long()].to(ring.dtype))


def _cost(case: Case) -> Cost:
    rows = min(case["D"], case["T"], case["length"])
    width = DTYPES[case["dtype"]].itemsize + DTYPES[case["ring"]].itemsize
    return Cost(bytes=rows * case["E"] * width + 4 * rows + 8)


_SMALL = case(T=9, E=64, R=12, D=6, length=4, start=3, gap=0, dtype="f32", ring="bf16")

SPEC = Spec(
    op="ring_store",
    formula="ring[(start + d) % R] = x[path[d]] for d < length",
    dims=(
        Dim("T", 1, 1 << 16, fuzz=20, doc="rows of x"),
        Dim("E", 1, 1 << 16, fuzz=300, doc="row length"),
        Dim("R", 1, 1 << 18, fuzz=40, doc="rows of the ring"),
        Dim("D", 1, 1 << 16, fuzz=16, doc="slots of the path"),
        Dim("length", 0, 1 << 16, fuzz=16, doc="of them accepted, at most"),
        Dim("start", 0, 1 << 30, fuzz=100, doc="rows that joined before"),
        Dim("gap", 0, 1 << 20, fuzz=20, doc="elements between rows"),
    ),
    choices={"dtype": ("f32", "bf16", "f16"), "ring": ("f32", "bf16", "f16")},
    inputs=_inputs,
    outputs=(),
    updates=("ring",),
    tolerance=_tolerance,
    cases={
        "smoke": (_SMALL, _SMALL.but(start=10, gap=7, dtype="f16", ring="f16")),
        "edge": (
            _SMALL.but(length=0),
            _SMALL.but(T=1, E=1, R=1, D=1, length=1, start=0),
            _SMALL.but(T=1, D=1, length=1, start=12, E=127),
            _SMALL.but(T=12, D=12, length=12, start=1 << 30, E=33),
            _SMALL.but(T=40, R=16, D=16, length=16, start=5, E=257, gap=1, dtype="bf16", ring="bf16"),
        ),
        "qwen35": (_SMALL.but(T=23, E=5120, R=4096, D=16, length=16, start=4090, gap=20480),),
        "perf": (
            _SMALL.but(T=1, E=5120, R=4096, D=1, length=1, start=4095, gap=20480),
            _SMALL.but(T=23, E=5120, R=4096, D=16, length=8, start=4090, gap=20480),
            _SMALL.but(T=512, E=5120, R=4096, D=512, length=512, start=4090, gap=20480),
        ),
    },
    cost=_cost,
    illegal=lambda case: f"a path of {case['D']} laps a ring of {case['R']}" if case["D"] > case["R"] else None,
    nonfinite=("x",),
    baselines={"torch": _torch},
)
