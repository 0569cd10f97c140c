"""GGUF's block formats: where each bit of a weight lies, and which number it means.

A row of n weights is n/32 or n/256 blocks, one after another. `unpack` gives a block's fields as integers, `pack` puts
them back; `dequantise` turns them into f32 in the association of ggml's own code, so that every bit agrees; `quantise`
goes the other way (see `quantisers`).

    q4_k, 144 bytes:  | d f16 | dmin f16 | 12 bytes: 8 scales and 8 minimums of 6 bits | 128 bytes: 256 nibbles |
                        x = (d * scale) * q - (dmin * min), a scale and a minimum for every 32 weights

Plain f32, f16 and bf16 rows are formats too, of one weight a block.
"""

from dataclasses import dataclass

import torch

from . import quantisers
from .hadamard import GROUP
from .quantisers import TQ3_CODES, Fields


@dataclass(frozen=True)
class Format:
    """`elements` weights in `bytes` bytes; `type_id` is ggml's number for it; `dtype` is set for plain rows."""

    name: str
    elements: int
    bytes: int
    type_id: int
    layout: str
    dtype: torch.dtype | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.elements


FORMATS = {
    format.name: format
    for format in (
        Format("q4_k", 256, 144, 12, "d f16 @0, dmin f16 @2, scales u8[12] @4, nibbles u8[128] @16"),
        Format("q5_k", 256, 176, 13, "d f16 @0, dmin f16 @2, scales u8[12] @4, fifth bits u8[32] @16, nibbles @48"),
        Format("q6_k", 256, 210, 14, "low nibbles u8[128] @0, high pairs u8[64] @128, scales i8[16] @192, d f16 @208"),
        Format("q8_0", 32, 34, 8, "d f16 @0, q i8[32] @2"),
        Format("q4_0", 32, 18, 2, "d f16 @0, nibbles u8[16] @2"),
        # the id of llama.cpp forks that carry it; ggml itself has no such type
        Format("tq3_0", 32, 14, 42, "norm f16 @0 (one per 4 blocks), low pairs u8[8] @2, high bits u8[4] @10"),
        Format("bf16", 1, 2, 30, "bfloat16", torch.bfloat16),
        Format("f16", 1, 2, 1, "float16", torch.float16),
        Format("f32", 1, 4, 0, "float32", torch.float32),
    )
}
PLAIN = {torch.float16, torch.bfloat16}
QUANTISED = tuple(name for name, format in FORMATS.items() if format.dtype is None)


def find(format: str) -> Format:
    if format not in FORMATS:
        raise ValueError(f"formats are {', '.join(FORMATS)}, not '{format}'")
    return FORMATS[format]


def by_id(type_id: int) -> Format:
    """The format a file names by its number; one that is not known here is refused, whatever it might be."""
    known = {format.type_id: format for format in FORMATS.values()}
    if type_id not in known:
        ids = ", ".join(f"{known[i].name} {i}" for i in sorted(known))
        raise ValueError(f"format ids are {ids}, not {type_id}")
    return known[type_id]


def row_bytes(format: str, n: int) -> int:
    """Bytes of a row of n weights."""
    known = find(format)
    step = GROUP if format == "tq3_0" else known.elements
    if n % step:
        raise ValueError(f"a row of {format} is a multiple of {step} weights, not {n}")
    return n // known.elements * known.bytes


# -- fields ------------------------------------------------------------------------------------------------------------


