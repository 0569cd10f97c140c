"""What a point will take, as far as its binaries tell: known once it is compiled, before anything is timed.

    launch     programs x warps, instructions of one warp, registers and shared memory of one program
    waves      programs / how many of them the GPU holds at once, rounded up
    latency    waves x instructions              a program's own way from its first instruction to its last
    issue      programs x warps x instructions / schedulers
    us         START + LATENCY x latency + ISSUE x issue, cycles of about half a nanosecond, summed over the launches

A loop counts once, memory not at all: this ranks configs of one op on one case, roughly, and says nothing of two ops.
The sampler takes it for a first guess and learns where it is wrong.
"""

import math
from dataclasses import dataclass
from typing import Any

from .binary import measure, occupancy
from .gpu import Arch, arch, find

# bytes of an instruction
INSTRUCTION = 16
START_US, CLOCK_MHZ = 2.0, 2000.0
# cycles between two instructions of a warp, and of a scheduler
LATENCY, ISSUE, SCHEDULERS = 4.0, 1.0, 4
# of a GPU that nobody listed
UNITS = 100


Features = tuple[float, ...]


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel."""

    programs: int
    warps: int
    code: int
    registers: int
    shared: int

    def as_list(self) -> list[int]:
        return [self.programs, self.warps, self.code, self.registers, self.shared]


def launch(kernel: Any, programs: int, target: Arch) -> Launch:
    facts = measure(kernel, target)
    return Launch(programs, kernel.metadata.num_warps, facts["code"], facts["registers"], facts["shared"])


def features(launches: tuple[Launch, ...], gpu: str) -> Features:
    """log2 of the time foreseen, of latency, of issue, and of warps that a multiprocessor holds; `gpu` as folders of
    configs are named: sm90-h200."""
    target, _, model = gpu.partition("-")
    limits, known = arch(target), find(model.replace("-", " "))
    units = known.units if known else UNITS
    latency = issue = held = 0.0
    for one in launches:
        share, _ = occupancy(limits, one.registers, one.shared, one.warps)
        resident = max(1.0, share * limits.warps // one.warps)
        steps = one.code / INSTRUCTION
        latency += math.ceil(one.programs / (units * resident)) * steps
        issue += one.programs * one.warps * steps / (units * SCHEDULERS)
        held = max(held, min(resident, one.programs / units) * one.warps)
    us = START_US * len(launches) + (LATENCY * latency + ISSUE * issue) / CLOCK_MHZ
    return math.log2(us), math.log2(max(latency, 1.0)), math.log2(max(issue, 1.0)), math.log2(max(held, 0.01))
