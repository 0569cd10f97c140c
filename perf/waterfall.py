"""A step taken apart: the kernels of one replay in order, as ops, as phases, and the time in which none ran."""

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ..reference.ops import OPS, Op

# a speculative step's, in order
PHASES = ("draft", "tree", "verify", "choose", "commit")


@functools.cache
def kernel_ops() -> dict[str, str]:
    """The op that launches each kernel, by the kernel's name: those of its module, and of what that takes from `lib`,
    itself or by way of `lib`; of ops that share one, the first."""
    found = dict[str, str]()
    for name in OPS:
        module = Op(name).module("kernels")
        for home in (module, *_taken(module, f"{module.__package__}.lib.")):
            found = dict.fromkeys(filter(None, map(_kernel, vars(home).values())), name) | found
    return found


def _taken(module: ModuleType, where: str) -> list[ModuleType]:
    """The modules of `where` that something in the module's text comes from, theirs included."""
    seen = [module]
    for one in seen:
        for value in vars(one).values():
            home = value if inspect.ismodule(value) else inspect.getmodule(value) if inspect.isfunction(value) else None
            if home is not None and home.__name__.startswith(where) and home not in seen:
                seen.append(home)
    return seen[1:]


def _kernel(value: object) -> str | None:
    """The name of what Triton compiles."""
    return getattr(value, "__name__", None) if hasattr(value, "arg_names") else None


def profile(run: Callable[[], None], device: torch.device) -> tuple[list[tuple[str, float, float]], dict[str, int]]:
    """The kernels of one step in order: op (or "torch"), start and length in us; and how often it makes the host call
    what: the difference between two steps and one, so that what the trace itself calls does not count."""
    run()
    torch.cuda.synchronize(device)
    kernels, once = _traced(run, 1, device)
    _, twice = _traced(run, 2, device)
    calls = {name: count - once.get(name, 0) for name, count in twice.items()}
    return kernels, {name: count for name, count in calls.items() if count}


def _traced(
    run: Callable[[], None], steps: int, device: torch.device
) -> tuple[list[tuple[str, float, float]], dict[str, int]]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(steps):
            run()
        # the trace ends when all that was launched has
        torch.cuda.synchronize(device)
    ops, named, calls = kernel_ops(), [], dict[str, int]()
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            named.append((ops.get(event.name, "torch"), event.time_range.start, event.time_range.elapsed_us()))
        elif event.name.startswith(("cuda", "cu")):
            calls[event.name] = calls.get(event.name, 0) + 1
    return sorted(named, key=lambda row: row[1]), calls


def waterfall(kernels: list[tuple[str, float, float]], ms: float, phases: bool = True) -> dict[str, Any]:
    """Where a step's time goes: us and launches of each op, us in which nothing ran, and us of each phase.

    A kernel that began while the one before it still ran counts from that one's end: what two share is the first's.
    """
    ops: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    phase, end, idle = 0, kernels[0][1] if kernels else 0.0, 0.0
    for name, start, length in kernels:
        phase = _phase(phase, name)
        gap, alone = max(0.0, start - end), max(0.0, start + length - max(start, end))
        idle, end = idle + gap, max(end, start + length)
        row = ops.setdefault(name, [0.0, 0])
        row[0], row[1] = row[0] + alone, row[1] + 1
        spent[PHASES[phase]] = spent.get(PHASES[phase], 0.0) + gap + alone
    busy = sum(us for us, _ in ops.values())
    return {
        "ops": {name: [round(us, 1), int(n)] for name, (us, n) in sorted(ops.items(), key=lambda row: -row[1][0])},
        "idle_us": round(idle, 1),
        "phases_us": {name: round(us, 1) for name, us in spent.items()} if phases else {},
        "launches": len(kernels),
        "explained": round((busy + idle) / (ms * 1e3), 3),
    }


def _phase(phase: int, op: str) -> int:
    """The phase that a speculative step is in once this op has begun."""
    match PHASES[phase], op:
        case ("draft", "topk_logprobs") | ("tree", "embed") | ("verify", "topk_logprobs") | ("choose", "ddtree_walk"):
            return phase + 1
    return phase
