"""What `draftwood ports` prints: compiled and tried, or foreseen."""

import json
import time
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ..autotune.foresight import foresee as foreseen
from ..autotune.gpu import ARCHS
from ..reference.ops import registered
from . import fit as fitting
from . import forecast, matrix, tables
from . import ports as porting
from .terminal import err, fail, out


def compile_(
    ops: list[str],
    archs: list[str],
    groups: list[str],
    kinds: list[str],
    workers: int,
    save: bool,
    diff: bool,
    sources: list[str],
    as_json: bool,
) -> int:
    work = porting.tasks(ops, archs, groups, kinds, sources)
    started = time.perf_counter()
    builds: list[porting.Build] = []
    for _, found in tables.progress(porting.run(work, workers), len(work), "compiling", None if as_json else err):
        builds += found
    seconds = time.perf_counter() - started
    committed = matrix.load()
    worse = matrix.worse(builds, matrix.held(committed)) if diff else []
    if diff and committed.get("triton") != porting.triton.__version__:
        # another compiler spills elsewhere; what it does not compile at all is worth a sentence still
        worse = [text for text in worse if "fails now" in text]
    if save:
        matrix.PAGE.write_text(matrix.page(matrix.save(builds)))
    if as_json:
        print(json.dumps([asdict(build) for build in builds], indent=0))
    else:
        out.print(tables.ports(builds, archs, matrix.cell))
        for build in (build for build in builds if build.error):
            err.print(f"{build.op} on {build.arch}, {build.case}: {build.error}", highlight=False, markup=False)
        out.print(f"{len(builds)} kernels for {len(archs)} architectures in {seconds:.0f} s", highlight=False)
    for text in worse:
        err.print(f"worse: {text}", highlight=False, markup=False, soft_wrap=True)
    broken = [build for build in builds if build.error and not build.config]
    return 1 if worse or (broken and not diff) else 0


def foresee(
    ops: list[str],
    archs: list[str],
    count: int,
    most: int,
    limit_s: float,
    workers: int,
    save: bool,
    sources: list[str],
    as_json: bool,
) -> int:
    drawn, started = forecast.work(ops, archs, count, sources), time.monotonic()
    work, willing = forecast.part(drawn, most)
    sampled = ((point, point) for point in forecast.sample(work, workers))
    points: list[forecast.Point] = []
    for _, point in tables.progress(sampled, len(work), "foreseeing", None if as_json else err):
        points.append(point)
        if limit_s and time.monotonic() - started > limit_s:
            break
    rows = forecast.table(points, willing)
    if save:
        made = {"count": count, "most": most, "drawn": len(drawn), "seed": forecast.SEED, "limit_s": porting.LIMIT_S}
        made |= {"triton": porting.triton.__version__}
        report = {**made, "rows": rows}
        matrix.PAGE.write_text(matrix.page(matrix.save([], report)))
    if as_json:
        print(json.dumps({"rows": rows, "points": [asdict(point) for point in points]}, indent=0))
        return 0
    table = Table(title="foreseen and found", title_justify="left")
    slow = f"over {porting.LIMIT_S} s"
    for column in ("op", "runs, as foreseen", "refused, and fails", "missed", "refused needlessly", slow):
        table.add_column(column, justify="left" if column == "op" else "right")
    for op, row in rows.items():
        table.add_row(
            op, *(str(row[cell]) for cell in ("right passes", "right refusals", "missed", "needless", "slow"))
        )
    out.print(table)
    for point in points:
        if point.cell in ("missed", "needless", "slow"):
            where = f"{point.cell}: {point.op} on {point.arch}, {point.case}, {point.config}"
            err.print(f"{where}: {point.found or point.foreseen}", highlight=False, markup=False, soft_wrap=True)
    shares = f"{forecast.misses(rows):.1%} of the real failures missed, at most {forecast.most_misses(rows):.1%} (95%)"
    out.print(shares, highlight=False)
    return 0


def fit(ops: list[str], archs: list[str], workers: int, sources: list[str], as_json: bool) -> int:
    """Defaults are compiled, and where they spill, what is near them."""
    work = porting.tasks(ops, archs, ["perf"], ["default"], sources)
    builds: list[porting.Build] = []
    for _, found in tables.progress(porting.run(work, workers), len(work), "compiling", None if as_json else err):
        builds += found
    rows = []
    for op, arch, entries in fitting.fit(matrix.spilling(builds), tuple(sources), workers):
        file = fitting.save(op, arch, entries)
        still = [entry for entry in entries if entry["spills"]]
        matrix.PAGE.write_text(matrix.page(matrix.save([], fitted=fitting.rows(op, arch, entries))))
        row = {"op": op, "arch": arch, "changed": sum(bool(entry["changes"]) for entry in entries), "still": len(still)}
        rows.append(row)
        if not as_json:
            text = f"{op} on {arch}: {row['changed']} of {len(entries)} cases get another config than the default, "
            out.print(f"{text}{row['still']} spill still", highlight=False, soft_wrap=True)
            if file:
                out.print(f"    {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(rows, indent=0))
    return 0


def explain(ops: list[str], archs: list[str], groups: list[str], config: str, sources: list[str], as_json: bool) -> int:
    try:
        point: dict[str, Any] = json.loads(config)
    except json.JSONDecodeError as error:
        raise fail(f"--explain takes JSON, '{{\"num_stages\": 3}}', not '{config}' ({error})") from error
    known, rows = registered(sources), []
    for name in ops:
        op = known[name]
        default = asdict(op.module("kernels").Config())
        if unknown := set(point) - set(default):
            raise fail(f"{name} has no knob named '{sorted(unknown)[0]}'; there are {', '.join(default)}")
        for case in dict.fromkeys(case for group in groups for case in op.spec.cases.get(group, ())):
            for arch in archs:
                if why := foreseen(op, case, {**default, **point}, ARCHS[arch]):
                    rows.append({"op": name, "case": case.id, "arch": arch, "why": why})
    if as_json:
        print(json.dumps(rows, indent=0))
    else:
        for row in rows:
            out.print(f"{row['op']} on {row['arch']}, {row['case']}: {row['why']}", highlight=False, soft_wrap=True)
        out.print(f"{len(rows)} launches will not run, as far as can be foreseen", highlight=False)
    return 1 if rows else 0
