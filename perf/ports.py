"""Compile every kernel for every architecture on a machine that has none of them, and keep what came out.

    SPEC.inputs ──outlines──> launcher ──> each kernel it launches ──claimed GPU──> cubin / amdgcn ──> Build

Two caches under the user's cache directory, so that only what changed is compiled again:

    ports/runs/       all Builds of an op on an architecture, by the code of the op and what it imports
    ports/kernels/    one Build, by the hash that Triton gives its source, specialisation, options and target
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITCallable

from ..autotune import elsewhere
from ..autotune.binary import measure, serial
from ..autotune.gpu import ARCHS, Arch
from ..autotune.space import code
from ..kernels import config as picking
from ..kernels.config import CONFIGS
from ..lab.check import end_with_parent
from ..reference.ops import Op, registered
from ..reference.spec import Case

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftwood" / "ports"
KINDS = ("default", "tuned", "edge")
# of the cached reports: raise it when what a Build holds changes
SCHEMA = 5
# of a core, to compile one kernel
LIMIT_S = 60
TOO_LONG = "TooLong"


@dataclass(frozen=True)
class Build:
    """One compiled kernel, or the sentence of why there is none. Facts are those of binary.py; seconds: to compile."""

    op: str
    arch: str
    case: str
    config: dict[str, Any]
    kernel: str
    shared: int = 0
    registers: int = 0
    spills: int = 0
    code: int = 0
    mma: int = 0
    convert: int = 0
    occupancy: float = 0.0
    bound: str = ""
    seconds: float = 0.0
    # why its products wait for each other
    serial: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return (self.op, self.arch, self.kernel, self.case, json.dumps(self.config, sort_keys=True))


@dataclass(frozen=True)
class Task:
    """An op on an architecture: its cases with default configs, tuned ones, or the ends of each knob; or `points` named
    one by one."""

    op: str
    arch: str
    cases: tuple[str, ...]
    kind: str
    sources: tuple[str, ...]
    points: tuple[str, ...] = ()


# -- what is compiled --------------------------------------------------------------------------------------------------


def shapes(op: Op, case: Case) -> Any:
    """The outlines of a case's inputs; kept, since drawing them takes longer than a launch."""
    reference = Path(op.module("reference").__file__ or "")
    name = _digest(_code(reference.parent, op.name), case.as_dict(), torch.__version__)
    file = CACHE / "shapes" / f"{name}.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    found = elsewhere.drawn(op.spec, case)
    write(file, pickle.dumps(found))
    return found


def configs(op: Op, case: Case, task: Task, launch: Any) -> list[Any]:
    """The configs of one case; None is the default."""
    if task.points:
        return [op.module("kernels").Config(**json.loads(point)) for point in task.points]
    if task.kind == "default" or not op.has("autotune"):
        return [None] if task.kind == "default" else []
    if task.kind == "tuned":
        return _tuned(op, task.arch, launch)
    default, module = dataclasses.asdict(op.module("kernels").Config()), op.module("autotune")
    ends = [{**default, knob: end} for knob, values in module.SPACE.items() for end in (values[0], values[-1])]
    legal = [point for point in ends if module.legal({k: point[k] for k in module.SPACE}, case, task.arch) is None]
    unique = {json.dumps(point, sort_keys=True): point for point in legal}
    return [op.module("kernels").Config(**point) for point in unique.values()]


def default(op: Op, case: Case, arch_name: str) -> dict[str, Any]:
    """Every knob of the config that a launch takes where nothing is tuned."""
    arch = ARCHS[arch_name]
    elsewhere.claim(GPUTarget(arch.backend, arch.number, arch.warp), lambda src, **_: SimpleNamespace(name=src.name))
    inputs = elsewhere.hollow(shapes(op, case))
    with picking.recording() as picked:
        op.function("kernels")(**inputs)
    elsewhere.forget()
    return picked[op.name]


