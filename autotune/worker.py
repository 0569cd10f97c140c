"""One candidate at a time, in a process of its own.

    tuner  --(point, rival)-->  worker   checks the point with the lab, then races it against the rival
    tuner  <-- outcome -------  worker

A candidate may write where it must not, hang, or take the process down. The tuner waits a limited time, and after any
death or stray write it starts a fresh worker: the study goes on, and the trial is recorded with what happened, while
what, and the command that shows it again.
"""

import functools
import json
import signal
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from triton.runtime import driver

from ..kernels import config
from ..lab import interpreter
from ..lab.check import end_with_parent
from ..lab.compare import same_bits
from ..lab.oracles import Subject, Trial, Verdict, named
from ..reference.ops import registered
from ..reference.spec import Case, map_tensors
from . import landscape, timer
from .ahead import PRELOAD
from .elsewhere import outline
from .outcome import Found, Outcome
from .race import MARGIN, Race, quantiles, race
from .space import Point, Problem

# per trial, the most telling first; of the winner every oracle is asked, on the op's smoke and edge cases
ORACLES = ("bounds", "race", "redzone", "unchanged", "poison", "numeric", "repeat", "order")
# the time that the gate may take, in trials
GATE = 15
# a kernel that is wrong once in a while is cheap to repeat on a GPU
REPEATS_GPU = 10
# these leave a process in which nothing can be trusted
STRAY = ("redzone", "unchanged", "bounds")


@dataclass(frozen=True)
class Post:
    """Where a worker runs: a device, and a file of times where it has no clock worth reading."""

    device: str = "cpu"
    times: str = ""
    timeout_s: float = 60.0


class Bench:
    """The worker's side: one case, its operands and expected values, and the rival's graph."""

    def __init__(self, problem: Problem, post: Post) -> None:
        self.problem = problem
        self.device = torch.device(post.device)
        self.function = problem.op.function("kernels")
        self.trial = Trial(problem.op, problem.case, 0, Subject(self._call, self.device, _flags(problem)))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self.trial.repeats = REPEATS_GPU
        self.config: Any = None
        self.times = _times(problem, post.times)
        self.sets = [] if self.times else timer.operands(problem.op, problem.case, self.device)
        self.rival: tuple[Point, Any] | None = None
        self.asked: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """What the tuner wants to know before the first trial."""
        machine = timer.machine(self.device)
        if self.device.type != "cuda":
            return {"default": self._default(), "machine": machine, "read_gb_s": 0.0}
        target = driver.active.get_current_target()
        # a reference may take longer than a trial may: token by token through a long prompt
        _ = self.trial.expected
        return {
            "default": self._default(),
            "machine": machine,
            "read_gb_s": timer.bandwidth(self.device)["read"],
            "asked": self.asked,
            "shapes": outline(self.trial.inputs),
            "uuid": f"GPU-{torch.cuda.get_device_properties(self.device).uuid}",
            "target": (target.backend, target.arch, target.warp_size),
        }

    def _default(self) -> Point:
        if self.times:
            return self.times.default
        inputs = map_tensors(self.trial.inputs, torch.clone)
        with config.untuned(), config.recording() as picked:
            self.function(**inputs)
        self.asked = config.asked(self.problem.op_name)
        return picked.get(self.problem.op_name, self.problem.defaults)

    def _call(self, name: str, **inputs: Any) -> Any:
        return _call(self.problem, self.config, name, **inputs)

    # -- a trial -------------------------------------------------------------------------------------------------------

    def attempt(self, point: Point, rival: Point | None, stage: Any) -> Found:
        self.config = self.problem.config(point)
        stage("checking")
        if bad := _worst(self.trial.verdicts(ORACLES)):
            return Found(_refusal(bad, point))
        stage("timing")
        if self.times:
            us = self.times.us(point)
            return Found(Outcome("ok", us=us, spread=(us, us)))
        try:
            return self._timed(point, rival)
        except torch.OutOfMemoryError as error:
            return Found(Outcome("refused", f"out of memory while timing: {str(error)[:120]}"))

    def _timed(self, point: Point, rival: Point | None) -> Found:
        if rival is None:
            mine = self._replay(point)
            us, result = quantiles(tuple(mine.sample() for _ in range(24))), None
        else:
            if self.rival is None or self.rival[0] != rival:
                self.rival = (rival, self._replay(rival))
            mine = self._replay(point, self.rival[1])
            result = race(self.rival[1].sample, mine.sample)
            us = quantiles(result.b)
            # the two share their memory, and the rival ran last
            mine.sample()
        if text := self._changed(mine):
            return Found(Outcome("wrong", text))
        return Found(Outcome("ok", us=us[1], spread=(us[0], us[2])), result)

    def _replay(self, point: Point, like: Any = None) -> Any:
        chosen = self.problem.config(point)
        calls = [functools.partial(self.function, **inputs, config=chosen) for inputs in self.sets]
        return timer.replay(calls, self.device, like)

    def _changed(self, replay: Any) -> str | None:
        """Whether the timed runs left other bits than the checked one; ops that work in place are not asked."""
        if self.problem.op.spec.updates:
            return None
        spec, inputs = self.problem.op.spec, self.sets[0]
        checked = named(spec, inputs, self._call(self.problem.op_name, **inputs))
        timed = named(spec, inputs, replay.result)
        apart = [name for name, tensor in checked.items() if not same_bits(tensor, timed[name])]
        return f"{', '.join(apart)}: other bits after {replay.launches} timed runs than in one" if apart else None

    # -- the winner ----------------------------------------------------------------------------------------------------

    def gate(self, problem: Problem, asked: dict[str, Any], point: Point, stage: Any) -> Found:
        """Every oracle on those of the op's smoke and edge cases that the config would serve too; `problem` may be
        another than the one at hand."""
        judged = functools.partial(_call, problem, problem.config(point))
        subject = Subject(judged, self.device, _flags(problem))
        for case in gate_cases(problem, asked, point):
            stage(f"checking {case.id}")
            if bad := _worst(Trial(problem.op, case, 0, subject).verdicts()):
                return Found(_refusal(bad, point))
        return Found(Outcome("ok"))

    def duel(self, a: Point, b: Point, most: int = 24, margin: float = MARGIN) -> Race:
        """b against a, both captured afresh."""
        if self.times:
            us = self.times.us(a), self.times.us(b)
            return race(lambda: us[0], lambda: us[1], most, margin)
        first = self._replay(a)
        second = self._replay(b, first)
        return race(first.sample, second.sample, most, margin)


