"""Where the rows of a drafting step stand: B of the context that were committed since the last one, then its own B.

positions    drafted + 0, 1, ..  | start + 0, 1, ..
slots        position % N, or -1 | begin + 0, 1, ..         a ring of N rows of the context, then a block of B
             where it is no row of the context yet          begin = min(start, N): the block follows what is there
"""

from collections.abc import Callable
from typing import Any

import torch

from .spec import Bitwise, Case, Cost, Dim, Inputs, Spec, case


def ring_rows(
    drafted: torch.Tensor, start: torch.Tensor, N: int, B: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """drafted, start: [1] i32, rows of the context that the rings hold and that are committed; N: rows of the ring ->
    positions, slots [2 B] i32 and begin [1] i32."""
    steps = torch.arange(B, dtype=torch.int32, device=start.device)
    new, begin = drafted + steps, start.clamp_max(N)
    slots = torch.where(new < start, new % N, -1)
    return torch.cat((new, start + steps)), torch.cat((slots, begin + steps)), begin


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    start = case["start"]
    # from none to all of `behind`
    drafted = max(0, start - int(torch.randint(0, case["behind"] + 1, (1,), generator=generator)))
    return {
        "drafted": torch.tensor([drafted], dtype=torch.int32),
        "start": torch.tensor([start], dtype=torch.int32),
        "N": case["N"],
        "B": case["B"],
    }


def _torch(inputs: Inputs) -> Callable[[], Any]:
    return lambda: ring_rows(**inputs)


_SMALL = case(N=8, B=4, start=5, behind=2)

SPEC = Spec(
    op="ring_rows",
    formula="positions, slots, begin of a block of B rows after a ring of N",
    dims=(
        Dim("N", 1, 1 << 18, fuzz=20, doc="rows of the ring"),
        Dim("B", 1, 1024, fuzz=20, doc="rows of a block"),
        Dim("start", 0, 1 << 30, fuzz=50, doc="committed rows"),
        Dim("behind", 0, 1 << 30, fuzz=20, doc="of them, not yet in the ring, at most"),
    ),
    inputs=_inputs,
    outputs=("positions", "slots", "begin"),
    tolerance=Bitwise(),
    cases={
        "smoke": (_SMALL, _SMALL.but(start=21, behind=4)),
        "edge": (
            _SMALL.but(start=0, behind=0),
            _SMALL.but(start=8, behind=4),
            _SMALL.but(start=9, behind=1),
            _SMALL.but(N=1, B=1, start=1, behind=1),
            _SMALL.but(N=7, B=16, start=1 << 30, behind=16),
            _SMALL.but(N=4096, B=5, start=4098, behind=9),
        ),
        "qwen35": (case(N=4096, B=16, start=4099, behind=7), case(N=2048, B=16, start=131072, behind=16)),
        "perf": (case(N=4096, B=16, start=131072, behind=7),),
    },
    cost=lambda case: Cost(bytes=16 * case["B"] + 12),
    baselines={"torch": _torch},
)
