"""What is shown while cases are tuned, and the table at the end."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from .terminal import err

if TYPE_CHECKING:
    from ..autotune.space import Problem
    from ..autotune.tuner import Event


class Screen:
    """While cases are tuned: a bar a device on a terminal, elsewhere a line for each thing that matters."""

    def __init__(self, console: Console | None, problems: list["Problem"]) -> None:
        self.console = console
        self.problems = {problem.name: problem for problem in problems}
        self.current: dict[str, tuple[Problem, float]] = {}
        self.best: dict[str, float] = {}
        self.bars: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console or err, transient=True, disable=console is None)

    def __call__(self, device: str, event: "Event") -> None:
        match event.kind:
            case "started":
                self.current[device] = (self.problems[event.extra["name"]], event.extra["read_gb_s"])
                self.best.pop(device, None)
            case "trial":
                self._trial(device, event)
            case "gate" | "skipped":
                return
            case _:
                self._line(f"{device} {event.kind}: {event.text}")

    def _trial(self, device: str, event: "Event") -> None:
        assert event.record is not None
        outcome = event.record.outcome
        problem, read = self.current[device]
        if outcome.status != "ok":
            self._line(f"[yellow]{outcome.status}[/yellow] {problem.op_name} {event.record.point}: {outcome.why}")
            self._line(f"    {outcome.command}")
        if event.best and event.best.outcome.us != self.best.get(device):
            self.best[device] = event.best.outcome.us
            if not (self.console and self.console.is_terminal):
                self._line(f"{problem.op_name} {event.done}/{event.of} {self._describe(event, problem, read)}")
        if self.console:
            text = f"{device} {problem.op_name} {event.case[:32]}  {self._describe(event, problem, read)}"
            if device not in self.bars:
                self.bars[device] = self.progress.add_task(text, total=event.of)
            self.progress.update(self.bars[device], description=text, completed=event.done, total=event.of)

    def _describe(self, event: "Event", problem: "Problem", read_gb_s: float) -> str:
        if event.best is None:
            return "nothing right yet"
        us = event.best.outcome.us
        roof = (
            f", {problem.op.spec.cost(problem.case).bytes / us / 1e3 / read_gb_s:.0%} of the roof" if read_gb_s else ""
        )
        return f"best {us:.2f} us{roof}"

    def _line(self, text: str) -> None:
        if self.console:
            self.progress.console.print(text, highlight=False)


def winners(rows: list[dict[str, Any]]) -> Table:
    table = Table(title_justify="left")
    for column in ("op", "case", "config"):
        table.add_column(column, overflow="fold")
    for column in ("us", "default", "gain", "roof", "tried"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    entry = row["entry"]
    if entry is None:
        return [row["op"], "", row["why"], *["–"] * 5]
    us, default = entry["us"]["p50"], entry["default_us"]
    return [
        row["op"],
        " ".join(f"{name}={value}" for name, value in entry["case"].items()),
        " ".join(f"{name}={value}" for name, value in entry["config"].items()) or "the default",
        f"{us:.2f}",
        f"{default:.2f}" if default else "–",
        f"{default / us:.2f}x" if default else "–",
        f"{entry['roof']:.1%}" if entry["roof"] else "–",
        f"{entry['tried']}/{entry['of']}",
    ]
