"""Timings of every op's perf cases through pytest-benchmark, for its --benchmark-compare and --benchmark-histogram.

    pytest perf/bench_ops.py --benchmark-enable --benchmark-save=base
    pytest perf/bench_ops.py --benchmark-enable --benchmark-compare=0001 --benchmark-compare-fail=median:10%

The samples are those of the project's own timer (CUDA-graph replay, cold operands): the fixture is fed with them.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from draftwood.autotune import timer
from draftwood.lab.check import target
from draftwood.perf.bench import calls
from draftwood.reference.ops import OPS, registered
from draftwood.reference.spec import Case

ALL = registered()
DEVICE = torch.device(target())
GROUP = "perf" if DEVICE.type == "cuda" else "smoke"
PARAMS = [pytest.param(name, case, id=f"{name}-{case.id}") for name in OPS for case in ALL[name].spec.cases[GROUP]]


@pytest.mark.parametrize(("name", "case"), PARAMS)
def test_time(benchmark: Any, name: str, case: Case) -> None:
    op = ALL[name]
    impl = "kernels" if DEVICE.type == "cuda" else "reference"
    runs, _ = calls(op, case, DEVICE, impl)
    samples = timer.samples(runs, DEVICE)
    ticks: Iterator[float] = iter([moment for us in samples for moment in (0.0, us / 1e6)])
    benchmark._timer = lambda: next(ticks)
    benchmark.extra_info.update({"op": name, **case.as_dict(), "bytes": op.spec.cost(case).bytes, "mode": DEVICE.type})
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
