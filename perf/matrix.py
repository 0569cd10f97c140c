"""The matrix of ports: ops by architectures, saved, compared with what was saved, and drawn as PORTS.md."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import triton

from ..autotune.gpu import ARCHS
from .forecast import CELLS, misses, most_misses
from .ports import LIMIT_S, Build, write

COMMITTED = Path(__file__).resolve().parent / "results" / "ports.json"
PAGE = COMMITTED.parent.parent.parent / "PORTS.md"
SCHEMA = 2
# defaults were timed here: what they spill is known to pay, and nothing else is picked for it; that something else
# compiles is said all the same
TIMED = ("sm90",)
AGAIN = "draftwood ports {op} --save writes perf/results/ports.json anew, if this is meant"


def save(
    builds: list[Build],
    forecast: dict[str, Any] | None = None,
    file: Path = COMMITTED,
    fitted: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the Builds, and what `--fit` found where they spill; what is committed of other ops and architectures
    stays, unless another Triton compiled it."""
    old = load(file)
    fresh = {(build.op, build.arch) for build in builds}
    kept = [build for build in held(old) if (build.op, build.arch) not in fresh]
    if builds and old.get("triton") != triton.__version__:
        kept = []
    # of what serves now, no other config is of interest
    wanted = {
        (build.op, build.arch) for build in (*kept, *builds) if (build.spills or build.error) and not build.config
    }
    wanted -= {(row["op"], row["arch"]) for row in fitted or ()}
    others = [row for row in old.get("fitted", []) if (row["op"], row["arch"]) in wanted]
    version = triton.__version__ if builds else old.get("triton")
    report = {"schema": SCHEMA, "triton": version, "forecast": forecast or old.get("forecast")}
    spilled = sorted(json.dumps(row) for row in (*others, *(fitted or ())))
    rows = [json.dumps(_row(build)) for build in sorted([*kept, *builds], key=lambda build: build.key)]
    parts = {"fitted": spilled, "builds": rows}
    text = ", ".join(f'"{name}": [\n' + ",\n".join(lines) + "\n]" for name, lines in parts.items())
    write(file, f"{json.dumps(report)[:-1]}, {text}}}\n".encode())
    return load(file)


def _row(build: Build) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(build).items() if value not in ("", 0, 0.0, {})}


def load(file: Path = COMMITTED) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"builds": []}


def held(report: dict[str, Any]) -> list[Build]:
    return [Build(**{"config": {}, "kernel": "", **row}) for row in report["builds"]]


def worse(now: list[Build], before: list[Build]) -> list[str]:
    """A sentence for every kernel that does not compile, spills or has its products wait, and did not before."""
    old = {build.key: build for build in before}
    found = []
    for build in now:
        then = old.get(build.key)
        config = json.dumps(build.config) if build.config else "its default config"
        where = f"{build.op} on {build.arch} with {config}, {build.case}"
        again = AGAIN.format(op=build.op)
        if build.error and not any(
            was.error and (was.op, was.arch, was.kernel) == (build.op, build.arch, build.kernel) for was in before
        ):
            found.append(f"{where}: {build.kernel or 'the launcher'} fails now: {build.error}. {again}")
        elif build.spills and not (then and (then.spills or then.error)):
            found.append(f"{where}: {build.kernel} spills now ({build.spills}). {again}")
        elif build.serial and not (then and (then.serial or then.error)):
            found.append(f"{where}: products of {build.kernel} wait for each other now ({build.serial}). {again}")
    return found


def cell(builds: list[Build]) -> str:
    """Kernels compiled over kernels tried, how many of them spill, and of how many the products wait."""
    good = [build for build in builds if not build.error]
    spilled, waiting = sum(build.spills > 0 for build in good), sum(bool(build.serial) for build in good)
    parts = [f"{len(good)}/{len(builds)}"] + [f"{spilled} spill"] * bool(spilled) + [f"{waiting} wait"] * bool(waiting)
    return ", ".join(parts) if builds else "–"


