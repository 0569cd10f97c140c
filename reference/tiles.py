"""A weight matrix rearranged once at load, without loss, so that a tensor core's operand is what a thread reads in a
row.

    u8 [N/64, K/256, bytes]: a record for every 64 rows x 256 columns

    q4_k  | codes 8192               | scales, minimums 64 x 8 x (u8, u8) | d, dmin 64 x (f16, f16) |
    q5_k  | codes 8192 | fifth bits 2048 | as q4_k                                                   |
    q6_k  | codes 8192 | high pairs 4096 | scales 64 x 16 x (i8 + 128)       | d 64 x f16            |
    q8_0  | codes 16384 | d 64 x 8 x f16 |          q4_0  | codes 8192 | d 64 x 8 x f16 |

Codes are 16-bit words of four nibbles; nibble j = 2 s + p holds the columns of

    word (c, w, lhi, llo, r1, r0, h)   ->   row 16 w + 8 r0 + lhi,   column 64 c + 32 p + 16 r1 + 8 s + 2 llo + h

(q8_0: two planes p of two bytes s.) Rows and columns follow the operand registers of m16n8k16, where a lane l holds
rows l/4 and l/4 + 8, columns 2 (l % 4) and on of every 8. Two words side by side are a register of eight nibbles: the
four low ones belong to one group of 32 columns, the four high ones to the next, so a mask leaves four codes that share
a scale, as m16n8k32 wants them.
"""

import torch

from .formats import find, pack, row_bytes, unpack
from .quantisers import Fields

ROWS, COLUMNS = 64, 256
RECORD = {"q4_k": 9472, "q5_k": 11520, "q6_k": 13440, "q8_0": 17408, "q4_0": 9216}


def to_tiles(weight: torch.Tensor, format: str) -> torch.Tensor:
    """weight: u8 [N, row_bytes] of blocks -> u8 [N/64, K/256, bytes]; N a multiple of 64, K of 256."""
    if format not in RECORD:
        raise ValueError(f"tiles hold {', '.join(RECORD)}, not '{format}'")
    N, K = weight.shape[0], weight.shape[1] // find(format).bytes * find(format).elements
    if N % ROWS or K % COLUMNS:
        raise ValueError(f"tiles take rows in steps of {ROWS} and columns in steps of {COLUMNS}, not {N} x {K}")
    return torch.cat([_to_tiles(part, format) for part in weight.split(_rows_at_once(K))])


