"""Bring draftwood up on the GPU at hand: doctor, compile, check, bench, tune, and a report to send with the configs.

    step        parts                       by
    doctor      the machine                 a process of its own
    compile     every case                  a process a core; Triton's cache on disk serves all that follows
    check       smoke, edge, qwen35 cases   a few processes that share the GPU
    bench       perf cases                  one process
    tune        perf cases, as long as the seconds last: the smallest op first, every case its share
    again       every timed case whose config is not the default: timed with it, and raced against the default; where
                the config lost, the default is put in its place

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
# a case that is tuned gets so many seconds with all that belongs to it, or waits for its turn; fewer seconds than
# END_S are no time to tune; of a call's time, SETTLE_S are for winners that wait for their gate; a trial of TRIAL_S
# hangs
LEAST_S, END_S, SETTLE_S, TRIAL_S = 0.75, 5.0, 20.0, 30.0
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
    # where trials are kept, elsewhere than under the user's cache for a rehearsal
    trials: Path | None = None

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
        trials=folder / "tune.journal",
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


def _time(sources: tuple[str, ...], device: str, op: str, case: str, baselines: bool = True) -> dict[str, Any]:
    from dataclasses import asdict

    from ..autotune import timer
    from . import bench

    where = torch.device(device)
    impl = "reference" if where.type == "cpu" else "kernels"
    # peers that compile for themselves are for `draftwood bench`
    row = bench.entry(registered(sources)[op], lab.parse_case(op, case, sources), where, impl, baselines, peers=False)
    return {"row": row, "machine": asdict(timer.machine(where))}


def _race(sources: tuple[str, ...], device: str, op: str, case: str, before: Any) -> dict[str, Any]:
    """Time a case with the config picked for it and race that against the default. No row where it runs as it did
    `before`, by default."""
    from dataclasses import asdict

    from ..autotune import timer
    from ..kernels import config
    from . import bench

    where, known, one = torch.device(device), registered(sources)[op], lab.parse_case(op, case, sources)
    if where.type == "cpu":
        return _time(sources, device, op, case, False)
    picked, default = bench.chosen(known, one, where)
    machine, choice = timer.machine(where), config.choose(op, timer.machine(where).gpu, config.asked(op))
    found = {"machine": asdict(machine), "read_gb_s": timer.bandwidth(where)["read"], "row": None}
    # an older GPU's configs are not this one's to change
    found["served"] = choice.entry["case"] if choice and choice.home == machine.gpu else None
    if not picked == default == before:
        found["row"] = bench.entry(known, one, where, baselines=False, against=True)
    return found | {"default": bench.same(default)}


def _one_by_one(order: Order, jobs: list[tuple[Part, Callable[..., Any], tuple[Any, ...]]]) -> Results:
    """Parts in a process that lasts as long as it is sound: what each found, or an error."""
    pool = _apart(order)
    try:
        for part, work, arguments in jobs:
            try:
                found = pool.submit(work, order.sources, order.device, *part, *arguments).result(HUNG_S)
            except Exception as error:  # one case that cannot be timed is a finding
                text = f"{type(error).__name__}: {str(error)[:200]}"
                if isinstance(error, (BrokenProcessPool, TooLong)) or any(word in text for word in LOST):
                    _kill(pool)
                    pool = _apart(order)
                found = {"error": text}
            yield part, found
    finally:
        _kill(pool)


def _bench(order: Order, _done: Journal, parts: list[Part], _clock: Clock) -> Results:
    from ..autotune.timer import Machine
    from . import bench

    for part, found in _one_by_one(order, [(part, _time, ()) for part in parts]):
        if "error" not in found:
            bench.save(part[0], Machine(**found["machine"]), "draftwood port", [found["row"]], order.results)
        yield part, found if "error" in found else found["row"]


def _again(order: Order, done: Journal, parts: list[Part], _clock: Clock) -> Results:
    """A config changes nothing for its rivals: their times stay."""
    from ..autotune.timer import Machine
    from . import bench

    before = {part: done.of("bench").get(part, {}) for part in parts}
    for part, found in _one_by_one(order, [(part, _race, (before[part].get("config"),)) for part in parts]):
        if found.get("row") and found["row"].get("default", {}).get("verdict") == "tuned is slower":
            found = _withdraw(order, part, found)
        if "error" in found:
            yield part, found
            continue
        row = found["row"] or before[part] | {"default": found["default"]}
        row["baselines"] = before[part].get("baselines") or row["baselines"]
        machine = Machine(**found["machine"])
        if found["row"]:
            bench.save(part[0], machine, "draftwood port", [row], order.results)
        if "default" in row:
            bench.save_against(machine, "draftwood port", [bench.gain_row(part[0], row)], order.results)
        yield part, row


def _withdraw(order: Order, part: Part, found: dict[str, Any]) -> dict[str, Any]:
    """The default in place of a config that is slower than it on this case; the case timed once more."""
    from ..autotune import winners
    from ..autotune.space import Problem
    from ..autotune.timer import Machine

    own = _case(order, *part).as_dict()
    file = order.configs / order.gpu / f"{part[0]}.json"
    # its own entry; and where two cases are looked up by the same sizes and names, the other's
    for case in (own, None):
        case, lost = case or found.get("served"), found["row"]["default"]
        if case is None or lost["verdict"] != "tuned is slower":
            break
        problem = Problem(part[0], Case(tuple(case.items())), order.gpu, order.sources)
        before = next((one for one in winners.load(file) if one["case"] == case), {})
        us = lost["spread"][0], lost["us"], lost["spread"][1]
        machine, read = Machine(**found["machine"]), found["read_gb_s"]
        if case != own and before:
            us = before["default_us"], before["default_us"], before["default_us"]
        entry = winners.stays(problem, machine, lost["config"], us, read, before)
        winners.save(part[0], order.gpu, [entry], order.configs)
        say(f"again {part[0]} {problem.case.id}: {lost['gain']:.2f} x the default, which is put in its place")
        # a process that has seen no configs yet
        ((_, found),) = _one_by_one(order, [(part, _race, (None,))])
        if "error" in found or not found["row"]:
            break
    return found


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool without waiting for what it may never finish."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def turns(order: Order, _done: Journal) -> list[Part]:
    """The first case of every op, the second of every op, …: what time is left for is spread over the ops."""
    known = registered(order.sources)
    tunable = [name for name in order.names() if known[name].has("autotune")]
    columns = ([(name, case.id) for case in known[name].spec.cases.get(order.timed, ())] for name in tunable)
    parts = [part for row in itertools.zip_longest(*columns) for part in row if part]
    return [part for part in parts if not order.only or part in order.only]


def _tune(order: Order, done: Journal, parts: list[Part], clock: Clock) -> Results:
    left, until = list(parts), time.monotonic() + order.tune_s - done.spent("tune")
    while left:
        seconds = min(until - time.monotonic(), clock.left - SETTLE_S)
        if seconds < END_S:
            return
        # the ops with the most cases last: compilers work ahead on them, and to them goes what time others leave
        count = Counter(op for op, _ in turns(order, done))
        rank = {op: (number, order.names().index(op)) for op, number in count.items()}
        taken = sorted(left[: int(seconds / LEAST_S)], key=lambda part: rank[part[0]])
        reached = 0
        for part, found in _tuning(order, done, taken, seconds):
            left.remove(part)
            reached += 1
            yield part, found
        if not reached:
            return


def _tuning(order: Order, done: Journal, parts: list[Part], seconds: float) -> Results:
    from ..autotune import atlas, drive, winners
    from ..autotune.space import Problem

    problems = {part: Problem(part[0], _case(order, *part), order.gpu, order.sources) for part in parts}
    watch = Watch()
    plan = drive.Plan(
        tuple(problems.values()),
        order.device,
        seconds=seconds,
        storage=str(order.trials) if order.trials else "",
        timeout_s=TRIAL_S,
        times=order.times,
        compilers=order.compilers,
        # compilers need not wait for the worker to say it
        target=tuple(done.of("doctor")["machine",]["target"]) if order.device.startswith("cuda") else (),
        first={} if order.times else {problem.name: winners.warm(problem) for problem in problems.values()},
        known_bad={problem.name: atlas.known_bad(problem) for problem in problems.values()},
    )
    machine = None
    try:
        for settled in drive.run(plan, watch):
            problem, verdict = settled.problem, settled.verdict
            machine = settled.facts["machine"]
            if settled.entry:
                winners.save(problem.op_name, problem.gpu, [settled.entry], order.configs)
            moved = bool(verdict and not verdict.kept)
            why = verdict.why if verdict else "nothing ran and was right"
            yield (problem.op_name, problem.case.id), {"entry": settled.entry, "why": why, "moved": moved}
    finally:
        if machine and not order.rehearsed:
            atlas.add([problem for problem in problems.values() if problem.name in watch.bad], "", machine)
    for part, problem in problems.items():
        if problem.name in watch.lost:
            yield part, {"entry": None, "why": watch.lost[problem.name], "moved": False}


class Watch:
    """Says what is worth a line while cases are tuned; keeps which of them had bad candidates, and which were lost."""

    def __init__(self) -> None:
        self.bad: set[str] = set()
        self.lost: dict[str, str] = {}

    def __call__(self, event: Any) -> None:
        name = event.extra.get("name", "")
        outcome = event.record.outcome if event.record else None
        match event.kind:
            case "given up":
                say(f"tune {name or event.case}: {event.text}")
                if name:
                    self.lost[name] = event.text
            case "notice":
                say(f"tune {name}: {event.text}")
            case "trial" if outcome and outcome.status in ("wrong", "crashed", "hung"):
                self.bad.add(name)
                say(f"tune {name} {outcome.status}: {outcome.why[:160]}: {event.record.point}")
            case "refused":
                self.bad.add(name)
                say(f"tune {name}: not the winner, {event.text[:160]}")


def _to_race(order: Order, done: Journal) -> list[Part]:
    if not order.rehearsed:
        return _to_time(order, done)
    # where configs are looked up for no GPU
    return [part for part, found in done.of("tune").items() if found["moved"]]


STEPS = (
    Step("doctor", lambda _order, _done: [("machine",)], _doctor),
    Step("compile", lambda order, _done: _cases(order, (*order.check, order.timed)), _compile),
    Step("check", lambda order, _done: _cases(order, order.check), _check),
    Step("bench", _to_time, _bench),
    Step("tune", turns, _tune),
    Step("again", _to_race, _again),
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
    return order.tune_s - done.spent("tune") < END_S


def trouble(step: str, outcome: Any) -> str:
    """What is worth a line at once."""
    if step == "check":
        bad = [verdict for verdict in outcome if verdict["status"] in ("fail", "error")]
        return "; ".join(f"{verdict['oracle']} {verdict['status']}: {verdict['detail']}" for verdict in bad)
    if step == "compile":
        return outcome or ""
    return outcome.get("error", "") if step in ("bench", "again") else ""
