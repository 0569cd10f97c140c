"""The one timer, of bench and tuner alike.

A GPU time is the median over replays of a CUDA graph that holds one launch per copy of the operands. The copies rotate
what a real step reads cold (SPEC.cold: weights, caches, states) over `ROTATE` bytes, so that the L2 serves none of it;
the rest stays warm, as in life. The graph's time over the number of launches is a sample; p20, p50 and p80 are taken
over `REPLAYS` samples. On a CPU there is no graph: `perf_counter` around single calls, marked `mode: cpu`. Such times
say nothing about a GPU.
"""

import functools
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch
import triton

from ..kernels.lib import stream
from ..kernels.lib.device import folder
from ..lab.oracles import draw
from ..reference.ops import Op
from ..reference.spec import Case, Inputs, map_tensors

ROTATE = 640 << 20
MOST_COPIES = 256
REPLAYS = 40
REPLAY_MS, MOST_ROUNDS = 0.5, 64


@dataclass(frozen=True)
class Timing:
    """Microseconds a call."""

    p20: float
    p50: float
    p80: float
    mode: str

    def us(self) -> dict[str, float]:
        return {"p20": round(self.p20, 3), "p50": round(self.p50, 3), "p80": round(self.p80, 3)}


def _quantiles(samples: list[float], mode: str) -> Timing:
    cuts = statistics.quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else [samples[0]] * 9
    return Timing(cuts[1], cuts[4], cuts[7], mode)


def copies(cold_bytes: int) -> int:
    """How many sets of operands to rotate; 16 where nothing is cold, to fill a graph with launches."""
    return max(2, min(MOST_COPIES, math.ceil(ROTATE / cold_bytes))) if cold_bytes else 16


def operands(op: Op, case: Case, device: torch.device, seed: int = 0) -> list[Inputs]:
    """Copies of the case's inputs on the device: enough that what is cold in a step is cold here."""
    inputs = draw(op.spec, case, seed, device)
    cold = {name: inputs[name] for name in {*op.spec.cold, *op.spec.updates}}
    cold_bytes: list[int] = []
    map_tensors(cold, lambda t: cold_bytes.append(t.numel() * t.element_size()) or t)  # type: ignore[func-returns-value]
    # what a call moves anyway drives the cold bytes out, too
    rounds = max(2, math.ceil(ROTATE / max(1, op.spec.cost(case).bytes)))
    count = min(copies(sum(cold_bytes)), rounds) if device.type == "cuda" else 1
    return [inputs, *({**inputs, **map_tensors(cold, torch.clone)} for _ in range(count - 1))]


class Replay:
    """`calls`, which do the same on different operands, captured in turn in one graph until it is long enough to
    time. `result` is what the first of them returned in the last replay. What a replay costs by itself, about 2 us,
    is shared out over its launches: two that are raced need the same number of them, on the same stream (`like`, whose
    own result is given up)."""

    def __init__(self, calls: Sequence[Callable[[], Any]], like: "Replay | None" = None) -> None:
        self.stream: torch.cuda.Stream = like.stream if like else torch.cuda.Stream()
        # the operands were made on the current stream
        self.stream.wait_stream(torch.cuda.current_stream())
        self.begin, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.stream):
            for call in calls[:2]:
                call()
            self.rounds: int = like.rounds if like else 1
            pool = None
            if like:
                # what the two allocate lies in the same places: a kernel of 4 us differed by 1 % with the address
                pool, like.result = like.graph.pool(), None
            once = self._capture(calls, pool)
            # the host's launches take longer than small kernels, so only a replay tells how many make a graph
            if not like and (rounds := min(MOST_ROUNDS, math.ceil(REPLAY_MS / max(once, 1e-3)))) > 1:
                self.rounds = rounds
                self._capture(calls)

    def _capture(self, calls: Sequence[Callable[[], Any]], pool: Any = None) -> float:
        """Milliseconds of a warm replay."""
        self.launches = self.rounds * len(calls)
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=self.stream):
            for _ in range(self.rounds):
                self.result, *_ = [call() for call in calls]
        return min(self._milliseconds(self.graph.replay) for _ in range(3))

    def _milliseconds(self, run: Callable[[], Any]) -> float:
        self.begin.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end)

    def sample(self) -> float:
        """Microseconds a call, of one replay."""
        with torch.cuda.stream(self.stream):
            return self._milliseconds(self.graph.replay) * 1000 / self.launches


