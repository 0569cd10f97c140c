"""The target in a GGUF: its sizes checked, its tensors sent to the device one by one."""

from collections.abc import Callable

import torch

from . import qwen35
from .gguf import File
from .target import Target, assemble
from .weights import Rows


def load(
    file: File,
    device: torch.device,
    precision: str = "exact",
    impl: str = "kernels",
    captured: tuple[int, ...] = (),
    repack: bool = True,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> Target:
    """The model of a GGUF, on the device; `progress` is told the bytes of each tensor as it arrives."""
    c = qwen35.config(file)
    qwen35.check(file, c)

    def take(name: str) -> Rows:
        entry = file.entries[name]
        rows = Rows(file.read(name).to(device), entry.format)
        progress(entry.size)
        return rows

    return assemble(c, take, device, precision, impl, captured, repack)
