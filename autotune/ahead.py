"""Compiling candidates ahead, in a pool of processes, while the GPU times others.

A process of the pool never touches the GPU. It runs the op's launcher on tensors without memory, and every kernel
launched on the way is compiled for the GPU named and not launched; the result lands in Triton's cache on disk, where
the process that times the candidate finds it. What cannot be run so (a launcher that reads its inputs) is compiled
later, by the process that runs it, and costs time there.
"""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ..reference.spec import map_tensors
from .space import Point, Problem


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


class _Pointer:
    """What Triton asks of a pointer when it compiles: a dtype, and whether the address is a multiple of 16."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        self._address = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return int(self._address)

    def ptr_range(self) -> int:
        return 0


class _Elsewhere:
    """The device of a pool process: one to compile for, none to run on."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise RuntimeError("this process only compiles")


_run = JITFunction.run
# what every process of the tuner imports: it is imported once, and the processes are forks
PRELOAD = ("draftwood.autotune.worker", "draftwood.autotune.ahead")


def _compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    def pointer(value: Any) -> Any:
        return _Pointer(value) if isinstance(value, torch.Tensor) else value

    return _run(self, *map(pointer, args), grid=grid, warmup=True, **{k: pointer(v) for k, v in kwargs.items()})


def prepare(target: GPUTarget) -> None:
    """Turn this process into one that compiles and runs nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    driver.set_active(_Elsewhere(target))
    JITFunction.run = _compile_only


def compile_one(problem: Problem, shapes: Any, point: Point) -> str | None:
    """Compile the op's kernels for one point; why it could not be done, or None."""

    def build(value: Any) -> Any:
        if isinstance(value, Outline):
            whole = torch.empty(value.span, dtype=value.dtype, device="meta")
            return whole.as_strided(value.shape, value.stride, value.offset)
        if isinstance(value, (tuple, list)):
            return type(value)(build(item) for item in value)
        return value

    try:
        problem.op.function("kernels")(**{k: build(v) for k, v in shapes.items()}, config=problem.config(point))
    except Exception as error:  # a compiler may raise anything; the trial itself will tell
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


class Ahead:
    """A pool that compiles. A compiler that dies takes the pool along: there is a new one for what comes next."""

    def __init__(self, workers: int, target: GPUTarget | None = None) -> None:
        self.workers, self.target = workers, target or driver.active.get_current_target()
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=prepare, initargs=(self.target,))

    def submit(self, problem: Problem, shapes: Any, point: Point) -> "Future[str | None]":
        try:
            return self.pool.submit(compile_one, problem, shapes, point)
        except BrokenProcessPool:
            self.pool = self._new()
            return self.pool.submit(compile_one, problem, shapes, point)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
