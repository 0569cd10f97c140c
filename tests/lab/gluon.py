"""Gluon kernels without a GPU: a program at a time, in numpy. Triton's own interpreter does not know Gluon.

Layouts say where numbers lie, not what they are: they are ignored. What is copied asynchronously arrives at once, or
only when it is waited for (`late`): a kernel that reads too early, or overwrites what it still needs, gives other
numbers in one of the two. Inline PTX is executed from its text.
"""

import operator
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.language import constexpr

_KINDS = {
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "float32": np.float32,
}


class Value:
    """A tensor of numbers, or one."""

    def __init__(self, a: Any) -> None:
        self.a = np.asarray(a)
        self.shape = self.a.shape
        self.type = types.SimpleNamespace(layout=None)

    def to(self, kind: type, bitcast: bool = False) -> "Value":
        return Value(self.a.view(kind) if bitcast else self.a.astype(kind))

    def broadcast_to(self, shape: tuple[int, ...]) -> "Value":
        return Value(np.broadcast_to(self.a, shape))

    def __getitem__(self, at: Any) -> "Value":
        return Value(self.a[at])

    def __index__(self) -> int:
        return int(self.a)

    def __bool__(self) -> bool:
        return bool(self.a)

    def __neg__(self) -> "Value":
        return Value(-self.a)


def _of(x: Any) -> Any:
    return x.a if isinstance(x, Value) else x


def _forward(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: NotImplemented if isinstance(other, Pointer) else Value(op(self.a, _of(other)))


def _reflected(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: Value(op(_of(other), self.a))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    _op = getattr(operator, {"and": "and_", "or": "or_"}.get(_name, _name))
    setattr(Value, f"__{_name}__", _forward(_op))
    setattr(Value, f"__r{_name}__", _reflected(_op))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _forward(getattr(operator, _name)))


class Pointer:
    """Addresses in a tensor's memory."""

    def __init__(self, memory: np.ndarray, at: Any = 0) -> None:
        self.memory, self.at = memory, np.asarray(at, dtype=np.int64)
        self.dtype = types.SimpleNamespace(element_ty=memory.dtype.type)

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.at + _of(other))

    def read(self, mask: Any = None, other: Any = 0) -> np.ndarray:
        m = np.broadcast_to(True if mask is None else _of(mask), self.at.shape)
        if not ((self.at[m] >= 0) & (self.at[m] < len(self.memory))).all():
            raise IndexError(f"a read outside the tensor: {self.at[m].min()} to {self.at[m].max()}")
        return np.where(m, self.memory[np.where(m, self.at, 0)], np.asarray(other, self.memory.dtype))

    def write(self, value: Any, mask: Any = None) -> None:
        m = np.broadcast_to(True if mask is None else _of(mask), self.at.shape)
        if not ((self.at[m] >= 0) & (self.at[m] < len(self.memory))).all():
            raise IndexError(f"a write outside the tensor: {self.at[m].min()} to {self.at[m].max()}")
        self.memory[self.at[m]] = np.broadcast_to(_of(value), self.at.shape)[m]


