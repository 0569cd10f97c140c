"""y = x · dequant(W)ᵀ, W in GGUF blocks, with SwiGLU over two halves of W or a residual added, x as it is or normed."""

from collections.abc import Callable

import torch

from . import matmul_peers as peers
from .formats import FORMATS, dequantise, draw, row_bytes
from .rms_norm import rms_norm
from .spec import DTYPES, Calibrated, Case, Cost, Dim, Inputs, Spec, accumulator, case
from .tiles import COLUMNS, RECORD, ROWS, from_tiles, to_tiles

# activations that share a scale in int8: as llama.cpp has it, 256 against K-quants (its q8_K), 32 against the others
GROUP, SUPER_GROUP = 32, 256
LAYOUTS = ("gguf", "tiles")
# a group of activations below this counts as zero: 127 / amax would leave f32's range
SMALLEST = 1e-30
# weights dequantised at a time, so that a vocabulary of rows need not exist in f64 at once
WEIGHTS_AT_ONCE = 1 << 25
# and drawn for a case
DRAWN = 1 << 23


def dequant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    precision: str = "exact",
    residual: torch.Tensor | None = None,
    swiglu: bool = False,
    out_dtype: torch.dtype | None = None,
    layout: str = "gguf",
    norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """x: [M, K]; weight: u8 [N, row_bytes] of GGUF blocks, or [N, K] f32, f16 or bf16 -> [M, N] of out_dtype or x's.

    layout: "gguf", or "tiles" for u8 [N/64, K/256, bytes] as `tiles.to_tiles` rearranges the blocks, without loss.
    precision: "exact" takes the activations as they are, "int8" rounds them to 8 bits with a scale for every 32, or for
    every 256 against q4_k, q5_k and q6_k, so that a block's products stay integers (`quantise_activations`).
    swiglu: the first half of the rows is the gate, the other half up: silu(x gateᵀ) * (x upᵀ), [M, N/2].
    residual: [M, N or N/2], added before the result is rounded.
    norm: [K] f32; x is normed first, x * rsqrt(mean(x^2) + eps) * norm. In int8, of one row over tiles, x * norm is
    rounded to 8 bits, and the row's factor multiplies what comes of it.
    """
    wide, dtype = accumulator(x), torch.float64 if x.dtype == torch.float64 else out_dtype or x.dtype
    factor = None
    if norm is not None:
        factor = torch.rsqrt(x.to(wide).square().mean(1, keepdim=True) + eps)
        x = x.float() * norm if precision == "int8" else x.to(wide) * factor * norm
    K = x.shape[1]
    if layout not in LAYOUTS:
        raise ValueError(f"dequant_matmul takes weights as {', '.join(LAYOUTS)}, not '{layout}'")
    if layout != "gguf":
        weight = from_tiles(weight, format)
    match precision:
        case "exact":
            values = x.to(wide)
        case "int8" if FORMATS[format].dtype is None:
            d, q = quantise_activations(x, group_of(format))
            values = (d.to(wide)[..., None] * q.to(wide)).flatten(-2)
            values = values if factor is None else values * factor
        case _:
            raise ValueError(
                f"dequant_matmul takes exact, or int8 with a quantised format, not {precision} with {format}"
            )
    rows = weight.split(max(1, WEIGHTS_AT_ONCE // K))
    y = torch.cat([values @ dequantise(part, format).to(wide).T for part in rows], dim=1)
    if swiglu:
        gate, up = y.chunk(2, dim=1)
        y = gate * torch.sigmoid(gate) * up
    if residual is not None:
        y = y + residual
    return y.to(dtype)


def group_of(format: str) -> int:
    """How many activations share a scale in int8."""
    return SUPER_GROUP if FORMATS[format].elements == SUPER_GROUP else GROUP


def quantise_activations(x: torch.Tensor, group: int = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [M, K] -> d [M, K/group] = amax * (1/127) and q [M, K/group, group] = x * (127/amax) to the nearest, halves to
    even.

    Both in f32, one rounding an operation. A group that holds a NaN or an infinity is NaN throughout.
    """
    groups = x.float().unflatten(-1, (-1, group))
    amax = groups.abs().amax(-1)
    inverse = torch.where(amax >= SMALLEST, torch.full_like(amax, 127) / amax, torch.where(amax.isnan(), amax, 0.0))
    return amax * torch.tensor(1 / 127, dtype=torch.float32), (groups * inverse[..., None]).round()


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    M, N, K, dtype = case["M"], case["N"], case["K"], DTYPES[case["dtype"]]
    # normed activations: rows of like size, a few channels that stand out, now and then a row of zeros
    x = torch.randn(M, K, generator=generator) * 10 ** torch.empty(M, 1).uniform_(-0.5, 0.5, generator=generator)
    x *= 1 + 15 * (torch.rand(K, generator=generator) < 0.01)
    if M > 1:
        x[torch.rand(M, generator=generator) < 0.05] = 0
    low, high = (1e-3, 1e-1) if case["scales"] == "usual" else (1e-6, 1e4)
    # rows of a large weight repeat: what makes them is slower than what multiplies them
    fresh = min(N, max(1, DRAWN // (K * ROWS)) * ROWS)
    weight = draw(case["format"], fresh, K, generator, low, high)
    if (plain := FORMATS[case["format"]].dtype) is not None:
        weight = weight.view(plain)
    if case["layout"] != "gguf":
        weight = to_tiles(weight, case["format"])
    if fresh < N:
        rows = N * len(weight) // fresh
        weight = weight.repeat(-(-N // fresh), *[1] * (weight.dim() - 1))[:rows]
    residual = torch.randn(M, N, generator=generator).to(dtype) if case["epilogue"] == "residual" else None
    return {
        "x": x.to(dtype),
        "weight": weight,
        "format": case["format"],
        "precision": case["precision"],
        "residual": residual,
        "swiglu": gated(case),
        "layout": case["layout"],
        "norm": torch.empty(K).uniform_(0.5, 1.5, generator=generator) if normed(case) else None,
    }


def gated(case: Case) -> bool:
    """Whether half of W's rows are a gate's."""
    return "swiglu" in str(case["epilogue"])


def normed(case: Case) -> bool:
    return "norm" in str(case["epilogue"])


def _tolerance(case: Case) -> Calibrated:
    """Tensor cores take weights in the activations' type, rounded by up to half a unit each. Integer sums are exact."""
    if case["dtype"] == "f32" and normed(case) and case["layout"] != "gguf" and case["precision"] == "exact":
        return Calibrated(ulps=1, compute=torch.float16)
    if case["precision"] == "int8" or case["dtype"] == "f32":
        return Calibrated()
    return Calibrated(ulps=1, compute=DTYPES[case["dtype"]])


def _scatter(case: Case, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """What rounding weights once, to what tensor cores take, does to silu(g) u, in first order, inputs in f64:

        var g = x^2 unit(W)^2T / 12, of u alike    var y = (silu'(g) u)^2 var g + silu(g)^2 var u

    A tolerance's slack goes by the size of an output and of all of them. A product may be small where one of its sums
    is not, and then has the other's error times that.
    """
    compute, format, x, norm = _tolerance(case).compute, case["format"], inputs["x"], inputs["norm"]
    if not gated(case) or compute in (torch.float32, FORMATS[format].dtype):
        return ()
    if norm is not None:
        x = rms_norm(x, norm)
    weight = inputs["weight"] if case["layout"] == "gguf" else _blocks(inputs)
    rounding, sums = torch.finfo(compute), []
    for part in weight.split(max(1, WEIGHTS_AT_ONCE // case["K"])):
        w = dequantise(part, format).to(x.dtype)
        unit = rounding.eps * torch.exp2(w.abs().clamp_min(rounding.tiny).log2().floor())
        sums.append(torch.stack((x @ w.T, x.square() @ unit.square().T / 12)))
    (g, u), (var_g, var_u) = (part.chunk(2, dim=1) for part in torch.cat(sums, dim=2))
    half = torch.sigmoid(g)
    slope = half * (1 + g * (1 - half))
    return (((slope * u).square() * var_g + (g * half).square() * var_u).sqrt(),)


def _cost(case: Case) -> Cost:
    M, N, K, size = case["M"], case["N"], case["K"], DTYPES[case["dtype"]].itemsize
    out = M * (N // 2 if gated(case) else N)
    activations = M * K + out * (2 if case["epilogue"] == "residual" else 1)
    norm = 4 * K if normed(case) else 0
    # the blocks' own bytes in either layout: what a tile adds counts against the kernel
    return Cost(bytes=N * row_bytes(case["format"], K) + activations * size + norm, flops=2 * M * N * K)


def _illegal(case: Case) -> str | None:
    elements, plain = FORMATS[case["format"]].elements, FORMATS[case["format"]].dtype is not None
    if case["K"] % elements:
        return f"{case['format']} takes K in steps of {elements}, not {case['K']}"
    if plain and case["precision"] == "int8":
        return f"int8 activations meet quantised weights, not {case['format']}"
    if case["dtype"] == "f16" and case["scales"] == "extreme":
        return "extreme scales leave the range of f16"
    if normed(case) and case["precision"] == "int8" and (case["M"] > 1 or case["layout"] == "gguf"):
        return f"norm goes with int8 of one row over tiles, not of {case['M']} over {case['layout']}"
    if gated(case) and case["N"] % 2:
        return f"swiglu takes an even N, gate rows and up rows, not {case['N']}"
    return _illegal_tiles(case) if case["layout"] != "gguf" else None


def _illegal_tiles(case: Case) -> str | None:
    rows = case["N"] // 2 if gated(case) else case["N"]
    if case["format"] not in RECORD:
        return f"tiles hold {', '.join(RECORD)}, not {case['format']}"
    if rows % ROWS or case["K"] % COLUMNS:
        return f"tiles take rows in steps of {ROWS} and columns in steps of {COLUMNS}, not {rows} x {case['K']}"
    wide = case["dtype"] == "f32" and not normed(case)
    if case["precision"] == "exact" and (wide or case["scales"] == "extreme"):
        return f"exact over tiles takes f16 or bf16 and scales in f16's range, not {case['dtype']}, {case['scales']}"
    return None


def _blocks(inputs: Inputs) -> torch.Tensor:
    return from_tiles(inputs["weight"], inputs["format"])


def _torch(inputs: Inputs) -> Callable[[], torch.Tensor]:
    x, residual, norm = inputs["x"].to(torch.bfloat16), inputs["residual"], inputs["norm"]
    rows = inputs["weight"] if inputs["layout"] == "gguf" else _blocks(inputs)
    weight = torch.cat([dequantise(part, inputs["format"]).to(x.dtype) for part in rows.split(4096)])

    def run() -> torch.Tensor:
        y = (x if norm is None else torch.rms_norm(x, norm.shape, norm.to(x.dtype), 1e-6)) @ weight.T
        if inputs["swiglu"]:
            gate, up = y.chunk(2, dim=1)
            y = torch.nn.functional.silu(gate) * up
        return y if residual is None else y + residual

    return run


def _cases(
    M: int | tuple[int, ...], K: int, N: int, format: str, precision: str = "exact", **but: str
) -> tuple[Case, ...]:
    base: dict[str, str] = {"dtype": "bf16", "epilogue": "none", "scales": "usual", "layout": "gguf", **but}
    return tuple(
        case(M=m, N=N, K=K, format=format, precision=precision, **base) for m in (M if isinstance(M, tuple) else (M,))
    )


_WIDTHS = (1, 2, 4, 8, 9, 16, 23, 32, 64, 512)
_TIMED = (
    (5120, 17408, "q4_k"),
    (17408, 5120, "q4_k"),
    (17408, 5120, "q6_k"),
    (5120, 10240, "q5_k"),
    (5120, 6144, "q4_k"),
    (6144, 5120, "q4_k"),
    (5120, 1024, "q4_k"),
)
_HEAD = (5120, 248320, "q6_k")
# distinct (K, N, format) of the published 27B files: attention, gated delta net, MLP
_LAYERS = (
    *((5120, 10240, format) for format in ("q4_k", "q5_k", "q6_k")),
    *((5120, 48, format) for format in ("q4_k", "q8_0", "f32")),
    *((6144, 5120, format) for format in ("q4_k", "q5_k")),
    *((5120, 1024, format) for format in ("q4_k", "q6_k")),
    *((17408, 5120, format) for format in ("q4_k", "q6_k")),
    *((5120, N, "q4_k") for N in (6144, 12288, 17408)),
)

SPEC = Spec(
    op="dequant_matmul",
    formula="y = x · dequant(W)ᵀ (+ residual), or silu(x · gateᵀ) * (x · upᵀ); x as it is or normed",
    dims=(
        Dim("M", 1, 1 << 16, fuzz=40, doc="rows of activations"),
        Dim("N", 1, 1 << 20, fuzz=70, doc="rows of the weight; with swiglu gate and up together"),
        Dim("K", 32, 1 << 17, fuzz=512, multiple=32, doc="row length; K-quants in steps of 256"),
    ),
    choices={
        "format": ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "bf16", "f16", "f32"),
        "precision": ("exact", "int8"),
        "dtype": ("f32", "bf16", "f16"),
        # "norm": of x normed
        "epilogue": ("none", "residual", "swiglu", "norm", "norm+swiglu"),
        "scales": ("usual", "extreme"),
        "layout": LAYOUTS,
    },
    inputs=_inputs,
    cases={
        "smoke": (
            *_cases(1, 512, 40, "q4_k"),
            *_cases(5, 512, 40, "q4_k", "int8", epilogue="residual"),
            *_cases(23, 256, 48, "q6_k", dtype="f32", epilogue="swiglu"),
            *_cases(9, 768, 64, "q4_k", dtype="f16", layout="tiles"),
            *_cases(9, 768, 64, "q4_k", "int8", dtype="f16", layout="tiles"),
            *_cases(1, 3328, 64, "q4_k", "int8", layout="tiles", epilogue="residual"),
            *_cases(1, 3328, 64, "q4_k", "int8", dtype="f32", layout="tiles", epilogue="norm"),
        ),
        "edge": (
            *_cases(1, 256, 63, "q5_k", "int8", dtype="f32"),
            *_cases(17, 256, 65, "q5_k", dtype="f16"),
            *_cases(2, 512, 33, "q6_k", "int8", dtype="f32"),
            *_cases(1, 256, 34, "q6_k", "int8", epilogue="swiglu"),
            *_cases(1, 32, 1, "q8_0", dtype="f32", epilogue="residual"),
            *_cases(9, 288, 48, "q8_0", "int8", dtype="f16"),
            *_cases(64, 288, 31, "q4_0"),
            *_cases(3, 96, 2, "q4_0", "int8", dtype="f32", epilogue="swiglu", scales="extreme"),
            *_cases(16, 288, 64, "bf16", epilogue="residual"),
            *_cases(17, 4096, 64, "bf16", epilogue="residual"),
            *_cases(5, 2336, 66, "f16", dtype="f16", epilogue="swiglu"),
            *_cases(1, 288, 65, "f16", dtype="f32"),
            *_cases(15, 64, 30, "f32", dtype="f32"),
            *_cases(65, 512, 64, "q4_k", dtype="f32", scales="extreme"),
            # activations as they are, over tiles
            *_cases(1, 256, 128, "q5_k", dtype="f16", layout="tiles", epilogue="residual"),
            *_cases(8, 512, 64, "q8_0", layout="tiles"),
            *_cases(17, 512, 128, "q6_k", layout="tiles", epilogue="swiglu"),
            *_cases(33, 256, 64, "q4_0", dtype="f16", layout="tiles"),
            *_cases(64, 256, 64, "q5_k", dtype="f16", layout="tiles"),
            *_cases(65, 768, 192, "q4_k", dtype="f16", layout="tiles", epilogue="residual"),
            # in 8 bits
            *(one for f in ("q5_k", "q8_0", "q4_0") for one in _cases(1, 768, 64, f, "int8", layout="tiles")),
            *_cases(1, 768, 64, "q6_k", "int8", dtype="f32", layout="tiles", scales="extreme"),
            *_cases(1, 256, 128, "q4_k", "int8", layout="tiles", epilogue="swiglu"),
            *_cases(2, 512, 64, "q5_k", "int8", dtype="f16", layout="tiles", epilogue="residual"),
            *_cases(8, 768, 64, "q6_k", "int8", dtype="f32", layout="tiles", scales="extreme"),
            *_cases(3, 256, 128, "q4_0", "int8", layout="tiles", epilogue="swiglu"),
            *_cases(9, 256, 64, "q8_0", "int8", dtype="f16", layout="tiles"),
            # of x normed
            *_cases(1, 512, 128, "q5_k", "int8", dtype="f32", layout="tiles", epilogue="norm+swiglu"),
            *_cases(1, 1280, 64, "q8_0", "int8", dtype="f16", layout="tiles", epilogue="norm"),
            *_cases(3, 512, 64, "q4_k", dtype="f32", layout="tiles", epilogue="norm"),
            *_cases(2, 512, 40, "q6_k", epilogue="norm+swiglu"),
        ),
        "qwen35": (
            *(
                one
                for K, N, format in _LAYERS
                for precision in ("exact", "int8")
                if format != "f32" or precision == "exact"
                for one in _cases((1, 23), K, N, format, precision)
            ),
            *_cases((1, 23), 5120, 2 * 17408, "q4_k", epilogue="swiglu"),
            *_cases((1, 23), 17408, 5120, "q6_k", epilogue="residual"),
            *_cases(1, 5120, 248320, "q6_k"),
            *(
                one
                for K, N, f in (*_TIMED, _HEAD)
                for one in _cases((1, 9, 23, 64), K, N, f, dtype="f16", layout="tiles")
            ),
            *(
                one
                for K, N, f in (*_TIMED, _HEAD)
                for one in _cases((1, 23), K, N, f, "int8", dtype="f16", layout="tiles")
            ),
            *_cases((32, 64), 17408, 5120, "q4_k", "int8", dtype="f16", layout="tiles"),
            *_cases((1, 23), 5120, 2 * 17408, "q4_k", dtype="f16", epilogue="swiglu", layout="tiles"),
            *_cases((1, 4), 5120, 2 * 17408, "q4_k", "int8", dtype="f16", epilogue="swiglu", layout="tiles"),
            *_cases(1, 5120, 2 * 17408, "q4_k", "int8", dtype="f32", epilogue="norm+swiglu", layout="tiles"),
            *_cases(1, 5120, 10240, "q5_k", "int8", dtype="f32", epilogue="norm", layout="tiles"),
        ),
        "perf": (
            *(
                one
                for p in ("exact", "int8")
                for K, N, f in _TIMED
                for one in _cases(_WIDTHS, K, N, f, p, dtype="f16", layout="tiles")
            ),
            *(one for p in ("exact", "int8") for one in _cases((1, 8, 23), *_HEAD, p, dtype="f16", layout="tiles")),
            *(
                one
                for p in ("exact", "int8")
                for one in _cases((1, 23), 5120, 2 * 17408, "q4_k", p, dtype="f16", epilogue="swiglu", layout="tiles")
            ),
            *_cases(1, 5120, 2 * 17408, "q4_k", "int8", dtype="f32", epilogue="norm+swiglu", layout="tiles"),
            *_cases(1, 5120, 10240, "q5_k", "int8", dtype="f32", epilogue="norm", layout="tiles"),
            *(one for K, N, f in _TIMED[:2] for one in _cases(2048, K, N, f, dtype="f16", layout="tiles")),
            # the draft's
            *_cases(16, 17408, 5120, "bf16", epilogue="residual"),
            *_cases(16, 5120, 2 * 17408, "bf16", epilogue="swiglu"),
            *_cases(32, 5120, 6144, "bf16"),
            *(one for p in ("exact", "int8") for one in _cases((1, 23), 5120, 17408, "q4_k", p)),
        ),
    },
    cost=_cost,
    tolerance=_tolerance,
    scatter=_scatter,
    # a weight that cancels to zero in f16 makes NaN of an infinity
    nonfinite=lambda case: ("x:nan",) if case["layout"] != "gguf" and case["precision"] == "exact" else ("x",),
    cold=("weight",),
    illegal=_illegal,
    baselines={"torch": _torch, "torch int4": peers.tinygemm, "gemlite int4": peers.gemlite},
)
