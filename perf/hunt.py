"""Hunting seeded bugs: how many the lab catches, and what each oracle is needed for."""

import json
from typing import Any

from rich.console import Console

from ..lab import check as lab
from ..lab.mutation import seeded
from . import tables


def kill(ops: list[str], plan: lab.Plan, jobs: int, out: Console, err: Console | None) -> int:
    """Print each bug and the oracle that caught it first; exit code 1 under a kill rate of 95 %. JSON without `err`."""
    work = [lab.Job(mutant.op, mutant=mutant) for mutant in seeded(ops)]
    rows: list[dict[str, Any]] = []
    for job, killers in tables.progress(lab.run(work, plan, jobs), len(work), "hunting", err):
        killer = killers[0] if killers else None
        found = {"killed_by": killer.oracle if killer else None, "case": killer.case if killer else None}
        rows.append({"mutant": job.mutant.name, "op": job.op, "bug": job.mutant.bug, **found})
    rows.sort(key=lambda row: (row["op"], row["mutant"]))
    survivors = [row["mutant"] for row in rows if row["killed_by"] is None]
    rate = 1 - len(survivors) / len(rows)
    if err is None:
        print(json.dumps({"rate": rate, "mutants": rows}, indent=0))
    else:
        out.print(tables.hunted(rows))
        out.print(_rate(rate, len(rows), survivors), highlight=False)
    return 0 if rate >= 0.95 else 1


def ablate(ops: list[str], plan: lab.Plan, jobs: int, out: Console, err: Console | None) -> int:
    """Put every bug before every oracle, and print what would survive without each; exit code as of `kill`."""
    work = [lab.Job(mutant.op, mutant=mutant, ablate=True) for mutant in seeded(ops)]
    seen: dict[str, set[str]] = {}
    zeroed: dict[str, set[str]] = {}
    for job, found in tables.progress(lab.run(work, plan, jobs), len(work), "ablating", err):
        names = {verdict.oracle for verdict in found}
        zeroed[job.mutant.name] = {name.removeprefix("zeroed ") for name in names if name.startswith("zeroed ")}
        seen[job.mutant.name] = {name for name in names if not name.startswith("zeroed ")}
    rows = []
    for oracle in sorted(set().union(*seen.values())):
        # without the poison oracle memory is not poisoned: what else saw the poison sees zeros
        left = {name: (zeroed if oracle == "poison" else seen)[name] - {oracle} for name in seen}
        rows.append(
            {
                "oracle": oracle,
                "kills": sum(oracle in found for found in seen.values()),
                "rate_without": sum(map(bool, left.values())) / len(seen),
                "only_it": sorted(name for name in seen if seen[name] and not left[name]),
            }
        )
    survivors = sorted(name for name in seen if not seen[name])
    rate = 1 - len(survivors) / len(seen)
    if err is None:
        print(json.dumps({"mutants": len(seen), "rate": rate, "survivors": survivors, "oracles": rows}, indent=0))
    else:
        out.print(tables.ablation(rows, len(seen)))
        out.print(_rate(rate, len(seen), survivors), highlight=False)
    return 0 if rate >= 0.95 else 1


def _rate(rate: float, tried: int, survivors: list[str]) -> str:
    named = "; survivors: " + ", ".join(survivors) if survivors else ""
    return f"kill rate {rate:.1%}: {tried - len(survivors)} of {tried}{named}"