class Shared:
    """A piece of shared memory."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def index(self, i: Any) -> "Shared":
        return Shared(self.a[int(i)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return Shared(self.a[(slice(None),) * dim + (slice(start, start + length),)])

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.a.transpose(order))

    def load(self, _layout: Any) -> Value:
        return Value(self.a.copy())


class Machine:
    """What `gl`, `hopper` and `async_copy` are while a program runs."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self.groups: list[list[Callable[[], None]]] = [[]]
        self.at: tuple[int, ...] = (0,)
        self.programs: tuple[int, ...] = (1,)

    def language(self) -> types.SimpleNamespace:
        each = {name: _elementwise(getattr(np, name)) for name in ("minimum", "maximum", "where", "exp")}
        return types.SimpleNamespace(
            **_KINDS,
            **each,
            bfloat16="bfloat16",
            program_id=lambda axis: Value(np.int32(self.at[axis])),
            num_programs=lambda axis: Value(np.int32(self.programs[axis])),
            static_range=range,
            arange=lambda start, end, layout=None: Value(np.arange(start, end, dtype=np.int32)),
            full=lambda shape, value, kind, layout=None: Value(np.full(shape, value, kind)),
            reshape=lambda v, shape: Value(v.a.reshape(shape)),
            permute=lambda v, order: Value(v.a.transpose(order)),
            split=lambda v: (Value(v.a[..., 0]), Value(v.a[..., 1])),
            join=lambda v, w: Value(np.stack([v.a, w.a], -1)),
            expand_dims=lambda v, axis: Value(np.expand_dims(v.a, axis)),
            convert_layout=lambda v, layout, assert_trivial=False: v,
            inline_asm_elementwise=_ptx,
            allocate_shared_memory=lambda kind, shape, layout: Shared(_poison(kind, shape)),
            load=lambda p, mask=None, other=0, cache_modifier="": Value(p.read(mask, other)),
            store=lambda p, value, mask=None: p.write(value, mask),
            atomic_add=self.atomic_add,
            **dict.fromkeys(("BlockedLayout", "SliceLayout", "DotOperandLayout", "NVMMASharedLayout"), _nothing),
        )

    def atomic_add(self, p: Pointer, value: int, sem: str) -> Value:
        before = Value(p.read())
        p.write(before.a + value)
        return before

    def copy(self, to: Shared, p: Pointer, mask: Any = None) -> None:
        if to.a.shape != p.at.shape:
            raise ValueError(f"a copy of {p.at.shape} to {to.a.shape}")
        size = to.a.itemsize

        def arrive() -> None:
            to.a[...] = p.read(mask)

        if not (p.at.reshape(-1)[:1] * size % 4 == 0).all():
            raise ValueError("an asynchronous copy begins at a multiple of four bytes")
        self.groups[-1].append(arrive) if self.late else arrive()

    def wait_group(self, left: int) -> None:
        done, self.groups = self.groups[: len(self.groups) - 1 - left], self.groups[len(self.groups) - 1 - left :]
        for group in done:
            for arrive in group:
                arrive()


def _nothing(*_args: Any, **_more: Any) -> None:
    return None


def _elementwise(function: Callable[..., Any]) -> Callable[..., Value]:
    return lambda *args: Value(function(*map(_of, args)))


