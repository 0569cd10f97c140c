"""Bring draftwood up on the GPU at hand: doctor, compile, check, bench, tune, and a report to send with the configs.

    step        parts                       by
    doctor      the machine                 a process of its own
    compile     every case                  a process a core; Triton's cache on disk serves all that follows
    check       smoke, edge, qwen35 cases   a few processes that share the GPU
    bench       perf cases                  one process
    tune        perf cases, in turns of an op each, as long as the seconds last
    again       bench of the cases whose winner is not the default

A finished part is a line in a journal, on disk before the next part ends: whatever stops a bring-up, the same command
goes on from there. The journal belongs to a GPU, versions and sources; configs and results are written as they come.
"""

import gzip
import hashlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton

from ..lab import check as lab
from ..lab.oracles import Verdict
from ..reference.ops import registered
from ..reference.spec import Case
from .bench import RESULTS

ROOT = RESULTS.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftwood" / "port"
# a case that is tuned gets at least so many seconds, or waits for its turn
LEAST_S = 10.0
# between two lines about the same step
QUIET_S = 10.0
# a case that is not timed in so long hangs
HUNG_S = 180.0
LOST = ("CUDA error", "HIP error", "illegal memory", "launch failure")

Part = tuple[str, ...]
Results = Generator[tuple[Part, Any], None, None]


@dataclass(frozen=True)
class Order:
    """What is brought up, where, and how long it may take."""

    gpu: str
    ops: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    # seconds of this call, 0: no limit; seconds of tuning in all calls
    limit_s: float = 0.0
    tune_s: float = 600.0
    jobs: int = 4
    compilers: int = 0
    device: str = "cuda:0"
    check: tuple[str, ...] = ("smoke", "edge", "qwen35")
    timed: str = "perf"
    # folders of results and configs, elsewhere than in the repository for a rehearsal
    results: Path = RESULTS
    configs: Path = ROOT / "autotune" / "configs"
    # a landscape that a rehearsal takes its times from, and the cases that it holds
    times: str = ""
    only: tuple[Part, ...] = ()

    @property
    def rehearsed(self) -> bool:
        return self.device == "cpu"

    def names(self) -> list[str]:
        known = registered(self.sources)
        return [name for name in self.ops or known if known[name].has("kernels")]


@dataclass
class Clock:
    """The time that is left of this call."""

    limit_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.limit_s - self.spent if self.limit_s else float("inf")


class Journal:
    """Finished parts, one JSON line each. A line that was cut short is no part."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: dict[str, dict[Part, Any]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
        for line in whole.splitlines():
            row = json.loads(line)
            self.steps.setdefault(row["step"], {})[tuple(row["part"])] = row["found"]
        self.handle = file.open("r+b" if file.exists() else "w+b")
        self.handle.truncate(len(whole) + 1 if whole else 0)
        self.handle.seek(0, os.SEEK_END)

    def of(self, step: str) -> dict[Part, Any]:
        return self.steps.setdefault(step, {})

    def add(self, step: str, part: Part, found: Any) -> None:
        self.of(step)[part] = found
        self.handle.write(json.dumps({"step": step, "part": part, "found": found}).encode() + b"\n")
        self.handle.flush()
        os.fsync(self.handle.fileno())

    def spent(self, step: str) -> float:
        return sum(found for part, found in self.of("seconds").items() if part[0] == step)


def journal(order: Order, fresh: bool = False) -> Journal:
    file = CACHE / order.gpu / f"{_stamp(order)}.jsonl"
    if fresh:
        file.unlink(missing_ok=True)
    return Journal(file)


def rehearsal(folder: Path, times: str) -> Order:
    """The way without a GPU: kernels are interpreted, references are timed, tuning reads times that were taken once."""
    gpu, only = "cpu", tuple[Part, ...]()
    if times:
        data = Path(times).read_bytes()
        held = json.loads(gzip.decompress(data) if times.endswith(".gz") else data)
        gpu = held["gpu"]
        only = tuple((held["op"], Case(tuple(row["case"].items())).id) for row in held["cases"])
    return Order(
        gpu,
        device="cpu",
        check=("smoke",),
        timed="perf" if times else "smoke",
        results=folder / "results",
        configs=folder / "configs",
        times=times,
        only=only,
    )


def _stamp(order: Order) -> str:
    """A hash of what the outcome of a part depends on."""
    digest = hashlib.sha256(f"{torch.__version__} {triton.__version__} {order.sources} {order.device}".encode())
    folders = ("kernels", "reference", "autotune", "tests/lab")
    for part in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


# -- the steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """`parts` are what it consists of, known once the steps before it are done; `perform` yields those it is given."""

    name: str
    parts: Callable[[Order, Journal], list[Part]]
    perform: Callable[[Order, Journal, list[Part], Clock], Results]


def _cases(order: Order, groups: tuple[str, ...]) -> list[Part]:
    """(op, case) of the groups; smoke cases of all ops before what takes longer."""
    found = [_part(job) for group in groups for job in lab.jobs(order.names(), [group], order.sources)]
    return list(dict.fromkeys(found))


def _apart(order: Order) -> ProcessPoolExecutor:
    """A process of its own: what a kernel does to a GPU's context ends with it."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=lab._start_worker)


