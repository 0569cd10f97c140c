"""Guarded memory: every tensor an op is given or allocates lies between red zones, and new memory is poisoned.

    |<- 4096 bytes of red zone ->|  tensor  |<- 4096 bytes or more ->|

Red zones and poison are 0xFF in float tensors (a NaN in every float type: what a stray read picks up shows in the
output) and 0x7B in the others (2,071,690,107 as an i32: no index, id or parent). An output element still holding poison
was never written. Between the rows of a strided input lies the same, each element's lowest byte its own.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ZONE = 4096
FLOAT_FILL, INT_FILL = 0xFF, 0x7B


def _fill(dtype: torch.dtype) -> int:
    return FLOAT_FILL if dtype.is_floating_point else INT_FILL


def poison_pattern(dtype: torch.dtype) -> int:
    """An element of pure poison, as the integer of its width that `compare.bits` shows."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return int(torch.full((dtype.itemsize,), _fill(dtype), dtype=torch.uint8).view(width).item())


class Guarded:
    """One tensor inside its red zones."""

    def __init__(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, name: str
    ) -> None:
        self.name = name
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
        self.bytes = span * dtype.itemsize
        padded = -(-self.bytes // 16) * 16
        self.raw = torch.full((ZONE + padded + ZONE,), _fill(dtype), dtype=torch.uint8, device=device)
        self.tensor = self.raw[ZONE : ZONE + padded].view(dtype).as_strided(shape, stride)
        self.marks: torch.Tensor | None = None

    def damage(self) -> str | None:
        """Where the red zones or the gaps between rows were written, in a sentence, or None."""
        fill = _fill(self.tensor.dtype)
        before, after = self.raw[:ZONE] != fill, self.raw[ZONE + self.bytes :] != fill
        if before.any():
            return f"{self.name}: byte {int(before.nonzero()[-1]) - ZONE} before its start was overwritten"
        if after.any():
            return f"{self.name}: byte {int(after.nonzero()[0])} past its end was overwritten"
        if self.marks is None:
            return None
        gaps = (self._elements() != self.marks).any(1)
        gaps.as_strided(self.tensor.shape, self.tensor.stride()).fill_(False)
        return f"{self.name}: element {int(gaps.nonzero()[0])}, in a gap, was overwritten" if gaps.any() else None

    def mark_gaps(self) -> None:
        """Before the rows are filled: what lies between them differs from element to element, so that a row that moves
        with its gap shows. A float is still a NaN."""
        if not self.tensor.is_contiguous():
            elements = self._elements()
            elements[:, 0] = 0x81 + torch.arange(len(elements), device=self.raw.device) % 127
            self.marks = elements.clone()

    def _elements(self) -> torch.Tensor:
        """The bytes from the first element to the last, gaps included: [elements, bytes of one]."""
        return self.raw[ZONE : ZONE + self.bytes].view(-1, self.tensor.element_size())


class Allocations(TorchFunctionMode):
    """While active, every fresh tensor lies between red zones and `empty` memory is poisoned (zeroed when `poison` is
    off)."""

    FRESH = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
    FILLED = (
        torch.zeros,
        torch.zeros_like,
        torch.full,
        torch.full_like,
        torch.ones,
        torch.Tensor.new_zeros,
        torch.Tensor.new_full,
    )

    def __init__(self, poison: bool = True) -> None:
        super().__init__()
        self.poison = poison
        self.made: list[Guarded] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in self.FRESH and func not in self.FILLED:
            return out
        guarded = Guarded(
            tuple(out.shape), out.stride(), out.dtype, out.device, f"buffer {len(self.made)} {list(out.shape)}"
        )
        self.made.append(guarded)
        if func in self.FILLED:
            guarded.tensor.copy_(out)
        elif not self.poison:
            guarded.tensor.zero_()
        return guarded.tensor


def guard_inputs(inputs: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], list[Guarded]]:
    """A copy of the inputs on `device`, every tensor between red zones with its strides kept."""
    kept: list[Guarded] = []

    def copy(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            guarded = Guarded(tuple(value.shape), value.stride(), value.dtype, device, f"input {name}")
            guarded.mark_gaps()
            guarded.tensor.copy_(value)
            kept.append(guarded)
            return guarded.tensor
        if isinstance(value, (tuple, list)):
            return type(value)(copy(item, f"{name}[{i}]") for i, item in enumerate(value))
        return value

    return {name: copy(value, name) for name, value in inputs.items()}, kept