def _call(problem: Problem, chosen: Any, name: str, **inputs: Any) -> Any:
    """An op of the lab's: the problem's own with the config at hand, another with its default."""
    extra = {"config": chosen} if name == problem.op_name else {}
    return registered(problem.sources)[name].function("kernels")(**inputs, **extra)


def _flags(problem: Problem) -> str:
    return "".join(f" --ops {source}" for source in problem.sources)


def meet(device: str) -> tuple[str, tuple[Any, ...]]:
    """The GPU's name among configs, and what Triton compiles for there."""
    torch.cuda.set_device(torch.device(device))
    target = driver.active.get_current_target()
    return timer.machine(torch.device(device)).gpu, (target.backend, target.arch, target.warp_size)


def gate_cases(problem: Problem, asked: dict[str, Any], point: Point) -> list[Case]:
    """The op's smoke and edge cases whose launches could be given this case's config: those that are looked up by the
    same names, and where it is legal."""
    spec, legal = problem.op.spec, problem.op.module("autotune").legal
    names = {name for name, value in asked.items() if isinstance(value, str)}
    every = dict.fromkeys((*spec.cases.get("smoke", ()), *spec.cases.get("edge", ())))
    like = (case for case in every if all(case.get(name) == problem.case.get(name) for name in names))
    return [case for case in like if legal(point, case, problem.gpu) is None]


def _times(problem: Problem, file: str) -> "landscape.Landscape | None":
    if not file:
        return None
    found = (one for one in landscape.load(Path(file)) if one.case == problem.case)
    if (one := next(found, None)) is None:
        raise ValueError(f"{file} holds no times of {problem.case.id}")
    return one