def page(report: dict[str, Any]) -> str:
    """PORTS.md: which kernel compiles where, what fails or spills, what they take, and how well it is foreseen."""
    builds = held(report)
    archs = [arch for arch in ARCHS if any(build.arch == arch for build in builds)]
    ops = sorted({build.op for build in builds})
    failed = [build for build in builds if build.error]
    seconds = sum(build.seconds for build in builds)
    lines = [
        "# Ports",
        "",
        f"Written by `draftwood ports --save` with triton {report.get('triton', '?')}: {len(builds)} kernels (distinct",
        f"specialisations of the perf cases) for {len(archs)} architectures in {seconds / 60:.0f} minutes of one core,",
        f"without any of the GPUs. {len(failed)} did not compile. That a kernel compiles says nothing of its results",
        "and its speed: PORTING.md says how those are checked.",
        "",
        "## Compiled / tried",
        "",
        *_head("op", *archs),
    ]
    by = {(op, arch): [b for b in builds if (b.op, b.arch) == (op, arch)] for op in ops for arch in archs}
    lines += [_line(op, *(cell(by[op, arch]) for arch in archs)) for op in ops]
    if failed:
        lines += ["", "## What does not compile", "", *_head("op", "architecture", "kernel", "case", "config", "why")]
        lines += [_line(b.op, b.arch, b.kernel, f"`{b.case}`", b.config or "default", b.error) for b in failed]
    lines += ["", *_free(report, ops, archs)]
    lines += _forecast(report.get("forecast"))
    lines += ["## What spills", "", *_spilling([build for build in builds if build.spills and not build.config]), ""]
    lines += _fitted(report.get("fitted", []))
    lines += _serial([build for build in builds if build.serial])
    lines += [
        "## What they take",
        "",
        "The most of any kernel of the op: registers a thread, bytes of shared memory a program, bytes of code; the",
        "least share of a multiprocessor's warps that can be resident, and what that is bound by; how many of them",
        "use tensor cores; conversions from integers; seconds of one core to compile them all.",
    ]
    for op in ops:
        lines += ["", f"### {op}", ""]
        lines += _head("", "registers", "shared", "code", "resident", "tensor cores", "conversions", "seconds")
        lines += [_taken(arch, by[op, arch]) for arch in archs if by[op, arch]]
    return "\n".join(lines) + "\n"


def _taken(arch: str, builds: list[Build]) -> str:
    good = [build for build in builds if not build.error]
    if not good:
        return _line(arch, *["–"] * 7)
    tight = min(good, key=lambda build: build.occupancy)
    return _line(
        arch,
        max(build.registers for build in good),
        max(build.shared for build in good),
        max(build.code for build in good),
        f"{tight.occupancy:.0%} ({tight.bound})",
        f"{sum(build.mma > 0 for build in good)} of {len(good)}",
        max(build.convert for build in good),
        f"{sum(build.seconds for build in builds):.1f}",
    )


def spilling(builds: list[Build]) -> list[tuple[str, str]]:
    """The ops and architectures whose default configs spill or fail."""
    return sorted({(build.op, build.arch) for build in builds if not build.config and (build.spills or build.error)})


