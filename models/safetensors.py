"""A checkpoint in safetensors, memory-mapped: one file, or a folder of them with its config.json.

    | header length u64 | {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, ...} | data |

Offsets count from the end of the header.
"""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gguf import BadFile, mapped, short

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int
    data: mmap.mmap


@dataclass(frozen=True)
class Checkpoint:
    """`config` is that of config.json, empty where there is none."""

    path: Path
    config: Mapping[str, Any]
    entries: Mapping[str, Entry]

    def read(self, name: str) -> torch.Tensor:
        """A view of the file."""
        entry = self.entries[name]
        data = torch.frombuffer(entry.data, dtype=torch.uint8, count=entry.size, offset=entry.start)
        return data.view(entry.dtype).view(entry.shape)


def load(path: Path) -> Checkpoint:
    """A .safetensors file, with the config.json beside it, or a folder of both."""
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise BadFile(f"{path} holds no .safetensors file")
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _entries(file).items():
            if name in entries:
                raise BadFile(f"{path.name} holds tensor {short(name)} twice")
            entries[name] = entry
    return Checkpoint(path, _config(folder / "config.json"), entries)


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadFile(f"{path} is no object")
    return found


def _entries(path: Path) -> dict[str, Entry]:
    data = mapped(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, LARGEST_HEADER):
        raise BadFile(f"{path.name} is cut off or no safetensors file: a header of {length} bytes in {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path.name} is no safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise BadFile(f"{path.name} is no safetensors file: its header is no object")
    base = 8 + length
    return {name: _entry(path.name, name, row, base, data) for name, row in header.items() if name != "__metadata__"}


def _entry(file: str, name: str, row: Any, base: int, data: mmap.mmap) -> Entry:
    match row:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise BadFile(f"{file}: tensor {short(name)} is described as {short(row)}")
    if dtype not in DTYPES:
        raise BadFile(f"{file}: tensor {short(name)} is of type {short(dtype)}; read are {', '.join(DTYPES)}")
    if not all(type(size) is int and 0 < size < 1 << 40 for size in shape):
        raise BadFile(f"{file}: tensor {short(name)} has the shape {short(shape)}")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if not 0 <= begin <= end <= len(data) - base or end - begin != size:
        raise BadFile(f"{file} is cut off or corrupt: {short(name)} of {size} bytes at {begin} to {end}")
    return Entry(DTYPES[dtype], tuple(shape), base + begin, size, data)
