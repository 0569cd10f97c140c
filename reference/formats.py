"""GGUF's block formats: where each bit of a weight lies, and which number it means.

A row of n weights is n/32 or n/256 blocks, one after another. `unpack` gives a block's fields as integers, `pack` puts them back,
`dequantise` turns them into f32 in the association of ggml's own code, so that every bit agrees; `quantise` repeats ggml's
reference quantisers byte for byte for q8_0, q4_0 and q4_k, and the rule of tq3_0. For q5_k and q6_k it is a simple
round-to-nearest that makes sound weights, not ggml's bytes.

    q4_k, 144 bytes:  | d f16 | dmin f16 | 12 bytes: 8 scales and 8 minimums of 6 bits | 128 bytes: 256 nibbles |
                        x = (d * scale) * q - (dmin * min), a scale and a minimum for every 32 weights

Plain f32, f16 and bf16 rows are formats too, of one weight a block.
"""

from dataclasses import dataclass

import torch

from .hadamard import GROUP, pairwise_sum, rotate

Fields = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """`elements` weights in `bytes` bytes; `type_id` is ggml's number for it; `dtype` is set where a row is a plain tensor."""

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
        Format("q5_k", 256, 176, 13, "d f16 @0, dmin f16 @2, scales u8[12] @4, fifth bits u8[32] @16, nibbles u8[128] @48"),
        Format("q6_k", 256, 210, 14, "low nibbles u8[128] @0, high pairs u8[64] @128, scales i8[16] @192, d f16 @208"),
        Format("q8_0", 32, 34, 8, "d f16 @0, q i8[32] @2"),
        Format("q4_0", 32, 18, 2, "d f16 @0, nibbles u8[16] @2"),
        # the id of llama.cpp forks that carry it; ggml itself has no such type
        Format("tq3_0", 32, 14, 42, "norm f16 @0 (the same in the 4 blocks of 128), low pairs u8[8] @2, high bits u8[4] @10"),
        Format("bf16", 1, 2, 30, "bfloat16", torch.bfloat16),
        Format("f16", 1, 2, 1, "float16", torch.float16),
        Format("f32", 1, 4, 0, "float32", torch.float32),
    )
}
QUANTISED = tuple(name for name, format in FORMATS.items() if format.dtype is None)
CACHE = ("q8_0", "q4_0", "tq3_0")

TQ3_CODES = (-0.190685, -0.117832, -0.065717, -0.021460, 0.021460, 0.065717, 0.117832, 0.190685)
TQ3_BOUNDS = (-0.154259, -0.091775, -0.043589, 0.0, 0.043589, 0.091775, 0.154259)


def find(format: str) -> Format:
    if format not in FORMATS:
        raise ValueError(f"formats are {', '.join(FORMATS)}, not '{format}'")
    return FORMATS[format]


def row_bytes(format: str, n: int) -> int:
    """Bytes of a row of n weights."""
    known = find(format)
    if n % known.elements:
        raise ValueError(f"a row of {format} is a multiple of {known.elements} weights, not {n}")
    return n // known.elements * known.bytes


# -- fields ------------------------------------------------------------------------------------------------------------


def unpack(data: torch.Tensor, format: str) -> Fields:
    """data: u8 [..., blocks * bytes] -> d, dmin, norm f16 [..., blocks]; scale, min u8 or i8 [..., blocks, 8 or 16]; q [..., blocks, elements]."""
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
                low = (first & 15, second & 15, first >> 4, second >> 4)
                halves += [low[g] | (high >> 2 * g & 3) << 4 for g in range(4)]
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
            parts = [low.flatten(-2), high.flatten(-2), fields["scale"].to(torch.int8).view(torch.uint8), _u8(fields["d"])]
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
        data = data.contiguous().view(known.dtype) if data.dtype == torch.uint8 else data
        return data if data.dtype == torch.float64 else data.float()
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
    blocks = x.float().unflatten(-1, (-1, known.elements))
    match format:
        case "q8_0":
            d = blocks.abs().amax(-1) / 127
            return pack({"d": d.half(), "q": _round_away(blocks * _inverse(d)).to(torch.int8)}, format)
        case "q4_0":
            # the value of largest magnitude, the first of equals, with its sign
            d = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0] / -8
            q = (blocks * _inverse(d) + 8.5).trunc().clamp(0, 15)
            return pack({"d": d.half(), "q": q.to(torch.uint8)}, format)
        case "q4_k":
            return pack(_quantise_q4_k(blocks), format)
        case "q5_k":
            return pack(_quantise_q5_k(blocks), format)
        case "q6_k":
            return pack(_quantise_q6_k(blocks), format)
    return pack(_quantise_tq3_0(x.float()), format)