def from_tiles(tiles: torch.Tensor, format: str) -> torch.Tensor:
    """The inverse of `to_tiles`."""
    parts = tiles.split(_rows_at_once(tiles.shape[1] * COLUMNS) // ROWS)
    return torch.cat([_from_tiles(part, format) for part in parts])


def _rows_at_once(K: int) -> int:
    """Whole tiles of about 2^25 weights: a vocabulary's codes need not exist as integers at once."""
    return max(1, (1 << 25) // (K * ROWS)) * ROWS


def _to_tiles(weight: torch.Tensor, format: str) -> torch.Tensor:
    N, K = weight.shape[0], weight.shape[1] // find(format).bytes * find(format).elements
    fields = {name: _by_tile(field.reshape(N, K // COLUMNS, -1)) for name, field in unpack(weight, format).items()}
    q = fields["q"].view(torch.uint8)
    if format == "q8_0":
        halves = q.unflatten(-1, (4, 2, 32)).unbind(-2)
        planes = [_bytes(_words(half.flatten(-2), 8)) for half in halves]
        return torch.cat([*planes, _bytes(fields["d"])], -1)
    planes = [_bytes(_words(q & 15, 4))]
    if format == "q5_k":
        planes.append(_bytes(_high(q >> 4, 1)))
    if format == "q6_k":
        planes += [_bytes(_high(q >> 4, 2)), _bytes(fields["scale"].view(torch.uint8) ^ 128)]
    if "min" in fields:
        planes += [_bytes(torch.stack([fields["scale"], fields["min"]], -1))]
        planes += [_bytes(torch.stack([fields["d"], fields["dmin"]], -1))]
    else:
        planes.append(_bytes(fields["d"]))
    return torch.cat(planes, -1)


def _from_tiles(tiles: torch.Tensor, format: str) -> torch.Tensor:
    widths = {"q4_k": (8192, 1024, 256), "q5_k": (8192, 2048, 1024, 256), "q6_k": (8192, 4096, 1024, 128)}
    planes = tiles.split(widths.get(format, (RECORD[format] - 1024, 1024)), -1)
    fields: Fields = {}
    if format == "q8_0":
        halves = [_columns(half.contiguous().view(torch.int16), 8) for half in planes[0].chunk(2, -1)]
        fields["q"] = torch.stack([half.unflatten(-1, (4, 32)) for half in halves], -2).flatten(-3).view(torch.int8)
    else:
        codes = _columns(planes[0].contiguous().view(torch.int16), 4)
        if format in ("q5_k", "q6_k"):
            codes |= _low(planes[1].contiguous().view(torch.int16), 1 if format == "q5_k" else 2) << 4
        fields["q"] = codes
    if format in ("q4_k", "q5_k"):
        pairs = planes[-2].unflatten(-1, (ROWS, 8, 2))
        fields["scale"], fields["min"] = pairs.unbind(-1)
        fields["d"], fields["dmin"] = _halves(planes[-1]).unflatten(-1, (ROWS, 1, 2)).unbind(-1)
    elif format == "q6_k":
        fields["scale"] = (planes[2] ^ 128).view(torch.int8).unflatten(-1, (ROWS, 16))
        fields["d"] = _halves(planes[3]).unflatten(-1, (ROWS, 1))
    else:
        fields["d"] = _halves(planes[1]).unflatten(-1, (ROWS, 8))
    T, blocks = tiles.shape[:2]
    known = find(format)
    whole = {name: field.transpose(1, 2).reshape(T * ROWS, -1) for name, field in fields.items()}
    count = blocks * COLUMNS // known.elements
    shaped = {
        name: field if name in ("d", "dmin") else field.unflatten(-1, (count, -1)) for name, field in whole.items()
    }
    return pack(shaped, format).reshape(T * ROWS, row_bytes(format, blocks * COLUMNS))


def _by_tile(field: torch.Tensor) -> torch.Tensor:
    """[N, blocks, n] -> [N/64, blocks, 64, n]."""
    return field.unflatten(0, (-1, ROWS)).transpose(1, 2)


def _split(columns: torch.Tensor) -> torch.Tensor:
    """[T, blocks, 64, 256 or a plane's 128] -> [T, blocks, c, w, lhi, llo, r1, r0, h, j]."""
    # T b w r0 lhi, c p r1 s llo h
    cut = columns.unflatten(-1, (4, columns.shape[-1] // 128, 2, 2, 4, 2)).unflatten(2, (4, 2, 8))
    return cut.permute(0, 1, 5, 2, 4, 9, 7, 3, 10, 8, 6).flatten(-2)


def _joined(words: torch.Tensor) -> torch.Tensor:
    """The inverse of `_split`."""
    # T b c w lhi llo r1 r0 h s p
    cut = words.unflatten(-1, (2, words.shape[-1] // 2))
    return cut.permute(0, 1, 3, 7, 4, 2, 10, 6, 9, 5, 8).flatten(5).flatten(2, 4)


def _words(columns: torch.Tensor, bits: int) -> torch.Tensor:
    """[T, blocks, 64, columns] -> i16 [T, blocks, 4096], part j shifted up by `bits` j."""
    parts = _split(columns.int())
    return sum(parts[..., j] << bits * j for j in range(parts.shape[-1])).to(torch.int16).flatten(2)  # type: ignore[union-attr]


def _columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `_words`, u8."""
    shape = (*words.shape[:2], 4, 4, 8, 4, 2, 2, 2)
    wide = words.int().view(shape)
    parts = torch.stack([wide >> bits * j & (1 << bits) - 1 for j in range(16 // bits)], -1)
    return _joined(parts).to(torch.uint8)


def _high(columns: torch.Tensor, bits: int) -> torch.Tensor:
    """The bits above a nibble: i16 words for (w, lhi, llo, c, h), or (c/2, w, lhi, llo, c%2, r1, h) where there are
    two.

    Part j of register pair v lies at 8 (j/2) + 4 (j%2) + bits v: the two nibbles of a byte apart by a byte.
    """
    parts = _split(columns.int())
    if bits == 1:
        parts = parts.flatten(6, 7)  # T b c w lhi llo v h j
        words = sum(
            parts[:, :, :, :, :, :, v, :, j] << 8 * (j // 2) + 4 * (j % 2) + v for v in range(4) for j in range(4)
        )
        return words.permute(0, 1, 3, 4, 5, 2, 6).to(torch.int16).flatten(2)  # type: ignore[union-attr]
    words = sum(parts[..., r0, :, j] << 8 * (j // 2) + 4 * (j % 2) + 2 * r0 for r0 in range(2) for j in range(4))
    words = words.unflatten(2, (2, 2))  # type: ignore[union-attr]
    return words.permute(0, 1, 2, 4, 5, 6, 3, 7, 8).to(torch.int16).flatten(2)


def _low(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `_high`, u8 [T, blocks, 64, 256]."""
    wide, mask = words.int(), (1 << bits) - 1
    if bits == 1:
        wide = wide.view(*words.shape[:2], 4, 8, 4, 4, 2).permute(0, 1, 5, 2, 3, 4, 6)
        groups = [torch.stack([wide >> 8 * (j // 2) + 4 * (j % 2) + v & mask for j in range(4)], -1) for v in range(4)]
        parts = torch.stack(groups, 6).unflatten(6, (2, 2))
    else:
        wide = wide.view(*words.shape[:2], 2, 4, 8, 4, 2, 2, 2).permute(0, 1, 2, 6, 3, 4, 5, 7, 8).flatten(2, 3)
        groups = [
            torch.stack([wide >> 8 * (j // 2) + 4 * (j % 2) + 2 * r0 & mask for j in range(4)], -1) for r0 in range(2)
        ]
        parts = torch.stack(groups, 7)
    return _joined(parts).to(torch.uint8)


def _bytes(field: torch.Tensor) -> torch.Tensor:
    """[T, blocks, ...] -> u8 [T, blocks, bytes]."""
    return field.contiguous().flatten(2).view(torch.uint8)


def _halves(plane: torch.Tensor) -> torch.Tensor:
    return plane.contiguous().view(torch.float16)