def _examine(sources: tuple[str, ...], device: str) -> dict[str, Any]:
    from triton.runtime import driver

    from .doctor import examine

    report = examine(list(sources))
    target = driver.active.get_current_target() if device != "cpu" else None
    return {**report, "target": [target.backend, target.arch, target.warp_size] if target else ["cuda", 90, 32]}


def _doctor(order: Order, _done: Journal, parts: list[Part], _clock: Clock) -> Results:
    with _apart(order) as pool:
        yield parts[0], pool.submit(_examine, order.sources, order.device).result()


def _compile(order: Order, done: Journal, parts: list[Part], clock: Clock) -> Results:
    from triton.backends.compiler import GPUTarget

    from ..autotune.ahead import compile_all
    from ..autotune.space import Problem

    problems = [Problem(op, _case(order, op, case), order.gpu, order.sources) for op, case in parts]
    patience = None if clock.left == float("inf") else max(1.0, clock.left)
    target = GPUTarget(*done.of("doctor")["machine",]["target"])
    for problem, why in compile_all(problems, target, order.compilers, patience):
        yield (problem.op_name, problem.case.id), why


def _case(order: Order, op: str, case: str) -> Case:
    return lab.parse_case(op, case, order.sources)


def _check(order: Order, _done: Journal, parts: list[Part], clock: Clock) -> Results:
    wanted = set(parts)
    jobs = [
        job
        for group in order.check
        for job in lab.jobs(order.names(), [group], order.sources)
        if job.case and (job.op, job.case.id) in wanted
    ]
    plan = lab.Plan(order.sources, device="cpu" if order.rehearsed else "cuda")
    alone: list[lab.Job] = []
    left = dict.fromkeys(dict.fromkeys(jobs))
    try:
        # more than one worker, or the kernels would run in this process
        for job, verdicts in lab.run(list(left), plan, max(2, order.jobs)):
            del left[job]
            if any(word in verdict.detail for verdict in verdicts for word in LOST):
                alone.append(job)
            else:
                yield _part(job), [vars(verdict) for verdict in verdicts]
    except BrokenProcessPool:
        alone += left
    # a kernel that takes a GPU's context along takes its neighbours' verdicts along, too: each by itself
    for job in alone:
        if clock.left <= 0:
            return
        with _apart(order) as pool:
            try:
                verdicts = pool.submit(lab.perform, job, plan).result()
            except BrokenProcessPool:
                verdicts = [Verdict(job.op, job.case.id, job.seed, "case", "error", "the process died")]  # type: ignore[union-attr]
        yield _part(job), [vars(verdict) for verdict in verdicts]


def _part(job: lab.Job) -> Part:
    assert job.case
    return job.op, job.case.id


def _to_time(order: Order, _done: Journal) -> list[Part]:
    """Ops without results here first, those with the most cases last: what time is left for is most of the ops."""
    parts = list(order.only) or _cases(order, (order.timed,))
    count = Counter(op for op, _ in parts)
    known = {op for op in count if (order.results / order.gpu / f"{op}.json").exists()}
    return sorted(parts, key=lambda part: (part[0] in known, count[part[0]], order.names().index(part[0])))


