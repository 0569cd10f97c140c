"""Which config a kernel runs with here.

    exact GPU (autotune/configs/sm90-h200)  ->  same architecture (sm90-*)  ->  the kernel's defaults, safe anywhere

A config file is JSON: {"schema": 1, "op": ..., "entries": [{"case": {...}, "config": {...}, ...}]}. Of the entries
whose names and formats equal the launch's, the one with the nearest sizes is taken.
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
CONFIGS = Path(__file__).resolve().parent.parent / "autotune" / "configs"


def pick(op: str, default: C, device: torch.device, **dims: int | str) -> C:
    """The tuned config of the nearest case on this GPU, else `default`."""
    chosen = default if device.type != "cuda" else _nearest(op, default, folder(device), tuple(dims.items()))
    if _record is not None:
        _record[op] = dict(vars(chosen))
    return chosen


_record: dict[str, dict[str, Any]] | None = None


@contextmanager
def recording() -> Iterator[dict[str, dict[str, Any]]]:
    """What `pick` chose for each op in the calls inside."""
    global _record
    outer, _record = _record, {}
    try:
        yield _record
    finally:
        _record = outer


@functools.cache
def entries(op: str, gpu: str) -> tuple[str, list[dict[str, Any]]]:
    """The folder whose config file serves this GPU and its entries; ("", []) where there is none."""
    same_arch = sorted(path.name for path in CONFIGS.glob(f"{gpu.split('-')[0]}-*") if path.name != gpu)
    for name in (gpu, *same_arch):
        file = CONFIGS / name / f"{op}.json"
        if file.exists():
            return name, json.loads(file.read_text())["entries"]
    return "", []


@functools.cache
def _nearest(op: str, default: C, gpu: str, dims: tuple[tuple[str, int | str], ...]) -> C:
    wanted = dict(dims)
    best, best_distance = default, math.inf
    for entry in entries(op, gpu)[1]:
        case = entry["case"]
        if any(case.get(name, value) != value for name, value in wanted.items() if isinstance(value, str)):
            continue
        sizes = [(value, case[name]) for name, value in wanted.items() if not isinstance(value, str) and name in case]
        distance = sum(abs(math.log2(max(1, a)) - math.log2(max(1, b))) for a, b in sizes)
        if distance < best_distance:
            known = {field.name for field in dataclasses.fields(default)}  # type: ignore[arg-type]
            best = dataclasses.replace(default, **{k: v for k, v in entry["config"].items() if k in known})  # type: ignore[type-var]
            best_distance = distance
    return best
