"""Rows start + path[d] of a cache move to start + d, all read before any is written: the accepted nodes close ranks.

tree rows   | 0 | 1 | 2 | 3 | 4 | 5 |    path = 0 1 4 5       | 0 | 1 | 4 | 5 | . | . |    start += 4

A key keeps the rotary position of its depth, which is the position it moves to.
"""

from collections.abc import Callable

import torch

from .cache import FORMATS, draw_keys, draw_values, filled
from .formats import row_bytes
from .spec import Bitwise, Case, Cost, Dim, Inputs, Spec, case
from .tree import SHAPES, draw
from .tree import path as path_of


def kv_move(
    cache_k: torch.Tensor, cache_v: torch.Tensor, path: torch.Tensor, length: torch.Tensor, start: torch.Tensor
) -> None:
    """caches: [Hkv, S, row]; path: [D] i32, ascending, path[d] >= d, the first `length` [1] count; start: [1] i32."""
    first = int(start)
    for cache in (cache_k, cache_v):
        rows = cache[:, first + path[: int(length)].long()].clone()
        cache[:, first : first + int(length)] = rows


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, Hkv, D, start, depth = (case[name] for name in ("T", "Hkv", "D", "context", "depth"))
    parents = draw(case["tree"], T, generator)
    nodes = int((parents > -2).sum())
    leaf = nodes - 1 if case["leaf"] == "last" else int(torch.randint(0, nodes, (1,), generator=generator))
    accepted = path_of(parents, leaf)[:depth] if case["leaf"] != "none" else []
    path = torch.tensor([*accepted, *[-1] * (depth - len(accepted))], dtype=torch.int32)
    S = start + T + case["spare"]
    keys = filled(draw_keys(Hkv, T, D, generator), case["format_k"], start, S)
    values = filled(draw_values(Hkv, T, D, generator), case["format_v"], start, S)
    return {
        # a cache with rows to spare is cut from a pool, where rows of others lie between its own
        "cache_k": _apart(keys, 16) if case["spare"] else keys,
        "cache_v": _apart(values, 32) if case["spare"] else values,
        "path": path,
        "length": torch.tensor([len(accepted)], dtype=torch.int32),
        "start": torch.tensor([start], dtype=torch.int32),
    }


def _apart(cache: torch.Tensor, gap: int) -> torch.Tensor:
    """The same rows, `gap` elements between them."""
    Hkv, S, row = cache.shape
    return torch.empty_strided((Hkv, S, row), (S * (row + gap), row + gap, 1), dtype=cache.dtype).copy_(cache)


def _cost(case: Case) -> Cost:
    bytes_per_row = row_bytes(case["format_k"], case["D"]) + row_bytes(case["format_v"], case["D"])
    return Cost(bytes=2 * case["depth"] * case["Hkv"] * bytes_per_row)


def _torch(inputs: Inputs) -> Callable[[], None]:
    start, length = int(inputs["start"]), int(inputs["length"])
    source = start + inputs["path"][:length].long()

    def run() -> None:
        for cache in (inputs["cache_k"], inputs["cache_v"]):
            cache[:, start : start + length] = cache.index_select(1, source)

    return run


def _illegal(case: Case) -> str | None:
    for format in (case["format_k"], case["format_v"]):
        if case["D"] % (128 if format == "tq3_0" else 32):
            return f"{format} has no rows of {case['D']} values"
    return None


_SMALL = case(T=9, Hkv=2, D=64, depth=6, context=5, spare=1, tree="random", leaf="any", format_k="f16", format_v="q4_0")
_QWEN = case(
    T=23, Hkv=4, D=256, depth=16, context=4096, spare=0, tree="ddtree", leaf="last", format_k="f16", format_v="f16"
)

SPEC = Spec(
    op="kv_move",
    formula="cache[start + d] = cache[start + path[d]] for d < length",
    dims=(
        Dim("T", 1, 1024, fuzz=12, doc="nodes of the tree"),
        Dim("Hkv", 1, 64, fuzz=3, doc="heads of the cache"),
        Dim("D", 32, 256, fuzz=128, multiple=32, doc="head dim"),
        Dim("depth", 1, 64, fuzz=8, doc="slots of the path"),
        Dim("context", 0, 1 << 18, fuzz=9, doc="rows before the tree"),
        Dim("spare", 0, 1 << 18, fuzz=2, doc="rows after the tree"),
    ),
    choices={"tree": SHAPES, "leaf": ("any", "last", "none"), "format_k": FORMATS, "format_v": FORMATS},
    inputs=_inputs,
    outputs=(),
    updates=("cache_k", "cache_v"),
    tolerance=Bitwise(),
    cases={
        "smoke": (_SMALL, _SMALL.but(D=128, leaf="last", format_k="tq3_0", format_v="bf16")),
        "edge": (
            _SMALL.but(leaf="none"),
            _SMALL.but(T=1, depth=1, context=0, spare=0, tree="chain", leaf="last", format_k="bf16"),
            _SMALL.but(T=7, depth=7, tree="chain", leaf="last", format_k="q8_0"),
            _SMALL.but(T=17, depth=2, spare=0, tree="star", leaf="last", format_k="q8_0", format_v="f16"),
            _SMALL.but(T=40, depth=17, spare=0, tree="ddtree", leaf="last", D=32, Hkv=1),
            _SMALL.but(T=12, tree="padded", D=256, format_k="q4_0", format_v="tq3_0"),
            _SMALL.but(T=33, tree="binary", leaf="last", context=0, D=96),
        ),
        "qwen35": tuple(_QWEN.but(format_k=format, format_v=format) for format in FORMATS),
        "perf": tuple(_QWEN.but(format_k=format, format_v=format) for format in ("f16", "q4_0")),
    },
    cost=_cost,
    illegal=_illegal,
    baselines={"torch": _torch},
)
