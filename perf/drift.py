"""How far does the recurrent state drift over many speculative steps? `python -m draftwood.perf.drift --help`

Every step draws a tree and fresh tokens, verifies the tree with tree_gdn, accepts a random part of a random path and
commits it with gdn_commit, for every rollback strategy and state dtype side by side. The truth is the same accepted
tokens in f64, one after the other. Heads forget at different rates, with half-lives from 1 to 10,000 tokens: what
forgets fast carries no error far, what forgets slowly shows all of it.

    state error   rms(S - S64) / rms(S64) over all heads, after a step
    worst head    the same of the head that is furthest off, at the end
    o error       rms(o - o64) / rms(o64) over the accepted nodes, mean of the last tenth of the steps
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..reference import delta_rule, paths, tree
from ..reference.ops import find, registered
from ..reference.spec import DTYPES, Inputs
from ..reference.tree_gdn import STRATEGIES

STATES = ("f32", "bf16", "f16")
HALF_LIVES = (1, 10_000)
err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 200)


@dataclass(frozen=True)
class Study:
    """Sizes of one run; T slots a tree."""

    steps: int = 1000
    T: int = 23
    Hk: int = 2
    Hv: int = 8
    K: int = 128
    V: int = 128
    shape: str = "random"
    dtype: str = "bf16"
    seed: int = 0


# what a CPU without a GPU beside it does in half a minute
SMALL = Study(steps=10, T=9, Hk=1, Hv=2, K=32, V=32)


def weights(study: Study, generator: torch.Generator) -> Inputs:
    """A and dt_bias of heads whose half-lives at a = 0 lie evenly between the two of HALF_LIVES on a log scale."""
    low, high = (math.log(life) for life in HALF_LIVES)
    life = torch.linspace(low, high, study.Hv).exp()
    dt_bias = torch.full((study.Hv,), -2.0)
    return {"A": -math.log(2) / life / torch.nn.functional.softplus(dt_bias), "dt_bias": dt_bias}


def tokens(study: Study, generator: torch.Generator) -> Inputs:
    """One tree's rows, as a layer's convolution would hand them over."""
    T, Hk, Hv, K, V = study.T, study.Hk, study.Hv, study.K, study.V
    dtype = DTYPES[study.dtype]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, T, *shape, generator=generator)

    q, k, v = (torch.nn.functional.silu(normal(heads, size)) for heads, size in ((Hk, K), (Hk, K), (Hv, V)))
    a, b = normal(Hv) / 2, normal(Hv)
    return {name: x.to(dtype) for name, x in {"q": q, "k": k, "v": v, "a": a, "b": b}.items()}


def run(study: Study, device: torch.device, folder: str) -> Iterator[dict[str, Any]]:
    """One row a step: the number of accepted tokens, and the state and o error of every strategy and state dtype."""
    from ..lab.oracles import implementation

    generator = torch.Generator().manual_seed(study.seed)
    call = implementation(find("tree_gdn"), folder, registered())
    fixed = {name: x.to(device) for name, x in weights(study, generator).items()}
    wide = {name: x.double() for name, x in fixed.items()}
    truth = torch.zeros(1, study.Hv, study.V, study.K, dtype=torch.float64, device=device)
    held = {(s, d): truth.to(DTYPES[d]) for s in STRATEGIES for d in STATES}
    for step in range(study.steps):
        parents = tree.draw_batch(study.shape, 1, study.T, generator)
        path, length = paths.accepted(parents, study.T, "random", generator)
        taken, nodes = int(length), path[0, : int(length)].long()
        parents, path, length = (x.to(device) for x in (parents, path, length))
        drawn = {name: x.to(device) for name, x in tokens(study, generator).items()}
        ancestors = call("tree_mask", parents=parents)[0]
        rows = {name: x[:, nodes.to(device)].double() for name, x in drawn.items()}
        exact = _chain(rows, wide, truth)
        row: dict[str, Any] = {"step": step, "accepted": taken, "state": {}, "o": {}, "worst": {}}
        for (strategy, dtype), state in held.items():
            tree_inputs = {"parents": parents, "ancestors": ancestors, "strategy": strategy}
            o, saved = call("tree_gdn", **drawn, **fixed, state=state, **tree_inputs)
            kept = {name: drawn[name] for name in ("k", "v", "a", "b")}
            accepted = {"saved": saved, "path": path, "length": length, "strategy": strategy}
            call("gdn_commit", **kept, **fixed, state=state, **accepted)
            name = f"{strategy}/{dtype}"
            row["state"][name] = _apart(state, truth)
            row["o"][name] = _apart(o[:, nodes.to(device)], exact)
            row["worst"][name] = _apart(state[0], truth[0], (-2, -1)).max()
        yield row


def interpreted_without_gpu() -> torch.device:
    """Where kernels run here. Call it before anything imports Triton, which reads TRITON_INTERPRET once."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ["TRITON_INTERPRET"] = "1"
    from ..lab import interpreter

    interpreter.install()
    return torch.device("cpu")


