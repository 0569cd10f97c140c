"""What a whole model's step costs here, on random weights of the real shapes: no file, no download.

step     = sum of its kernels + the time in which none ran          one CUDA graph, replayed
floor    = bytes that must be read / the device's measured bandwidth
tokens/s = rows committed / step; with random weights no draft agrees with its target, so that the number of rows a
           walk accepts is replayed from what was published for this pair of models on real text (`lengths`)
"""

import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..autotune import timer
from ..models import decode, qwen35, state, target
from ..models import draft as dflash
from ..models.arithmetic import PRECISIONS, Precision
from ..models.graph import capture
from ..models.state import Cache, State
from ..models.synthetic import Weights
from ..models.target import Batch, Target
from ..models.weights import Rows, Weight
from .waterfall import profile, waterfall

# tokens committed a step, the root counted, by prompt: HumanEval, GSM8K, Math500, ten each; Qwen3.5-27B Q4_K_M with its
# bf16 draft, tree of 22, greedy (Lucebox on an RTX 3090)
PUBLISHED = (
    *(8.83, 9.14, 8.83, 9.85, 8.53, 7.31, 6.56, 10.24, 8.26, 5.57),
    *(5.95, 5.82, 5.57, 5.22, 8.26, 5.69, 5.57, 6.56, 6.92, 5.82),
    *(6.56, 7.31, 8.00, 7.53, 7.31, 6.92, 5.69, 6.40, 5.82, 8.83),
)
PUBLISHED_BUDGET, DEEPEST = 22, 16
# the same target's tokens a step by budget (HumanEval); a chain's is 7.67 of 8.31
BY_BUDGET = {15: 7.64, 16: 7.81, 18: 8.22, 20: 8.64, 22: 8.88, 24: 8.91, 30: 8.86, 40: 8.90}


def lengths(plan: decode.Plan, count: int = 4096, seed: int = 0) -> torch.Tensor:
    """[count] i32 rows committed, step by step: for a published mean, each further row is accepted with the same
    probability, up to what the tree's depth allows."""
    generator = torch.Generator().manual_seed(seed)
    deepest = min(DEEPEST, plan.budget + 1)
    known = min(BY_BUDGET, key=lambda budget: (abs(budget - plan.budget), -budget))
    scale = 7.67 / 8.31 if plan.mode == "chain" else BY_BUDGET[known] / BY_BUDGET[PUBLISHED_BUDGET]
    chances = torch.tensor([_chance(mean * scale) for mean in PUBLISHED])
    prompt = torch.randint(0, len(chances), (count,), generator=generator)
    further = torch.rand(count, deepest - 1, generator=generator) < chances[prompt, None]
    return 1 + further.int().cumprod(1).sum(1).int()