class Calls:
    """The same of a CPU: the first of the calls, once a sample."""

    launches = 1

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.call = calls[0]
        self.result = self.call()

    def sample(self) -> float:
        before = time.perf_counter()
        self.result = self.call()
        return (time.perf_counter() - before) * 1e6


def replay(calls: Sequence[Callable[[], Any]], device: torch.device, like: Any = None) -> Replay | Calls:
    return Replay(calls, like) if device.type == "cuda" else Calls(calls)


def samples_cuda(calls: Sequence[Callable[[], Any]], replays: int = REPLAYS, budget_s: float = 1.0) -> list[float]:
    graph = Replay(calls)
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < replays and (len(found) < 5 or time.perf_counter() - started < budget_s):
        found.append(graph.sample())
    return found


def samples_eager(calls: Sequence[Callable[[], Any]], replays: int = REPLAYS, budget_s: float = 1.0) -> list[float]:
    """For what a graph cannot hold: host work counts, as it does in life."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < replays and (len(found) < 3 or time.perf_counter() - started < budget_s):
        begin.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1000 / len(calls))
    return found[1:]


def samples_cpu(call: Callable[[], Any], replays: int = 5, budget_s: float = 1.0) -> list[float]:
    samples: list[float] = []
    started = time.perf_counter()
    while not samples or (len(samples) < replays and time.perf_counter() - started < budget_s):
        before = time.perf_counter()
        call()
        samples.append((time.perf_counter() - before) * 1e6)
    return samples


def samples(calls: Sequence[Callable[[], Any]], device: torch.device, **limits: Any) -> list[float]:
    """Microseconds a call, one a replay; on a CPU one a call of the first."""
    return samples_cuda(calls, **limits) if device.type == "cuda" else samples_cpu(calls[0], **limits)


def measure_baseline(calls: Sequence[Callable[[], Any]], device: torch.device) -> Timing:
    """As `measure`, but what synchronises with the host is timed without a graph, and says so."""
    try:
        return measure(calls, device)
    except RuntimeError:
        torch.cuda.synchronize()
        return _quantiles(samples_eager(calls), "cuda-eager")


def measure(calls: Sequence[Callable[[], Any]], device: torch.device, **limits: Any) -> Timing:
    return _quantiles(samples(calls, device, **limits), "cuda-graph" if device.type == "cuda" else "cpu")


@functools.cache
def bandwidth(device: torch.device) -> dict[str, float]:
    """Measured memory bandwidth, GB/s: `read` (4 GiB into registers) and `copy` (bytes read plus bytes written)."""
    on_gpu = device.type == "cuda"
    source = torch.ones(1 << (30 if on_gpu else 24), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy_us = measure([lambda: stream.copy(source, target) if on_gpu else target.copy_(source)], device).p50
    read_us = measure([lambda: stream.read(source) if on_gpu else source.sum()], device).p50
    size = source.numel() * source.element_size()
    return {"read": round(size / read_us / 1e3, 1), "copy": round(2 * size / copy_us / 1e3, 1)}


@dataclass(frozen=True)
class Machine:
    """Where a number was measured."""

    gpu: str
    name: str
    torch: str
    triton: str
    python: str
    driver: str
    clock_mhz: str
    date: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@functools.cache
def machine(device: torch.device) -> Machine:
    on_gpu = device.type == "cuda"
    return Machine(
        gpu=folder(device) if on_gpu else "cpu",
        name=torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
        driver=_smi("driver_version") if on_gpu else "",
        clock_mhz=_smi("clocks.sm") if on_gpu else "",
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


def _smi(field: str) -> str:
    """One field of nvidia-smi; empty where there is no such tool."""
    try:
        out = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return out.stdout.strip().splitlines()[0] if out.returncode == 0 and out.stdout.strip() else ""