def free(report: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Of each op and architecture: which configs compile without a spill, in every perf case: 'default', or what else
    some cases take; 'no: ..' where a case has none, '?' where nobody has looked since its default began to spill."""
    builds = held(report)
    found = {(build.op, build.arch): "default" for build in builds}
    found |= dict.fromkeys(spilling(builds), "?")
    fitted: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report.get("fitted", []):
        fitted.setdefault((row["op"], row["arch"]), []).append(row)
    for pair, rows in fitted.items():
        if left := [row["spills"] for row in rows if row["spills"]]:
            found[pair] = f"no: {len(left)} cases spill {min(left)} to {max(left)}"
        elif pair in found:
            changes = Counter(" ".join(f"{knob}={value}" for knob, value in row["changes"].items()) for row in rows)
            found[pair] = f"{sum(changes.values())} cases: " + " or ".join(text for text, _ in changes.most_common())
    return found


def _free(report: dict[str, Any], ops: list[str], archs: list[str]) -> list[str]:
    found = free(report)
    every = [op for op in ops if all(found.get((op, arch)) == "default" for arch in archs)]
    others = [op for op in ops if op not in every]
    good = sum(text[:2] != "no" and text != "?" for text in found.values())
    lines = [
        "## A config without spills",
        "",
        f"{good} of {len(found)} pairs of an op and an architecture have one in every perf case: the default, or what",
        "is named (`draftwood ports --fit`; only the knobs that differ from the default of the case).",
    ]
    if others:
        lines += ["", *_head("op", *archs)]
        lines += [_line(op, *(found.get((op, arch), "–") for arch in archs)) for op in others]
    return [*lines, "", f"The default serves everywhere: {', '.join(every)}.", ""]


def _spilling(builds: list[Build]) -> list[str]:
    if not builds:
        return ["Nothing."]
    worst: dict[tuple[str, str], Counter[str]] = {}
    for build in builds:
        counts = worst.setdefault((build.op, build.kernel), Counter())
        counts[build.arch] = max(counts[build.arch], build.spills)
    lines = _head("op", "kernel", "spills of its worst case with its default config, by architecture")
    return lines + [
        _line(op, kernel, ", ".join(f"{arch} {counts[arch]}" for arch in ARCHS if counts[arch]))
        for (op, kernel), counts in sorted(worst.items())
    ]


def _serial(builds: list[Build]) -> list[str]:
    """What ptxas tells nobody who does not ask."""
    lines = [
        "## Whose products wait for each other",
        "",
        "Products of wgmma are to be under way together. ptxas has each wait for the one before where they cannot be,",
        "without an error, and what was spilled then is not.",
        "",
    ]
    if not builds:
        return [*lines, "Nobody's.", ""]
    lines += _head("op", "kernel", "case", "config", "why, by ptxas")
    return [*lines, *(_line(b.op, b.kernel, f"`{b.case}`", b.config or "default", b.serial) for b in builds), ""]


def _fitted(rows: list[dict[str, Any]]) -> list[str]:
    """What `draftwood ports --fit` found for cases whose default config spills."""
    if not rows:
        return []
    lines = [
        "`draftwood ports --fit` looked for other configs for these cases, nearest to the default first:",
        "",
        *_head(
            "op", "architecture", "cases that spill", "with another config", "the nearest of them", "spilling least"
        ),
    ]
    by: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault((row["op"], row["arch"]), []).append(row)
    for (op, arch), found in sorted(by.items(), key=lambda pair: (pair[0][0], list(ARCHS).index(pair[0][1]))):
        free = [row for row in found if not row["spills"]]
        first = " ".join(f"{knob}={value}" for knob, value in free[0]["changes"].items()) if free else "–"
        rest = max((row["spills"] for row in found), default=0)
        lines.append(_line(op, arch, len(found), f"{len(found) - len(free)} spill", first, rest or "–"))
    return [*lines, ""]


def _forecast(forecast: dict[str, Any] | None) -> list[str]:
    """The confusion matrix of `draftwood ports --foresee`."""
    if not forecast:
        return []
    rows, every, most = forecast["rows"], forecast["rows"]["all"], forecast.get("most", 0)
    compiled = sum(every.get(cell, 0) for cell in CELLS)
    failed = every["missed"] + every["right refusals"]
    drawn, count, limit = forecast.get("drawn", compiled), forecast["count"], forecast.get("limit_s", LIMIT_S)
    command = f"draftwood ports --foresee {count}" + (f" --most {most}" if most else "")
    lines = [
        "## What was foreseen",
        "",
        f"`{command}` with triton {forecast.get('triton', '?')}: {drawn} points of the ops' whole spaces, both ends",
        f"of every knob and {count} points an op and architecture (seed {forecast['seed']}), each foreseen from spec",
        f"and config alone (`autotune/foresight.py`); {compiled} of them were then really compiled.",
    ]
    if most:
        lines += [
            f"All that are refused were; of an op's others at most {most}, drawn at random: what is missed among those",
            "is counted as many times as the drawn are more than the compiled.",
        ]
    lines += [
        f"{failed} did not run; {every['missed']} of these were not foreseen: {misses(rows):.1%} of all failures. As a "
        f"sample of the whole space",
        f"that is {most_misses(rows):.1%} at most (95 %).",
        "",
        *_head(
            "op",
            "runs, as foreseen",
            "of",
            "refused, and fails",
            "missed",
            "refused needlessly",
            f"took over {limit} s",
        ),
    ]
    for op, row in sorted(rows.items(), key=lambda item: (item[0] == "all", item[0])):
        ran = row["right passes"]
        of = row.get("not refused", ran + row["missed"])
        refused = (row["right refusals"], row["missed"], row["needless"], row.get("slow", 0))
        lines.append(_line(op, ran, of, *refused))
    return [*lines, ""]


def _head(*cells: str) -> list[str]:
    return [_line(*cells), _line(*["---"] * len(cells))]


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
