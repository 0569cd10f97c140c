"""y_t = dequant(W[ids_t]): the rows of a quantised embedding table."""

from collections.abc import Callable

import torch

from .formats import FORMATS, dequantise, draw, row_bytes
from .spec import DTYPES, Bitwise, Case, Cost, Dim, Inputs, Spec, case, product


def embed(ids: torch.Tensor, weight: torch.Tensor, format: str, out_dtype: torch.dtype) -> torch.Tensor:
    """ids: [T] i32; weight: u8 [rows, row_bytes] of GGUF blocks, or [rows, E] f32, f16 or bf16 -> [T, E] of out_dtype.

    An id below zero or past the last row gives a row of zeros.
    """
    known = (ids >= 0) & (ids < len(weight))
    rows = dequantise(weight[ids.where(known, 0).long()], format)
    return torch.where(known[:, None], rows, 0.0).to(out_dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, rows = case["T"], case["rows"]
    ids = torch.randint(0, rows, (T,), generator=generator, dtype=torch.int32)
    # the table's ends, padding and what lies just outside
    special = torch.tensor([rows - 1, -1, 0, rows, -(1 << 31), (1 << 31) - 1], dtype=torch.int32)
    if case["ids"] == "mixed":
        ids[: len(special)] = special[:T]
    weight = draw(case["format"], rows, case["E"], generator)
    if (plain := FORMATS[case["format"]].dtype) is not None:
        weight = weight.view(plain)
    return {"ids": ids, "weight": weight, "format": case["format"], "out_dtype": DTYPES[case["dtype"]]}


def _cost(case: Case) -> Cost:
    row = row_bytes(case["format"], case["E"]) + case["E"] * DTYPES[case["dtype"]].itemsize
    return Cost(bytes=case["T"] * (row + 4))


def _illegal(case: Case) -> str | None:
    elements = FORMATS[case["format"]].elements
    return f"{case['format']} takes E in steps of {elements}, not {case['E']}" if case["E"] % elements else None


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    parts = [dequantise(part, inputs["format"]).to(inputs["out_dtype"]) for part in inputs["weight"].split(4096)]
    table, ids = torch.cat(parts), inputs["ids"].clamp(0, len(inputs["weight"]) - 1)
    return lambda: torch.nn.functional.embedding(ids, table)


SPEC = Spec(
    op="embed",
    formula="y_t = dequant(W[ids_t])",
    dims=(
        Dim("T", 1, 1 << 20, fuzz=9, doc="tokens"),
        Dim("E", 32, 1 << 16, fuzz=800, multiple=32, doc="row length; K-quants in steps of 256"),
        Dim("rows", 1, 1 << 24, fuzz=40, doc="rows of the table"),
    ),
    choices={
        "format": ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "bf16", "f16", "f32"),
        "dtype": ("f32", "bf16", "f16"),
        "ids": ("known", "mixed"),
    },
    inputs=_inputs,
    cases={
        "smoke": (
            case(T=3, E=512, rows=16, format="q4_k", dtype="bf16", ids="known"),
            case(T=8, E=256, rows=16, format="q6_k", dtype="f32", ids="mixed"),
        ),
        "edge": (
            case(T=1, E=32, rows=1, format="q8_0", dtype="f32", ids="known"),
            case(T=7, E=288, rows=5, format="q8_0", dtype="f16", ids="mixed"),
            case(T=2, E=1056, rows=3, format="q4_0", dtype="f32", ids="mixed"),
            case(T=9, E=1280, rows=9, format="q5_k", dtype="f32", ids="mixed"),
            case(T=2, E=4096 + 256, rows=4, format="q4_k", dtype="f32", ids="known"),
            *(case(T=6, E=288, rows=4, format=format, dtype="bf16", ids="mixed") for format in ("bf16", "f16", "f32")),
        ),
        "qwen35": product(T=(1, 23), E=5120, rows=248320, format="q4_k", dtype="bf16", ids="known"),
        "perf": product(T=(1, 16, 23, 64, 512), E=5120, rows=248320, format="q4_k", dtype="bf16", ids="known"),
    },
    cost=_cost,
    tolerance=Bitwise(),
    cold=("weight",),
    illegal=_illegal,
    baselines={"torch": _torch},
)
