"""A GGUF file, memory-mapped: metadata, and tensors that are views of the file until they are copied.

    | "GGUF" | version u32 | tensors u64 | pairs u64 | key, type, value ... | name, dims, type, offset ... | data |

Strings are u64 + bytes; an array is element type u32, count u64, elements. A tensor's dims are written innermost first:
{in, out} is the row-major matrix [out, in]. Offsets count from the start of the data, which is aligned.

Nothing in the file is believed: a count is held against the bytes that are left before anything is made of it.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..reference.formats import FORMATS, row_bytes

MAGIC, VERSIONS = b"GGUF", (2, 3)
# value types of the metadata: struct codes; 8 is a string, 9 an array
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BY_TYPE = {format.type_id: format for format in FORMATS.values()}
MOST_DIMS = 4


class BadFile(ValueError):
    """What is wrong with a file, in one sentence that names it."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: `shape` as torch has it, outermost first; its bytes are file[start : start + size]."""

    name: str
    format: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class File:
    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    data: mmap.mmap

    def read(self, name: str) -> torch.Tensor:
        """A view of the file: rows of blocks u8 [N, row_bytes], or a plain tensor of the entry's shape."""
        entry = self.entries[name]
        data = torch.frombuffer(self.data, dtype=torch.uint8, count=entry.size, offset=entry.start)
        plain = FORMATS[entry.format].dtype
        return data.view(math.prod(entry.shape[:-1]), -1) if plain is None else data.view(plain).view(entry.shape)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """metadata[key] of that kind; a whole number serves as a float. Without it the default, where there is one."""
        value = self.metadata.get(key, default)
        if value is None:
            raise BadFile(f"{self.path.name} has no {key}")
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise BadFile(f"{self.path.name}: {key} is {short(value)}, not {kind.__name__}")
        return value

    def size(self, key: str, default: int | None = None, most: int = 1 << 24) -> int:
        """A positive whole number of the metadata."""
        value = self.get(key, int, default)
        if not 0 < value <= most:
            raise BadFile(f"{self.path.name}: {key} is {value}; it takes 1 to {most}")
        return value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass
class _Cursor:
    """Reads on from `at`, never past the end."""

    name: str
    data: mmap.mmap
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise BadFile(f"{self.name} is cut off: {what} needs {size} bytes at byte {self.at}, {self.left} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A u64 that counts things of at least `smallest` bytes each."""
        found: int = self.number("Q", what)
        if found * smallest > self.left:
            raise BadFile(f"{self.name}: {what} is {found}, too many for the {self.left} bytes that are left")
        return found

    def text(self, what: str) -> str:
        raw = self.take(self.count(1, f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadFile(f"{self.name}: {what} is not UTF-8 ({error})") from error

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            raise BadFile(f"{self.name}: {what} has the unknown type {kind}")
        of = self.number("I", what)
        if of in SCALARS:
            size = struct.calcsize("<" + SCALARS[of])
            count = self.count(size, f"the length of {what}")
            return list(struct.unpack(f"<{count}{SCALARS[of]}", self.take(count * size, what)))
        if of != STRING:
            raise BadFile(f"{self.name}: {what} is an array of the unknown type {of}")
        return [self.text(what) for _ in range(self.count(8, f"the length of {what}"))]


def load(path: Path) -> File:
    """Map the file and read all but the weights."""
    data = mapped(path)
    cursor = _Cursor(path.name, data)
    if (magic := cursor.take(4, "the magic")) != MAGIC:
        raise BadFile(f"{path.name} is no GGUF file: it begins with {magic!r}")
    if (version := cursor.number("I", "the version")) not in VERSIONS:
        raise BadFile(
            f"{path.name} is GGUF version {version}; little-endian {' and '.join(map(str, VERSIONS))} are read"
        )
    tensors = cursor.count(8 + 4 + 8 + 4 + 8, "the count of tensors")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(8 + 4 + 1, "the count of metadata")):
        key = cursor.text("a key")
        if key in metadata:
            raise BadFile(f"{path.name} has the key {short(key)} twice")
        metadata[key] = cursor.value(cursor.number("I", short(key)), short(key))
    found = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadFile(f"{path.name}: general.alignment is {short(alignment)}, not a power of two")
    base = -(-cursor.at // alignment) * alignment
    entries = {entry.name: entry for entry in _placed(path.name, found, base, alignment, len(data))}
    if len(entries) < tensors:
        raise BadFile(f"{path.name} holds {tensors} tensors under {len(entries)} names")
    return File(path, metadata, entries, data)


def mapped(path: Path) -> mmap.mmap:
    """The file's bytes, private to this process: what is written to them stays there."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise BadFile(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be mapped: {error}") from error


def _entry(cursor: _Cursor) -> Entry:
    """One line of the tensor table; `start` still counts from the data."""
    name = cursor.text("a tensor's name")
    what = f"tensor {short(name)}"
    dims = cursor.number("I", what)
    if not 1 <= dims <= MOST_DIMS:
        raise BadFile(f"{cursor.name}: {what} has {dims} dimensions; 1 to {MOST_DIMS} are read")
    shape = tuple(cursor.number("Q", what) for _ in range(dims))[::-1]
    kind, start = cursor.number("I", what), cursor.number("Q", what)
    if kind not in BY_TYPE:
        known = ", ".join(f"{format.name} ({number})" for number, format in sorted(BY_TYPE.items()))
        raise BadFile(f"{cursor.name}: {what} is of ggml's type {kind}; read are {known}")
    if 0 in shape or math.prod(shape) >= 1 << 62:
        raise BadFile(f"{cursor.name}: {what} has the shape {list(shape)}")
    try:
        size = math.prod(shape[:-1]) * row_bytes(BY_TYPE[kind].name, shape[-1])
    except ValueError as error:
        raise BadFile(f"{cursor.name}: {what}: {error}") from error
    return Entry(name, BY_TYPE[kind].name, shape, start, size)


def _placed(file: str, found: list[Entry], base: int, alignment: int, end: int) -> Iterator[Entry]:
    """The entries with `start` counted from the file's first byte: aligned, inside the file, apart."""
    taken = base
    for entry in sorted(found, key=lambda entry: entry.start):
        start = base + entry.start
        if entry.start % alignment or start + entry.size > end:
            place = f"bytes {start} to {start + entry.size} of {end}"
            raise BadFile(f"{file} is cut off or corrupt: tensor {short(entry.name)} would lie at {place}")
        if start < taken:
            raise BadFile(f"{file} is corrupt: tensor {short(entry.name)} overlaps the one before it")
        taken = start + entry.size
        yield Entry(entry.name, entry.format, entry.shape, start, entry.size)