def unpack(data: torch.Tensor, format: str) -> Fields:
    """data: u8 [..., blocks * bytes] -> fields by name.

    d, dmin, norm: f16 [..., blocks]; scale, min: u8 or i8 [..., blocks, 8 or 16]; q: u8 or i8 [..., blocks, elements]
    """
    b = data.unflatten(-1, (-1, _blocked(format).bytes))
    match format:
        case "q8_0":
            return {"d": _f16(b[..., 0:2]), "q": b[..., 2:34].view(torch.int8)}
        case "q4_0":
            return {"d": _f16(b[..., 0:2]), "q": torch.cat((b[..., 2:18] & 15, b[..., 2:18] >> 4), -1)}
        case "q4_k":
            return {**_k_header(b), "q": _nibbles(b[..., 16:144])}
        case "q5_k":
            # bit s of fifth-bit byte l belongs to weight l of sub-block s
            fifth = torch.stack([b[..., 16:48] >> s & 1 for s in range(8)], -2).flatten(-2)
            return {**_k_header(b), "q": _nibbles(b[..., 48:176]) | fifth << 4}
        case "q6_k":
            halves = []
            for half in range(2):
                first, second = b[..., 64 * half : 64 * half + 32], b[..., 64 * half + 32 : 64 * half + 64]
                high = b[..., 128 + 32 * half : 160 + 32 * half]
                nibbles = (first & 15, second & 15, first >> 4, second >> 4)
                halves += [nibbles[g] | (high >> 2 * g & 3) << 4 for g in range(4)]
            return {"d": _f16(b[..., 208:210]), "scale": b[..., 192:208].view(torch.int8), "q": torch.cat(halves, -1)}
    low = torch.stack([b[..., 2:10] >> 2 * j & 3 for j in range(4)], -1).flatten(-2)
    high = torch.stack([b[..., 10:14] >> j & 1 for j in range(8)], -1).flatten(-2)
    return {"norm": _f16(b[..., 0:2]), "q": low | high << 2}


def pack(fields: Fields, format: str) -> torch.Tensor:
    """The inverse of `unpack`: u8 [..., blocks * bytes]."""
    _blocked(format)
    q = fields["q"].view(torch.uint8) if fields["q"].dtype == torch.int8 else fields["q"].to(torch.uint8)
    match format:
        case "q8_0":
            parts = [_u8(fields["d"]), q]
        case "q4_0":
            parts = [_u8(fields["d"]), q[..., :16] | q[..., 16:] << 4]
        case "q4_k":
            parts = [*_k_header_bytes(fields), _nibble_bytes(q & 15)]
        case "q5_k":
            fifth = _any([q[..., 32 * s : 32 * s + 32] >> 4 << s for s in range(8)])
            parts = [*_k_header_bytes(fields), fifth, _nibble_bytes(q & 15)]
        case "q6_k":
            g = q.unflatten(-1, (2, 4, 32)).unbind(-2)
            low = torch.cat((g[0] & 15 | (g[2] & 15) << 4, g[1] & 15 | (g[3] & 15) << 4), -1)
            high = _any([g[i] >> 4 << 2 * i for i in range(4)])
            scale = fields["scale"].to(torch.int8).view(torch.uint8)
            parts = [low.flatten(-2), high.flatten(-2), scale, _u8(fields["d"])]
        case _:
            low = _any([(q[..., j::4] & 3) << 2 * j for j in range(4)])
            high = _any([q[..., j::8] >> 2 << j for j in range(8)])
            parts = [_u8(fields["norm"]), low, high]
    return torch.cat(parts, -1).flatten(-2)


# -- numbers -----------------------------------------------------------------------------------------------------------


