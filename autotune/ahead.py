"""Compiling candidates ahead, in a pool of processes, while the GPU times others.

A process of the pool never touches the GPU. It runs the op's launcher on tensors without memory (elsewhere.py), and
every kernel launched on the way is compiled for the GPU named; the result lands in Triton's cache on disk, where the
process that times the candidate finds it. What cannot be run so (a launcher that reads its inputs) is compiled later,
by the process that runs it, and costs time there.
"""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..kernels import config
from ..lab.check import end_with_parent
from ..reference.spec import Case
from .effort import Launch, launch
from .elsewhere import claim, drawn, hollow, launched
from .gpu import arch
from .space import Point, Problem

# what every process of the tuner imports: it is imported once, and the processes are forks
PRELOAD = ("draftwood.autotune.worker", "draftwood.autotune.ahead")
# jobs that wait in the pool's own queue, so that no process waits for one
SLACK = 4


def prepare(target: GPUTarget) -> None:
    """Turn this process into one that compiles and runs nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    claim(target)


# the outlines of the case that this process compiled last
_outlines: dict[tuple[str, Case], Any] = {}


@dataclass(frozen=True)
class Built:
    """What became of a compilation: why it failed, or what is launched."""

    why: str = ""
    launches: tuple[Launch, ...] = ()


def compile_one(problem: Problem, shapes: Any, point: Point | None) -> Built:
    """Compile the op's kernels for one point, or for the default. Without `shapes` the inputs are outlined here."""
    chosen = {"config": problem.config(point)} if point is not None else {}
    target = driver.active.get_current_target()
    try:
        inputs = hollow(shapes or _outline(problem))
        kernels = launched(lambda: problem.op.function("kernels")(**inputs, **chosen))
        limits = arch(f"sm{target.arch}" if target.backend == "cuda" else str(target.arch))
        return Built(launches=tuple(launch(kernel, programs, limits) for kernel, programs in kernels))
    except Exception as error:  # a compiler may raise anything; the trial itself will tell
        return Built(f"{type(error).__name__}: {str(error)[:300]}")


def _outline(problem: Problem) -> Any:
    key = problem.op_name, problem.case
    if key not in _outlines:
        _outlines.clear()
        _outlines[key] = drawn(problem.op.spec, problem.case)
    return _outlines[key]


def compile_picked(problem: Problem) -> str | None:
    """Compile what a case launches with the default config and with what is picked there; why not, or None."""
    default = compile_one(problem, None, None).why
    with config.compiling_for(problem.gpu):
        return compile_one(problem, None, None).why or default or None


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
    """A pool that compiles: what is asked for now before what may be asked for later. A compiler that dies takes the
    pool along: there is a new one for what comes next."""

    def __init__(self, workers: int, target: GPUTarget | None = None) -> None:
        self.workers, self.target = workers, target or driver.active.get_current_target()
        self.pool = self._new()
        self.given: dict[str, dict[str, tuple[Point | None, Future[Built]]]] = {}
        self.open: list[Future[Built]] = []
        self.kept: deque[tuple[Problem, Point | None]] = deque()

    def _new(self) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=prepare, initargs=(self.target,))

    def submit(self, problem: Problem, shapes: Any, point: Point | None) -> "Future[Built]":
        """The compilation of a point, begun once."""
        held, key = self.given.setdefault(problem.name, {}), repr(point)
        if key not in held:
            try:
                held[key] = point, self.pool.submit(compile_one, problem, shapes, point)
            except BrokenProcessPool:
                self.pool = self._new()
                held[key] = point, self.pool.submit(compile_one, problem, shapes, point)
            self.open.append(held[key][1])
        return held[key][1]

    def given_to(self, problem: Problem) -> "list[tuple[Point | None, Future[Built]]]":
        """What was begun for a case."""
        return list(self.given.get(problem.name, {}).values())

    def later(self, problem: Problem, points: Iterable[Point | None], first: bool = False) -> None:
        """Compile these where the pool has nothing else to do (`pump`), after or before what is kept already."""
        pairs = deque((problem, point) for point in points)
        self.kept = pairs + self.kept if first else self.kept + pairs

    def drop(self, problem: Problem) -> None:
        """What of a case is kept or waits for a process is not needed any more."""
        self.kept = deque(pair for pair in self.kept if pair[0] != problem)
        held = self.given.get(problem.name, {})
        for key in [key for key, (_, future) in held.items() if future.cancel()]:
            del held[key]

    def pump(self, slack: int = SLACK) -> None:
        """Give idle processes what was kept for later; a few jobs more than there are processes."""
        self.open = [future for future in self.open if not future.done()]
        while self.kept and len(self.open) < self.workers + slack:
            problem, point = self.kept.popleft()
            self.submit(problem, None, point)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
