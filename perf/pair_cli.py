"""`draftwood train` and `draftwood pair`: make the small pair that ships with the repository, and study it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .terminal import Json, err, fail, out


def train(
    folder: Annotated[Path, typer.Argument(help="Where the files of the pair, and of the runs, go.")] = Path("pair"),
    minutes: Annotated[float, typer.Option(help="Time for both trainings; a GPU needs about 8.")] = 8.0,
    seed: Annotated[int, typer.Option()] = 0,
    library: Annotated[
        Path | None,
        typer.Option(help="Another Python's standard library than this one's: …/lib/python3.11.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a small Qwen3.5 target and its DFlash draft on the standard library of this Python.

    Stopped and started again it goes on where it was. It ends with the target as GGUF (F16 and a Q4_K_M mix), the draft
    as safetensors and Q8_0 GGUF, and a card.
    """
    import torch

    from ..models.train import pair

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    if device.type == "cpu":
        err.print("[yellow]no GPU: the same minutes make a much weaker pair here[/yellow]")

    def tell(row: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            err.print("  ".join(f"{key} {value}" for key, value in row.items()), highlight=False)

    try:
        files = pair.make(folder, minutes, seed, device, tell, library)
    except ModuleNotFoundError as error:
        raise fail(f"training needs the tokenizers package: pip install 'draftwood[model]' ({error})") from error
    size = sum(file.stat().st_size for file in files)
    out.print(f"{folder}: {len(files)} files, {size / 2**20:.1f} MiB; `draftwood pair --folder {folder}` studies them")


def study(
    studies: Annotated[
        list[str] | None, typer.Argument(help="modes, ranks, caches, weights, rollback, lossless; all by default.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="A pair that `draftwood train` made; the one that ships.", show_default=False)
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts a setting.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens written after each.")] = 128,
    budgets: Annotated[str, typer.Option(help="Of trees, by comma.")] = "8,16,22,40,64,128,256",
    length: Annotated[str, typer.Option(help="Of texts whose perplexity is taken, by comma.")] = "1024,4096",
    lossless_prompts: Annotated[int, typer.Option(help="Prompts of the study lossless.")] = 100,
    lossless_tokens: Annotated[int, typer.Option(help="Tokens written after each of them.")] = 256,
    save: Annotated[bool, typer.Option(help="Write perf/results/<gpu or cpu>/pair/.")] = False,
    as_json: Json = False,
) -> None:
    """Study the small pair: accept length and speed by mode and budget, ranks by depth, what caches, weights and
    rollbacks cost, and whether chain and tree write what the target writes alone.

    On a GPU the kernels run, elsewhere the references.
    """
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    import torch

    from ..autotune import timer
    from ..models import shipped
    from ..models.gguf import BadFile
    from . import pair

    chosen = studies or list(pair.STUDIES)
    if unknown := [one for one in chosen if one not in pair.STUDIES]:
        raise fail(f"no study named '{unknown[0]}'; there are {', '.join(pair.STUDIES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    impl = "kernels" if device.type == "cuda" else "reference"
    try:
        setting = pair.Setting(device, folder or shipped.FOLDER, prompts, tokens=tokens, impl=impl)
        bench = pair.Bench(setting)
    except BadFile as error:
        raise fail(str(error)) from error
    # of so small a model threads would wait for one another longer than they work
    torch.set_num_threads(1)
    lengths = [int(part) for part in length.split(",")]
    run = {
        "modes": lambda: bench.modes([int(part) for part in budgets.split(",")]),
        "ranks": bench.ranks,
        "caches": lambda: bench.caches(lengths),
        "weights": lambda: bench.weights(lengths[0]),
        "rollback": lambda: bench.rollback(lengths[0]),
        "lossless": lambda: bench.lossless(lossless_prompts, lossless_tokens),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    machine = timer.machine(device)
    for name in chosen:
        found[name] = []
        for row in run[name]():
            found[name].append(row)
            if not as_json:
                err.print(
                    f"{name}: " + "  ".join(f"{k} {v}" for k, v in row.items() if not isinstance(v, (list, dict)))
                )
            if save:
                pair.save(machine, "draftwood " + " ".join(sys.argv[1:]), found)
    if as_json:
        print(json.dumps({"machine": machine.as_dict(), **found}, indent=1))
        return
    for name, rows in found.items():
        out.print(ranks_table(rows[0]) if name == "ranks" else rows_table(name, rows))
    out.print(f"{machine.name} ({machine.gpu}), torch {machine.torch}; {impl}", highlight=False)


def rows_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(str(row.get(column, "–")) for column in columns))
    return table


def ranks_table(row: dict[str, Any]) -> Table:
    """Shares of steps, by depth below the root."""
    table = Table(title="the target's token among the draft's candidates", title_justify="left")
    table.add_column("depth", justify="right")
    for rank in range(len(row["hits"][0])):
        table.add_column(f"rank {rank + 1}", justify="right")
    table.add_column("none", justify="right")
    for depth, (hits, offers) in enumerate(zip(row["hits"], row["offers"], strict=True), start=1):
        of = max(offers[0], 1)
        table.add_row(str(depth), *(f"{hit / of:.1%}" for hit in hits), f"{1 - sum(hits) / of:.1%}")
    return table
