"""Triton's interpreter, made honest and watched.

Honest: on its own it multiplies bf16 as the integers that hold it, truncates f32 -> bf16, never fires
`tl.device_assert` and performs loads and stores out of bounds. `install()` mends the first three once per process, and
answers at once what Triton asks again and again; a `Watch` sees the rest:

    bounds   every address a launch touches lies inside a tensor it was given, and is a multiple of its element's size
    race     no two programs touch the same bytes with a plain store among them, unless an atomic orders them
    order    the programs run in a chosen order

These reach into private names of triton.runtime.interpreter; tests/test_interpreter.py fails when a new Triton changes
what they mean.
"""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as machine
from triton.tools.tensor_descriptor import TensorDescriptor

Handle = machine.TensorHandle
Builder = machine.InterpreterBuilder


def active() -> bool:
    """Whether kernels defined in this process run in the interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """f32 -> bf16 bits, round to nearest even; NaN stays NaN."""
    wide = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (wide >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def _is_bf16(value: Any) -> bool:
    return isinstance(value, Handle) and value.dtype.scalar == tl.bfloat16


def _wide(value: Any) -> Any:
    return Handle(widen(value.data), tl.float32) if _is_bf16(value) else value


def _through_f32(method: Callable[..., Any], rounds: bool = True) -> Callable[..., Any]:
    """`method` with bf16 operands computed in f32, and the result rounded back where it is a float."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(map(_is_bf16, args)):
            return method(self, *args, **kwargs)
        out = method(self, *map(_wide, args), **kwargs)
        if rounds and out.data.dtype == np.float32:
            return Handle(narrow(out.data), tl.bfloat16)
        return out

    return call


def _cast(method: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target:
            return method(self, src, dst_type)
        if target == tl.bfloat16:
            return Handle(narrow(_wide(src).data.astype(np.float32)), tl.bfloat16)
        if source == tl.bfloat16:
            return Handle(widen(src.data), tl.float32) if target == tl.float32 else method(self, _wide(src), dst_type)
        return method(self, src, dst_type)

    return cast_impl


def _fp_to_fp(method: Callable[..., Any]) -> Callable[..., Any]:
    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        plain = {tl.bfloat16, tl.float16, tl.float32, tl.float64}
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar) and {src.dtype.scalar, dst_type.scalar} <= plain:
            return self.cast_impl(src, dst_type)
        return method(self, src, dst_type, rounding_mode)

    return create_fp_to_fp


def _reduce(method: Callable[..., Any]) -> Callable[..., Any]:
    def retype(tensor: Any, handle: Any, scalar: Any) -> Any:
        return tl.core.tensor(
            handle, tl.block_type(scalar, list(tensor.type.shape)) if tensor.type.is_block() else scalar
        )

    def apply(self: Any, input: Any) -> Any:
        if not isinstance(input, tuple):
            return self.apply((input,))[0]
        halves = [tensor.dtype.scalar == tl.bfloat16 for tensor in input]
        if not any(halves):
            return method(self, input)
        pairs = zip(input, halves, strict=True)
        out = method(self, tuple(retype(t, _wide(t.handle), tl.float32) if half else t for t, half in pairs))
        return tuple(
            retype(t, Handle(narrow(t.handle.data), tl.bfloat16), tl.bfloat16)
            if half and t.dtype.scalar == tl.float32
            else t
            for t, half in zip(out, halves, strict=True)
        )

    return apply


_visible: dict[Any, frozenset[str]] = {}
_patched: set[str] = set()


def _patch_once(patch: Callable[..., Any]) -> Callable[..., Any]:
    """Names of triton.language are exchanged once a launch, not for every call of a device function, too: searching for
    them took a third of a kernel's time."""

    def _patch_lang(fn: Any) -> Any:
        if (modules := _visible.get(fn)) is None:
            seen = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
            modules = _visible[fn] = frozenset(module.__name__ for module in seen)
        if modules and modules <= _patched:
            return machine._LangPatchScope()
        _patched.update(modules)
        return patch(fn)

    return _patch_lang


