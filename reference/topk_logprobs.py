"""ids, logprobs = the k best of log_softmax(logits / T) a row, best first, ties to the lower id."""

from collections.abc import Callable

import torch

from .spec import DTYPES, Bitwise, Calibrated, Case, Cost, Dim, Inputs, Spec, accumulator, case, product


def topk_logprobs(logits: torch.Tensor, k: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [R, V], rows at any stride -> ids [R, k] i32, logprobs [R, k] f32. T is at least 0.001.

    Ranked are the logits, not their quotients by T: these can round to ties. A NaN ranks as -inf and makes every
    log-prob of its row NaN; so does +inf, and a row of nothing but -inf.
    """
    wide = logits.to(accumulator(logits))
    # + 0.0 makes one zero of the two
    ranked = torch.where(wide.isnan(), float("-inf"), wide) + 0.0
    ids = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    logprobs = (wide / max(temperature, 1e-3)).log_softmax(-1).gather(-1, ids)
    return ids.int(), logprobs.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    R, V = case["R"], case["V"]
    match case["rows"]:
        case "equal":
            rows = torch.full((R, V), 3.25)
        case "ties":
            # a handful of values, the best of them zeros of both signs
            rows = torch.randint(0, 3, (R, V), generator=generator) * torch.tensor(-0.5)
            rows[:, 1::2] += 0.0
        case "masked":
            # a grammar leaves a few tokens standing, in one row none
            rows = torch.randn(R, V, generator=generator) * 4
            rows[torch.rand(R, V, generator=generator) < 1 - 3 / V] = float("-inf")
            rows[-1] = float("-inf")
        case "extreme":
            rows = torch.randn(R, V, generator=generator).sign() * 6e4
        case _:
            # a language model's: a broad floor and a few tokens far above it
            rows = torch.randn(R, V, generator=generator) * 2.5 - 4
            peak = torch.randint(0, V, (R, 12), generator=generator)
            rows.scatter_add_(1, peak, torch.empty(R, 12).uniform_(0, 18, generator=generator))
    logits = torch.empty_strided((R, V), (V + case["gap"], 1), dtype=DTYPES[case["dtype"]])
    return {"logits": logits.copy_(rows), "k": case["k"], "temperature": case["percent"] / 100}


def _cost(case: Case) -> Cost:
    R, V = case["R"], case["V"]
    return Cost(bytes=R * V * DTYPES[case["dtype"]].itemsize + 8 * R * case["k"], flops=4 * R * V)


def _torch(inputs: Inputs) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    logits, k, temperature = inputs["logits"], inputs["k"], max(inputs["temperature"], 1e-3)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, ids = (logits.float() / temperature).log_softmax(-1).topk(k)
        return ids.int(), logprobs

    return run


def _illegal(case: Case) -> str | None:
    if case["k"] > case["V"]:
        return f"topk_logprobs takes k up to V, not {case['k']} of {case['V']}"
    return None


SPEC = Spec(
    op="topk_logprobs",
    formula="ids, logprobs = top k of log_softmax(logits / max(T, 0.001)), ties to the lower id",
    dims=(
        Dim("R", 1, 4096, fuzz=3, doc="rows"),
        Dim("V", 1, 1 << 20, fuzz=5000, doc="vocabulary"),
        Dim("k", 1, 16, fuzz=5, doc="best entries"),
        Dim("percent", 0, 10000, fuzz=200, doc="temperature in hundredths"),
        Dim("gap", 0, 1 << 20, fuzz=40, doc="elements between rows"),
    ),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "rows": ("model", "equal", "ties", "masked", "extreme"),
    },
    inputs=_inputs,
    outputs=("ids", "logprobs"),
    tolerance=lambda _case: {"ids": Bitwise(), "logprobs": Calibrated()},
    cases={
        "smoke": (
            case(R=2, V=5000, k=8, percent=100, gap=0, dtype="f32", rows="model"),
            case(R=3, V=3000, k=1, percent=100, gap=0, dtype="bf16", rows="model"),
        ),
        "edge": (
            case(R=1, V=1, k=1, percent=100, gap=0, dtype="f32", rows="model"),
            case(R=1, V=16, k=16, percent=60, gap=0, dtype="f32", rows="masked"),
            case(R=2, V=4095, k=3, percent=100, gap=5, dtype="f16", rows="model"),
            case(R=1, V=4096, k=2, percent=0, gap=0, dtype="f32", rows="model"),
            case(R=2, V=4097, k=5, percent=130, gap=0, dtype="bf16", rows="ties"),
            case(R=1, V=8193, k=9, percent=100, gap=0, dtype="f32", rows="ties"),
            case(R=1, V=8200, k=16, percent=100, gap=0, dtype="f32", rows="equal"),
            case(R=2, V=4100, k=6, percent=100, gap=0, dtype="f32", rows="masked"),
            case(R=1, V=4100, k=4, percent=100, gap=0, dtype="f32", rows="extreme"),
        ),
        "qwen35": (
            case(R=15, V=248320, k=8, percent=100, gap=0, dtype="bf16", rows="model"),
            case(R=23, V=248320, k=1, percent=100, gap=0, dtype="f32", rows="model"),
        ),
        "perf": (
            *product(R=15, V=248320, k=8, percent=100, gap=0, dtype=("bf16", "f32"), rows="model"),
            *product(R=(1, 23, 64), V=248320, k=1, percent=100, gap=0, dtype=("bf16", "f32"), rows="model"),
        ),
    },
    cost=_cost,
    nonfinite=("logits",),
    illegal=_illegal,
    baselines={"torch": _torch},
)