@functools.cache
def _chance(mean: float) -> float:
    """p with 1 + p + p^2 + ... + p^15 = mean."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(DEEPEST)) < mean else (low, middle)
    return low


class Replay:
    """A `choose` that agrees with the best chain, which a seeded tree holds first, as far as the next length says,
    whatever the logits are."""

    def __init__(self, model: Target, plan: decode.Plan, device: torch.device) -> None:
        self.own = decode.greedy(model)
        self.agreed = torch.arange(plan.budget, device=device) < lengths(plan).to(device)[:, None] - 1
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def __call__(self, logits: torch.Tensor, batch: Batch | None) -> torch.Tensor:
        own = self.own(logits, batch)
        if batch is None or batch.parents is None:
            return own
        agreed = self.agreed.index_select(0, self.step)[0]
        self.step.add_(1).remainder_(len(self.agreed))
        torch.where(agreed, batch.tokens[1:], own[:-1], out=own[:-1])
        return own


@dataclass(frozen=True)
class Setting:
    """What is built and timed."""

    model: qwen35.Config
    device: torch.device
    mix: str = "unsloth-3.5"
    precision: str = "exact"
    kv: tuple[str, str] = ("q4_0", "q4_0")
    impl: str = "kernels"


@dataclass
class Bench:
    """A target and a draft of random weights, and states made for each context."""

    setting: Setting
    model: Target
    drafter: dflash.Draft

    def state(self, context: int) -> State:
        """As after a prompt of `context` tokens: caches of random rows, recurrent states of zeros."""
        c, device = self.model.config, self.setting.device
        rings = dflash.rings(self.drafter.config, device)
        dtype, captured = self.model.do.precision.activations, len(self.model.captured)
        held = state.fresh(c, context + 256, device, dtype, self.setting.kv, captured, rings=rings)
        held.start.fill_(context)
        held.drafted.fill_(context)
        held.features.normal_()
        for layer, rows in itertools.product(held.layers, held.counting[:context].split(4096)):
            if isinstance(layer, Cache):
                k, v = torch.randn(2, len(rows), c.Hkv, c.D, device=device).to(dtype)
                self.model.do.ops.kv_quant(k, v, layer.keys, layer.values, rows, *self.setting.kv)
        for ring in held.rings:
            ring.keys.normal_()
            ring.values.normal_()
        return held


def build(setting: Setting) -> Bench:
    """Target and draft, on the device."""
    c = setting.model
    captured = tuple(sorted({1 + k * ((c.L - 2) // 4) for k in range(5)}))
    drafts = replace(dflash.OF_27B, E=c.E, E_target=c.E, F=c.F, captured=captured)
    weights = Weights(c, qwen35.MIXES[setting.mix], setting.device)
    model = target.assemble(c, weights, setting.device, setting.precision, setting.impl, captured)
    shapes, generator = dflash.tensors(drafts), torch.Generator(setting.device).manual_seed(1)

    def take(name: str) -> Rows:
        noise = torch.empty(shapes[name], device=setting.device).normal_(0, 0.02, generator=generator)
        return Rows(noise.bfloat16(), "bf16") if noise.dim() == 2 else Rows(1 + noise, "f32")

    precision = Precision(torch.bfloat16, torch.bfloat16)
    return Bench(setting, model, dflash.assemble(drafts, take, setting.device, precision, setting.impl))


def precompile(setting: Setting, contexts: tuple[int, ...], budgets: tuple[int, ...], jobs: int) -> Callable[[], None]:
    """Have every step's kernels compiled, a step a process: `entries` finds them in the compiler's cache on disk. What
    is returned waits until all are."""
    few = replace(setting.model, L=4, recurrent=setting.model.recurrent[:4])
    work = [(precision, "ar") for precision in sorted({setting.precision, "exact"})]
    # the widest trees take longest
    work += [(setting.precision, name) for name in (*(f"tree {n}" for n in sorted(budgets, reverse=True)), "chain 15")]
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    given = [(replace(setting, model=few, precision=precision), contexts, name) for precision, name in work]
    begun = [pool.submit(_step_once, *arguments) for arguments in given]

    def wait() -> None:
        for one in begun:
            one.result()
        pool.shutdown()

    return wait


def _step_once(setting: Setting, contexts: tuple[int, ...], name: str) -> None:
    """A step of the first layers, kernel by kernel; they are of every kind and format that the others are of."""
    bench = build(setting)
    for context in contexts:
        held = bench.state(context)
        budgets = (int(name.split()[1]),) if name.startswith("tree") else ()
        next(step for step in steps(bench, held, context, budgets) if step.name == name).run()


# -- floors ------------------------------------------------------------------------------------------------------------


def weight_bytes(held: Any) -> int:
    """Bytes of every Weight in a dataclass, however deep."""
    if isinstance(held, Weight):
        return held.bytes
    if isinstance(held, tuple):
        return sum(map(weight_bytes, held))
    return sum(map(weight_bytes, vars(held).values())) if hasattr(held, "__dataclass_fields__") else 0


def floor_bytes(bench: Bench, held: State, context: int, rows: int, drafts: bool) -> int:
    """The least a step reads: weights once, the context's rows, the recurrent states (and the new ones written)."""
    total, head = 0, bench.model.head.bytes
    if rows:
        # of the embedding a few rows are read
        total += weight_bytes(bench.model.layers) + head
        for layer in held.layers:
            if isinstance(layer, Cache):
                total += sum(cache[:, 0].nbytes * context for cache in (layer.keys, layer.values))
            else:
                # a single row moves its state in one go; a tree's is read, then read and written by the commit
                total += layer.delta.nbytes * (2 if rows == 1 else 3)
    if drafts:
        seen = sum(cache.nbytes for ring in held.rings for cache in (ring.keys, ring.values))
        total += weight_bytes(bench.drafter.layers) + bench.drafter.fc.bytes + head + seen
    return total


# -- timing ------------------------------------------------------------------------------------------------------------


