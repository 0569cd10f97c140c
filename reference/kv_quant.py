"""cache_k[h, slots[t]] = the row of k[t, h], and cache_v alike, in f16, bf16, q8_0, q4_0 or tq3_0.

q8_0   d = max|x| / 127          q = round(x * (1/d)), halves away from zero           of 32 values
q4_0   d = x of max|x| / -8      q = min(15, trunc(x * (1/d) + 8.5))                   of 32, the first of equals
tq3_0  n = |x|, y = R(x / n)     q = bounds at or below y, norm = n / |code values|    of 128

Byte for byte as ggml (q8_0, q4_0) and the published rule of tq3_0 have them, planes apart: see `cache`.
"""

from collections.abc import Callable

import torch

from .cache import FORMATS, draw_keys, draw_values, empty, to_rows
from .formats import row_bytes
from .spec import DTYPES, Bitwise, Case, Cost, Dim, Inputs, Spec, case


def kv_quant(
    k: torch.Tensor,
    v: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    slots: torch.Tensor,
    format_k: str,
    format_v: str,
) -> None:
    """k, v: [T, Hkv, D]; caches: [Hkv, S, row]; slots: [T] i32, distinct; one that is no row is skipped."""
    stored = (slots >= 0) & (slots < cache_k.shape[1])
    rows = slots[stored].long()
    cache_k[:, rows] = to_rows(k[stored], format_k).transpose(0, 1).to(cache_k.dtype)
    cache_v[:, rows] = to_rows(v[stored], format_v).transpose(0, 1).to(cache_v.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    T, Hkv, D, S = case["T"], case["Hkv"], case["D"], case["S"]
    k, v = draw_keys(Hkv, T, D, generator).transpose(0, 1), draw_values(Hkv, T, D, generator).transpose(0, 1)
    if case["values"] != "normal":
        k, v = _awkward(k, case["values"], generator), _awkward(v, case["values"], generator)
    # the projections of a token lie side by side: q and its gate before k and v
    pitch = D + case["gap"]
    rows = torch.zeros(T, 2, Hkv, pitch, dtype=DTYPES[case["dtype"]])
    rows[:, 0, :, :D], rows[:, 1, :, :D] = k, v
    slots = torch.randperm(S, generator=generator)[:T]
    slots = torch.cat((slots, torch.full((T - len(slots),), -1))).to(torch.int32)
    if case["skipped"]:
        slots[::3] = torch.tensor([-1, S, -(1 << 31), (1 << 31) - 1])[torch.arange(len(slots[::3])) % 4].to(torch.int32)
    return {
        "k": rows[:, 0, :, :D] if case["gap"] else rows[:, 0].contiguous(),
        "v": rows[:, 1, :, :D] if case["gap"] else rows[:, 1].contiguous(),
        "cache_k": empty(Hkv, S, D, case["format_k"]),
        "cache_v": empty(Hkv, S, D, case["format_v"]),
        "slots": slots,
        "format_k": case["format_k"],
        "format_v": case["format_v"],
    }


def _awkward(x: torch.Tensor, values: str, generator: torch.Generator) -> torch.Tensor:
    """x with values that a quantiser trips over, in some blocks of 32."""
    blocks = x.unflatten(-1, (-1, 32)).clone()
    kind = torch.randint(0, 8, blocks.shape[:-1], generator=generator)[..., None]
    ramp = torch.arange(32.0)
    sign = 1 - 2 * torch.randint(0, 2, blocks.shape, generator=generator)
    match values:
        case "ties":
            whole = torch.randint(-8, 9, blocks.shape, generator=generator)
            blocks = torch.where(kind == 0, 3.0 * sign, blocks)
            # halves of the scale: 127 fixes it at 1 in q8_0, 8 in q4_0
            blocks = torch.where(kind == 1, torch.where(ramp == 7, 127.0 * sign, whole + 0.5), blocks)
            blocks = torch.where(kind == 2, torch.where(ramp == 3, 8.0 * sign, whole / 2), blocks)
            blocks = torch.where(kind == 3, -0.0, blocks)
            blocks = torch.where(kind == 4, whole / 8, blocks)
            return torch.where(kind == 5, 0.1 * whole, blocks).flatten(-2)
        case "sizes":
            return (blocks * 10.0 ** torch.tensor([-44, -38, -36, -12, -5, 4, 20, 37])[kind]).flatten(-2)
        case _:
            odd = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])[kind % 4]
            return torch.where((ramp == kind * 4) & (kind < 6), odd, blocks).flatten(-2)