def _worst(verdicts: list[Verdict]) -> Verdict | None:
    """The most telling failure, or None."""
    failed = [v for v in verdicts if v.status in ("fail", "error")]
    return min(failed, key=lambda v: ORACLES.index(v.oracle) if v.oracle in ORACLES else len(ORACLES), default=None)


def _refusal(bad: Verdict, point: Point) -> Outcome:
    """What a verdict of the lab means for a trial."""
    text = f"{bad.oracle}: {bad.detail}"
    command = f"{bad.command} --config '{json.dumps(point)}'"
    if bad.status != "error":
        return Outcome("wrong", text, command=command)
    if any(word in bad.detail for word in ("CUDA error", "HIP error", "illegal memory", "Triton Error [CUDA]")):
        return Outcome("crashed", text, command=command)
    return Outcome("refused", bad.detail, command=command)


def _serve(pipe: Connection, problem: Problem, post: Post) -> None:
    """The worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a kernel that hangs does not notice that nobody waits for it any more
    end_with_parent()
    if post.device.startswith("cpu"):
        torch.set_num_threads(1)
        interpreter.install()
    bench = Bench(problem, post)
    pipe.send(("done", bench.facts()))
    while request := pipe.recv():
        verb, *arguments = request
        if verb == "load":
            del bench
            torch.cuda.empty_cache()
            bench = Bench(*arguments)
            pipe.send(("done", bench.facts()))
            continue
        if verb in ("attempt", "gate"):
            arguments.append(lambda text: pipe.send(("stage", text)))
        pipe.send(("done", getattr(bench, verb)(*arguments)))


class Died(Exception):
    """The worker ended or went silent; `status` and `why` say how."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Isolated:
    """The tuner's side: a worker that is replaced when it dies."""

    def __init__(self, problem: Problem, post: Post) -> None:
        self.problem, self.post = problem, post
        self.process: Any = None
        self.restarts = -1
        self.facts: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        # a process that has imported torch and touched no GPU: a fresh worker is a fork of it, in a moment
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.problem, self.post), daemon=True)
        self.process.start()
        theirs.close()
        self.restarts += 1
        # the first answer waits for imports, operands and the reference's values
        self.facts = self._answer(self.post.timeout_s + 300.0)

    def load(self, problem: Problem) -> None:
        """Go on to another case; in the same process where it is sound."""
        self.problem = problem
        if self.process is None:
            self._start()
            return
        try:
            self.pipe.send(("load", problem, self.post))
            self.facts = self._answer(self.post.timeout_s + 300.0)
        except (Died, BrokenPipeError):
            # what the last case left behind may have undone it
            self.close()
            self._start()

    def _answer(self, limit_s: float) -> Any:
        stage, until = "starting", time.monotonic() + limit_s
        while True:
            try:
                if not self.pipe.poll(max(0.0, until - time.monotonic())):
                    raise Died("hung", f"no answer in {limit_s:.0f} s while {stage}")
                kind, value = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.process.join(10)
                raise Died("crashed", f"{_ending(self.process.exitcode)} while {stage}") from None
            if kind == "done":
                return value
            stage = value

    def ask(self, verb: str, *arguments: Any) -> Any:
        """What the worker answers; Died where it does not."""
        if self.process is None:
            self._start()
        try:
            self.pipe.send((verb, *arguments))
            # the gate is many trials
            return self._answer(self.post.timeout_s * (GATE if verb == "gate" else 1))
        except BrokenPipeError:
            self.close()
            raise Died("crashed", "ended between two trials") from None
        except Died:
            self.close()
            raise

    def attempt(self, point: Point, rival: Point | None) -> Found:
        """A trial. A worker that died or that something wrote into is replaced before the next."""
        try:
            found = self.ask("attempt", point, rival)
        except Died as death:
            return Found(Outcome(death.status, death.why, command=self.command(point)))
        if found.outcome.status == "crashed" or found.outcome.why.startswith(STRAY):
            self.close()
        return found

    def command(self, point: Point) -> str:
        where = f"--case '{self.problem.case.id}' --config '{json.dumps(point)}'"
        return f"draftwood check {self.problem.op_name} {where}{_flags(self.problem)}"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exit code {code}"