def dequantise(data: torch.Tensor, format: str) -> torch.Tensor:
    """data: u8 [..., row_bytes] -> f32 [..., n]. tq3_0 gives the rotated values; `hadamard.unrotate` undoes that.

    A row that is a plain tensor already is returned in f32, or as it is where it is f64.
    """
    known = find(format)
    if known.dtype is not None:
        if data.dtype in PLAIN - {known.dtype}:
            raise ValueError(f"{format} rows are {known.dtype}, not {data.dtype}")
        data = data.contiguous().view(known.dtype) if data.dtype == torch.uint8 else data
        return data if data.dtype == torch.float64 else data.float()
    if data.dtype != torch.uint8 or data.shape[-1] % known.bytes:
        found = f"{tuple(data.shape)} of {data.dtype}"
        raise ValueError(f"{format} has blocks of {known.bytes} bytes, which {found} is not made of")
    fields = unpack(data, format)
    q = fields["q"].float()
    match format:
        case "q8_0":
            x = fields["d"].float()[..., None] * q
        case "q4_0":
            x = fields["d"].float()[..., None] * (q - 8)
        case "q4_k" | "q5_k":
            scale = fields["d"].float()[..., None] * fields["scale"].float()
            minimum = fields["dmin"].float()[..., None] * fields["min"].float()
            x = (scale[..., None] * q.unflatten(-1, (8, 32)) - minimum[..., None]).flatten(-2)
        case "q6_k":
            scale = fields["d"].float()[..., None] * fields["scale"].float()
            x = (scale[..., None] * (q - 32).unflatten(-1, (16, 16))).flatten(-2)
        case _:
            x = torch.tensor(TQ3_CODES, device=data.device)[fields["q"].long()] * fields["norm"].float()[..., None]
    return x.flatten(-2)


def quantise(x: torch.Tensor, format: str) -> torch.Tensor:
    """x: [..., n] -> u8 [..., row_bytes], decided on the f32 values of x."""
    known = find(format)
    row_bytes(format, x.shape[-1])
    if known.dtype is not None:
        return x.to(known.dtype).contiguous().view(torch.uint8)
    return pack(_QUANTISERS[format](x.float().unflatten(-1, (-1, known.elements))), format)


_QUANTISERS = {
    "q4_k": quantisers.q4_k,
    "q5_k": quantisers.q5_k,
    "q6_k": quantisers.q6_k,
    "q8_0": quantisers.q8_0,
    "q4_0": quantisers.q4_0,
    "tq3_0": quantisers.tq3_0,
}


# -- rows of a cache ---------------------------------------------------------------------------------------------------


def to_planes(data: torch.Tensor, format: str) -> torch.Tensor:
    """Rows of blocks u8 [..., row_bytes] -> the same bytes as planes: all scales, then each further field.

    q8_0:  | D/32 f16 | D int8 |
    q4_0:  | D/32 f16 | D/2 bytes of nibbles |
    tq3_0: | D/32 f16 | D/4 bytes of low pairs | D/8 bytes of high bits |
    """
    b = data.unflatten(-1, (-1, find(format).bytes))
    return torch.cat([b[..., start:stop].flatten(-2) for start, stop in _planes(format)], -1)


def from_planes(data: torch.Tensor, format: str) -> torch.Tensor:
    """The inverse of `to_planes`."""
    blocks = data.shape[-1] // find(format).bytes
    widths = [stop - start for start, stop in _planes(format)]
    planes = data.split([blocks * width for width in widths], -1)
    return torch.cat([plane.unflatten(-1, (blocks, -1)) for plane in planes], -1).flatten(-2)


