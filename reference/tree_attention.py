"""o = softmax(q k^T / sqrt(D)) v, then * sigmoid(gate): each query sees the committed rows and its own ancestors.

    cache   | 0 .. start-1: all queries, or with window W the last W of them | start + j: query i iff ancestors[i, j] |

ancestors is the tree's mask (a node is its own ancestor); all ones make a block that sees all of itself, a triangle of
ones a causal block. A query whose row is all zero is padding and gets exactly 0. H query heads share Hkv in groups.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .attention import attend
from .cache import FORMATS, draw_keys, draw_values, empty, filled, stored, values
from .formats import row_bytes
from .hadamard import rotate
from .spec import DTYPES, Calibrated, Case, Cost, Dim, Inputs, Mismatch, Spec, case
from .tree import SHAPES, draw
from .tree_mask import tree_mask


def tree_attention(
    q: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    start: torch.Tensor,
    ancestors: torch.Tensor,
    format_k: str,
    format_v: str,
    window: int = 0,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """q, gate: [T, H, D]; caches: [Hkv, S, row]; start: [1] i32; ancestors: [T, T] u8 -> [T, H, D] of q's dtype."""
    T, first = q.shape[0], int(start)
    low = max(0, first - window) if window else 0
    rows = slice(low, first + T)
    own = ancestors.bool()
    visible = torch.cat((own.any(1, keepdim=True).expand(-1, first - low), own), 1)
    return attend(q, cache_k[:, rows], cache_v[:, rows], format_k, format_v, visible, gate)


TREES = (*SHAPES, "block")
SCORES = ("normal", "flat", "sharp")
STEPS = 3


def mask(shape: str, T: int, generator: torch.Generator) -> torch.Tensor:
    """[T, T] u8: the ancestors of a tree of that shape; all ones for a block that sees all of itself."""
    if shape == "block":
        return torch.ones(T, T, dtype=torch.uint8)
    return tree_mask(draw(shape, T, generator)[None])[0][0]


def draw_queries(T: int, H: int, D: int, scores: str, dtype: str, gated: bool, generator: torch.Generator) -> Inputs:
    """q and gate [T, H, D]: in life one projection gives both, q and gate by turns."""
    spread = {"normal": 2.0, "flat": 0.0, "sharp": 30.0}[scores]
    both = torch.randn(T, H, 2, D, generator=generator)
    both[:, :, 0] *= spread
    both = both.to(DTYPES[dtype])
    return {"q": both[:, :, 0], "gate": both[:, :, 1]} if gated else {"q": both[:, :, 0].contiguous(), "gate": None}


def draw_caches(case: Case, low: int, high: int, S: int, generator: torch.Generator) -> Inputs:
    """Caches of S rows with rows low .. high - 1 written and the others as they came from the allocator."""
    Hkv, D = case["Hkv"], case["D"]
    keys, vals = draw_keys(Hkv, high - low, D, generator), draw_values(Hkv, high - low, D, generator)
    return {
        "cache_k": filled(keys, case["format_k"], low, S),
        "cache_v": filled(vals, case["format_v"], low, S),
        "format_k": case["format_k"],
        "format_v": case["format_v"],
    }


def tolerance(case: Case) -> Calibrated:
    """f32 queries are multiplied in f32, others in what holds the cache: f16, or bf16 where that is its format."""
    if case["dtype"] == "f32":
        return Calibrated(ulps=32)
    half = torch.bfloat16 if "bf16" in (case["format_k"], case["format_v"]) else torch.float16
    return Calibrated(ulps=2, compute=half)