def _poison(kind: Any, shape: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.random.default_rng(0).integers(1, 255, size, dtype=np.uint8).view(kind).reshape(shape)


def _product(a: Value, b: Shared, acc: Value, is_async: bool = False) -> Value:
    return Value(acc.a + a.a.astype(np.float32) @ b.a.astype(np.float32))


def _waited(_left: int, deps: list[Value]) -> Any:
    return deps[0] if len(deps) == 1 else tuple(deps)


# -- inline PTX --------------------------------------------------------------------------------------------------------


def _ptx(text: Any, constraints: str, args: list[Value], dtype: Any, is_pure: bool, pack: int) -> Any:
    """The few instructions that the kernels use, on words."""
    kinds = dtype if isinstance(dtype, tuple) else (dtype,)
    shape = np.broadcast_shapes(*(v.shape for v in args))
    registers: dict[str, Any] = {
        f"${len(kinds) + i}": np.ascontiguousarray(np.broadcast_to(v.a, shape)).view(np.uint32)
        for i, v in enumerate(args)
    }
    for line in str(getattr(text, "value", text)).strip(" {}\n").split(";"):
        if (words := line.strip(" {\n")) and not words.startswith("."):
            _execute(words, registers)
    made = [Value(registers[f"${i}"].astype(np.uint32).view(np.int32) if _is_word(kind)
                  else registers[f"${i}"].astype(np.uint16).view(kind)) for i, kind in enumerate(kinds)]  # fmt: skip
    return tuple(made) if isinstance(dtype, tuple) else made[0]


def _is_word(kind: Any) -> bool:
    return np.dtype(kind).itemsize == 4


def _halves(w: Any) -> np.ndarray:
    w = np.asarray(w, np.uint32)
    return np.stack([w & 0xFFFF, w >> 16], -1).astype(np.uint16).view(np.float16).astype(np.float64)


def _word(halves: np.ndarray) -> np.ndarray:
    bits = halves.astype(np.float16).view(np.uint16).astype(np.uint32)
    return bits[..., 0] | bits[..., 1] << 16


def _execute(words: str, registers: dict[str, Any]) -> None:
    name, rest = words.split(None, 1)
    into, *given = re.findall(r"\{[^}]*\}|[^,\s]+", rest)

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
        case "mov.b32":
            result = y[0]
        case "lop3.b32":
            a, b, c, table = (np.asarray(v, np.uint32) for v in y)
            result = np.uint32(0)
            for i in range(8):
                if int(table) >> i & 1:
                    result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        case "shr.u32":
            result = y[0] >> np.uint32(y[1])
        case "sub.f16x2":
            result = _word(_halves(y[0]) - _halves(y[1]))
        case "mul.f16x2":
            result = _word(_halves(y[0]) * _halves(y[1]))
        case "fma.rn.f16x2":
            result = _word(_halves(y[0]) * _halves(y[1]) + _halves(y[2]))
        case _:
            raise NotImplementedError(f"PTX that is not known here: {words}")
    registers[into] = result


# -- a launch ----------------------------------------------------------------------------------------------------------


def launch(kernel: GluonJITFunction, grid: tuple[int, ...], args: tuple[Any, ...], late: bool, **more: Any) -> None:
    """The programs of a grid, the last one first: whoever shares sums must not count on an order."""
    machine = Machine(late)
    run = _plain(kernel.fn, machine)
    names = kernel.arg_names
    given = dict(zip(names, args, strict=False)) | {name: v for name, v in more.items() if name in names}
    given = {name: _argument(v) for name, v in given.items()}
    machine.programs = grid
    for at in reversed(list(np.ndindex(*grid))):
        machine.at, machine.groups = at, [[]]
        # what a bug reads of poisoned memory may be anything
        with np.errstate(all="ignore"):
            run(**given)


def _argument(v: Any) -> Any:
    if isinstance(v, torch.Tensor):
        whole = torch.as_strided(v, (v.untyped_storage().size() // v.element_size() - v.storage_offset(),), (1,))
        return Pointer(whole.numpy())
    return v


def _plain(function: Callable[..., Any], machine: Machine) -> Callable[..., Any]:
    """The Python function behind a kernel, among what stands for Gluon."""
    done: dict[int, dict[str, Any]] = {}

    def world(space: dict[str, Any]) -> dict[str, Any]:
        if id(space) in done:
            return done[id(space)]
        mine: dict[str, Any] = done.setdefault(id(space), {"__builtins__": __builtins__})
        for name, v in space.items():
            if isinstance(v, GluonJITFunction):
                mine[name] = types.FunctionType(v.fn.__code__, world(v.fn.__globals__), name, v.fn.__defaults__)
            elif type(v).__name__ == "ConstexprFunction":
                mine[name] = _nothing
            elif isinstance(v, constexpr):
                mine[name] = v.value
        mine |= {
            "gl": machine.language(),
            "tl": types.SimpleNamespace(
                extra=types.SimpleNamespace(
                    cuda=types.SimpleNamespace(gdc_wait=_nothing, gdc_launch_dependents=_nothing)
                )
            ),
            "hopper": types.SimpleNamespace(
                warpgroup_mma=_product, warpgroup_mma_wait=_waited, fence_async_shared=_nothing
            ),
            "async_copy": types.SimpleNamespace(
                commit_group=lambda: machine.groups.append([]), wait_group=machine.wait_group
            ),
            "copy": machine.copy,
            "barrier": _nothing,
        }
        return mine

    return types.FunctionType(function.__code__, world(function.__globals__), function.__name__)