def _tuned(op: Op, arch: str, launch: Any) -> list[Any]:
    """What a GPU of this architecture that nobody tuned for would be given: a relative's config, if any."""
    gpu = f"{arch}-unknown"
    if not any(picking.entries(op.name, home) for home, _ in picking.homes(gpu)):
        return []
    with picking.compiling_for(gpu), picking.recording() as picked:
        launch(None)
    if picking.choose(op.name, gpu, picking.asked(op.name)) is None:
        return []
    return [op.module("kernels").Config(**picked[op.name])]


# -- compiling ---------------------------------------------------------------------------------------------------------


def compile_all(task: Task) -> list[Build]:
    """Every kernel that the task's launches want, each once."""
    op, arch = registered(list(task.sources))[task.op], ARCHS[task.arch]
    by_id = {case.id: case for group in op.spec.cases.values() for case in group}
    builds: dict[str, Build] = {}

    def compiler(src: Any, target: Any = None, options: Any = None, **_: Any) -> Any:
        name = _digest(src.hash(), str(target), _plain(options), triton.__version__, SCHEMA)
        return SimpleNamespace(name=src.name, hash=name, facts=_built(name, src, target, options, arch))

    target = GPUTarget(arch.backend, arch.number, arch.warp)
    _warm(target)
    elsewhere.claim(target, compiler)
    # a line above a kernel does not change it; Triton's hash says so, for the sake of debuggers
    JITCallable.starting_line_number = property(lambda _: 1, lambda *_: None)
    for case in (by_id[name] for name in task.cases):
        inputs = elsewhere.hollow(shapes(op, case))

        def launch(config: Any, inputs: Any = inputs) -> None:
            op.function("kernels")(**inputs, **({"config": config} if config else {}))

        for config in configs(op, case, task, launch):
            row = functools.partial(Build, op.name, arch.name, case.id, dict(vars(config)) if config else {})
            try:
                for kernel in elsewhere.launches(functools.partial(launch, config)):
                    facts = {key: value for key, value in kernel.facts.items() if key != "limit"}
                    builds.setdefault(kernel.hash, row(kernel.name, **facts))
            except Exception as raised:  # a launcher that refuses is a finding
                builds.setdefault(sentence(raised), row("", error=sentence(raised)))
    return list(builds.values())


@triton.jit
def _nothing(x):
    tl.store(x, 0.0)


@functools.cache
def _warm(target: GPUTarget) -> None:
    """Compile nothing, so that what a compiler does once a process, a third of a second, is done before it forks."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        elsewhere.compile_here(ASTSource(_nothing, {"x": "*fp32"}, {}), target=target)


def _built(name: str, src: Any, target: Any, options: Any, arch: Arch) -> dict[str, Any]:
    """Compile one kernel and measure it; or read what was found before."""
    file = CACHE / "kernels" / name[:2] / f"{name}.json"
    if file.exists() and (facts := json.loads(file.read_text())).get("limit", LIMIT_S) >= LIMIT_S:
        return facts
    # a process of its own: a compiler that crashes or takes for ever ends alone; the binary is measured and not kept
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if not child:
            os.environ["TRITON_CACHE_DIR"] = scratch
            _compile_and_leave(file, src, target, options, arch)
        _, status, used = os.wait4(child, 0)
    if status:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "an exit"
        # the signal comes a little early
        seconds = LIMIT_S if ended == "SIGXCPU" else round(used.ru_utime + used.ru_stime, 2)
        write(file, json.dumps(_failed(f"CompilerDied: ended by {ended}", seconds)).encode())
    return json.loads(file.read_text())


def _compile_and_leave(file: Path, src: Any, target: Any, options: Any, arch: Arch) -> None:
    """Write what one kernel's binary says of itself and end this process, after LIMIT_S of a core at the latest."""
    end_with_parent()
    # ptxas is given as much: a process inherits the limit
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 5))
    # a compiler's own words are nobody's output
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    triton.knobs.nvidia.dump_ptxas_log = True
    started = _seconds()
    # Triton prints what ptxas refuses, and, if it is asked to, what it says besides
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            kernel = elsewhere.compile_here(src, target=target, options=options)
            facts = {**measure(kernel, arch), "seconds": round(_seconds() - started, 2)}
            facts["serial"] = serial(said.getvalue())
        except Exception as raised:  # whatever the compiler throws is the finding
            facts = _failed(sentence(raised), round(_seconds() - started, 2))
    write(file, json.dumps(facts).encode())
    os._exit(0)