def scatter(case: Case, inputs: Inputs) -> tuple[torch.Tensor]:
    """What rounding the operands of q k^T to 16 bits does to the output, in first order, inputs in f64:

        var s = (q^2 k^2T) u^2 / D    do = sum p (v - o) ds    var o = sum p^2 (v - o)^2 var s    u = eps / 2 / sqrt(6)

    with u the rms of a rounding relative to its number. Scores of a spread of 30 change by 0.01 and more. f16 and bf16
    are held as they are; keys of codes are rounded behind their scale, and of tq3_0 the rotated queries, too.
    """
    q, T, first = inputs["q"], inputs["q"].shape[0], int(inputs["start"])
    roundings = {"tq3_0": 2, "q8_0": 1, "q4_0": 1}.get(case["format_k"], 0) if case["dtype"] != "f32" else 0
    low, own = max(0, first - case["window"]) if case["window"] else 0, inputs["ancestors"].bool()
    visible = torch.cat((own.any(1, keepdim=True).expand(-1, first - low), own), 1)
    unit, asked = torch.finfo(torch.float16).eps ** 2 / 24 * roundings, rotate(q) if case["format_k"] == "tq3_0" else q
    found, (H, D), Hkv = torch.zeros_like(q), q.shape[1:], inputs["cache_k"].shape[0]
    for h in range(Hkv if roundings else 0):
        heads, rows = slice(h * (H // Hkv), (h + 1) * (H // Hkv)), slice(low, first + T)
        seen = visible.any(0)[:, None]
        k = stored(inputs["cache_k"][h, rows], case["format_k"]).to(q.dtype).where(seen, 0.0)
        v = values(inputs["cache_v"][h, rows], case["format_v"]).to(q.dtype).where(seen, 0.0)
        scores = (asked[:, heads] @ k.t() / D**0.5).masked_fill(~visible[:, None], float("-inf"))
        p = scores.softmax(-1).nan_to_num(0.0)
        share, o = p.square() * (asked[:, heads].square() @ k.square().t()) * (unit / D), p @ v
        square = share @ v.square() - 2 * o * (share @ v) + o.square() * share.sum(-1, keepdim=True)
        found[:, heads] = square.clamp_min(0)
    return (found.sqrt() if inputs["gate"] is None else found.sqrt() * torch.sigmoid(inputs["gate"]),)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, H, D, start, window = (case[name] for name in ("T", "H", "D", "context", "window"))
    ancestors = mask(case["tree"], T, generator)
    low, nodes = max(0, start - window) if window else 0, int(ancestors.amax(1).sum())
    return {
        **draw_queries(T, H, D, case["scores"], case["dtype"], case["gate"], generator),
        **draw_caches(case, low, start + nodes, start + T + case["spare"], generator),
        "start": torch.tensor([start], dtype=torch.int32),
        "ancestors": ancestors,
        "window": window,
    }


def _cost(case: Case) -> Cost:
    T, H, D = case["T"], case["H"], case["D"]
    rows = T + (min(case["window"], case["context"]) if case["window"] else case["context"])
    of_cache = rows * case["Hkv"] * (row_bytes(case["format_k"], D) + row_bytes(case["format_v"], D))
    of_queries = (3 if case["gate"] else 2) * T * H * D * DTYPES[case["dtype"]].itemsize
    return Cost(bytes=of_cache + of_queries + T * T, flops=4 * T * H * D * rows)


def dense(inputs: Inputs, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [1, H, T, D] and these rows of K and V [1, Hkv, N, D] in q's dtype: what torch's own attention takes."""
    q = inputs["q"].transpose(0, 1)[None]
    k = values(inputs["cache_k"][:, rows], inputs["format_k"])[None].to(q.dtype)
    return q, k, values(inputs["cache_v"][:, rows], inputs["format_v"])[None].to(q.dtype)


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    # the cache dequantised beforehand: torch has no attention over blocks
    T, first, window = inputs["q"].shape[0], int(inputs["start"]), inputs["window"]
    q, k, v = dense(inputs, slice(max(0, first - window) if window else 0, first + T))
    ones = torch.ones(T, k.shape[2] - T, dtype=torch.bool, device=q.device)
    visible = torch.cat((ones, inputs["ancestors"].bool()), 1)
    gate = 1.0 if inputs["gate"] is None else torch.sigmoid(inputs["gate"])

    def run() -> torch.Tensor:
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return o[0].transpose(0, 1) * gate

    return run


def _path(call: Callable[..., Any], inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """A node of a tree attends as the last token of its path does on a cache that holds the path alone.

    Over STEPS steps: the accepted path closes ranks (`kv_move`) and a fresh tree is stored behind it (`kv_quant`).
    """
    if case["tree"] == "block":
        return
    T, H, Hkv, D = (case[name] for name in ("T", "H", "Hkv", "D"))
    generator, device = torch.Generator().manual_seed(seed), inputs["q"].device
    rule, eps = tolerance(case), torch.finfo(inputs["q"].dtype).eps
    slack = 2 * (rule.ulps * torch.finfo(rule.compute).eps + eps)
    # room for the trees to come
    caches = {}
    for name, format in (("cache_k", case["format_k"]), ("cache_v", case["format_v"])):
        caches[name] = torch.cat((inputs[name], empty(Hkv, STEPS * T, D, format).to(inputs[name])), 1)
    tree: Inputs = {name: inputs[name] for name in ("q", "gate", "ancestors")}
    start = int(inputs["start"])
    rest = {name: inputs[name] for name in ("format_k", "format_v", "window")}

    def chain(node: int, target: Inputs, first: torch.Tensor) -> list[int]:
        slots = tree["ancestors"][node].nonzero()[:, 0].tolist()
        length, moved = torch.tensor([len(slots)]).to(first), torch.tensor(slots).to(first)
        call("kv_move", **target, path=moved, length=length, start=first)
        return slots

    for step in range(STEPS):
        first = torch.tensor([start], dtype=torch.int32, device=device)
        o = call("tree_attention", **tree, **caches, **rest, start=first)
        nodes = int(tree["ancestors"].amax(1).sum())
        picks = [nodes - 1] if step else [int(torch.randint(nodes, (1,), generator=generator)), nodes - 1]
        for node in picks:
            alone = {name: cache.clone() for name, cache in caches.items()}
            slots = chain(node, alone, first)
            part = {name: None if tree[name] is None else tree[name][slots] for name in ("q", "gate")}
            if case["window"] or step == 1:
                lower = torch.ones(len(slots), len(slots), dtype=torch.uint8, device=device).tril()
                want = call("tree_attention", **part, **alone, **rest, start=first, ancestors=lower)
            else:
                want = call("prefill_attention", **part, **alone, **rest, start=first)
            got, want = o[slots].double(), want.double()
            wrong = (got - want).abs() > slack * (want.abs() + want.square().mean().sqrt())
            if bool((wrong | got.isnan()).any()):
                i, h, d = (wrong | got.isnan()).nonzero()[0].tolist()
                where = f"step {step}, node {slots[i]} of path {slots} [{h}, {d}]"
                yield Mismatch(where, float(got[i, h, d]), float(want[i, h, d]))
                return
        start += len(chain(picks[-1], caches, first))
        ancestors = mask(case["tree"], T, generator)
        fresh = {
            "k": draw_keys(Hkv, T, D, generator).transpose(0, 1).to(o.dtype).contiguous(),
            "v": draw_values(Hkv, T, D, generator).transpose(0, 1).to(o.dtype).contiguous(),
            "slots": torch.arange(start, start + T).where(ancestors.bool().any(1), -1).to(torch.int32),
        }
        formats = {name: rest[name] for name in ("format_k", "format_v")}
        call("kv_quant", **{name: tensor.to(device) for name, tensor in fresh.items()}, **caches, **formats)
        queries = draw_queries(T, H, D, case["scores"], case["dtype"], case["gate"], generator)
        tree = {name: None if x is None else x.to(device) for name, x in {**queries, "ancestors": ancestors}.items()}


def illegal(case: Case) -> str | None:
    if case["H"] % case["Hkv"]:
        return f"{case['H']} query heads do not share {case['Hkv']} heads of the cache evenly"
    if case["D"] & (case["D"] - 1):
        return f"attention takes a head dim of 32, 64, 128 or 256, not {case['D']}"
    for format in (case["format_k"], case["format_v"]):
        least = {"tq3_0": 128, "q8_0": 64, "q4_0": 64}.get(format, 32)
        if case["D"] < least:
            return f"attention reads {format} rows of {least} values and more, not {case['D']}"
    return None


DIMS = (
    Dim("T", 1, 1024, fuzz=12, doc="queries, the nodes of the tree"),
    Dim("H", 1, 256, fuzz=4, doc="query heads"),
    Dim("Hkv", 1, 64, fuzz=2, doc="heads of the cache"),
    Dim("D", 32, 256, fuzz=128, multiple=32, doc="head dim, a power of two"),
    Dim("context", 0, (1 << 18) - 1, fuzz=70, doc="rows before the queries"),
    Dim("spare", 0, 1 << 18, fuzz=3, doc="rows after them, never written"),
    Dim("window", 0, 1 << 18, fuzz=40, doc="0: all rows; else how many before the queries are seen"),
)
_SMALL = case(
    T=6, H=4, Hkv=2, D=64, context=37, spare=2, window=0, tree="random", scores="normal", gate=False,
    dtype="f32", format_k="f16", format_v="f16",
)  # fmt: skip
# the 27B's own attention, and its draft's: a block of 16 behind a window or the whole context
_TARGET = case(
    T=23, H=24, Hkv=4, D=256, context=4096, spare=64, window=0, tree="ddtree", scores="normal", gate=True,
    dtype="bf16", format_k="f16", format_v="f16",
)  # fmt: skip
_DRAFT = _TARGET.but(T=16, H=32, Hkv=8, D=128, tree="block", gate=False, format_k="bf16", format_v="bf16")


def _both(base: Case, *formats: str) -> tuple[Case, ...]:
    return tuple(base.but(format_k=format, format_v=format) for format in formats)


SPEC = Spec(
    op="tree_attention",
    formula="o = softmax(q k^T / sqrt(D) over rows < start and own ancestors) v * sigmoid(gate)",
    dims=DIMS,
    choices={
        "tree": TREES,
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
            _SMALL.but(
                T=4, H=2, Hkv=1, D=128, context=40, dtype="f16", format_k="tq3_0", format_v="tq3_0", tree="ddtree"
            ),
        ),
        "edge": (
            *_both(_SMALL.but(T=2, H=6, Hkv=1, D=256, context=70, dtype="bf16", gate=True), "q4_0", "tq3_0"),
            _SMALL.but(
                T=4, H=3, Hkv=1, D=256, context=200, dtype="f16", scores="sharp", format_k="q8_0", format_v="q8_0"
            ),
            _SMALL.but(
                T=6,
                H=4,
                Hkv=1,
                D=256,
                context=150,
                window=75,
                tree="padded",
                dtype="bf16",
                format_k="f16",
                format_v="q4_0",
            ),
            _SMALL.but(T=3, H=2, Hkv=1, D=256, context=64, dtype="f16", format_k="tq3_0", format_v="f16"),
            _SMALL.but(T=1, H=1, Hkv=1, D=32, context=0, spare=0, tree="chain"),
            *_both(_SMALL.but(T=2, H=1, Hkv=1, D=256, context=0, dtype="f16", tree="forest", scores="sharp"), "q8_0"),
            _SMALL.but(T=1, H=3, Hkv=1, context=1, gate=True, tree="chain", format_k="q4_0", format_v="q8_0"),
            _SMALL.but(T=9, context=63, tree="star", dtype="f16"),
            _SMALL.but(T=7, context=64, spare=0, tree="padded", dtype="bf16", format_k="bf16", format_v="bf16"),
            _SMALL.but(T=4, context=65, window=10, tree="block", gate=True, format_k="bf16", format_v="q4_0"),
            _SMALL.but(T=5, context=20, window=33, tree="chain", dtype="bf16"),
            _SMALL.but(T=5, D=256, H=1, Hkv=1, context=3, tree="forest", format_k="tq3_0", format_v="f16"),
            _SMALL.but(T=5, D=128, H=2, context=9, gate=True, tree="binary", format_k="f16", format_v="tq3_0"),
            _SMALL.but(T=34, H=2, Hkv=1, context=200, tree="padded", dtype="bf16", format_k="q4_0", format_v="q4_0"),
            _SMALL.but(T=34, H=2, Hkv=1, context=300, tree="star", scores="sharp", dtype="bf16", gate=True),
            _SMALL.but(T=3, context=130, tree="star", scores="flat"),
            _SMALL.but(T=3, context=130, tree="star", scores="sharp"),
        ),
        "qwen35": (
            *_both(_TARGET, *FORMATS),
            _TARGET.but(T=1, tree="chain"),
            *_both(_TARGET.but(context=131072), "f16", "q4_0"),
            _DRAFT,
            _DRAFT.but(tree="chain", window=2048),
        ),
        "perf": tuple(
            _TARGET.but(T=T, context=context, tree=tree, gate=True, format_k=format, format_v=format)
            for format in ("f16", "q8_0", "q4_0", "tq3_0")
            for context in (4096, 131072)
            for T, tree in ((1, "chain"), (23, "ddtree"))
        ),
    },
    cost=_cost,
    scatter=scatter,
    illegal=illegal,
    nonfinite=("q",),
    cold=("cache_k", "cache_v"),
    oracles={"path": _path},
    baselines={"torch": _torch},
)
