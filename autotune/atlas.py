"""Known bad configs: on this GPU, with this Triton, this kernel and this config gave wrong numbers, crashed or hung.

    autotune/atlas.json, one entry a line:
    {"gpu": …, "triton": …, "op": …, "case": {…}, "config": {…}, "kernel": hash, "status": "wrong", "why": …,
     "command": …, "date": …}

The tuner writes it and skips what stands in it. An entry applies to its Triton and its kernel hash: under another
version, or after a change of the kernel, the config is tried again.
"""

import json
from pathlib import Path
from typing import Any

import triton

from .space import Problem
from .storage import open_storage
from .timer import Machine
from .trials import Trials

FILE = Path(__file__).resolve().parent / "atlas.json"
BAD = ("wrong", "crashed", "hung")
KEY = ("gpu", "triton", "op", "case", "config", "kernel")


def load(file: Path = FILE) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["entries"] if file.exists() else []


def known_bad(problem: Problem, file: Path = FILE) -> dict[str, str]:
    """Of one problem, with the Triton and the kernel at hand: identity -> why."""
    here = {"gpu": problem.gpu, "triton": triton.__version__, "op": problem.op_name, "kernel": problem.kernel_hash}
    return {
        problem.identity(entry["config"]): f"{entry['status']} on {entry['date']}: {entry['why']}"
        for entry in load(file)
        if all(entry[key] == value for key, value in here.items()) and entry["case"] == problem.case.as_dict()
    }


def found(problem: Problem, trials: Trials, date: str) -> list[dict[str, Any]]:
    """What the study of a problem knows to be bad, as entries."""
    out = trials.disqualified()
    bad = []
    for record in trials.finished().values():
        outcome = record.outcome
        status = "wrong" if record.identity in out else outcome.status
        if status in BAD:
            bad.append(
                {
                    "gpu": problem.gpu,
                    "triton": triton.__version__,
                    "op": problem.op_name,
                    "case": problem.case.as_dict(),
                    "config": {**problem.defaults, **record.point},
                    "kernel": problem.kernel_hash,
                    "status": status,
                    "why": out.get(record.identity, outcome.why)[:300],
                    "command": outcome.command,
                    "date": date,
                }
            )
    return bad


def save(entries: list[dict[str, Any]], file: Path = FILE) -> None:
    """Add entries; one that stands there with the same key is replaced."""
    merged = {json.dumps([one[key] for key in KEY], sort_keys=True): one for one in (*load(file), *entries)}
    lines = ",\n".join(json.dumps(merged[key]) for key in sorted(merged))
    file.write_text('{"schema": 1, "entries": [\n' + lines + "\n]}\n")


def add(problems: list[Problem], storage: str, machine: Machine | None) -> None:
    """Write what the studies of these problems know to be bad."""
    if not problems:
        return
    opened = open_storage(storage)
    entries = [one for p in problems for one in found(p, Trials(p, opened), machine.date if machine else "")]
    if entries:
        save(entries)
