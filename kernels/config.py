"""Which config a kernel runs with here.

    exact GPU              autotune/configs/sm90-h200
    same architecture      sm90-*
    older relative         sm89-*, sm86-*, … whose programs have no more shared memory than this GPU's
    fitted                 sm90-fitted: what compiles without spilling where the defaults do not; nobody timed it
    the kernel's defaults  safe anywhere

A config file is JSON: {"schema": 2, "op": ..., "entries": [{"case": {...}, "config": {...}, "within": {...}, ...}]}. Of
the entries whose names and formats equal the launch's, the one with the nearest sizes is taken, up to a factor of two
in all: what lies farther was not measured. `within` bounds the sizes that a config is legal for, {"M": [1, 8], "K":
[512, null]}. Where a folder has none, the next is asked.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from .lib.device import folder

C = TypeVar("C")
# architectures that run each other's configs, oldest first, with the KiB of shared memory of a program
FAMILIES = (
    {"sm75": 64, "sm80": 163, "sm86": 99, "sm89": 99, "sm90": 227, "sm100": 227, "sm120": 99},
    {"gfx90a": 64, "gfx942": 64, "gfx950": 160},
    {"gfx1100": 64, "gfx1151": 64, "gfx1201": 64},
)
FITTED = "-fitted"
# log2 of how far in all the sizes of a launch may be from those of the entry that serves it
REACH = 1.0
CONFIGS = Path(__file__).resolve().parent.parent / "autotune" / "configs"


def pick(op: str, default: C, device: torch.device, **dims: int | str) -> C:
    """The tuned config of the nearest case on this GPU, else `default`."""
    gpu = folder(device) if device.type == "cuda" else _elsewhere
    chosen = _tuned(op, default, gpu, tuple(dims.items())) if gpu and not _untuned else default
    if _record is not None:
        _record[op] = dict(vars(chosen))
        _asked[op] = dict(dims)
    return chosen


_record: dict[str, dict[str, Any]] | None = None
_asked: dict[str, dict[str, int | str]] = {}
_untuned = False
# the folder of a GPU that is compiled for and is not here
_elsewhere = ""


@contextmanager
def compiling_for(gpu: str) -> Iterator[None]:
    """Inside, tensors without memory get the configs of that GPU."""
    global _elsewhere
    outer, _elsewhere = _elsewhere, gpu
    try:
        yield
    finally:
        _elsewhere = outer


@contextmanager
def untuned() -> Iterator[None]:
    """Inside, every kernel runs with its default, as where nothing is tuned."""
    global _untuned
    outer, _untuned = _untuned, True
    try:
        yield
    finally:
        _untuned = outer


@contextmanager
def recording() -> Iterator[dict[str, dict[str, Any]]]:
    """What `pick` chose for each op in the calls inside."""
    global _record
    outer, _record = _record, {}
    try:
        yield _record
    finally:
        _record = outer


def asked(op: str) -> dict[str, int | str]:
    """The names and sizes that the op's last recorded launch was looked up by."""
    return _asked.get(op, {})


@dataclasses.dataclass(frozen=True)
class Choice:
    """An entry, the folder it came from, and why that one: exact, architecture, older or fitted."""

    entry: dict[str, Any]
    home: str
    why: str


@functools.cache
def homes(gpu: str) -> tuple[tuple[str, str], ...]:
    """The folders that may serve this GPU, best first, and why each does."""
    arch = gpu.split("-")[0]
    every = sorted(path.name for path in CONFIGS.glob("*-*") if path.is_dir() and path.name != gpu)
    there = [name for name in every if not name.endswith(FITTED)]
    found = [(gpu, "exact"), *((name, "architecture") for name in there if name.startswith(f"{arch}-"))]
    for family in FAMILIES:
        if arch in family:
            older = reversed(list(family)[: list(family).index(arch)])
            fits = [name for name in older if family[name] <= family[arch]]
            found += [(name, "older") for old in fits for name in there if name.startswith(f"{old}-")]
    found += [(name, "fitted") for name in every if name == f"{arch}{FITTED}"]
    return tuple(found)


@functools.cache
def entries(op: str, home: str) -> list[dict[str, Any]]:
    """The tuned cases of an op in one folder."""
    file = CONFIGS / home / f"{op}.json"
    return json.loads(file.read_text())["entries"] if file.exists() else []


def choose(op: str, gpu: str, dims: dict[str, int | str]) -> Choice | None:
    """The entry that serves a launch, or None."""
    for home, why in homes(gpu):
        # what compiles without spilling does so whatever the sizes
        reach = math.inf if why == "fitted" else REACH
        if (entry := nearest(entries(op, home), dims, reach)) is not None:
            return Choice(entry, home, why)
    return None


def nearest(listed: list[dict[str, Any]], dims: dict[str, int | str], reach: float = REACH) -> dict[str, Any] | None:
    """The entry of the same names and formats that serves these sizes and whose own are nearest, in logarithms."""
    best, best_distance = None, reach + 1e-9
    sizes = {name: value for name, value in dims.items() if not isinstance(value, str)}
    for entry in listed:
        case = entry["case"]
        if any(case.get(name, value) != value for name, value in dims.items() if isinstance(value, str)):
            continue
        bounds = entry.get("within", {})
        if any(sizes[n] < low or sizes[n] > (high or sizes[n]) for n, (low, high) in bounds.items() if n in sizes):
            continue
        pairs = [(value, case[name]) for name, value in sizes.items() if name in case]
        distance = sum(abs(math.log2(max(1, a)) - math.log2(max(1, b))) for a, b in pairs)
        if distance < best_distance:
            best, best_distance = entry, distance
    return best


@functools.cache
def _tuned(op: str, default: C, gpu: str, dims: tuple[tuple[str, int | str], ...]) -> C:
    found = choose(op, gpu, dict(dims))
    if found is None:
        return default
    known = {field.name for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    return dataclasses.replace(default, **{k: v for k, v in found.entry["config"].items() if k in known})  # type: ignore[type-var]