def _time(sources: tuple[str, ...], device: str, op: str, case: str, baselines: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from ..autotune import timer
    from . import bench

    where = torch.device(device)
    impl = "reference" if where.type == "cpu" else "kernels"
    # peers that compile for themselves are for `draftwood bench`
    row = bench.entry(registered(sources)[op], lab.parse_case(op, case, sources), where, impl, baselines, peers=False)
    return {"row": row, "machine": asdict(timer.machine(where))}


def _bench(order: Order, done: Journal, parts: list[Part], _clock: Clock) -> Results:
    from ..autotune.timer import Machine
    from . import bench

    pool = _apart(order)
    try:
        for op, case in parts:
            # a config changes nothing for its rivals
            rivals = done.of("bench").get((op, case), {}).get("baselines")
            try:
                found = pool.submit(_time, order.sources, order.device, op, case, rivals is None).result(HUNG_S)
            except Exception as error:  # one case that cannot be timed is a finding
                text = f"{type(error).__name__}: {str(error)[:200]}"
                if isinstance(error, (BrokenProcessPool, TooLong)) or any(word in text for word in LOST):
                    _kill(pool)
                    pool = _apart(order)
                yield (op, case), {"error": text}
                continue
            found["row"]["baselines"] = rivals or found["row"]["baselines"]
            bench.save(op, Machine(**found["machine"]), "draftwood port", [found["row"]], order.results)
            yield (op, case), found["row"]
    finally:
        _kill(pool)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool without waiting for what it may never finish."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _turns(order: Order, _done: Journal) -> list[Part]:
    """The first case of every op, the second of every op, …: what time is left for is spread over the ops."""
    known = registered(order.sources)
    tunable = [name for name in order.names() if known[name].has("autotune")]
    columns = ([(name, case.id) for case in known[name].spec.cases.get(order.timed, ())] for name in tunable)
    parts = [part for row in itertools.zip_longest(*columns) for part in row if part]
    return [part for part in parts if not order.only or part in order.only]


def _tune(order: Order, done: Journal, parts: list[Part], clock: Clock) -> Results:
    from ..autotune import atlas, drive, winners
    from ..autotune.space import Problem

    seconds = min(order.tune_s - done.spent("tune"), clock.left)
    if seconds < LEAST_S:
        return
    problems = [
        Problem(op, _case(order, op, case), order.gpu, order.sources) for op, case in parts[: int(seconds // LEAST_S)]
    ]
    # one op after the other: a worker that goes on to the next case of an op keeps what it has
    problems.sort(key=lambda problem: order.names().index(problem.op_name))
    plan = drive.Plan(
        tuple(problems),
        order.device,
        seconds=seconds,
        times=order.times,
        compilers=order.compilers,
        first={} if order.times else {problem.name: winners.warm(problem) for problem in problems},
        known_bad={problem.name: atlas.known_bad(problem) for problem in problems},
    )
    tried: set[str] = set()
    for settled in drive.run(plan, lambda event: tried.add(event.case) if event.kind == "trial" else None):
        problem, verdict = settled.problem, settled.verdict
        if settled.entry:
            winners.save(problem.op_name, problem.gpu, [settled.entry], order.configs)
        moved = bool(verdict and settled.entry and verdict.winner != settled.facts["default"])
        found = {"entry": settled.entry, "why": verdict.why if verdict else "nothing ran and was right", "moved": moved}
        # what the time did not reach is left for the next call
        if problem.case.id in tried:
            yield (problem.op_name, problem.case.id), found
        if not order.rehearsed:
            atlas.add([problem], "", settled.facts["machine"])


def _moved(_order: Order, done: Journal) -> list[Part]:
    return [part for part, found in done.of("tune").items() if found["moved"]]


STEPS = (
    Step("doctor", lambda _order, _done: [("machine",)], _doctor),
    Step("compile", lambda order, _done: _cases(order, (*order.check, order.timed)), _compile),
    Step("check", lambda order, _done: _cases(order, order.check), _check),
    Step("bench", _to_time, _bench),
    Step("tune", _turns, _tune),
    Step("again", _moved, _bench),
)


# -- going through them ------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(order: Order, done: Journal, steps: tuple[Step, ...] = STEPS, report: Callable[[], Any] = lambda: None) -> bool:
    """Do what is left to do, in the time there is; whether nothing is left. `report` is called now and then."""
    clock = Clock(order.limit_s)
    return all(_step(step, order, done, clock, report) for step in steps)


def _step(step: Step, order: Order, done: Journal, clock: Clock, report: Callable[[], Any]) -> bool:
    parts = step.parts(order, done)
    left = [part for part in parts if part not in done.of(step.name)]
    if not left:
        say(f"[{clock.spent:4.0f} s] {step.name}: all {len(parts)} done before" if parts else "")
        return True
    if clock.left <= 0:
        say(f"[{clock.spent:4.0f} s] {step.name}: no time left for {len(left)} of {len(parts)}")
        return False
    say(f"[{clock.spent:4.0f} s] {step.name}: {len(left)} of {len(parts)} to do")
    begun = said = time.time()
    count = 0
    found = step.perform(order, done, left, clock)
    for part, outcome in found:
        done.add(step.name, part, outcome)
        count += 1
        if text := trouble(step.name, outcome):
            say(f"[{clock.spent:4.0f} s] {step.name} {' '.join(part)}: {text}")
        if time.time() - said > QUIET_S:
            said = time.time()
            say(f"[{clock.spent:4.0f} s] {step.name} {count}/{len(left)}: {' '.join(part)[:120]}")
            report()
        # so that what it took is known, though the call be killed
        done.add("seconds", (step.name, f"{begun:.3f}"), round(time.time() - begun, 1))
        if clock.left <= 0 and count < len(left):
            break
    found.close()
    done.add("seconds", (step.name, f"{begun:.3f}"), round(time.time() - begun, 1))
    report()
    over = count == len(left) or step.name == "compile" or (step.name == "tune" and _tuned(order, done))
    say(f"[{clock.spent:4.0f} s] {step.name}: {count} done{'' if over else f', {len(left) - count} left'}")
    return over


def _tuned(order: Order, done: Journal) -> bool:
    """Whether the seconds of tuning are spent: what is not tuned by then keeps its default."""
    return order.tune_s - done.spent("tune") < LEAST_S


def trouble(step: str, outcome: Any) -> str:
    """What is worth a line at once."""
    if step == "check":
        bad = [verdict for verdict in outcome if verdict["status"] in ("fail", "error")]
        return "; ".join(f"{verdict['oracle']} {verdict['status']}: {verdict['detail']}" for verdict in bad)
    if step == "compile":
        return outcome or ""
    return outcome.get("error", "") if step in ("bench", "again") else ""
