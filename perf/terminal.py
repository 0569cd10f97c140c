"""What every command shares: consoles, options, and refusing in one sentence."""

import sys
from typing import Annotated

import typer
from rich.console import Console

# a pipe has no width: tables keep their columns there
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)

Ops = Annotated[
    list[str] | None,
    typer.Argument(help="Ops to take; all of them by default. `draftwood list` names them.", show_default=False),
]
Sources = Annotated[
    list[str],
    typer.Option(
        "--ops",
        envvar="DRAFTWOOD_OPS",
        help="A folder or package with ops of your own (reference/<op>.py, kernels/<op>.py); repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of a table.")]


def fail(sentence: str, code: int = 2) -> "typer.Exit":
    err.print(f"[red]draftwood:[/red] {sentence}", highlight=False)
    return typer.Exit(code)


def choose(names: list[str] | None, sources: list[str]) -> list[str]:
    """The named ops, checked; all registered ones where none is named."""
    from ..reference.ops import find, registered

    try:
        return [find(name, sources).name for name in names] if names else list(registered(sources))
    except ValueError as error:
        raise fail(str(error)) from error
