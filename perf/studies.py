"""What `draftwood tune` does besides tuning: say what a storage holds, time whole spaces, race a config against itself,
replay samplers on landscapes."""

import json
import time
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from .terminal import fail, out

if TYPE_CHECKING:
    from ..autotune.space import Problem


def status(problems: list["Problem"], storage: str, as_json: bool) -> None:
    from ..autotune.storage import open_storage
    from ..autotune.trials import Trials

    opened = open_storage(storage)
    rows: list[dict[str, Any]] = []
    for problem in problems:
        held = list(Trials(problem, opened).finished().values())
        ran = [record for record in held if record.outcome.status == "ok"]
        best = min(ran, key=lambda record: record.outcome.us, default=None)
        rows.append(
            {
                "op": problem.op_name,
                "case": problem.case.id,
                "finished": len(held),
                "of": len(problem.points),
                "refused": {s: n for s in ("wrong", "refused", "crashed", "hung") if (n := _count(held, s))},
                "best": best.point if best else None,
                "us": best.outcome.us if best else None,
                "illegal": dict(problem.refusals()) if as_json else None,
            }
        )
    if as_json:
        return print(json.dumps(rows, indent=1))
    table = Table(title_justify="left")
    for column in ("op", "case", "finished", "not right", "best us", "best"):
        table.add_column(column, overflow="fold")
    for row in rows:
        bad = ", ".join(f"{count} {status}" for status, count in row["refused"].items())
        us = f"{row['us']:.2f}" if row["us"] else "–"
        table.add_row(row["op"], row["case"], f"{row['finished']}/{row['of']}", bad or "–", us, str(row["best"] or "–"))
    out.print(table)


def _count(held: list[Any], status: str) -> int:
    return sum(record.outcome.status == status for record in held)


def survey(problems: list["Problem"], device: str, as_json: bool) -> None:
    import torch

    from ..autotune import drive, landscape, timer

    machine = timer.machine(torch.device(device))
    held: dict[str, dict[str, Any]] = {}
    for problem, found in landscape.survey(problems, torch.device(device), drive.cores()):
        held.setdefault(problem.op_name, {})[problem.case.id] = found
        file = landscape.HOME / machine.gpu / f"{problem.op_name}.json.gz"
        landscape.save(file, problem.op_name, problem.kernel_hash, machine, list(held[problem.op_name].values()))
        if not as_json:
            best = f"best {found.best:.2f} us" if found.passes else "nothing ran"
            out.print(f"{problem.op_name} {problem.case.id}: {len(found.passes)} points, {best}", highlight=False)


def same(problems: list["Problem"], device: str, count: int, as_json: bool) -> None:
    from ..autotune.worker import Isolated, Post

    rows: list[dict[str, Any]] = []
    for problem in problems:
        runner = Isolated(problem, Post(device))
        default = runner.facts["default"]
        verdicts = [runner.ask("duel", default, default).verdict for _ in range(count)]
        runner.close()
        alike = verdicts.count("tie")
        rows.append({"op": problem.op_name, "case": problem.case.id, "races": count, "no_difference": alike})
        if not as_json:
            out.print(f"{problem.op_name} {problem.case.id}: no difference {alike} of {count} times", highlight=False)
    total, alike = sum(r["races"] for r in rows), sum(r["no_difference"] for r in rows)
    if as_json:
        print(json.dumps({"races": total, "no_difference": alike, "cases": rows}, indent=1))
    else:
        out.print(f"A/A: no difference {alike} of {total} times", highlight=False)
    raise typer.Exit(0 if alike >= 0.95 * total else 1)


def simulate(ops: list[str] | None, case: str, samplers: list[str], first: int, count: int, as_json: bool) -> None:
    from ..autotune import landscape, simulate
    from ..autotune.sampler import NAMES

    wanted = samplers or [name for name in NAMES if name != "grid"]
    files = [file for file in sorted(landscape.HOME.glob("*/*.json.gz")) if not ops or file.name.split(".")[0] in ops]
    if not files:
        raise fail(f"no landscape of {', '.join(ops or ['any op'])} under {landscape.HOME}")
    curves, started, seeds = [], time.perf_counter(), range(first, first + count)
    for file in files:
        held = landscape.load(file)
        for one in held:
            if case not in one.case.id or len(one.points) < simulate.SMALLEST:
                continue
            for sampler in wanted:
                budget = 3 * simulate.tenth(len(one.points))
                name = file.name.split(".")[0]
                curves += [simulate.replay(name, file.parent.name, one, sampler, seed, budget) for seed in seeds]
            # the same with the winner of another case of the op tried first
            if others := [other.fastest for other in held if other is not one and other.fastest in one.points]:
                curves += [
                    simulate.replay(name, file.parent.name, one, wanted[0], seed, budget, tuple(others[:1]))
                    for seed in seeds
                ]
    rows = simulate.table(curves)
    if not (ops or case or samplers):
        simulate.save(rows, seeds)
    if as_json:
        return print(json.dumps({"rows": rows, "curves": [simulate.as_dict(curve) for curve in curves]}, indent=0))
    out.print(regrets(rows))
    seconds = time.perf_counter() - started
    out.print(f"{len(curves)} searches in {seconds:.0f} s; best on average: {simulate.winner(rows)}", highlight=False)


def regrets(rows: list[dict[str, Any]]) -> Table:
    """Regret after a tenth of the exhaustive trials, and trials until within 2 % of the optimum."""
    table = Table(title="after a tenth of all points", title_justify="left")
    for column in ("op", "case", "points", "sampler"):
        table.add_column(column, overflow="fold")
    for column in ("trials", "within 2 %", "regret", "worst", "trials to 2 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["op"],
            row["case"][:40],
            str(row["points"]),
            row["sampler"],
            str(row["trials"]),
            f"{row['within_2']:.0%}",
            f"{row['regret_median']:.1%}",
            f"{row['regret_worst']:.1%}",
            f"{row['trials_to_2']:.0f}",
        )
    return table