def step_ms(run: Callable[[], None], device: torch.device, replays: int) -> dict[str, float]:
    """Median, 20th and 80th percentile of a step's time, one event a step."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        only = (time.perf_counter() - began) * 1e3
        return {"p20": only, "p50": only, "p80": only}
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    marks[-1].synchronize()
    cuts = statistics.quantiles((a.elapsed_time(b) for a, b in itertools.pairwise(marks)), n=10)
    return {"p20": cuts[1], "p50": cuts[4], "p80": cuts[7]}


@dataclass(frozen=True)
class Step:
    """What is timed: `plan` is a speculative step's, `rows` what the target runs, `drafts` whether the draft does."""

    name: str
    plan: decode.Plan | None
    rows: int
    drafts: bool
    run: Callable[[], None]


def steps(bench: Bench, held: State, context: int, budgets: tuple[int, ...]) -> Iterator[Step]:
    """Every step at one context; each run begins where that ends, with as many rows to catch up as a step leaves."""
    model, device = bench.model, bench.setting.device
    greedy, propose = decode.greedy(model), functools.partial(dflash.forward, bench.drafter, model)

    def rewound(act: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            held.start.fill_(context)
            held.drafted.fill_(max(0, context - 8))
            act()

        return run

    yield Step("ar", None, 1, False, rewound(functools.partial(decode.autoregress, model, held, greedy)))
    yield Step("draft", None, 0, True, rewound(functools.partial(propose, held)))
    for plan in (*(decode.Plan("tree", budget=budget) for budget in budgets), decode.chain()):
        act = functools.partial(decode.speculate, model, propose, held, plan, Replay(model, plan, device))
        yield Step(f"{plan.mode} {plan.budget}", plan, plan.budget + 1, True, rewound(act))


def entries(
    setting: Setting,
    contexts: tuple[int, ...],
    budgets: tuple[int, ...],
    further: tuple[int, ...] = (),
    replays: int = 30,
    traced: bool = True,
    jobs: int = 0,
) -> Iterator[dict[str, Any]]:
    """One row a step and context, as it is measured; `further` are the budgets from the second context on, where they
    are not the same."""
    compiled = precompile(setting, contexts, budgets, jobs) if jobs else None
    bench, device = build(setting), setting.device
    if compiled:
        compiled()
    rate = timer.bandwidth(device)["read"]
    for context in contexts:
        held = bench.state(context)
        for step in steps(bench, held, context, budgets if context == contexts[0] else further or budgets):
            yield measured(bench, held, context, step, rate, replays, traced and device.type == "cuda")
        if setting.precision == "int8":
            # of the steps, the one of a single row differs
            exact = in_precision(bench, "exact")
            step = next(iter(steps(exact, held, context, ())))
            yield measured(exact, held, context, step, rate, replays, traced and device.type == "cuda")
        del held


def in_precision(bench: Bench, precision: str) -> Bench:
    """The same weights, met otherwise: of activations that are f16 both ways."""
    do = replace(bench.model.do, precision=PRECISIONS[precision])
    return replace(bench, setting=replace(bench.setting, precision=precision), model=replace(bench.model, do=do))


def measured(
    bench: Bench, held: State, context: int, step: Step, rate: float, replays: int, traced: bool
) -> dict[str, Any]:
    device = bench.setting.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    replay = capture(step.run, device)
    ms = step_ms(replay, device, replays)
    floor = floor_bytes(bench, held, context, step.rows, step.drafts) / rate / 1e6
    tokens = 1.0 if step.plan is None else lengths(step.plan).float().mean().item()
    setting = bench.setting
    case = {"step": step.name, "context": context, "kv": "/".join(setting.kv), "precision": setting.precision}
    row: dict[str, Any] = {
        "case": {"layers": setting.model.L, "mix": setting.mix, **case},
        "impl": setting.impl,
        "ms": {key: round(value, 4) for key, value in ms.items()},
        "floor_ms": round(floor, 3),
        "of_floor": round(floor / ms["p50"], 3),
        "tokens_a_step": round(tokens, 2),
        "tokens_per_s": round(tokens / ms["p50"] * 1e3, 1) if step.rows else 0.0,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        row["device_gib"] = round((total - free) / 2**30, 2)
    if traced:
        kernels, row["host_calls"] = profile(replay, device)
        row["waterfall"] = waterfall(kernels, ms["p50"], phases=step.plan is not None)
    return row
