"""What a step leaves: its accepted tokens behind the context, the context that much longer, another root.

context    | 0 .. start-1 | tokens[path[0]] | tokens[path[1]] | ..      emitted   | length | tokens[path[0]] | ..
"""

from collections.abc import Callable
from typing import Any

import torch

from .spec import Bitwise, Case, Cost, Dim, Inputs, Spec, case


def advance(
    tokens: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    following: torch.Tensor,
    context: torch.Tensor,
    emitted: torch.Tensor,
    start: torch.Tensor,
    root: torch.Tensor,
) -> None:
    """tokens: [T] i32; path: [D] i32, rows of it, the first `length` [1] i32 of which count; following: [1] i32, the
    next root. Updated: context [S] i32, rows past its end left out; emitted [1 + n] i32, as many as fit; start and root
    [1] i32."""
    first, count = int(start), int(length)
    accepted = tokens[path[:count].long()]
    room = context[first : first + count]
    room.copy_(accepted[: len(room)])
    emitted[0] = count
    told = emitted[1 : 1 + count]
    told.copy_(accepted[: len(told)])
    start += count
    root.copy_(following)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, D, S = case["T"], case["D"], case["S"]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(0, 1 << 20, shape, generator=generator).int()

    length = min(T, D, case["length"])
    path = torch.full((D,), -1, dtype=torch.int32)
    path[:length] = torch.randperm(T, generator=generator)[:length].sort().values.int()
    return {
        "tokens": drawn(T),
        "path": path,
        "length": torch.tensor([length], dtype=torch.int32),
        "following": drawn(1),
        "context": drawn(S),
        "emitted": drawn(1 + case["n"]),
        "start": torch.tensor([min(case["start"], S)], dtype=torch.int32),
        "root": drawn(1),
    }


def _torch(inputs: Inputs) -> Callable[[], Any]:
    tokens, path, length, start, context = (inputs[name] for name in ("tokens", "path", "length", "start", "context"))
    emitted, depth = inputs["emitted"], torch.arange(len(path), dtype=torch.int32, device=path.device)

    def run() -> None:
        accepted = tokens[path.clamp_min(0).long()]
        rows = torch.where(depth < length, start + depth, len(context) - 1).clamp_max(len(context) - 1)
        context.index_copy_(0, rows.long(), accepted)
        emitted[:1].copy_(length)
        emitted[1 : 1 + len(accepted)].copy_(accepted[: len(emitted) - 1])
        inputs["root"].copy_(inputs["following"])

    return run


_SMALL = case(T=9, D=6, S=40, n=8, length=4, start=7)

SPEC = Spec(
    op="advance",
    formula="context[start + d] = emitted[1 + d] = tokens[path[d]] for d < length; start += length; root = following",
    dims=(
        Dim("T", 1, 1 << 16, fuzz=20, doc="tokens of a step"),
        Dim("D", 1, 1 << 14, fuzz=16, doc="slots of the path"),
        Dim("S", 1, 1 << 20, fuzz=60, doc="rows of the context"),
        Dim("n", 1, 1 << 10, fuzz=16, doc="tokens that are told"),
        Dim("length", 0, 1 << 14, fuzz=16, doc="accepted, at most"),
        Dim("start", 0, 1 << 20, fuzz=60, doc="committed before"),
    ),
    inputs=_inputs,
    outputs=(),
    updates=("context", "emitted", "start", "root"),
    tolerance=Bitwise(),
    cases={
        "smoke": (_SMALL, _SMALL.but(T=23, D=16, n=16, length=16)),
        "edge": (
            _SMALL.but(length=0),
            _SMALL.but(T=1, D=1, S=1, n=1, length=1, start=0),
            _SMALL.but(S=9, length=6),
            _SMALL.but(S=7, length=2),
            _SMALL.but(T=12, D=12, n=5, length=12, start=0),
        ),
        "qwen35": (_SMALL.but(T=23, D=16, S=4608, n=16, length=16, start=4096),),
        "perf": (_SMALL.but(T=1, D=1, S=4608, n=16, length=1), _SMALL.but(T=23, D=16, S=4608, n=16, length=8)),
    },
    cost=lambda case: Cost(bytes=4 * (4 * min(case["length"], case["D"]) + 6)),
    baselines={"torch": _torch},
)