def _failed(why: str, seconds: float) -> dict[str, Any]:
    """A failure; one of its own kind where it is the time that ran out."""
    if seconds < LIMIT_S:
        return {"error": why, "seconds": seconds}
    return {"error": f"{TOO_LONG}: not compiled in {LIMIT_S} s of a core", "seconds": seconds, "limit": LIMIT_S}


def _seconds() -> float:
    """Of a core, children's included: others may use this machine too."""
    return sum(os.times()[:4])


def sentence(error: Exception) -> str:
    """The last line of the innermost cause: the compiler's own words."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


def _plain(options: dict[str, Any]) -> dict[str, str]:
    """Options without the paths of this installation."""
    return {key: str(value) for key, value in options.items() if key != "extern_libs"}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def write(file: Path, content: bytes) -> None:
    """The whole of it or nothing, whoever reads meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # a half-written file must not be taken for a report; and others may read it
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
        draft.write(content)
    os.chmod(draft.name, 0o644)
    os.replace(draft.name, file)


# -- many at a time ----------------------------------------------------------------------------------------------------


def tasks(
    ops: Iterable[str], archs: Iterable[str], groups: list[str], kinds: list[str], sources: list[str]
) -> list[Task]:
    """One task an op and architecture, the long ones first."""
    known = registered(sources)
    found = []
    for name in ops:
        cases = tuple(dict.fromkeys(case.id for group in groups for case in known[name].spec.cases.get(group, ())))
        if known[name].has("kernels") and cases:
            found += [Task(name, arch, cases, kind, tuple(sources)) for arch in archs for kind in kinds]
    return sorted(found, key=lambda task: -len(task.cases))


# a sample asks for the same op many times
_code = functools.cache(code)


def _fingerprint(task: Task) -> str:
    """Of everything that a task's Builds follow from."""
    op = registered(list(task.sources))[task.op]
    roots = {folder: Path(op.module(folder).__file__ or "").parent for folder in ("kernels", "reference")}
    parts: dict[str, Any] = {folder: _code(root, op.name) for folder, root in roots.items()}
    if task.kind == "edge" and op.has("autotune"):
        parts["space"] = (roots["kernels"].parent / "autotune" / f"{op.name}.py").read_text()
    if task.kind == "tuned":
        parts["tuned"] = [file.read_text() for file in sorted(CONFIGS.glob(f"*/{op.name}.json"))]
    return _digest(parts, dataclasses.astuple(task), triton.__version__, SCHEMA, LIMIT_S, str(ARCHS[task.arch]))


def run(work: list[Task], workers: int) -> Iterator[tuple[Task, list[Build]]]:
    """The Builds of each task as it ends; those that are in the cache first, without a process."""
    waiting: list[tuple[Task, Path]] = []
    for task in work:
        file = CACHE / "runs" / f"{_fingerprint(task)}.json"
        if file.exists():
            yield task, [Build(**row) for row in json.loads(file.read_text())]
        else:
            waiting.append((task, file))
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=alone) as pool:
        futures = {pool.submit(compile_all, task): (task, file) for task, file in waiting}
        try:
            for done in as_completed(futures):
                task, file = futures[done]
                builds = done.result()
                write(file, json.dumps([dataclasses.asdict(build) for build in builds]).encode())
                yield task, builds
        finally:
            # whoever takes no more of them waits for those alone that have begun
            pool.shutdown(cancel_futures=True)


def alone() -> None:
    """A process of a pool."""
    end_with_parent()
    torch.set_num_threads(1)
