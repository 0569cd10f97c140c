"""What the commands print: tables on standard output, progress on standard error."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..lab.oracles import Verdict
    from .ports import Build


def verdicts(ops: list[str], found: "list[Verdict]") -> Table:
    """Ops down, oracles across; a cell is passed/tried, or a dash where the oracle does not apply."""
    from ..lab.oracles import GENERAL

    table = Table(title="passed / tried", title_justify="left")
    oracles = [*GENERAL, *sorted({v.oracle for v in found} - set(GENERAL))]
    table.add_column("op", no_wrap=True)
    for name in oracles:
        table.add_column(name, justify="right", no_wrap=True)
    for op in ops:
        cells = []
        for name in oracles:
            tried = [v.status for v in found if v.op == op and v.oracle == name]
            ran = [status for status in tried if status != "skip"]
            good = ran.count("pass")
            color = "green" if good == len(ran) else "red"
            cells.append(f"[{color}]{good}/{len(ran)}[/{color}]" if ran else "skip" if tried else "–")
        table.add_row(op, *cells)
    return table


def hunted(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="seeded bugs", title_justify="left")
    for column in ("mutant", "killed by", "bug"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["mutant"], row["killed_by"] or "[red]survived[/red]", row["bug"])
    return table


def ablation(rows: list[dict[str, Any]], mutants: int) -> Table:
    """What each oracle is needed for: bugs that no other one sees."""
    table = Table(title=f"{mutants} seeded bugs, one oracle left out at a time", title_justify="left")
    for column in ("oracle", "kills", "kill rate without it"):
        table.add_column(column, justify="right" if column != "oracle" else "left", no_wrap=True)
    table.add_column("bugs only it sees", overflow="fold")
    for row in rows:
        table.add_row(row["oracle"], str(row["kills"]), f"{row['rate_without']:.1%}", ", ".join(row["only_it"]))
    return table


def ports(builds: "list[Build]", archs: list[str], cell: "Callable[[list[Build]], str]") -> Table:
    """Ops down, architectures across; a cell is compiled/tried."""
    table = Table(title="compiled / tried", title_justify="left")
    table.add_column("op", no_wrap=True)
    for arch in archs:
        table.add_column(arch, justify="right")
    for op in sorted({build.op for build in builds}):
        cells = []
        for arch in archs:
            here = [build for build in builds if build.op == op and build.arch == arch]
            color = "red" if any(b.error for b in here) else "yellow" if any(b.spills for b in here) else "green"
            cells.append(f"[{color}]{cell(here)}[/{color}]")
        table.add_row(op, *cells)
    return table


def timings(rows: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title_justify="left")
    for column in ("op", "case"):
        table.add_column(column, overflow="fold")
    raced = any("default" in row for entries in rows.values() for row in entries)
    for column in ("us", "p20–p80", "GB/s", "roof", "x torch", *(["x default"] if raced else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for op, entries in rows.items():
        for row in entries:
            us, others = row["us"], row["baselines"]
            torch_us = others.get("torch", others.get("torch (eager)"))
            ratio = f"{torch_us / us['p50']:.2f}" if torch_us else "–"
            case = " ".join(f"{name}={value}" for name, value in row["case"].items())
            table.add_row(
                op,
                case,
                f"{us['p50']:.2f}",
                f"{us['p20']:.2f}–{us['p80']:.2f}",
                f"{row['gb_s']:.0f}",
                f"{row['roof']:.1%}",
                ratio,
                *([_gain(row)] if raced else []),
            )
    return table


def _gain(row: dict[str, Any]) -> str:
    default = row.get("default")
    if default is None:
        return "–"
    return f"{default['gain']:.2f}" if default["verdict"].startswith("tuned is") else "="


def gains(rows: list[dict[str, Any]]) -> Table:
    """What the configs picked here gain over the defaults, by op (bench.gains)."""
    table = Table(title="configs picked here against the defaults", title_justify="left")
    for column in ("op", "cases", "faster", "no difference", "slower", "mean gain", "largest"):
        table.add_column(column, justify="right" if column != "op" else "left", no_wrap=True)
    for row in rows:
        level = row["cases"] - row["faster"] - row["slower"]
        slower = f"[red]{row['slower']}[/red]" if row["slower"] else "0"
        counts = str(row["cases"]), str(row["faster"]), str(level), slower
        table.add_row(row["op"], *counts, f"{row['mean']:.3f}", f"{row['most']:.2f}")
    return table


def duels(rows: list[dict[str, Any]]) -> Table:
    """A config against those picked here (bench.duel)."""
    table = Table(title="us: this config against the one picked here", title_justify="left")
    for column in ("op", "case"):
        table.add_column(column, overflow="fold")
    for column in ("picked", "this", "this / picked", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for row in rows:
        case = " ".join(f"{name}={value}" for name, value in row["case"].items())
        if row["verdict"] == "refused":
            table.add_row(row["op"], case, "–", "–", "–", row["why"])
        else:
            range_ = f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
            table.add_row(row["op"], case, f"{row['picked_us'][1]:.2f}", f"{row['us'][1]:.2f}", range_, row["verdict"])
    return table


def formats(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="relative rms errors; us of attention over 131072 rows", title_justify="left")
    for column in ("format", "id", "bits", "error", "theory", "attention", "us, 1 query", "us, 23"):
        table.add_column(column, justify="right" if column != "format" else "left", no_wrap=True)
    table.add_column("layout", overflow="fold")
    for row in rows:
        errors = [f"{row[name]:.2e}" if row.get(name) is not None else "–" for name in ("error", "theory", "attention")]
        us = [f"{row['us'][T]:.1f}" if T in row.get("us", {}) else "–" for T in ("1", "23")]
        table.add_row(row["format"], str(row["id"]), f"{row['bits']:g}", *errors, *us, row["layout"])
    return table


def progress(items: Any, total: int, what: str, console: Console | None) -> Iterator[Any]:
    """The items as they come, with a bar on standard error."""
    if console is None:
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            bar.update(task, advance=1, description=f"{what} {item[0].op}")
            yield item
