"""What this machine can run, and what is missing, stale or in the way."""

import importlib.metadata
import importlib.util
import sys
from collections import Counter
from typing import Any

import torch

from ..autotune import timer, winners
from ..autotune.space import Problem
from ..kernels import config
from ..lab import check as lab
from ..reference.ops import Op, registered
from . import bench

PACKAGES = ("torch", "triton", "numpy", "gguf", "optuna", "hypothesis", "pytest", "rich", "typer")
# names that must never be importable on their own: another distribution owns `kernels`, and all four are ours under
# draftwood
BARE = ("kernels", "reference", "autotune", "models")


def examine(sources: list[str]) -> dict[str, dict[str, Any]]:
    device = torch.device(lab.target())
    machine = timer.machine(device)
    report: dict[str, dict[str, Any]] = {"machine": _machine(device, machine), "packages": _packages()}
    problems = _shadowed()
    ops = registered(sources)
    report["ops"] = {name: _op(ops[name], device, machine) for name in ops}
    problems |= {name: "has no kernel" for name in ops if not ops[name].has("kernels")}
    if device.type == "cuda":
        report["results"] = {name: _result(name, machine) for name in ops}
    if problems:
        report["problems"] = problems
    return report


def _machine(device: torch.device, machine: timer.Machine) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "GPU": machine.name if device.type == "cuda" else "none: kernels run in Triton's interpreter",
        "folder": machine.gpu,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        rates = timer.bandwidth(device)
        facts |= {
            "driver": machine.driver,
            "multiprocessors": properties.multi_processor_count,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "bandwidth measured": f"read {rates['read']} GB/s, copy {rates['copy']} GB/s",
            "clock": f"{machine.clock_mhz} MHz",
        }
    return facts | {"python": f"{machine.python} at {sys.executable}"}


def _packages() -> dict[str, Any]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _shadowed() -> dict[str, Any]:
    """Bare names that resolve into this repository."""
    root = str(bench.RESULTS.parent.parent)
    found = {}
    for name in BARE:
        spec = importlib.util.find_spec(name)
        places = [str(place) for place in (spec.submodule_search_locations or [])] if spec else []
        if any(place.startswith(root) for place in places):
            found[f"bare '{name}'"] = f"importable from {places[0]}: take the repository's root off sys.path"
    return found


WHY = {
    "exact": "tuned on this GPU",
    "architecture": "tuned on a GPU of the same architecture",
    "older": "tuned on an older relative",
    "fitted": "compiles without spilling; nobody timed it",
}


def _op(op: Op, device: torch.device, machine: timer.Machine) -> str:
    """Which config serves the op's timed cases here, why, and whether it is stale."""
    if not op.has("kernels"):
        return "no kernel"
    if device.type != "cuda":
        return "interpreted"
    found: Counter[str] = Counter()
    for case in op.spec.cases.get("perf", ()):
        choice = config.choose(op.name, machine.gpu, {k: v for k, v in case.values if isinstance(v, (int, str))})
        if choice is None:
            found["default config: nothing was tuned for it"] += 1
            continue
        asked = op.has("autotune") and choice.why != "fitted"
        stale = winners.stale(choice.entry, Problem(op.name, case, machine.gpu), machine) if asked else []
        # raced there, and nothing was faster
        stays = ", the default stays" if choice.entry.get("default") else ""
        text = f"{choice.home}, {WHY[choice.why]}{stays}"
        found[f"{text}; stale: {', '.join(stale)}" if stale else text] += 1
    return "; ".join(f"{count} cases: {text}" for text, count in found.items())


def _result(name: str, machine: timer.Machine) -> str:
    held = bench.load(bench.RESULTS / machine.gpu / f"{name}.json")
    if not held["entries"]:
        return f"none; draftwood bench {name}"
    then = held["versions"]
    changed = [
        f"{key} {then[key]} -> {getattr(machine, key)}"
        for key in ("torch", "triton", "driver")
        if then[key] != getattr(machine, key)
    ]
    return f"{len(held['entries'])} cases of {then['date']}" + (f"; stale: {', '.join(changed)}" if changed else "")
