"""Compiling candidates ahead, in a pool of processes, while the GPU times others.

A process of the pool never touches the GPU. It runs the op's launcher on tensors without memory (elsewhere.py), and
every kernel launched on the way is compiled for the GPU named; the result lands in Triton's cache on disk, where the
process that times the candidate finds it. What cannot be run so (a launcher that reads its inputs) is compiled later,
by the process that runs it, and costs time there.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..kernels import config
from ..lab.check import end_with_parent
from .elsewhere import claim, drawn, hollow
from .space import Point, Problem

# what every process of the tuner imports: it is imported once, and the processes are forks
PRELOAD = ("draftwood.autotune.worker", "draftwood.autotune.ahead")


def prepare(target: GPUTarget) -> None:
    """Turn this process into one that compiles and runs nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    claim(target)


def compile_one(problem: Problem, shapes: Any, point: Point | None) -> str | None:
    """Compile the op's kernels for one point, or for what would be picked there; why it could not be done, or None."""
    chosen = {"config": problem.config(point)} if point is not None else {}
    try:
        with config.compiling_for(problem.gpu):
            problem.op.function("kernels")(**hollow(shapes), **chosen)
    except Exception as error:  # a compiler may raise anything; the trial itself will tell
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def compile_picked(problem: Problem) -> str | None:
    """Compile what a case launches with the config that is picked for it, and with the default."""
    shapes = drawn(problem.op.spec, problem.case)
    with config.untuned():
        default = compile_one(problem, shapes, None)
    return compile_one(problem, shapes, None) or default


def compile_all(
    problems: Iterable[Problem], target: GPUTarget, workers: int = 0, patience_s: float | None = None
) -> Iterator[tuple[Problem, str | None]]:
    """Compile what each case launches, on all cores; the cases as they end, and why one could not be.

    What takes longer than `patience_s`, and what is left when a compiler dies, is compiled where it is run.
    """
    pool = ProcessPoolExecutor(
        workers or len(os.sched_getaffinity(0)), get_context("spawn"), initializer=prepare, initargs=(target,)
    )
    # compilers do not interpret, though their parent may: what they see is the environment of the moment they start in
    interpreting = os.environ.pop("TRITON_INTERPRET", None)
    try:
        waiting = {pool.submit(compile_picked, problem): problem for problem in problems}
        if interpreting:
            os.environ["TRITON_INTERPRET"] = interpreting
        for future in as_completed(waiting, patience_s):
            yield waiting[future], future.result()
    except (TimeoutError, BrokenProcessPool):
        return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Ahead:
    """A pool that compiles. A compiler that dies takes the pool along: there is a new one for what comes next."""

    def __init__(self, workers: int, target: GPUTarget | None = None) -> None:
        self.workers, self.target = workers, target or driver.active.get_current_target()
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=prepare, initargs=(self.target,))

    def submit(self, problem: Problem, shapes: Any, point: Point | None) -> "Future[str | None]":
        try:
            return self.pool.submit(compile_one, problem, shapes, point)
        except BrokenProcessPool:
            self.pool = self._new()
            return self.pool.submit(compile_one, problem, shapes, point)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
