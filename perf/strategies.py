"""What each rollback strategy of tree_gdn costs: time, bytes and drift. `python -m draftwood.perf.strategies --help`

For trees of 4 to 128 slots, one layer of the 27B (48 value heads of 128 x 128):

    tree, commit   microseconds of tree_gdn and of gdn_commit of an accepted leaf, each by CUDA-graph replay
    bytes a node   what a node leaves behind for the commit
    drift          rms error of the state relative to f64 after `--drift` speculative steps (perf/drift.py), f32 state

--every times wy and its commit at each T from 1 to 64 instead: does the step's time jump anywhere? Blocks of nodes are
padded to 16, 32 or 64, so it may where one is left: after 16 and after 32.

Without a GPU the sizes are small, the references are timed, and the table says so.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..reference.ops import registered
from ..reference.spec import Case, Value
from ..reference.tree_gdn import STRATEGIES, saved_bytes
from . import drift

SLOTS = (4, 8, 16, 23, 32, 48, 64, 96, 128)
# no step of T may cost more than this, block bounds apart
JUMP = 1.10
SMALL = {"Hk": 1, "Hv": 2, "K": 32, "V": 32}
err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 200)


def cases(slots: int, strategy: str, sizes: dict[str, int]) -> dict[str, Case]:
    """The case of each op at this size; at most 16 nodes are accepted, as the 27B's draft allows."""
    found = registered()
    changes: dict[str, Value] = {**sizes, "T": slots, "strategy": strategy}
    return {
        "tree_gdn": found["tree_gdn"].spec.cases["perf"][0].but(**changes),
        "gdn_commit": found["gdn_commit"].spec.cases["perf"][0].but(**changes, D=min(16, slots)),
    }


def measured(slots: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    """One row a size and strategy."""
    device = drift.interpreted_without_gpu()
    from ..autotune import timer
    from . import bench

    on_gpu = device.type == "cuda"
    folder, sizes = ("kernels", {}) if on_gpu else ("reference", SMALL)
    study = drift.Study(steps=steps) if on_gpu else drift.SMALL
    drifted = drift.summary(drift.study_rows(study, device, folder))
    rows = []
    for T, strategy in track([(T, s) for T in slots for s in STRATEGIES], "timing", console=err):
        us = {}
        for name, case in cases(T, strategy, sizes).items():
            calls, _ = bench.calls(registered()[name], case, device, folder)
            us[name] = timer.measure(calls, device, replays=15, budget_s=0.2).p50
        case = cases(T, strategy, sizes)["tree_gdn"]
        rows.append(
            {
                "T": T,
                "strategy": strategy,
                "tree_us": round(us["tree_gdn"], 2),
                "commit_us": round(us["gdn_commit"], 2),
                "node_bytes": saved_bytes(case, 1),
                "drift": drifted[f"{strategy}/f32"]["state"],
                "drift_worst_head": drifted[f"{strategy}/f32"]["worst_head"],
            }
        )
    return rows


def at_every(most: int) -> list[dict[str, Any]]:
    """wy and its commit at T = 1 ... most, on the same states; `ratio` is that of T to T - 1."""
    device = drift.interpreted_without_gpu()
    from ..autotune import timer
    from ..lab.oracles import draw

    on_gpu = device.type == "cuda"
    folder, sizes = ("kernels", {}) if on_gpu else ("reference", SMALL)
    ops = registered()
    states: list[Any] = []
    rows: list[dict[str, Any]] = []
    for T in track(range(1, most + 1), "timing", console=err):
        row: dict[str, Any] = {"T": T}
        for name, case in cases(T, "wy", sizes).items():
            inputs = draw(ops[name].spec, case, 0, device)
            if not states:
                held = inputs["state"]
                count = timer.copies(held.numel() * held.element_size()) if on_gpu else 1
                states = [held.clone() for _ in range(count)]
            call = ops[name].function(folder)
            calls = [partial(call, **{**inputs, "state": state}) for state in states]
            row[name] = round(timer.measure(calls, device, replays=15, budget_s=0.1).p50, 3)
        if rows:
            row["ratio"] = round(row["tree_gdn"] / rows[-1]["tree_gdn"], 3)
        rows.append(row)
    return rows


def every_table(rows: list[dict[str, Any]], title: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    for column in ("T", "tree us", "of T - 1", "commit us"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ratio = row.get("ratio", 1.0)
        mark = " [bold]block[/bold]" if row["T"] in (17, 33) else " [red]jump[/red]" if ratio > JUMP else ""
        drawn.add_row(str(row["T"]), f"{row['tree_gdn']:.2f}", f"{ratio:.3f}{mark}", f"{row['gdn_commit']:.2f}")
    return drawn


def table(rows: list[dict[str, Any]], title: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    for column in ("T", "strategy", "tree us", "commit us", "both us", "bytes a node", "drift", "worst head"):
        drawn.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=True)
    for row in rows:
        both = f"{row['tree_us'] + row['commit_us']:.2f}"
        times = (f"{row['tree_us']:.2f}", f"{row['commit_us']:.2f}", both)
        errors = (f"{row['drift']:.1e}", f"{row['drift_worst_head']:.1e}")
        drawn.add_row(str(row["T"]), row["strategy"], *times, f"{row['node_bytes']:,}", *errors)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", default=",".join(map(str, SLOTS)), help="sizes of the trees, by comma")
    parser.add_argument("--drift", type=int, default=200, help="speculative steps behind the drift columns on a GPU")
    parser.add_argument("--every", action="store_true", help="wy at each T from 1 to 64: continuity")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write perf/results/<gpu>/strategies.json, or every.json")
    args = parser.parse_args()
    device = drift.interpreted_without_gpu()
    from ..autotune import timer
    from .bench import RESULTS

    slots = tuple(int(size) for size in args.slots.split(",")) if device.type == "cuda" else SLOTS[:3]
    rows = at_every(64 if device.type == "cuda" else 3) if args.every else measured(slots, args.drift)
    machine = timer.machine(device)
    report = {"schema": 1, "versions": machine.as_dict(), "layer": "48 value heads of 128 x 128, 16 key heads"}
    if device.type != "cuda":
        report["layer"] = "2 value heads of 32 x 32, references on a CPU: times say nothing about a GPU"
    if not args.every:
        report |= {"drift_steps": args.drift if device.type == "cuda" else drift.SMALL.steps}
    if args.save:
        file: Path = RESULTS / machine.gpu / ("every.json" if args.every else "strategies.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        file.write_text(json.dumps(report)[:-1] + ', "rows": [\n' + lines + "\n]}\n")
    if args.json:
        print(json.dumps({**report, "rows": rows}, indent=1))
    else:
        out.print((every_table if args.every else table)(rows, f"{machine.name}: {report['layer']}"))


if __name__ == "__main__":
    main()
