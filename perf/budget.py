"""`draftwood budget`: whether a tree pays here, and how large."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .terminal import Json, fail, out


def budget(
    cost: Annotated[
        str,
        typer.Option(
            help='Step costs, JSON: {"gpu": …, "tree_us": {"9": 5200, "23": 6000}, "chain_us": {…}}: rows -> us. '
            "perf/results/<gpu>/step.json of this GPU by default.",
            show_default=False,
        ),
    ] = "",
    accept: Annotated[
        str,
        typer.Option(
            help="Acceptances: a published set by a part of its name, or a file with a table of depths and ranks, "
            "or with the hits and offers that a run recorded.",
        ),
    ] = "qwen3.5-27b q4_k_m, HumanEval, RTX 3090",
    chain_seed: Annotated[bool, typer.Option(help="Trees that hold the whole chain first.")] = True,
    save: Annotated[bool, typer.Option(help="Write autotune/configs/<gpu>/budget.json.")] = False,
    as_json: Json = False,
) -> None:
    """Choose the tree: expected tokens a second of the chain and of every budget, from step costs and acceptances.

    A published set knows its own budgets and nothing between; a table by depth and rank gives every budget. Costs
    between measured widths are charged as the dearer neighbour, so a cliff is never averaged away.
    """
    from ..autotune import budget as trees
    from ..kernels.config import CONFIGS

    try:
        raw = json.loads(_costs(cost).read_text())
        tree_us, chain_us = trees.costs(raw)
        chosen = _acceptance(accept)
        found = trees.advise(chosen, tree_us, chain_us, chain_seed)
    except (ValueError, KeyError) as error:
        raise fail(str(error)) from error
    gpu = raw.get("gpu", "unknown")
    if save:
        made = {key: raw[key] for key in ("versions", "source") if key in raw}
        trees.save(gpu, found, chosen, made, CONFIGS)
    if as_json:
        print(json.dumps({"choice": asdict(found.best), "why": found.text, "rows": [asdict(r) for r in found.rows]}))
        return
    out.print(_table(found, chosen.name))
    for text in found.cliffs:
        out.print(f"cliff: {text}", highlight=False)
    out.print(f"{gpu}: {found.text}", highlight=False)


def _costs(file: str) -> Path:
    if file:
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file}")
        return Path(file)
    import torch

    from ..kernels.lib.device import folder
    from .bench import RESULTS

    if not torch.cuda.is_available():
        raise ValueError("no GPU here to take measured step costs of; name a file with --cost")
    found = RESULTS / folder(torch.device("cuda")) / "step.json"
    if not found.is_file():
        raise ValueError(f"no step costs were measured here ({found}); name a file with --cost")
    return found


def _acceptance(name: str) -> Any:
    from ..autotune import budget as trees

    if Path(name).is_file():
        return trees.acceptance(json.loads(Path(name).read_text()))
    sets = trees.published()
    fitting = [one for key, one in sets.items() if name.lower() in key.lower()]
    if len(fitting) != 1:
        raise ValueError(f"'{name}' names {len(fitting)} published sets and no file; there are: {'; '.join(sets)}")
    return fitting[0]


def _table(found: Any, name: str) -> Table:
    table = Table(title=f"acceptance: {name}", title_justify="left")
    for column in ("", "size", "rows", "step us", "tokens a step", "tok/s", "x best without a tree"):
        table.add_column(column, justify="right", no_wrap=True)
    plain = max((row.tok_s for row in found.rows if row.kind != "tree"), default=0.0)
    for row in found.rows:
        mark = "" if row.measured else "≤ "
        ratio = f"{row.tok_s / plain:.2f}" if plain else "–"
        style = "bold green" if row == found.best else None
        cells = (f"{mark}{row.us:.0f}", f"{row.tokens:.2f}", f"{row.tok_s:.0f}", ratio)
        table.add_row(row.kind, str(row.size), str(row.rows), *cells, style=style)
    return table
