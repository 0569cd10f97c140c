"""How the time of tree_attention grows with the context. `python -m draftwood.perf.context --help`

The 27B's layer (24 query heads on 4 of the cache, 256 wide) behind 8,192 to 258,048 rows, for one query and a tree of
23, by CUDA-graph replay on caches that rotate through memory. A line is laid through the times by least squares:

    us = fixed + per_1k * rows / 1024        worst: the largest deviation of a time from its line

Long caches repeat a drawn one of 4,096 rows. Without a GPU the sizes are small and the references are timed.
"""

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..reference.ops import find
from ..reference.spec import Case, Inputs
from . import drift

CONTEXTS = tuple(4096 * blocks for blocks in (2, 4, 8, 16, 32, 48, 63))
FORMATS = ("f16", "q8_0", "q4_0", "tq3_0")
ROWS = {1: "chain", 23: "ddtree"}
DRAWN = 4096
SMALL = {"H": 2, "Hkv": 1, "D": 128}
err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 200)


def repeated(case: Case, drawn: int, device: torch.device) -> Inputs:
    """The case's inputs, its committed rows those of a cache of `drawn` rows over and over."""
    from ..lab.oracles import draw

    op = find("tree_attention")
    context = int(case["context"])
    if context % drawn:
        raise ValueError(f"a context of {context} rows does not repeat {drawn}")
    inputs = draw(op.spec, case.but(context=drawn), 0, device)
    for name in ("cache_k", "cache_v"):
        cache = inputs[name]
        inputs[name] = torch.cat((cache[:, :drawn].repeat(1, context // drawn, 1), cache[:, drawn:]), 1)
    inputs["start"] = torch.full_like(inputs["start"], context)
    return inputs


def measured(
    contexts: tuple[int, ...], drawn: int, sizes: dict[str, int], device: torch.device
) -> list[dict[str, Any]]:
    from ..autotune import timer

    op = find("tree_attention")
    base = op.spec.cases["perf"][0].but(**sizes)
    function, rows = op.function("kernels" if device.type == "cuda" else "reference"), []
    todo = [(format, T, context) for format in FORMATS for T in ROWS for context in contexts]
    for format, T, context in track(todo, "timing", console=err):
        case = base.but(T=T, tree=ROWS[T], context=context, format_k=format, format_v=format)
        inputs = repeated(case, drawn, device)
        cold = {name: inputs[name] for name in op.spec.cold}
        count = timer.copies(sum(x.numel() * x.element_size() for x in cold.values())) if device.type == "cuda" else 1
        sets = [inputs, *({**inputs, **{n: x.clone() for n, x in cold.items()}} for _ in range(count - 1))]
        us = timer.measure([functools.partial(function, **s) for s in sets], device, replays=15, budget_s=0.15)
        rows.append({"format": format, "T": T, "context": context, "us": us.us()})
        del inputs, cold, sets
    return rows


def fits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The line through the times of each format and number of queries."""
    found = []
    for format, T in dict.fromkeys((row["format"], row["T"]) for row in rows):
        line = [row for row in rows if (row["format"], row["T"]) == (format, T)]
        x, y = [row["context"] / 1024 for row in line], [row["us"]["p50"] for row in line]
        slope, fixed = statistics.linear_regression(x, y)
        worst = max(abs(us / (fixed + slope * k) - 1) for k, us in zip(x, y, strict=True))
        r2 = statistics.correlation(x, y) ** 2 if len(x) > 1 else 1.0
        found.append({"format": format, "T": T, "fixed_us": fixed, "us_per_1k": slope, "worst": worst, "r2": r2})
    return found


def plot(rows: list[dict[str, Any]], lines: list[dict[str, Any]], title: str, file: Path) -> None:
    """Times and their lines, one panel a number of queries; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(ROWS), figsize=(12, 4), layout="constrained")
    for panel, T in zip(panels, ROWS, strict=True):
        for line in (line for line in lines if line["T"] == T):
            own = [row for row in rows if (row["format"], row["T"]) == (line["format"], T)]
            x = [row["context"] / 1024 for row in own]
            (dots,) = panel.plot(x, [row["us"]["p50"] for row in own], "o", markersize=4)
            ends = [0.0, max(x)]
            panel.plot(
                ends,
                [line["fixed_us"] + line["us_per_1k"] * k for k in ends],
                color=dots.get_color(),
                linewidth=1,
                label=f"{line['format']}: {line['fixed_us']:.1f} + {line['us_per_1k']:.3f} us a 1024 rows",
            )
        panel.set_title(f"T = {T}")
        panel.set_xlabel("context, 1024 rows")
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("us a layer")
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def table(rows: list[dict[str, Any]], lines: list[dict[str, Any]], title: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    contexts = sorted({row["context"] for row in rows})
    drawn.add_column("cache", no_wrap=True)
    for column in ("T", *(f"{context:,}" for context in contexts), "fixed", "us / 1024", "worst", "r2"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        us = {r["context"]: r["us"]["p50"] for r in rows if (r["format"], r["T"]) == (line["format"], line["T"])}
        times = (f"{us[context]:.1f}" for context in contexts)
        fit = (f"{line['fixed_us']:.1f}", f"{line['us_per_1k']:.3f}", f"{line['worst']:.1%}", f"{line['r2']:.5f}")
        drawn.add_row(line["format"], str(line["T"]), *times, *fit)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", help="rows before the queries, by comma; multiples of 4096 on a GPU")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write JSON and a PNG to perf/results/<gpu>/context")
    args = parser.parse_args()
    device = drift.interpreted_without_gpu()
    from ..autotune import timer
    from .bench import RESULTS

    on_gpu = device.type == "cuda"
    drawn, sizes, contexts = (DRAWN, {}, CONTEXTS) if on_gpu else (32, SMALL, (64, 128, 256))
    if args.contexts:
        contexts = tuple(int(rows) for rows in args.contexts.split(","))
    rows = measured(contexts, drawn, sizes, device)
    lines, machine = fits(rows), timer.machine(device)
    title = f"{machine.name}: tree_attention, 24 query heads on 4 of 256"
    if not on_gpu:
        title = f"{machine.name}: references on small shapes, times say nothing about a GPU"
    report = {"schema": 1, "versions": machine.as_dict(), "title": title, "fits": lines}
    if args.save:
        file: Path = RESULTS / machine.gpu / "context" / "tree_attention.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        held = ",\n".join(json.dumps(row) for row in rows)
        file.write_text(json.dumps(report)[:-1] + ', "rows": [\n' + held + "\n]}\n")
        plot(rows, lines, title, file.with_suffix(".png"))
    if args.json:
        print(json.dumps({**report, "rows": rows}, indent=1))
    else:
        out.print(table(rows, lines, title))


if __name__ == "__main__":
    main()
