"""Bring draftwood up on the GPU at hand: doctor, check, tune, bench, and a report to send with the new configs.

Each step is one of the project's own commands, run as a process with JSON on its standard output. A finished step's
output is kept under the user's cache directory by GPU and sources: a bring-up that was stopped goes on where it was.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench import RESULTS

ROOT = RESULTS.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftwood" / "port"


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    # exit codes after which the bring-up goes on: 1 says that something was found, and the report says what
    goes_on: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Done:
    step: Step
    code: int
    seconds: float
    output: Any


def steps(ops: list[str], tune_seconds: int, jobs: int) -> list[Step]:
    found = [
        Step("doctor", ("doctor", "--json")),
        Step("check", ("check", *ops, "--cases", "smoke,edge,qwen35", "--jobs", str(jobs), "--json")),
        Step("tune", ("tune", *ops, "--time", str(tune_seconds), "--json")),
        Step("bench", ("bench", *ops, "--json")),
    ]
    return [step for step in found if step.name != "tune" or tune_seconds]


def sources() -> str:
    """A hash of what a step's outcome depends on."""
    digest = hashlib.sha256()
    for part in sorted(
        path for folder in ("kernels", "reference", "autotune", "tests/lab") for path in (ROOT / folder).rglob("*.py")
    ):
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def run(plan: list[Step], gpu: str, fresh: bool) -> Iterator[tuple[Step, Done]]:
    home = CACHE / gpu / sources()
    home.mkdir(parents=True, exist_ok=True)
    for step in plan:
        file = home / f"{hashlib.sha256(repr(step).encode()).hexdigest()[:16]}.json"
        if file.exists() and not fresh:
            kept = json.loads(file.read_text())
            yield step, Done(step, kept["code"], kept["seconds"], kept["output"])
            continue
        done = perform(step)
        if done.code in step.goes_on:
            draft = file.with_suffix(".part")
            draft.write_text(json.dumps({"code": done.code, "seconds": done.seconds, "output": done.output}))
            draft.replace(file)
        yield step, done
        if done.code not in step.goes_on:
            return


def perform(step: Step) -> Done:
    started = time.perf_counter()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / ".typings"), os.environ.get("PYTHONPATH")])),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "draftwood.perf.cli", *step.command], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        output = json.loads(ended.stdout)
    except json.JSONDecodeError:
        output = ended.stdout[-2000:]
    return Done(step, ended.returncode, round(time.perf_counter() - started, 1), output)


def report(finished: list[Done]) -> str:
    """Markdown for a pull request."""
    by_name = {done.step.name: done for done in finished}
    machine = by_name["doctor"].output["machine"]
    packages = by_name["doctor"].output["packages"]
    lines = [
        f"# {machine['GPU']} ({machine['folder']})",
        "",
        f"Written by `draftwood port`. torch {packages['torch']}, triton {packages['triton']}, "
        f"driver {machine['driver']};",
        f"{machine['multiprocessors']} multiprocessors, {machine['memory']}, bandwidth measured: "
        f"{machine['bandwidth measured']}.",
        "",
        "| step | exit code | seconds |",
        "| --- | ---: | ---: |",
        *(f"| `draftwood {' '.join(done.step.command)}` | {done.code} | {done.seconds:.0f} |" for done in finished),
    ]
    if "check" in by_name:
        lines += ["", "## Check", "", *_checked(by_name["check"])]
    if "bench" in by_name:
        lines += ["", "## Bench", "", *_timed(by_name["bench"])]
    return "\n".join(lines) + "\n"


def _checked(done: Done) -> list[str]:
    if not isinstance(done.output, list):
        return ["The check did not end:", "", "```", str(done.output), "```"]
    bad = [verdict for verdict in done.output if verdict["status"] in ("fail", "error")]
    cases = {(verdict["op"], verdict["case"]) for verdict in done.output}
    lines = [f"{len(done.output)} verdicts on {len(cases)} cases: {len(bad)} failed."]
    return lines + [f"* {v['op']} {v['oracle']}: {v['detail']} `{v['command']}`" for v in bad]


def _timed(done: Done) -> list[str]:
    if not isinstance(done.output, dict):
        return ["The bench did not end:", "", "```", str(done.output), "```"]
    lines = ["| op | case | µs | % of measured bandwidth | x torch |", "| --- | --- | ---: | ---: | ---: |"]
    for op, rows in done.output["results"].items():
        for row in rows:
            case = " ".join(f"{key}={value}" for key, value in row["case"].items())
            torch_us = next(iter(row["baselines"].values()), None)
            times = f"{torch_us / row['us']['p50']:.1f}" if torch_us else "–"
            lines.append(f"| {op} | {case} | {row['us']['p50']:.1f} | {row['roof']:.0%} | {times} |")
    return lines