def _chain(rows: Inputs, weights: Inputs, state: torch.Tensor) -> torch.Tensor:
    """The tokens one by one in f64; updates state, returns o."""
    heads = delta_rule.key_heads(rows["k"].shape[2], rows["v"].shape[2], "tiled").to(state.device)
    q, k = delta_rule.query(rows["q"], heads, state.dtype), delta_rule.key(rows["k"], heads, state.dtype)
    g = delta_rule.log_decay(rows["a"], weights["A"], weights["dt_bias"], state.dtype)
    beta, o = rows["b"].sigmoid(), torch.empty_like(rows["v"])
    for t in range(o.shape[1]):
        o[:, t], _, new = delta_rule.step(state, q[:, t], k[:, t], rows["v"][:, t], g[:, t], beta[:, t])
        state.copy_(new)
    return o


def _apart(got: torch.Tensor, want: torch.Tensor, over: tuple[int, ...] | None = None) -> torch.Tensor:
    """The error's rms over the truth's, of all or `over` these dimensions, still on the device."""
    error, size = (got.double() - want).square().mean(over), want.square().mean(over)
    return (error / size.clamp_min(1e-300)).sqrt()


def study_rows(study: Study, device: torch.device, folder: str, console: Console | None = None) -> list[dict[str, Any]]:
    """All steps, as plain numbers."""
    rows = list(track(run(study, device, folder), "drifting", study.steps, console=console, disable=console is None))
    kinds = ("state", "o", "worst")
    return [row | {kind: {name: float(x) for name, x in row[kind].items()} for kind in kinds} for row in rows]


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By strategy and state dtype: the state error after a tenth of the steps and at the end, the worst head, o."""
    tail = rows[-max(1, len(rows) // 10) :]
    return {
        name: {
            "state_at_tenth": statistics.fmean(row["state"][name] for row in rows[: max(1, len(rows) // 10)][-5:]),
            "state": statistics.fmean(row["state"][name] for row in tail),
            "worst_head": max(row["worst"][name] for row in tail),
            "o": statistics.fmean(row["o"][name] for row in tail),
        }
        for name in rows[0]["state"]
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """State error against steps, one panel a state dtype; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(STATES), figsize=(12, 4), sharey=True, layout="constrained")
    for panel, dtype in zip(panels, STATES, strict=True):
        for strategy in STRATEGIES:
            errors = [row["state"][f"{strategy}/{dtype}"] for row in rows]
            panel.semilogy([row["step"] + 1 for row in rows], errors, label=strategy, linewidth=1)
        panel.set_title(f"state in {dtype}")
        panel.set_xlabel("speculative steps")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("state error, rms relative to f64")
    panels[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def table(found: dict[str, dict[str, float]]) -> Table:
    drawn = Table(title_justify="left")
    drawn.add_column("strategy/state", no_wrap=True)
    for column in ("after a tenth", "at the end", "worst head", "o error"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for name, row in found.items():
        drawn.add_row(name, *(f"{row[key]:.2e}" for key in ("state_at_tenth", "state", "worst_head", "o")))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="speculative steps; 1000 on a GPU, 10 in the interpreter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--impl", choices=("kernels", "reference"), default="kernels")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--save", action="store_true", help="write perf/results/<gpu>/drift.json")
    parser.add_argument("--plot", type=Path, help="write this PNG; needs matplotlib")
    parser.add_argument("--of", type=Path, help="no run: plot and tabulate a file that --save wrote")
    args = parser.parse_args()
    if args.of:
        held = json.loads(args.of.read_text())
        names = list(held["steps"]["state"])
        rows: list[dict[str, Any]] = [
            {"step": i, "state": {name: held["steps"]["state"][name][i] for name in names}}
            for i in range(len(held["steps"]["accepted"]))
        ]
        found = held["summary"]
    else:
        device = interpreted_without_gpu()
        from ..autotune import timer
        from .bench import RESULTS

        sizes = Study() if device.type == "cuda" else SMALL
        study = Study(**{**vars(sizes), "seed": args.seed, **({"steps": args.steps} if args.steps else {})})
        started = time.perf_counter()
        rows = study_rows(study, device, args.impl, None if args.json else err)
        found = summary(rows)
        machine = timer.machine(device)
        if args.save:
            names = list(found)
            steps: dict[str, Any] = {
                "accepted": [row["accepted"] for row in rows],
                "state": {name: [float(f"{row['state'][name]:.4g}") for row in rows] for name in names},
            }
            head: dict[str, Any] = {"schema": 1, "versions": machine.as_dict(), "study": vars(study), "summary": found}
            file = RESULTS / machine.gpu / "drift.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({**head, "steps": steps}) + "\n")
        err.print(f"{study.steps} steps on {machine.name} in {time.perf_counter() - started:.0f} s", highlight=False)
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        out.print(table(found))


if __name__ == "__main__":
    main()