def _overflow(self: Any, lhs: Any, rhs: Any, binary_op: Callable[..., Any]) -> None:
    """What Triton asks of sums and products of integers, without a tensor of its own for every step of the question."""
    kind, options = lhs.type.scalar, self.builder.options
    if kind.int_bitwidth >= 64 or not (options.sanitize_overflow and options.debug):
        return
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
    wide = operation(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    inside = wide.min() >= kind.get_int_min_value() and wide.max() <= kind.get_int_max_value()
    assert inside, f"int{kind.int_bitwidth} overflow detected for operation {binary_op.__name__}"


def _broadcast(method: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        # most operands are of one shape already, which Triton finds out dimension by dimension
        alike = lhs.type.is_block() and rhs.type.is_block() and lhs.handle.data.shape == rhs.handle.data.shape
        return (lhs, rhs) if alike else method(self, lhs, rhs)

    return broadcast_impl_value


def _remembered(init: Callable[..., None]) -> Callable[..., None]:
    """Types of blocks of numbers: all of one kind and shape are alike, and making one is slow."""
    made: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def __init__(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in getattr(shape, "values", shape))
        if type(element_ty) is not tl.dtype or any(type(size) is not int for size in sizes):
            init(self, element_ty, shape)
            return
        key = element_ty.name, sizes
        if key not in made:
            init(self, element_ty, shape)
            made[key] = dict(self.__dict__)
        self.__dict__.update(made[key])

    return __init__


_installed = False


def install() -> None:
    """Mend bf16 and device_assert and hook memory; once per process, and a no-op when kernels are compiled."""
    global _installed
    if _installed or not active():
        return
    _installed = True
    # NaN and infinities are inputs like any other here
    for module in ("triton.runtime.interpreter", "numpy._core.fromnumeric"):
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=module)
    for name in ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_erf", "create_clampf"):
        if hasattr(Builder, name):
            setattr(Builder, name, _through_f32(getattr(Builder, name)))
    Builder.create_dot = _through_f32(Builder.create_dot, rounds=False)
    Builder.cast_impl = _cast(Builder.cast_impl)
    Builder.create_fp_to_fp = _fp_to_fp(Builder.create_fp_to_fp)
    if not hasattr(Builder, "get_bf16"):
        Builder.get_bf16 = lambda self, value: Handle(narrow(np.array([value], np.float32)), tl.bfloat16)
    machine.ReduceScanOpInterface.apply = _reduce(machine.ReduceScanOpInterface.apply)
    machine._patch_lang = _patch_once(machine._patch_lang)
    tl.block_type.__init__ = _remembered(tl.block_type.__init__)
    TritonSemantic.binary_op_sanitize_overflow_impl = _overflow
    TritonSemantic.broadcast_impl_value = _broadcast(TritonSemantic.broadcast_impl_value)
    machine.interpreter_builder.options = dataclasses.replace(machine.interpreter_builder.options, debug=True)
    _hook_memory()


@dataclasses.dataclass(frozen=True)
class Stray:
    """An access that memory or other programs should not have seen."""

    kind: str
    program: tuple[int, int, int]
    detail: str
    where: str

    def __str__(self) -> str:
        return f"{self.detail} by program {self.program} at {self.where}"


@dataclasses.dataclass(frozen=True)
class Touch:
    """One access of one program: kind is load, store or atomic."""

    kind: str
    program: tuple[int, int, int]
    addresses: np.ndarray
    size: int
    time: int
    where: str


_current: "Watch | None" = None


class Watch:
    """What the launches under it touch. `order` permutes programs: None, "reverse", or a seed for a shuffle."""

    def __init__(self, order: int | str | None = None, races: bool = True) -> None:
        self.order = order
        self.races = races
        self.strays: list[Stray] = []
        self._permutation: np.ndarray | None = None
        self._begin([])

    # -- a launch ------------------------------------------------------------------------------------------------------

    def _begin(self, tensors: list[torch.Tensor]) -> None:
        spans = sorted((t.data_ptr(), t.data_ptr() + _span(t)) for t in tensors if t.numel())
        merged: list[list[int]] = []
        for low, high in spans:
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        self._starts = np.array([low for low, _ in merged], dtype=np.uint64)
        self._ends = np.array([high for _, high in merged], dtype=np.uint64)
        self._touched: list[Touch] = []

    def _end(self) -> None:
        if self.races and self._touched:
            self.strays += _races(self._touched)
        self._touched = []

    def program(self, index: tuple[int, int, int], grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """The program that runs in this turn."""
        if self.order is None:
            return index
        count = grid[0] * grid[1] * grid[2]
        turn = (index[0] * grid[1] + index[1]) * grid[2] + index[2]
        if turn == 0 or self._permutation is None or len(self._permutation) != count:
            shuffled = np.random.default_rng(self.order if isinstance(self.order, int) else 0).permutation(count)
            self._permutation = np.arange(count)[::-1] if self.order == "reverse" else shuffled
        flat = int(self._permutation[turn])
        return flat // (grid[1] * grid[2]), flat // grid[2] % grid[1], flat % grid[2]

    # -- an access -----------------------------------------------------------------------------------------------------

    def access(self, kind: str, builder: Any, pointers: Any, mask: np.ndarray | None) -> np.ndarray:
        """Record an access; returns the mask without the lanes that point outside every tensor of the launch."""
        addresses = pointers.data.astype(np.uint64)
        wanted = (
            np.ones(addresses.shape, dtype=bool)
            if mask is None
            else np.broadcast_to(mask.astype(bool), addresses.shape)
        )
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        slot = np.searchsorted(self._starts, addresses, side="right").astype(np.int64) - 1
        inside = (
            (slot >= 0) & (addresses + np.uint64(size) <= self._ends[np.maximum(slot, 0)])
            if len(self._starts)
            else np.zeros_like(wanted)
        )
        outside = wanted & ~inside
        if outside.any():
            self._stray("bounds", builder, f"{kind} of {size} bytes, {self._nearest(addresses[outside].flat[0], size)}")
        if (crooked := wanted & (addresses % np.uint64(size) != 0)).any():
            past = int(addresses[crooked].flat[0]) % size
            self._stray("bounds", builder, f"{kind} of {size} bytes at an address {past} past a multiple of {size}")
        allowed = wanted & inside
        if self.races:
            self._touched.append(
                Touch(kind, tuple(builder.grid_idx), addresses[allowed], size, len(self._touched), _source_line())
            )
        return allowed

    def _nearest(self, address: int, size: int) -> str:
        gaps = [
            (int(address) + size - int(end), f"{int(address) + size - int(end)} bytes past the end of a tensor")
            for end in self._ends
            if address >= end - np.uint64(size)
        ]
        gaps += [
            (int(start) - int(address), f"{int(start) - int(address)} bytes before the start of a tensor")
            for start in self._starts
            if address < start
        ]
        return min(gaps)[1] if gaps else "in no tensor of the launch"

    def _stray(self, kind: str, builder: Any, detail: str) -> None:
        if len(self.strays) < 20:
            self.strays.append(Stray(kind, tuple(builder.grid_idx), detail, _source_line()))


def _span(tensor: torch.Tensor) -> int:
    return (
        1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    ) * tensor.element_size()


def _source_line() -> str:
    """file:line of the innermost frame that belongs to a kernel."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "triton" not in name.replace("\\", "/").split("/")[:-1] and name != __file__:
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown line"


def _races(touched: list[Touch]) -> list[Stray]:
    """Bytes that one program stores plainly and another touches, no atomics ordering the two."""
    plain = [touch for touch in touched if touch.kind != "atomic" and touch.addresses.size]
    if not any(touch.kind == "store" for touch in plain):
        return []
    # whole elements where all accesses have one size, else every byte
    sizes = {touch.size for touch in plain}
    steps = np.zeros(1, np.uint64) if len(sizes) == 1 else None
    pieces = [
        (touch.addresses.reshape(-1, 1) + (np.arange(touch.size, dtype=np.uint64) if steps is None else steps)).reshape(
            -1
        )
        for touch in plain
    ]
    place = np.concatenate(pieces)
    index = np.repeat(np.arange(len(plain)), [len(piece) for piece in pieces])
    order = np.argsort(place, kind="stable")
    place, index = place[order], index[order]
    numbers = {program: number for number, program in enumerate(sorted({touch.program for touch in plain}))}
    program = np.array([numbers[touch.program] for touch in plain])[index]
    stores = np.array([touch.kind == "store" for touch in plain])[index]
    start = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
    shared = (np.minimum.reduceat(program, start) != np.maximum.reduceat(program, start)) & np.logical_or.reduceat(
        stores, start
    )
    atomics = [touch for touch in touched if touch.kind == "atomic"]
    ends = np.append(start[1:], len(place))
    for low, high in zip(start[shared], ends[shared], strict=True):
        group = [plain[i] for i in index[low:high]]
        for first in group:
            for second in group:
                conflict = (
                    first.program != second.program
                    and first.time < second.time
                    and "store" in (first.kind, second.kind)
                )
                if conflict and not _ordered(first, second, atomics):
                    detail = f"{second.kind} of bytes that program {first.program} {first.kind}s too, unordered,"
                    return [Stray("race", second.program, detail, second.where)]
    return []


def _ordered(first: Touch, second: Touch, atomics: list[Touch]) -> bool:
    """Whether an atomic after the first access and one before the second, on the same address, order them."""
    released = [touch for touch in atomics if touch.program == first.program and touch.time > first.time]
    acquired = [touch for touch in atomics if touch.program == second.program and touch.time < second.time]
    return any(
        out.time < back.time and np.intersect1d(out.addresses, back.addresses).size
        for out in released
        for back in acquired
    )


def _hook_memory() -> None:
    load, store = Builder.create_masked_load, Builder.create_masked_store
    rmw, cas = Builder.create_atomic_rmw, Builder.create_atomic_cas
    grid_idx, init_args, run = Builder.set_grid_idx, machine.GridExecutor._init_args_hst, machine.GridExecutor.__call__

    def allowed(kind: str, builder: Any, ptrs: Any, mask: Any) -> Any:
        # a scalar mask joined with a block's arrives as i32, a tensor descriptor's of triton 3.6 without a handle
        given = mask if isinstance(mask, np.ndarray) else mask.data
        lanes = given.astype(bool) if _current is None else _current.access(kind, builder, ptrs, given)
        return Handle(lanes, tl.int1)

    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        return load(self, ptrs, allowed("load", self, ptrs, mask), other, *rest, **named)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return store(self, ptrs, value, allowed("store", self, ptrs, mask), *rest, **named)

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        return rmw(self, op, ptr, val, allowed("atomic", self, ptr, mask), *rest)

    def create_atomic_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        if _current is not None:
            _current.access("atomic", self, ptr, None)
        return cas(self, ptr, *rest)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        grid_idx(self, *(_current.program((x, y, z), self.grid_dim) if _current is not None else (x, y, z)))

    def _init_args_hst(self: Any, args_dev: Any, kwargs: Any) -> Any:
        args, named = init_args(self, args_dev, kwargs)
        if _current is not None:
            held = [t.base if isinstance(t, TensorDescriptor) else t for t in (*args, *named.values())]
            _current._begin([t for t in held if isinstance(t, torch.Tensor)])
        return args, named

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        _patched.clear()
        try:
            out = run(self, *args, **kwargs)
        finally:
            _patched.clear()
        if _current is not None:
            _current._end()
        return out

    Builder.create_masked_load, Builder.create_masked_store = create_masked_load, create_masked_store
    Builder.create_atomic_rmw, Builder.create_atomic_cas = create_atomic_rmw, create_atomic_cas
    Builder.set_grid_idx = set_grid_idx
    machine.GridExecutor._init_args_hst, machine.GridExecutor.__call__ = _init_args_hst, __call__


@contextmanager
def watching(order: int | str | None = None, races: bool = True) -> Iterator[Watch]:
    """Run the launches inside under a fresh Watch."""
    global _current
    install()
    outer, _current = _current, Watch(order, races)
    try:
        yield _current
    finally:
        _current = outer