def _cost(case: Case) -> Cost:
    values = case["T"] * case["Hkv"] * case["D"]
    rows = case["T"] * case["Hkv"] * (row_bytes(case["format_k"], case["D"]) + row_bytes(case["format_v"], case["D"]))
    return Cost(bytes=2 * values * DTYPES[case["dtype"]].itemsize + rows + 4 * case["T"], flops=8 * values)


def _torch(inputs: Inputs) -> Callable[[], None]:
    names = ("k", "v", "cache_k", "cache_v")
    k, v, cache_k, cache_v = (inputs[name] for name in names)
    rows = inputs["slots"].long()

    def run() -> None:
        cache_k[:, rows] = to_rows(k, inputs["format_k"]).transpose(0, 1)
        cache_v[:, rows] = to_rows(v, inputs["format_v"]).transpose(0, 1)

    return run


def _illegal(case: Case) -> str | None:
    if case["D"] & (case["D"] - 1):
        return f"kv_quant stores rows of a power of two values, not {case['D']}"
    if "tq3_0" in (case["format_k"], case["format_v"]) and case["D"] % 128:
        return f"tq3_0 has no rows of {case['D']} values"
    return None


def _pairs(base: Case, *formats: tuple[str, str]) -> tuple[Case, ...]:
    return tuple(base.but(format_k=k, format_v=v) for k, v in formats)


_SMALL = case(
    T=5, Hkv=2, D=128, S=9, gap=0, dtype="f32", values="normal", skipped=False, format_k="q8_0", format_v="q4_0"
)
_QWEN = case(
    T=23, Hkv=4, D=256, S=4160, gap=0, dtype="bf16", values="normal", skipped=False, format_k="f16", format_v="f16"
)

SPEC = Spec(
    op="kv_quant",
    formula="cache[h, slots[t]] = quantise(x[t, h])",
    dims=(
        Dim("T", 1, 1 << 16, fuzz=9, doc="tokens"),
        Dim("Hkv", 1, 64, fuzz=3, doc="heads of the cache"),
        Dim("D", 32, 256, fuzz=128, multiple=32, doc="head dim, a power of two"),
        Dim("S", 1, 1 << 18, fuzz=12, doc="rows of the cache"),
        Dim("gap", 0, 1 << 16, fuzz=24, doc="elements between heads"),
    ),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "values": ("normal", "ties", "sizes", "odd"),
        "skipped": (False, True),
        "format_k": FORMATS,
        "format_v": FORMATS,
    },
    inputs=_inputs,
    outputs=(),
    updates=("cache_k", "cache_v"),
    tolerance=Bitwise(),
    cases={
        "smoke": _pairs(_SMALL, ("q8_0", "q4_0"), ("tq3_0", "f16")),
        "edge": (
            *_pairs(_SMALL.but(T=9, values="ties"), ("q4_0", "q8_0"), ("bf16", "tq3_0")),
            *_pairs(_SMALL.but(T=9, values="sizes", S=16), ("q8_0", "q4_0"), ("tq3_0", "bf16")),
            *_pairs(_SMALL.but(T=9, values="odd", skipped=True), ("q8_0", "q4_0"), ("f16", "tq3_0"), ("bf16", "f16")),
            _SMALL.but(T=1, Hkv=1, D=32, S=1, gap=3),
            _SMALL.but(T=4, Hkv=3, D=256, S=4, gap=256, dtype="bf16", format_k="tq3_0", format_v="tq3_0"),
            _SMALL.but(T=7, Hkv=1, D=64, S=3, dtype="f16", format_k="q4_0", format_v="q4_0"),
        ),
        "qwen35": (*_pairs(_QWEN, *((format, format) for format in FORMATS)), _QWEN.but(gap=256, format_k="q8_0")),
        "perf": tuple(
            _QWEN.but(T=T, S=4096 + T, format_k=format, format_v=format)
            for T in (1, 23, 4096)
            for format in ("f16", "q8_0", "q4_0", "tq3_0")
        ),
    },
    cost=_cost,
    illegal=_illegal,
    nonfinite=("k", "v"),
    baselines={"torch": _torch},
)
