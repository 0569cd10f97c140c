"""What every command shares: consoles, options, and refusing in one sentence."""

import dataclasses
import json
import sys
from typing import Annotated, Any

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


def given(ops: list[str], text: str, sources: list[str]) -> Any:
    """The one op's Config, with what this JSON says in place of its defaults."""
    from ..reference.ops import find

    if len(ops) != 1:
        raise fail("--config needs exactly one op")
    op = find(ops[0], sources)
    if not op.has("kernels"):
        raise fail(f"{op.name} has no kernel here, and so no config")
    default = op.module("kernels").Config()
    known = {field.name for field in dataclasses.fields(default)}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise fail(f"--config is no JSON: {error}") from error
    if not isinstance(values, dict) or (unknown := sorted(set(values) - known)):
        named = f"'{unknown[0]}'" if isinstance(values, dict) else "no object"
        raise fail(f"--config: {named} is nothing that {op.name} has; there are {', '.join(sorted(known))}")
    return dataclasses.replace(default, **values)