def _quantise_tq3_0(x: torch.Tensor) -> Fields:
    """Codes of the rotated unit vector; the stored norm makes the decoded group as long as the group was."""
    groups = x.unflatten(-1, (-1, GROUP))
    norm = pairwise_sum(groups.square()).sqrt()[..., None]
    y = torch.where(norm > 1e-10, rotate(groups / norm.clamp_min(1e-10)), 0.0)
    q = torch.bucketize(y, torch.tensor(TQ3_BOUNDS, device=x.device), right=True)
    length = pairwise_sum(torch.tensor(TQ3_CODES, device=x.device)[q].square()).sqrt()[..., None]
    return {"norm": (norm / length).half().expand(*norm.shape[:-1], 4).flatten(-2), "q": q.unflatten(-1, (4, 32)).flatten(-3, -2)}


def _quantise_q4_k(blocks: torch.Tensor) -> Fields:
    """ggml's search for a scale and a minimum per 32 weights, then all of them in 6 bits of a shared d and dmin."""
    x = blocks.unflatten(-1, (8, 32))
    scale, minimum, searched = (part.reshape(*x.shape[:-1], -1) for part in _search(x.reshape(-1, 32)))
    header = _k_quantised(scale[..., 0], minimum[..., 0])
    step = (header["d"].float()[..., None] * header["scale"].float())[..., None]
    low = (header["dmin"].float()[..., None] * header["min"].float())[..., None]
    # where the step has become zero the codes of the search stay
    q = torch.where(step == 0, searched, ((x + low) / step).round().clamp(0, 15))
    return {**header, "q": q.to(torch.uint8).flatten(-2)}