def _planes(format: str) -> tuple[tuple[int, int], ...]:
    planes = {"q8_0": ((0, 2), (2, 34)), "q4_0": ((0, 2), (2, 18)), "tq3_0": ((0, 2), (2, 10), (10, 14))}
    if format not in planes:
        raise ValueError(f"a cache holds its rows as planes in {', '.join(planes)}, not '{format}'")
    return planes[format]


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(
    format: str, rows: int, n: int, generator: torch.Generator, low: float = 1e-3, high: float = 1e-1
) -> torch.Tensor:
    """u8 [rows, row_bytes] of random blocks: every code point, the largest weight of a block log-uniform in low..high.

    One block in a hundred has a scale of zero; no scale is ever NaN or infinite.
    """
    known = find(format)
    blocks = row_bytes(format, n) // known.bytes
    if known.dtype is not None:
        size = low * (high / low) ** torch.rand(rows, 1, generator=generator)
        return quantise(size * torch.randn(rows, n, generator=generator), format)
    data = torch.randint(0, 256, (rows, blocks, known.bytes), generator=generator, dtype=torch.uint8)

    def scales(codes: float) -> torch.Tensor:
        values = low * (high / low) ** torch.rand(rows, blocks, generator=generator) / codes
        values[torch.rand(rows, blocks, generator=generator) < 0.01] = 0
        return values.clamp_max(65504).half()

    match format:
        case "q8_0":
            data[..., 0:2] = _u8(scales(127))
        case "q4_0":
            data[..., 0:2] = _u8(scales(8) * (1 - 2 * torch.randint(0, 2, (rows, blocks), generator=generator)))
        case "q4_k" | "q5_k":
            top = 15 if format == "q4_k" else 31
            d = scales(32 * top)
            # minimums that centre the weights, as those of trained weights do
            dmin = d * (top / 2 * (0.75 + 0.5 * torch.rand(rows, blocks, generator=generator)))
            scale = torch.randint(0, 64, (rows, blocks, 8), generator=generator)
            minimum = (scale + torch.randint(-4, 5, scale.shape, generator=generator)).clamp(0, 63)
            fields = {"d": d, "dmin": dmin.clamp_max(65504), "scale": scale, "min": minimum}
            data[..., :16] = torch.cat(_k_header_bytes(fields), -1)
        case "q6_k":
            data[..., 208:210] = _u8(scales(127 * 32))
        case _:
            data[..., 0:2] = _u8(scales(0.19)[:, ::4].repeat_interleave(4, 1))
    return data.flatten(-2)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _blocked(format: str) -> Format:
    known = find(format)
    if known.dtype is not None:
        raise ValueError(f"{format} has no blocks; formats with blocks are {', '.join(QUANTISED)}")
    return known


def _f16(pair: torch.Tensor) -> torch.Tensor:
    return pair.contiguous().view(torch.float16)[..., 0]


def _u8(scale: torch.Tensor) -> torch.Tensor:
    return scale.half()[..., None].contiguous().view(torch.uint8)


def _any(parts: list[torch.Tensor]) -> torch.Tensor:
    """Bitwise or of parts that share no bits."""
    return torch.stack(parts).sum(0, dtype=torch.uint8)


def _k_header(b: torch.Tensor) -> Fields:
    """16 bytes; 6-bit scales s and minimums m, those of sub-blocks 4..7 split into 4 low and 2 high bits:

    bytes 4..7: s4..7 high, s0..3    bytes 8..11: m4..7 high, m0..3    bytes 12..15: m4..7 low, s4..7 low
    """
    x, y, z = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    scale = torch.cat((x & 63, z & 15 | x >> 6 << 4), -1)
    minimum = torch.cat((y & 63, z >> 4 | y >> 6 << 4), -1)
    return {"d": _f16(b[..., 0:2]), "dmin": _f16(b[..., 2:4]), "scale": scale, "min": minimum}


def _k_header_bytes(fields: Fields) -> list[torch.Tensor]:
    s, m = fields["scale"].to(torch.uint8), fields["min"].to(torch.uint8)
    first = s[..., :4] | s[..., 4:] >> 4 << 6
    second = m[..., :4] | m[..., 4:] >> 4 << 6
    return [_u8(fields["d"]), _u8(fields["dmin"]), first, second, s[..., 4:] & 15 | (m[..., 4:] & 15) << 4]


def _nibbles(qs: torch.Tensor) -> torch.Tensor:
    """128 bytes -> 256 codes: 32 bytes hold sub-blocks 2p (low nibbles) and 2p + 1 (high)."""
    groups = qs.unflatten(-1, (4, 32))
    return torch.stack((groups & 15, groups >> 4), -2).flatten(-3)


def _nibble_bytes(q: torch.Tensor) -> torch.Tensor:
    low, high = q.unflatten(-1, (4, 2, 32)).unbind(-2)
    return (low | high << 4).flatten(-2)
