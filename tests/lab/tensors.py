"""What an emulated Gluon program computes with: tensors of numbers, pointers, shared memory and the TMA's boxes, in
numpy. Layouts say where numbers lie, not what they are: of a layout only its rank is left."""

import math
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class Value:
    """A tensor of numbers, or one."""

    type = types.SimpleNamespace(layout=None)

    def __init__(self, a: Any) -> None:
        self.a = np.asarray(a)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape

    @property
    def dtype(self) -> Any:
        return self.a.dtype.type

    def to(self, kind: Any, bitcast: bool = False) -> "Value":
        return Value(self.a.view(kind) if bitcast else self.a.astype(kind))

    def broadcast_to(self, shape: tuple[int, ...]) -> "Value":
        return Value(np.broadcast_to(self.a, shape))

    def __getitem__(self, at: Any) -> "Value":
        return Value(self.a[at])

    def __index__(self) -> int:
        return int(self.a)

    def __bool__(self) -> bool:
        return bool(self.a)

    def __str__(self) -> str:
        # numpy takes its time over a number
        return str(self.a.item() if self.a.ndim == 0 else self.a)

    def __neg__(self) -> "Value":
        return Value(-self.a)


def of(x: Any) -> Any:
    return x.a if isinstance(x, Value) else x


def _forward(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: NotImplemented if isinstance(other, Pointer) else Value(op(self.a, of(other)))


def _reflected(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: Value(op(of(other), self.a))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    _op = getattr(operator, {"and": "and_", "or": "or_"}.get(_name, _name))
    setattr(Value, f"__{_name}__", _forward(_op))
    setattr(Value, f"__r{_name}__", _reflected(_op))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _forward(getattr(operator, _name)))


class Layout:
    """Of a layout, how many dimensions it is of."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


class PointerType:
    """A pointer to numbers of a kind."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


class Pointer:
    """Addresses in a tensor's memory."""

    def __init__(self, memory: np.ndarray, at: Any = 0) -> None:
        self.memory, self.at = memory, np.asarray(at, dtype=np.int64)
        self.dtype = types.SimpleNamespace(element_ty=memory.dtype.type)

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.at + of(other))

    def __getitem__(self, at: Any) -> "Pointer":
        return Pointer(self.memory, self.at[at])

    def to(self, kind: Any) -> Any:
        before = self.memory.itemsize
        if not isinstance(kind, PointerType):
            return Value((self.at * before).astype(kind))
        kind, size = kind.kind, np.dtype(kind.kind).itemsize
        if (self.at * before % size).any():
            raise ValueError(f"a pointer to {size} bytes begins at a multiple of them")
        whole = self.memory[: len(self.memory) * before // size * size // before]
        return Pointer(whole.view(kind), self.at * before // size)

    def read(self, mask: Any = None, other: Any = None) -> np.ndarray:
        """Where nothing is read and nothing said, what lay there before."""
        m = np.broadcast_to(True if mask is None else of(mask), self.at.shape)
        if not ((self.at[m] >= 0) & (self.at[m] < len(self.memory))).all():
            raise IndexError(f"a read outside the tensor: {self.at[m].min()} to {self.at[m].max()}")
        kind = self.memory.dtype
        left = poison(kind, self.at.shape) if other is None else np.asarray(other, kind)
        return np.where(m, self.memory[np.where(m, self.at, 0)], left)

    def write(self, value: Any, mask: Any = None) -> None:
        m = np.broadcast_to(True if mask is None else of(mask), self.at.shape)
        if not ((self.at[m] >= 0) & (self.at[m] < len(self.memory))).all():
            raise IndexError(f"a write outside the tensor: {self.at[m].min()} to {self.at[m].max()}")
        self.memory[self.at[m]] = np.broadcast_to(of(value), self.at.shape)[m]


class Shared:
    """A piece of shared memory."""

    def __init__(self, a: np.ndarray) -> None:
        self.a, self.shape = a, a.shape

    def index(self, i: Any) -> "Shared":
        return Shared(self.a[int(i)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return Shared(self.a[(slice(None),) * dim + (slice(start, start + length),)])

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.a.transpose(order))

    def load(self, _layout: Any) -> Value:
        return Value(self.a.copy())

    def reinterpret(self, kind: Any, shape: tuple[int, ...], _layout: Any) -> "Shared":
        return Shared(self.a.view(kind).reshape(shape))

    _reinterpret = reinterpret

    def store(self, value: Value) -> None:
        if self.a.shape != value.shape:
            raise ValueError(f"{value.shape} stored to {self.a.shape}")
        self.a[...] = value.a


class Descriptor:
    """A tensor that the TMA copies boxes of."""

    def __init__(self, made: Any) -> None:
        self.memory: np.ndarray = argument(made.base).memory
        self.shape, self.strides, self.box = made.shape, made.strides, tuple(made.block_shape)
        self.dtype, self.bytes = self.memory.dtype.type, math.prod(self.box) * made.base.element_size()

    def read(self, at: Sequence[Any]) -> np.ndarray:
        """The box there; zeros outside the tensor."""
        where: Any = np.int64(0)
        inside: Any = True
        for dim, size in enumerate(self.box):
            o = (int(at[dim]) + np.arange(size)).reshape(-1, *[1] * (len(self.box) - 1 - dim))
            where, inside = where + o * self.strides[dim], inside & (o >= 0) & (o < self.shape[dim])
        return np.where(inside, self.memory[np.where(inside, where, 0)], 0).astype(self.memory.dtype)


def poison(kind: Any, shape: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.random.default_rng(0).integers(1, 255, size, dtype=np.uint8).view(kind).reshape(shape)


def argument(v: Any) -> Any:
    if hasattr(v, "block_shape"):
        return Descriptor(v)
    if isinstance(v, torch.Tensor):
        whole = torch.as_strided(v, (v.untyped_storage().size() // v.element_size() - v.storage_offset(),), (1,))
        if v.dtype != torch.bfloat16:
            return Pointer(whole.numpy())
        # numpy has none: what it holds is the same in f32, to read
        wide = whole.float().numpy()
        wide.flags.writeable = False
        return Pointer(wide)
    return v
