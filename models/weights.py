"""A matrix as dequant_matmul takes it: GGUF's own blocks, or tiles where the format and the sizes allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..reference.formats import dequantise, find
from ..reference.tiles import COLUMNS, RECORD, ROWS, to_tiles


@dataclass(frozen=True)
class Rows:
    """A matrix as a file holds it: u8 [N, row_bytes] of blocks, or a plain [N, K]; a vector is a plain [N]."""

    data: torch.Tensor
    format: str

    @property
    def columns(self) -> int:
        known = find(self.format)
        return self.data.shape[-1] if known.dtype is not None else self.data.shape[1] // known.bytes * known.elements

    def floats(self) -> torch.Tensor:
        return dequantise(self.data, self.format).contiguous()


@dataclass(frozen=True)
class Weight:
    """One or several matrices of the same input, one under the other; `parts` are their rows, padding not counted."""

    data: torch.Tensor
    format: str
    layout: str
    parts: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


def arrange(matrices: Sequence[Rows], tiles: bool, halves: bool = False) -> Weight:
    """Matrices of one format, joined; as tiles where wanted and possible. `halves` keeps them equal: no padding."""
    format, parts = matrices[0].format, tuple(len(one.data) for one in matrices)
    data = torch.cat([one.data for one in matrices]) if len(matrices) > 1 else matrices[0].data
    short = -sum(parts) % ROWS
    if not tiles or format not in RECORD or matrices[0].columns % COLUMNS or (halves and parts[0] % ROWS):
        return Weight(data, format, "gguf", parts)
    if short:
        # blocks of zero bytes are zeros
        data = torch.cat([data, data.new_zeros(short, data.shape[1])])
    return Weight(to_tiles(data, format), format, "tiles", parts)


def join(matrices: Sequence[Rows], tiles: bool) -> tuple[Weight, ...]:
    """Neighbours of one format become one Weight: fewer, larger products."""
    groups: list[list[Rows]] = []
    for one in matrices:
        if groups and groups[-1][0].format == one.format:
            groups[-1].append(one)
        else:
            groups.append([one])
    return tuple(arrange(group, tiles) for group in groups)


def gate_up(gate: Rows, up: Rows, tiles: bool) -> tuple[Weight, ...]:
    """One Weight of two halves, which SwiGLU takes whole, where the formats agree."""
    return (arrange([gate, up], tiles, halves=True),) if gate.format == up.format else join([gate, up], tiles)
