"""How a product's time grows with the rows of x: t(M) for M = 1, 2, ... `python -m draftwood.perf.widths --help`

    t(M + 1) / t(M)   at most 1.10 where there is no cliff: a tree of one node more costs no more than its share

A verify step has as many rows as the tree has nodes, so a cliff here is a width at which drafting more is for nothing.
Without a GPU three widths of a small reference are timed, and the table says so.
"""

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..reference.ops import registered
from ..reference.spec import Case, case
from . import drift

SHAPES = ((5120, 17408, "q4_k"), (17408, 5120, "q4_k"))
CLIFF = 1.10
err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 200)


def case_of(M: int, shape: tuple[int, int, str], precision: str) -> Case:
    K, N, format = shape
    return case(
        M=M, N=N, K=K, format=format, precision=precision, dtype="f16", epilogue="none", scales="usual", layout="tiles"
    )


def curve(shape: tuple[int, int, str], precision: str, most: int, device: torch.device) -> list[float]:
    """Microseconds for 1, 2, ..., `most` rows on the same weights."""
    from ..autotune import timer

    op = registered()["dequant_matmul"]
    function = op.function("kernels" if device.type == "cuda" else "reference")
    sets = timer.operands(op, case_of(most, shape, precision), device)
    times = []
    for M in range(1, most + 1):
        runs = [functools.partial(function, **{**inputs, "x": inputs["x"][:M].clone()}) for inputs in sets]
        times.append(round(timer.measure(runs, device, replays=15, budget_s=0.1).p50, 3))
    return times


def steps(times: list[float]) -> list[float]:
    """t(M + 1) / t(M)."""
    return [after / before for before, after in itertools.pairwise(times)]


def table(rows: list[dict[str, Any]], title: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    for column in ("product", "precision", "1", "8", "16", "23", "32", "64", "largest step", "cliffs"):
        drawn.add_column(column, justify="left" if column in ("product", "precision", "cliffs") else "right")
    for row in rows:
        us, ratios = row["us"], steps(row["us"])
        some = [f"{us[M - 1]:.1f}" if len(us) >= M else "" for M in (1, 8, 16, 23, 32, 64)]
        largest = max(range(len(ratios)), key=ratios.__getitem__)
        cliffs = ", ".join(f"{M + 1}->{M + 2}" for M, ratio in enumerate(ratios) if ratio > CLIFF)
        where = f"{ratios[largest]:.3f} ({largest + 1}->{largest + 2})"
        drawn.add_row(row["product"], row["precision"], *some, where, cliffs or "none")
    return drawn


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """A picture of all curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(range(1, len(row["us"]) + 1), row["us"], marker=".", label=f"{row['product']} {row['precision']}")
    axes.set_xlabel("rows of x")
    axes.set_ylabel("us")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=64, help="rows of x, from 1 to this many")
    parser.add_argument("--precision", default="exact,int8", help="by comma")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write perf/results/<gpu>/widths.json and .png")
    args = parser.parse_args()
    device = drift.interpreted_without_gpu()
    from ..autotune import timer
    from . import bench

    on_gpu = device.type == "cuda"
    most, shapes = (args.most, SHAPES) if on_gpu else (3, ((512, 64, "q4_k"),))
    if on_gpu:
        widths = sorted({1, *range(2, most + 1, 8), most})
        pairs = [(shape, precision) for shape in shapes for precision in args.precision.split(",")]
        bench.precompile([("dequant_matmul", case_of(M, *pair)) for pair in pairs for M in widths])
    rows = []
    for K, N, format in shapes:
        for precision in args.precision.split(","):
            us = curve((K, N, format), precision, most, device)
            rows.append({"product": f"{format} {K}->{N}", "precision": precision, "us": us})
    machine = timer.machine(device)
    report = {"schema": 1, "versions": machine.as_dict(), "command": "python -m draftwood.perf.widths"}
    if args.save and on_gpu:
        home = bench.RESULTS / machine.gpu
        home.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        (home / "widths.json").write_text(json.dumps(report)[:-1] + ', "rows": [\n' + lines + "\n]}\n")
        draw(rows, home / "widths.png")
    if args.json:
        print(json.dumps({**report, "rows": rows}, indent=1))
    else:
        where = machine.name if on_gpu else "references on a CPU: times say nothing about a GPU"
        out.print(table(rows, f"microseconds by rows of x, {where}"))


if __name__ == "__main__":
    main()
