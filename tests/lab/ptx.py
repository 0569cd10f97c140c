"""Inline PTX from its text: the few instructions that the kernels use, on words, in numpy.

pack = 2    neighbours of the last axis: halves of one register, or a register each
lanes       of a value that moves between them: 4 g .. 4 g + 3 hold row g of the last axis but one
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def run(
    text: str, given: Sequence[np.ndarray], kinds: Sequence[Any], pack: int, shared: np.ndarray
) -> list[np.ndarray]:
    """What the text leaves in $0, $1 .., one of each kind, of what the registers after them hold; `shared`: bytes that
    it may write to."""
    shape = np.broadcast_shapes(*(a.shape for a in given))
    words = [word for a in given for word in _words(np.ascontiguousarray(np.broadcast_to(a, shape)), pack)]
    counts = [max(1, pack * np.dtype(kind).itemsize // 4) for kind in kinds]
    registers: dict[str, Any] = {f"${sum(counts) + i}": word for i, word in enumerate(words)}
    registers |= {"%tid.x": np.uint32(0), "global_smem": np.uint32(0), "%dynamic_smem_size": np.uint32(len(shared))}
    if "%laneid" in text:
        # a lane is a row of four, or one of the last axis of two
        registers["%laneid"] = np.arange(32, dtype=np.uint32) if len(shape) == 2 else np.arange(0, 32, 4)[:, None]
    for instruction in _instructions(text):
        if ".shared" not in instruction and not instruction.startswith("mma.sync"):
            _execute(instruction, registers)
        elif tiles := re.fullmatch(r"(?:@(\w+) )?stmatrix\S+.shared.b16 \[(\S+)\], \{(.*)\}", instruction):
            if tiles[1] is None or bool(np.unique(registers[tiles[1]])):
                _stored([registers[name] for name in tiles[3].split(", ")], registers[tiles[2]], shared)
        elif two := re.fullmatch(r"st.shared.v2.b32 \[(\S+)\], \{(\S+), (\S+)\}", instruction):
            for i in range(2):
                shared.view(np.uint32)[registers[two[1]] // 4 + i] = registers[two[2 + i]]
        elif some := re.fullmatch(r"ld.shared(?:.v\d)?.(b32|u16) \{?([^{}[]+?)\}?, \[(\S+)\+(\d+)\]", instruction):
            width, at = int(some[1][1:]), registers[some[3]] + np.uint32(some[4])
            if (at % (width // 8 * len(some[2].split(", ")))).any():
                raise IndexError(f"words in shared memory at no multiple of their width: {instruction}")
            for i, name in enumerate(some[2].split(", ")):
                registers[name] = shared.view(f"u{width // 8}")[at // (width // 8) + i].astype(np.uint32)
        elif instruction.startswith("mma.sync"):
            _multiplied(instruction, registers)
        elif one := re.fullmatch(r"ld.shared.b32 (\S+), \[(\S+)\]", instruction):
            registers[one[1]] = shared.view(np.uint32)[registers[one[2]] // 4]
        elif two := re.fullmatch(r"ld.shared.v2.b32 \{(\S+), (\S+)\}, \[(\S+)\]", instruction):
            for i in range(2):
                registers[two[1 + i]] = shared.view(np.uint32)[registers[two[3]] // 4 + i]
        elif stored := re.fullmatch(r"@(\w+) st.shared.b32 \[([^]]+)\], (\S+)", instruction):
            told, where, word = (np.broadcast_to(registers[name], shape) for name in stored.groups())
            shared.view(np.uint32)[where[told] // 4] = word[told]
        else:
            raise NotImplementedError(f"PTX that is not known here: {instruction}")
    made, at = [], 0
    for kind, count in zip(kinds, counts, strict=True):
        made.append(_value([registers[f"${at + i}"].astype(np.uint32) for i in range(count)], kind, pack))
        at += count
    return made if shape else [a[0] for a in made]


@functools.cache
def _instructions(text: str) -> list[str]:
    lines = (line.strip(" {\n") for line in text.strip(" {}\n").split(";"))
    # an L2 has no bearing on numbers, and here all that is copied comes when it may
    return [line for line in lines if line and line[0] != "." and not re.search(r"prefetch\.L2|fence\.proxy", line)]


def _stored(tiles: list[np.ndarray], rows: np.ndarray, shared: np.ndarray) -> None:
    """stmatrix: tiles of 8 x 8 halves, of whose rows each lane says where one goes."""
    for i, tile in enumerate(tiles):
        for t in range(4):
            shared.view(np.uint32)[rows[:, 8 * i : 8 * i + 8] // 4 + t] = tile[:, t::4]


Product = tuple[Any, int, tuple[int, int], tuple[int, ...], bool]


def products(text: str, registers: dict[str, Any]) -> list[Product]:
    """wgmma: of each the four registers of A or its descriptors by warp group, the columns of B, the words of B's
    descriptor, which of A and B are turned, and whether it adds to the sums before."""
    found: list[Product] = []
    described: dict[str, tuple[np.ndarray, int]] = {}
    for instruction in _instructions(text):
        if whole := re.fullmatch(r"mov.b64 (\w+), \{(\w+), (\w+)\}", instruction):
            halves = [np.asarray(registers[name]) for name in whole.groups()[1:]]
            described[whole[1]] = (halves[0], int(np.unique(halves[1]).item()))
        elif made := re.match(r"wgmma.mma_async.sync.aligned.m64n(\d+)k16.f32.f16.f16 ", instruction):
            sums, a, at, adds, *more = re.findall(r"\{[^}]*\}|[^,\s]+", instruction[made.end() :])
            n = int(made[1])
            if sums != "{" + ", ".join(f"${i}" for i in range(n // 2)) + "}":
                raise NotImplementedError(f"products into other registers than the first: {sums}")
            # of A and B, where A is in registers of B alone
            turned = tuple(map(int, more[2:]))
            left: Any = [registers[name] for name in a.strip("{}").split(", ")] if a[0] == "{" else described[a]
            low, high = described[at]
            found.append((left, n, (int(np.unique(low).item()), high), turned, bool(np.unique(registers[adds]).item())))
        elif not instruction.startswith("wgmma"):
            _execute(instruction, registers)
    return found


def _operand(shared: np.ndarray, n: int, descriptor: tuple[int, int], turned: int) -> np.ndarray:
    """[n, 16] halves. What Gluon writes lies here without a swizzle, what PTX writes as it does on a GPU: that is B
    where it is turned, and nothing else of 32-byte rows is."""
    low, high = descriptor
    begin, panels, eight = (low & 0x3FFF) * 16, (low >> 16 & 0x3FFF) * 16, (high & 0x3FFF) * 16
    width = {1: 128, 3: 32}[high >> 30]
    row, column = np.arange(n)[:, None], np.arange(16)
    if not turned:
        at = begin + row // 8 * eight + row % 8 * width + column * 2
    else:
        inside = row * 2 % width + column % 8 * width
        # of 32 bytes: which 16 of them, by whether the line of 128 is odd
        inside = inside ^ (inside >> 7 & 1) << 4 if width == 32 else inside
        at = begin + row * 2 // width * panels + column // 8 * eight + inside
    return shared.view(np.float16)[at // 2].astype(np.float32)


def product(
    a: Any, shared: np.ndarray, n: int, descriptor: tuple[int, int], turned: tuple[int, ...]
) -> list[np.ndarray]:
    """Of m64 n k16 a lane's sums: A of four registers [W, 32] a lane, or in shared memory, 64 rows a warp group."""
    if isinstance(a, list):
        W = len(a[0])
        # s r0 W g t h
        halves = np.stack(a).view(np.float16).reshape(2, 2, W, 8, 4, 2)
        left = halves.transpose(2, 1, 3, 0, 4, 5).reshape(W * 16, 16).astype(np.float32)
    else:
        W, high = len(a[0]), a[1]
        groups = [int(np.unique(a[0][w : w + 4]).item()) for w in range(0, W, 4)]
        left = np.concatenate([_operand(shared, 64, (low, high), turned[0]) for low in groups])
    right = _operand(shared, n, descriptor, turned[-1])
    y = (left @ right.T).reshape(W, 2, 8, n // 8, 4, 2)
    # eight r0 h
    return list(y.transpose(3, 1, 5, 0, 2, 4).reshape(n // 2, W, 32))


def _multiplied(instruction: str, registers: dict[str, Any]) -> None:
    """mma.sync m16n8: lane (g, t) has of every 4 t, or of 2 t where they are halves, rows g and g + 8 of A and row g of
    B, and of sums the columns 2 t and 2 t + 1."""
    kind = re.match(r"mma.sync.aligned.m16n8k(\d+).row.col.(?:s32.(?:u8|s8).s8.s32|f32.f16.f16.f32) ", instruction)
    if not kind:
        raise NotImplementedError(f"PTX that is not known here: {instruction}")
    whole = "f16" in kind[0]
    into, *given = (part.split(", ") for part in re.findall(r"\{([^}]*)\}", instruction))
    shape = np.shape(registers[given[0][0]])
    a, b, c = (np.stack([np.broadcast_to(registers[name], shape) for name in names], 1) for names in given)
    kinds = (np.float16, np.float16) if whole else (np.uint8 if ".u8." in kind[0] else np.int8, np.int8)
    # W, r1 r0, g t, j
    left = a.astype(np.uint32)[..., None].view(kinds[0]).reshape(len(a), len(given[0]) // 2, 2, 8, 4, -1)
    right = b.astype(np.uint32)[..., None].view(kinds[1]).reshape(len(b), len(given[1]), 8, 4, -1)
    if left[0, :, 0, 0].size != int(kind[1]):
        raise NotImplementedError(f"registers of other columns: {instruction}")
    sums = np.einsum("wrhgtj,wrntj->whgn", *(v.astype(np.float32 if whole else np.int32) for v in (left, right)))
    before = c.astype(np.uint32).view(sums.dtype).reshape(-1, 2, 2, 8, 4)
    made = before + sums.reshape(-1, 2, 8, 4, 2).transpose(0, 1, 4, 2, 3)
    for i, name in enumerate(into):
        registers[name] = np.ascontiguousarray(made[:, i // 2, i % 2].reshape(shape)).view(np.uint32)


def _words(a: np.ndarray, pack: int) -> list[np.ndarray]:
    if a.itemsize * pack == 2:
        return [a.view(np.uint16).astype(np.uint32)]
    if a.itemsize * pack == 4:
        return [a.view(np.uint32)]
    return [a.view(np.uint32)[..., i::pack] for i in range(pack)]


def _value(words: list[np.ndarray], kind: Any, pack: int) -> np.ndarray:
    if np.dtype(kind).itemsize * pack < 4:
        return words[0].astype(np.uint16).view(kind)
    whole = np.stack(words, -1)
    return whole.reshape(*whole.shape[:-2], -1).view(kind)


def _halves(w: Any) -> np.ndarray:
    return np.array(w, np.uint32)[..., None].view(np.float16).astype(np.float64)


def _word(halves: np.ndarray) -> np.ndarray:
    return halves.astype(np.float16).view(np.uint32)[..., 0]


def _transposed(w: np.ndarray) -> np.ndarray:
    """movmatrix: of every 8 x 8 halves, rows in the place of columns."""
    a = np.stack([w & 0xFFFF, w >> 16], -1).astype(np.uint16).reshape(*w.shape[:-1], -1)
    if w.shape[-1:] == (32,):
        # a lane each
        return np.ascontiguousarray(a.reshape(-1, 8, 8).swapaxes(1, 2)).reshape(a.shape).view(np.uint32)
    tiles = a.reshape(*a.shape[:-2], a.shape[-2] // 8, 8, a.shape[-1] // 8, 8)
    turned = np.ascontiguousarray(tiles.swapaxes(-3, -1)).reshape(a.shape)
    return turned.view(np.uint32)


def _permuted(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """prmt: four of the eight bytes that b and a are; the sign alone where a nibble says so."""
    a, b, chosen = np.broadcast_arrays(*(np.asarray(v, np.uint32) for v in (a, b, chosen)))
    bytes = np.stack([a, b], -1).view(np.uint8)
    nibbles = chosen[..., None] >> np.arange(0, 16, 4, dtype=np.uint32) & np.uint32(15)
    found = np.take_along_axis(bytes, (nibbles & 7).astype(np.intp), -1)
    found = np.where(nibbles & 8, (found >> 7) * np.uint8(255), found)
    return np.ascontiguousarray(found).view(np.uint32)[..., 0]


@functools.cache
def _parts(words: str) -> tuple[str, str, list[str]]:
    name, rest = words.split(None, 1)
    into, *given = re.findall(r"\{[^}]*\}|[^,\s]+", rest)
    return name, into, given


def _execute(words: str, registers: dict[str, Any]) -> None:
    name, into, given = _parts(words)

    def value(part: str) -> Any:
        if part.startswith("{"):
            low, high = (value(p.strip()) for p in part.strip("{}").split(","))
            return np.asarray(low, np.uint32) | np.asarray(high, np.uint32) << 16
        return registers[part] if part in registers else np.uint32(int(part, 0))

    y = [value(part) for part in given]
    if name == "mov.b32" and into.startswith("{"):
        low, high = (part.strip() for part in into.strip("{}").split(","))
        registers[low], registers[high] = y[0] & np.uint32(0xFFFF), y[0] >> np.uint32(16)
        return
    match name:
        case "mov.b32" | "mov.u32":
            result = y[0]
        case "and.b32":
            result = y[0] & y[1]
        case "lop3.b32":
            a, b, c, table = (np.asarray(v, np.uint32) for v in y)
            result = np.uint32(0)
            for i in range(8):
                if int(table) >> i & 1:
                    result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        case "shr.u32":
            result = y[0] >> np.uint32(y[1])
        case "shl.b32":
            result = y[0] << np.uint32(y[1])
        case "movmatrix.sync.aligned.m8n8.trans.b16":
            result = _transposed(y[0])
        case "add.u32":
            result = y[0] + y[1]
        case "prmt.b32":
            result = _permuted(*y)
        case "setp.ne.u32":
            result = y[0] != y[1]
        case "setp.eq.u32":
            result = y[0] == y[1]
        case "setp.lt.u32":
            result = y[0] < y[1]
        case "selp.b32":
            result = np.where(y[2], y[0], y[1])
        case "shfl.sync.bfly.b32":
            far = int(y[1])
            # or lanes 4 g on are one row: the distance is a multiple of four
            result = y[0][:, np.arange(32) ^ far] if y[0].ndim == 2 else y[0][..., np.arange(8) ^ far // 4, :]
        case "shfl.sync.idx.b32" if int(y[2]) == 0x1C1F:
            result = y[0].reshape(-1, 8, 4)[..., [int(y[1])] * 4].reshape(y[0].shape)
        case "ex2.approx.ftz.f32":
            with np.errstate(over="ignore", under="ignore"):
                result = np.exp2(y[0].view(np.float32)).view(np.uint32)
        case "mul.f32":
            result = (y[0].view(np.float32) * y[1].view(np.float32)).view(np.uint32)
        case "add.f32":
            result = (y[0].view(np.float32) + y[1].view(np.float32)).view(np.uint32)
        case "max.f32":
            result = np.fmax(y[0].view(np.float32), y[1].view(np.float32)).view(np.uint32)
        case "cvt.rn.f16x2.f32":
            result = _word(np.stack([y[1].view(np.float32), y[0].view(np.float32)], -1))
        case "add.rn.f16x2":
            result = _word(_halves(y[0]) + _halves(y[1]))
        case "sub.f16x2":
            result = _word(_halves(y[0]) - _halves(y[1]))
        case "mul.f16x2" | "mul.rn.f16x2":
            result = _word(_halves(y[0]) * _halves(y[1]))
        case "fma.rn.f16x2":
            result = _word(_halves(y[0]) * _halves(y[1]) + _halves(y[2]))
        case _:
            raise NotImplementedError(f"PTX that is not known here: {words}")
    registers[into] = result
