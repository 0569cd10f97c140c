"""What a row of a KV cache means. A cache is [Hkv, S, row]: f16 or bf16 values, or u8 bytes of blocks whose planes lie
together.

    q8_0   | D/32 f16 scales | D int8                                       |  34 bytes for 32 values
    q4_0   | D/32 f16 scales | D/2 bytes of nibbles                         |  18
    tq3_0  | D/32 f16 norms  | D/4 bytes of low pairs | D/8 bytes of high bits |  14; the values of R(x)

The bytes are ggml's, moved losslessly (`formats.to_planes`), so that scales and codes load as vectors. A value that is
not finite has no code: its whole block, in tq3_0 its whole group of 128, is stored as codes of zeros under the scale
NaN.
"""

import torch

from . import formats
from .hadamard import GROUP, unrotate
from .spec import DTYPES

FORMATS = ("f16", "bf16", "q8_0", "q4_0", "tq3_0")
QUANTISED = FORMATS[2:]
# the quiet NaN that is stored, whatever NaN came in
NAN_BITS = {"f16": 0x7E00, "bf16": 0x7FC0}
# what a block's largest magnitude is divided by to get its scale
STEPS = {"q8_0": 127.0, "q4_0": 8.0}


def row_size(format: str, D: int) -> int:
    """Elements of a row: values, or bytes where it is quantised."""
    return formats.row_bytes(format, D) if format in QUANTISED else D


def to_rows(x: torch.Tensor, format: str) -> torch.Tensor:
    """x: [..., D] -> rows [..., row_size], in the format's own dtype."""
    x = x.float()
    if format in NAN_BITS:
        rows = x.to(DTYPES[format])
        return rows.view(torch.int16).masked_fill(x.isnan(), NAN_BITS[format]).view(rows.dtype)
    # -0 counts as 0, as ggml has it
    blocks = (x + 0.0).unflatten(-1, (-1, GROUP if format == "tq3_0" else 32))
    lost = ~blocks.isfinite().all(-1, keepdim=True)
    if format in STEPS:
        # where the scale is so small that its inverse is infinite, ggml's codes are undefined; in f16 the scale is 0
        top = blocks.abs().amax(-1, keepdim=True)
        blocks = blocks.masked_fill((1 / (top / torch.full_like(top, STEPS[format]))).isinf(), 0)
    data = formats.quantise(blocks.masked_fill(lost, 0).flatten(-2), format)
    rows = formats.to_planes(data, format)
    scales = rows[..., : 2 * (x.shape[-1] // 32)].contiguous().view(torch.int16)
    lost = lost.expand(*lost.shape[:-1], blocks.shape[-1] // 32).flatten(-2)
    scales = scales.masked_fill(lost, NAN_BITS["f16"])
    return torch.cat((scales.view(torch.uint8), rows[..., 2 * scales.shape[-1] :]), -1)


def stored(rows: torch.Tensor, format: str) -> torch.Tensor:
    """rows: [..., row_size] -> the [..., D] they hold, f32, or f64 where the rows are f64; of tq3_0 R(x), not x."""
    return formats.dequantise(formats.from_planes(rows, format) if format in QUANTISED else rows, format)


def values(rows: torch.Tensor, format: str) -> torch.Tensor:
    """rows: [..., row_size] -> [..., D], tq3_0 rotated back."""
    return unrotate(stored(rows, format)) if format == "tq3_0" else stored(rows, format)


def empty(Hkv: int, S: int, D: int, format: str) -> torch.Tensor:
    """A cache as it comes from the allocator, at its worst: NaN in every value and scale."""
    if format in QUANTISED:
        return torch.full((Hkv, S, row_size(format, D)), 0xFF, dtype=torch.uint8)
    return torch.full((Hkv, S, D), float("nan"), dtype=DTYPES[format])


def filled(x: torch.Tensor, format: str, start: int, S: int) -> torch.Tensor:
    """x: [Hkv, N, D] -> a cache [Hkv, S, row] that holds it in rows start..start+N-1 and nothing elsewhere."""
    cache = empty(x.shape[0], S, x.shape[2], format)
    cache[:, start : start + x.shape[1]] = to_rows(x, format)
    return cache


def draw_keys(Hkv: int, N: int, D: int, generator: torch.Generator) -> torch.Tensor:
    """[Hkv, N, D]: normed keys have a few channels that stand out in every row, the same in all."""
    scale = torch.exp(0.5 * torch.randn(Hkv, 1, D, generator=generator))
    return _repeated(Hkv, N, D, generator) * scale + 0.5 * scale * torch.randn(Hkv, 1, D, generator=generator)


def draw_values(Hkv: int, N: int, D: int, generator: torch.Generator) -> torch.Tensor:
    """[Hkv, N, D]: rows of very different size."""
    size = 10 ** torch.empty(Hkv, N, 1).uniform_(-1.5, 0.5, generator=generator)
    return _repeated(Hkv, N, D, generator) * size


def _repeated(Hkv: int, N: int, D: int, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers; beyond 4096 rows they repeat, so that long contexts are drawn in seconds."""
    x = torch.randn(Hkv, min(N, 4096), D, generator=generator)
    return x if N <= 4096 else x[:, torch.arange(N) % 4096]
