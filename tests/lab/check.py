"""Run oracles over many ops and cases, in parallel where kernels are interpreted, and say what was found."""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from ..reference.ops import registered
from ..reference.spec import Case
from . import interpreter, mutation
from .oracles import Subject, Trial, Verdict, implementation

GROUPS = ("smoke", "edge", "qwen35", "perf")


@dataclass(frozen=True)
class Job:
    """One op on one case, or one mutant; small enough to send to another process."""

    op: str
    case: Case | None = None
    seed: int = 0
    mutant: mutation.Mutant | None = None
    ablate: bool = False


@dataclass(frozen=True)
class Plan:
    """What every job of a run shares."""

    sources: tuple[str, ...] = ()
    oracles: tuple[str, ...] | None = None
    off: frozenset[str] = frozenset()
    impl: str = "kernels"
    device: str = "cpu"
    # JSON of the kernel's Config; what it does not name stays at its default
    config: str = ""

    @property
    def flags(self) -> str:
        parts = [f" --ops {source}" for source in self.sources] + (
            [f" --impl {self.impl}"] if self.impl != "kernels" else []
        )
        parts += [f" --config '{self.config}'"] if self.config else []
        return "".join(parts)


def target() -> str:
    """The device that kernels run on here: 'cuda', or 'cpu' in the interpreter."""
    return "cpu" if interpreter.active() or not torch.cuda.is_available() else "cuda"


def jobs(ops: Sequence[str], groups: Sequence[str], sources: Sequence[str] = (), seed: int = 0) -> list[Job]:
    """The cases of the named groups, a case that stands in several of them once."""
    found: dict[tuple[str, Case], Job] = {}
    for name in ops:
        spec = registered(sources)[name].spec
        for group in groups:
            for case in spec.cases.get(group, ()):
                found.setdefault((name, case), Job(name, case, seed))
    return list(found.values())


def parse_case(op: str, text: str, sources: Sequence[str] = ()) -> Case:
    """A case from its id: 'M=3,D=256,dtype=f32'. Bad input is a ValueError with a sentence."""
    spec = registered(sources)[op].spec
    values: dict[str, int | str | bool] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value:
            raise ValueError(f"'{part}' in the case '{text}' is not name=value")
        values[name] = (
            int(value) if value.lstrip("+-").isdigit() else value == "True" if value in ("True", "False") else value
        )
    case = Case(tuple(values.items()))
    if refusal := spec.refuse(case):
        raise ValueError(refusal)
    return case


def run(work: Sequence[Job], plan: Plan, workers: int = 0) -> Iterator[tuple[Job, list[Verdict]]]:
    """The verdicts of each job as it ends. In the interpreter several processes share the work; on a GPU one does it in
    order."""
    workers = workers or (min(len(os.sched_getaffinity(0)), len(work)) if plan.device == "cpu" else 1)
    if workers <= 1:
        yield from ((job, perform(job, plan)) for job in work)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        yield from _unordered(pool, work, plan)


def _unordered(pool: ProcessPoolExecutor, work: Sequence[Job], plan: Plan) -> Iterator[tuple[Job, list[Verdict]]]:
    from concurrent.futures import as_completed

    futures = {pool.submit(perform, job, plan): job for job in work}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def end_with_parent() -> None:
    """Be killed where this process's parent is, and not wait for it with a GPU's memory in hand. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)
    interpreter.install()


def perform(job: Job, plan: Plan) -> list[Verdict]:
    interpreter.install()
    device = torch.device(plan.device)
    try:
        return _perform(job, plan, device)
    except Exception as error:  # one case out of memory, say, must not end the run
        name = job.case.id if job.case else job.op
        return [Verdict(job.op, name, job.seed, "case", "error", f"{type(error).__name__}: {error}")]
    finally:
        if device.type == "cuda":
            # other processes share the card
            torch.cuda.empty_cache()


def _perform(job: Job, plan: Plan, device: torch.device) -> list[Verdict]:
    if job.mutant is not None and job.ablate:
        poisoned, zeroed = mutation.killers(job.mutant, device)
        oracles = (*poisoned, *(f"zeroed {name}" for name in zeroed))
        return [Verdict(job.op, job.mutant.name, 0, oracle, "fail") for oracle in oracles]
    if job.mutant is not None:
        fate = mutation.fate(job.mutant, device, plan.off)
        return [fate.killer] if fate.killer else []
    ops = registered(plan.sources)
    op = ops[job.op]
    assert job.case is not None
    if refusal := op.spec.refuse(job.case):
        return [Verdict(job.op, job.case.id, job.seed, "case", "error", refusal)]
    chosen = dataclasses.replace(op.module("kernels").Config(), **json.loads(plan.config)) if plan.config else None
    call: Callable[..., object] = implementation(op, plan.impl, ops, chosen)
    return Trial(op, job.case, job.seed, Subject(call, device, plan.flags), plan.off).verdicts(plan.oracles)