def _k_quantised(scale: torch.Tensor, minimum: torch.Tensor) -> Fields:
    """Scales and minimums [..., 8] as 6-bit multiples of the largest / 63."""

    def six_bits(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = values.amax(-1).clamp_min(0)
        inverse = torch.where(top > 0, 63 / top, 0.0)
        return (top / 63).half(), (inverse[..., None] * values).round().clamp(0, 63).to(torch.uint8)

    d, scales = six_bits(scale)
    dmin, mins = six_bits(minimum)
    return {"d": d, "dmin": dmin, "scale": scales, "min": mins}


def _search(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: [R, 32] -> scale [R], -min [R], codes [R, 32]: x ~ scale * code + min, min <= 0, of least weighted square error.

    22 grids are tried. Sums run over the 32 weights in order, one rounding a step, as ggml's scalar code does.
    """
    # weights first: every step of a sum is one operation on contiguous rows
    x = x.t().contiguous()

    def total(terms: torch.Tensor) -> torch.Tensor:
        out = terms[0].clone()
        for term in terms[1:]:
            out += term
        return out

    w = (total(x * x) / 32).sqrt() + x.abs()
    low, high = x.amin(0).clamp_max(0), x.amax(0)
    flat = high == low
    reach = torch.where(flat, 1.0, high - low)
    sum_w, sum_x = total(w), total(w * x)

    def error(scale: torch.Tensor, minimum: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        miss = scale * codes + minimum - x
        return total(w * (miss * miss))

    inverse = 15 / reach
    scale, minimum = 1 / inverse, low
    codes = (inverse * (x - minimum)).round().clamp(0, 15)
    best = error(scale, minimum, codes)
    for trial in range(21):
        grid = torch.tensor(0.1) * trial + -1.0 + 15
        # `high - minimum` with the minimum found so far, not the block's own: ggml overwrites it on every improvement
        trial_codes = (grid / (high - minimum) * (x - minimum)).round().clamp(0, 15)
        weighted = w * trial_codes
        sum_l, sum_l2, sum_xl = total(weighted), total(weighted * trial_codes), total(weighted * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det
        new_scale = torch.where(new_min > 0, sum_xl / sum_l2, new_scale)
        new_min = new_min.clamp_max(0)
        new_error = error(new_scale, new_min, trial_codes)
        better = (det > 0) & (new_error < best)
        scale, minimum, best = (torch.where(better, new, old) for new, old in ((new_scale, scale), (new_min, minimum), (new_error, best)))
        codes = torch.where(better, trial_codes, codes)
    return scale.masked_fill(flat, 0), -minimum, codes.masked_fill(flat, 0).t()


def _quantise_q5_k(blocks: torch.Tensor) -> Fields:
    x = blocks.unflatten(-1, (8, 32))
    low = x.amin(-1).clamp_max(0)
    header = _k_quantised((x.amax(-1) - low) / 31, -low)
    step = header["d"].float()[..., None] * header["scale"].float()
    shifted = x + (header["dmin"].float()[..., None] * header["min"].float())[..., None]
    return {**header, "q": (shifted * _inverse(step)).round().clamp(0, 31).to(torch.uint8).flatten(-2)}


def _quantise_q6_k(blocks: torch.Tensor) -> Fields:
    x = blocks.unflatten(-1, (16, 16))
    scale = x.abs().amax(-1) / 31
    d = (scale.amax(-1) / 127).half()
    scales = (scale * _inverse(d.float())).round().clamp(0, 127)
    q = (x * _inverse(d.float()[..., None] * scales)).round().clamp(-32, 31) + 32
    return {"d": d, "scale": scales.to(torch.int8), "q": q.to(torch.uint8).flatten(-2)}


# -- rows of a cache ---------------------------------------------------------------------------------------------------


def to_planes(data: torch.Tensor, format: str) -> torch.Tensor:
    """Rows of blocks u8 [..., row_bytes] -> the same bytes as planes: all scales, then each further field.

    q8_0: | D/32 f16 | D int8 |    q4_0: | D/32 f16 | D/2 nibble bytes |    tq3_0: | D/32 f16 | D/4 low pairs | D/8 high bits |
    """
    b = data.unflatten(-1, (-1, find(format).bytes))
    return torch.cat([b[..., start:stop].flatten(-2) for start, stop in _planes(format)], -1)


def from_planes(data: torch.Tensor, format: str) -> torch.Tensor:
    """The inverse of `to_planes`."""
    blocks = data.shape[-1] // find(format).bytes
    widths = [stop - start for start, stop in _planes(format)]
    planes = data.split([blocks * width for width in widths], -1)
    return torch.cat([plane.unflatten(-1, (blocks, width)) for plane, width in zip(planes, widths, strict=True)], -1).flatten(-2)


def _planes(format: str) -> tuple[tuple[int, int], ...]:
    planes = {"q8_0": ((0, 2), (2, 34)), "q4_0": ((0, 2), (2, 18)), "tq3_0": ((0, 2), (2, 10), (10, 14))}
    if format not in planes:
        raise ValueError(f"a cache holds its rows as planes in {', '.join(planes)}, not '{format}'")
    return planes[format]


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(format: str, rows: int, n: int, generator: torch.Generator, low: float = 1e-5, high: float = 1e-2) -> torch.Tensor:
    """u8 [rows, row_bytes] of random blocks: every code point, scales log-uniform with weights up to `low..high`, now and then zero."""
    known = find(format)
    shape = (rows, row_bytes(format, n) // known.bytes)

    def integers(below: int, *extra: int) -> torch.Tensor:
        return torch.randint(0, below, (*shape, *extra), generator=generator)

    def scales(codes: float) -> torch.Tensor:
        exponent = torch.rand(shape, generator=generator)
        values = low * (high / low) ** exponent / codes
        values[torch.rand(shape, generator=generator) < 0.01] = 0
        return values.clamp_max(65504).half()

    q = integers(1 << {"q8_0": 8, "q4_0": 4, "q4_k": 4, "q5_k": 5, "q6_k": 6, "tq3_0": 3}.get(format, 8), known.elements)
    match format:
        case "q8_0":
            return pack({"d": scales(127), "q": q}, format)
        case "q4_0":
            return pack({"d": scales(8) * (1 - 2 * integers(2)), "q": q}, format)
        case "q4_k" | "q5_k":
            top = 15 if format == "q4_k" else 31
            d = scales(32 * top)
            # minimums that centre the weights, as trained weights are
            dmin = d * (top / 2 * (0.75 + 0.5 * torch.rand(shape, generator=generator)))
            scale = integers(64, 8)
            return pack({"d": d, "dmin": dmin.clamp_max(65504).half(), "scale": scale, "min": (scale + integers(9, 8) - 4).clamp(0, 63), "q": q}, format)
        case "q6_k":
            return pack({"d": scales(127 * 32), "scale": integers(256, 16).to(torch.uint8).view(torch.int8), "q": q}, format)
        case "tq3_0":
            norm = scales(0.19)[:, ::4] if shape[1] % 4 == 0 else scales(0.19)
            return pack({"norm": norm.repeat_interleave(shape[1] // norm.shape[1], 1), "q": q}, format)
    size = low * (high / low) ** torch.rand(rows, 1, generator=generator)
    return quantise(size * torch.randn(rows, n, generator=generator), format)


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


def _inverse(d: torch.Tensor) -> torch.Tensor:
    """1/d, 0 where d is 0, with an axis for the weights of the block."""
    return torch.where(d == 0, 0.0, 1 / d)[..., None]


def _round_away(x: torch.Tensor) -> torch.Tensor:
    """To the nearest integer, halves away from zero."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)
