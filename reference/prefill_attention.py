"""o = softmax(q k^T / sqrt(D)) v, then * sigmoid(gate): query i, of row start + i of the cache, sees rows up to that.

With a window of W it sees the last W of them, max(0, start + i - W + 1) .. start + i.
"""

from collections.abc import Callable

import torch

from .attention import attend
from .cache import FORMATS
from .formats import row_bytes
from .spec import DTYPES, Case, Cost, Dim, Inputs, Spec, case
from .tree_attention import DIMS, SCORES, dense, draw_caches, draw_queries, illegal, tolerance


def prefill_attention(
    q: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    start: torch.Tensor,
    format_k: str,
    format_v: str,
    window: int = 0,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """q, gate: [T, H, D]; caches: [Hkv, S, row]; start: [1] i32 -> [T, H, D] of q's dtype."""
    T, first = q.shape[0], int(start)
    low = max(0, first - window + 1) if window else 0
    rows = slice(low, first + T)
    visible = _visible(T, first, low, window).to(q.device)
    return attend(q, cache_k[:, rows], cache_v[:, rows], format_k, format_v, visible, gate)


def _visible(T: int, first: int, low: int, window: int) -> torch.Tensor:
    """[T, first + T - low] bool: which of the rows from `low` each query sees."""
    row, own = torch.arange(low, first + T), torch.arange(first, first + T)[:, None]
    seen = row <= own
    return seen & (row > own - window) if window else seen


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, H, D, start, window = (case[name] for name in ("T", "H", "D", "context", "window"))
    low = max(0, start - window + 1) if window else 0
    return {
        **draw_queries(T, H, D, case["scores"], case["dtype"], case["gate"], generator),
        **draw_caches(case, low, start + T, start + T + case["spare"], generator),
        "start": torch.tensor([start], dtype=torch.int32),
        "window": window,
    }


def _cost(case: Case) -> Cost:
    T, H, D, start, window = (case[name] for name in ("T", "H", "D", "context", "window"))
    pairs = T * start + T * (T + 1) // 2
    rows = start + T
    if window:
        pairs = sum(min(window, start + i + 1) for i in range(T))
        rows = min(rows, window + T - 1)
    of_cache = rows * case["Hkv"] * (row_bytes(case["format_k"], D) + row_bytes(case["format_v"], D))
    of_queries = (3 if case["gate"] else 2) * T * H * D * DTYPES[case["dtype"]].itemsize
    return Cost(bytes=of_cache + of_queries, flops=4 * H * D * pairs)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    T, first, window = inputs["q"].shape[0], int(inputs["start"]), inputs["window"]
    low = max(0, first - window + 1) if window else 0
    q, k, v = dense(inputs, slice(low, first + T))
    visible = _visible(T, first, low, window).to(q.device)
    gate = 1.0 if inputs["gate"] is None else torch.sigmoid(inputs["gate"])
    attention = torch.nn.functional.scaled_dot_product_attention

    def run() -> torch.Tensor:
        # without rows before the queries torch knows the mask by name, and picks its fastest kernel
        how = {"is_causal": True} if k.shape[2] == T and not window else {"attn_mask": visible}
        return attention(q, k, v, enable_gqa=True, **how)[0].transpose(0, 1) * gate

    return run


_SMALL = case(
    T=9, H=4, Hkv=2, D=64, context=20, spare=2, window=0, scores="normal", gate=False,
    dtype="f32", format_k="f16", format_v="f16",
)  # fmt: skip
_TARGET = case(
    T=512, H=24, Hkv=4, D=256, context=4096, spare=0, window=0, scores="normal", gate=True,
    dtype="bf16", format_k="f16", format_v="f16",
)  # fmt: skip

SPEC = Spec(
    op="prefill_attention",
    formula="o_i = softmax(q_i k^T / sqrt(D) over rows <= start + i) v * sigmoid(gate_i)",
    dims=(Dim("T", 1, 1 << 18, fuzz=40, doc="queries"), *DIMS[1:]),
    choices={
        "scores": SCORES,
        "gate": (False, True),
        "dtype": ("f32", "bf16", "f16"),
        "format_k": FORMATS,
        "format_v": FORMATS,
    },
    inputs=_inputs,
    tolerance=tolerance,
    cases={
        "smoke": (
            _SMALL,
            _SMALL.but(D=128, gate=True, dtype="bf16", format_k="q8_0", format_v="q4_0"),
            _SMALL.but(T=20, D=128, H=1, Hkv=1, context=14, dtype="f16", format_k="tq3_0", format_v="tq3_0"),
        ),
        "edge": (
            _SMALL.but(T=1, H=1, Hkv=1, D=32, context=0, spare=0),
            _SMALL.but(T=1, H=3, Hkv=1, context=63, gate=True, format_k="q4_0", format_v="q8_0"),
            _SMALL.but(T=65, H=2, context=0, window=1, dtype="bf16"),
            _SMALL.but(T=33, H=2, Hkv=1, context=64, spare=0, window=40, dtype="f16", format_k="bf16", format_v="bf16"),
            _SMALL.but(T=31, H=1, Hkv=1, context=100, window=64, format_v="q4_0"),
            _SMALL.but(T=64, H=2, Hkv=2, context=64, gate=True, format_k="q8_0"),
            _SMALL.but(T=5, D=256, H=2, Hkv=1, context=3, format_k="tq3_0", format_v="f16", gate=True),
            _SMALL.but(T=5, D=128, H=2, context=9, format_k="f16", format_v="tq3_0"),
            _SMALL.but(T=3, context=66, scores="flat", gate=True),
            _SMALL.but(T=3, context=66, scores="sharp"),
        ),
        "qwen35": (
            *(_TARGET.but(format_k=format, format_v=format) for format in FORMATS),
            _TARGET.but(context=131072 - 512, format_k="q4_0", format_v="q4_0"),
            _TARGET.but(
                T=2048, H=32, Hkv=8, D=128, context=0, window=2048, gate=False, format_k="bf16", format_v="bf16"
            ),
        ),
        "perf": tuple(
            _TARGET.but(T=2048, context=context, format_k=format, format_v=format)
            for format in ("f16", "q8_0", "q4_0", "tq3_0")
            for context in (0, 8192)
        ),
    },
    cost=_cost,
    illegal=illegal,
    nonfinite=("q",),
    cold=("cache_k", "cache_v"),
    baselines={"torch": _torch},
)
