"""How large a tree pays: expected tokens a second for the chain and for every budget.

    tokens a step = 1 + sum over the tree's nodes of the product of acceptances down to the node     (the 1 is the root)
    tok/s(budget) = tokens a step(budget) / t(budget + 1)

t(N) is the measured time of a step that verifies N rows. It may have cliffs and is not taken for convex: every budget
is looked at, and between two measured widths the dearer of both is charged. Acceptance is a curve, or a table where
there is none:

    tokens a step by budget   as papers and logs print them, or as `draftwood pair ranks` records them: of every step,
                              how much of what the target wrote lies in that step's own tree of each size
    accept[d][r]              share of steps in which the target's token at depth d is the draft's candidate of rank r,
                              given that the path to it was accepted

A table takes depths for independent. Where a step is easy all the way down or hard at once, and where each step grows
its tree by how sure its draft is, the products are too small: the curve is asked first.

Outside what was measured nothing is claimed.
A tree has to beat the best chain by more than `MARGIN`, else the answer is: use the chain.
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..reference.ddtree import grow

PUBLISHED = Path(__file__).resolve().parent / "acceptance.json"
MARGIN = 0.01
# one more row that makes a step this much dearer
CLIFF = 1.10


@dataclass(frozen=True)
class Acceptance:
    """`table` [L][K]; `tree` are tokens a step by budget, `chain` those of chains by their length."""

    name: str
    table: tuple[tuple[float, ...], ...] = ()
    tree: Mapping[int, float] | None = None
    chain: Mapping[int, float] | None = None
    source: str = ""

    def chains(self) -> dict[int, float]:
        """Tokens a step of a chain, by length."""
        if self.chain or not self.table:
            return dict(self.chain or {})
        total, path, found = 1.0, 1.0, {}
        for depth, row in enumerate(self.table, start=1):
            path *= row[0]
            total += path
            found[depth] = total
        return found

    def trees(self, largest: int, chain_seed: bool) -> dict[int, float]:
        """Tokens a step of a tree, by budget."""
        if self.tree or not self.table:
            return {budget: tokens for budget, tokens in (self.tree or {}).items() if budget <= largest}
        logs = torch.tensor(self.table).clamp_min(1e-12).log()
        found, depths = {}, len(self.table)
        if chain_seed:
            found = {n: tokens for n, tokens in self.chains().items() if n <= min(depths, largest)}
        total = 1.0
        for count, (ranks, _) in enumerate(grow(logs, largest, chain_seed), start=1):
            total += math.exp(sum(float(logs[d, r]) for d, r in enumerate(ranks)))
            if not chain_seed or count > depths:
                found[count] = total
        return found


@dataclass(frozen=True)
class Row:
    """One way to decode: rows verified a step, its time, what it yields."""

    kind: str
    size: int
    rows: int
    us: float
    tokens: float
    measured: bool

    @property
    def tok_s(self) -> float:
        return self.tokens / self.us * 1e6


@dataclass(frozen=True)
class Advice:
    best: Row
    rows: tuple[Row, ...]
    text: str
    cliffs: tuple[str, ...]


def charge(curve: Mapping[int, float], rows: int) -> tuple[float, bool] | None:
    """The time of a step of so many rows, and whether that width was measured; None outside the curve."""
    if rows in curve:
        return curve[rows], True
    below, above = [n for n in curve if n < rows], [n for n in curve if n > rows]
    if not below or not above:
        return None
    return max(curve[max(below)], curve[min(above)]), False


def advise(
    accept: Acceptance,
    tree_us: Mapping[int, float],
    chain_us: Mapping[int, float] | None = None,
    chain_seed: bool = True,
) -> Advice:
    """Every budget that the curves cover, and the one to use. `chain_us` is t(N) of a chain where it differs."""
    chains = chain_us or tree_us
    rows = []
    if alone := charge(chains, 1):
        rows.append(Row("autoregressive", 0, 1, alone[0], 1.0, alone[1]))
    for size, tokens in accept.chains().items():
        if cost := charge(chains, size + 1):
            rows.append(Row("chain", size, size + 1, cost[0], tokens, cost[1]))
    for size, tokens in accept.trees(max(tree_us) - 1, chain_seed).items():
        if cost := charge(tree_us, size + 1):
            rows.append(Row("tree", size, size + 1, cost[0], tokens, cost[1]))
    if not rows:
        raise ValueError(
            f"no width is both in the step costs ({min(tree_us)} to {max(tree_us)} rows) "
            f"and in the acceptances of {accept.name}"
        )
    plain = max((row for row in rows if row.kind != "tree"), key=lambda row: row.tok_s, default=None)
    tree = max((row for row in rows if row.kind == "tree"), key=lambda row: row.tok_s, default=None)
    steps = sorted(tree_us)
    cliffs = tuple(
        f"{a} -> {b} rows: {tree_us[b] / tree_us[a]:.2f}x"
        for a, b in itertools.pairwise(steps)
        if tree_us[b] / tree_us[a] > CLIFF ** (b - a)
    )
    return _advice(plain, tree, rows, cliffs)


def _advice(plain: Row | None, tree: Row | None, rows: list[Row], cliffs: tuple[str, ...]) -> Advice:
    if plain is None:
        assert tree is not None
        return Advice(tree, tuple(rows), f"use a tree of {tree.size}: no chain was measured to compare with", cliffs)
    name = "no speculation" if plain.kind == "autoregressive" else f"the chain of {plain.size}"
    if tree is None or tree.tok_s <= plain.tok_s * (1 + MARGIN):
        rest = (
            "" if tree is None else f"; the best tree, budget {tree.size}, makes {tree.tok_s / plain.tok_s:.2f}x of it"
        )
        return Advice(plain, tuple(rows), f"use {name}: {plain.tok_s:.0f} tok/s{rest}", cliffs)
    gain = tree.tok_s / plain.tok_s
    return Advice(tree, tuple(rows), f"use a tree of {tree.size}: {tree.tok_s:.0f} tok/s, {gain:.2f}x {name}", cliffs)


# -- files -------------------------------------------------------------------------------------------------------------


def _by_number(raw: Mapping[str, float] | None) -> dict[int, float]:
    return {int(key): float(value) for key, value in (raw or {}).items()}


def acceptance(raw: Mapping[str, Any]) -> Acceptance:
    """From JSON: {"name", "table": [[…]]} or {"name", "hits": [[…]], "offers": [[…]]}, and {"tree": {budget: tokens},
    "chain": {length: tokens}} beside it or in its place."""
    table = raw.get("table", ())
    if "hits" in raw:
        pairs = zip(raw["hits"], raw["offers"], strict=True)
        table = [[h / o if o else 0.0 for h, o in zip(hits, offers, strict=True)] for hits, offers in pairs]
    if any(not 0 <= p <= 1 for row in table for p in row) or any(sum(row) > 1 + 1e-6 for row in table):
        raise ValueError(
            f"acceptances of {raw.get('name', '?')}: each from 0 to 1, those of one depth at most 1 in all"
        )
    rows = tuple(tuple(float(p) for p in row) for row in table)
    named = raw.get("name", "unnamed"), rows, _by_number(raw.get("tree")), _by_number(raw.get("chain"))
    return Acceptance(*named, raw.get("source", ""))


def published(file: Path = PUBLISHED) -> dict[str, Acceptance]:
    return {raw["name"]: acceptance(raw) for raw in json.loads(file.read_text())["sets"]}


def costs(raw: Mapping[str, Any]) -> tuple[dict[int, float], dict[int, float]]:
    """(tree, chain) from JSON: {"tree_us": {rows: us}, "chain_us": {rows: us}}."""
    tree, chain = _by_number(raw.get("tree_us")), _by_number(raw.get("chain_us"))
    if not tree:
        raise ValueError('step costs are {"tree_us": {"9": 5200, "23": 6000, …}, "chain_us": {…}}: rows verified -> us')
    return tree, chain


def save(gpu: str, found: Advice, accept: Acceptance, made_with: Mapping[str, Any], home: Path) -> Path:
    """Write the choice beside the GPU's configs."""
    file = home / gpu / "budget.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    best = {"kind": found.best.kind, "size": found.best.size, "tok_s": round(found.best.tok_s, 1)}
    head = {"schema": 1, "gpu": gpu, "acceptance": accept.name, "choice": best, "why": found.text, **made_with}
    rows = [[r.kind, r.size, r.rows, round(r.us, 1), round(r.tokens, 3), round(r.tok_s, 1)] for r in found.rows]
    lines = ",\n".join(json.dumps(row) for row in rows)
    file.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + lines + "\n]}\n")
    return file
