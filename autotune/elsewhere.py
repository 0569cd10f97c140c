"""Compiling launches for a GPU that is not here.

    inputs ──outline──> shapes ──hollow──> tensors without memory ──> launcher ──> JITFunction.run ──> binary

The launcher itself runs, and every kernel launched on the way is compiled and not launched: what is compiled is what
would be launched there, with the same specialisation. The process that claims a GPU launches nothing from then on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton.compiler
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ..reference.spec import Case, Spec, map_tensors


@dataclass(frozen=True)
class Outline:
    """A tensor without its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def span(self) -> int:
        """Elements from the start of the memory to the last one."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1 if all(self.shape) else 0


def outline(inputs: Any) -> Any:
    """The inputs with every tensor replaced by its outline."""
    return map_tensors(inputs, lambda t: Outline(tuple(t.shape), t.stride(), t.dtype, t.storage_offset()))  # type: ignore[arg-type, return-value]


class Weightless(TorchDispatchMode):
    """Inside, tensors of more than SMALL elements have a shape and no memory. Small ones are computed: trees are drawn
    number by number, and what is drawn decides what comes next."""

    SMALL = 1 << 16

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            with self.fake:
                return func(*args, **kwargs)
        if given and sum(tensor.numel() for tensor in given) * 64 < self.SMALL:
            return func(*args, **kwargs)
        try:
            with self.fake:
                made = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return func(*args, **kwargs)
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        return made if sum(sizes) > self.SMALL else func(*args, **kwargs)


def drawn(spec: Spec, case: Case) -> Any:
    """The outlines of a case's inputs, without the time and the memory that the inputs would take."""
    try:
        with Weightless():
            return outline(spec.inputs(case, torch.Generator().manual_seed(0)))
    except (DataDependentOutputException, DynamicOutputShapeException):
        # one that is drawn from a large tensor's values
        return outline(spec.inputs(case, torch.Generator().manual_seed(0)))


def hollow(shapes: Any) -> Any:
    """The outlines as tensors that a launcher can take apart and that hold nothing."""
    if isinstance(shapes, Outline):
        whole = torch.empty(shapes.span, dtype=shapes.dtype, device="meta")
        return whole.as_strided(shapes.shape, shapes.stride, shapes.offset)
    if isinstance(shapes, (tuple, list)):
        return type(shapes)(hollow(item) for item in shapes)
    if isinstance(shapes, dict):
        return {key: hollow(item) for key, item in shapes.items()}
    return shapes


class _Pointer:
    """What Triton asks of a pointer when it compiles: a dtype, whether the address is a multiple of 16, and how much
    memory lies behind it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        self._address = tensor.storage_offset() * tensor.element_size()
        self._bytes = tensor.untyped_storage().size()

    def data_ptr(self) -> int:
        return int(self._address)

    def ptr_range(self) -> int:
        return int(self._bytes)


class _Elsewhere:
    """A device to compile for, and none to run on."""

    def __init__(self, target: GPUTarget, index: int) -> None:
        self.target, self.index = target, index

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise RuntimeError("this process only compiles")


_run, _compile = JITFunction.run, triton.compiler.compile
# Triton keeps kernels by the number of their device: a target has a number of its own
_targets: list[GPUTarget | None] = []
_compiler: Callable[..., Any] = _compile
_launched: list[tuple[Any, int]] = []


def _compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    def pointer(value: Any) -> Any:
        return _Pointer(value) if isinstance(value, torch.Tensor) else value

    kernel = _run(self, *map(pointer, args), grid=grid, warmup=True, **{k: pointer(v) for k, v in kwargs.items()})
    _launched.append((kernel, math.prod(grid(kwargs) if callable(grid) else grid)))
    return kernel


def claim(target: GPUTarget, compiler: Callable[..., Any] | None = None) -> None:
    """From now on this process compiles for `target` and runs nothing; `compiler` stands in for triton.compile."""
    global _compiler
    if target not in _targets:
        _targets.append(target)
    _compiler = compiler or _compile
    driver.set_active(_Elsewhere(target, _targets.index(target)))
    JITFunction.run = _compile_only
    # a kernel remembers the compiler of its first launch: it gets one that asks anew
    triton.compiler.compile = lambda *args, **kwargs: _compiler(*args, **kwargs)


def launched(call: Callable[[], Any]) -> list[tuple[Any, int]]:
    """The kernels that a call launches, each as often as it does, with the programs of the launch."""
    _launched.clear()
    call()
    return list(_launched)


def launches(call: Callable[[], Any]) -> list[Any]:
    """The kernels alone."""
    return [kernel for kernel, _ in launched(call)]


def forget() -> None:
    """Ask the compiler anew for every kernel that was launched up to now: the next claim gets another number."""
    _targets[:] = [None for _ in _targets]


def compile_here(*args: Any, **kwargs: Any) -> Any:
    """Triton's own compiler."""
    return _compile(*args, **kwargs)
