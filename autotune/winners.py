"""Committed configs: what won, on which case, and what it was made with.

    autotune/configs/<gpu>/<op>.json, one entry a line:
    {"schema": 2, "op": …, "gpu": …, "entries": [
     {"case": {…}, "config": {…}, "us": {p20, p50, p80}, "default_us": …, "roof": …, "tried": 24, "of": 162,
      "stamp": {"kernel": hash, "space": hash, "torch": …, "triton": …, "driver": …, "date": …}}, …]}

Where nothing that was tried is faster than the default beyond the noise, the default stays: `config` is empty and
changes nothing, `default` says what it was on this case. Such an entry keeps the winner of a neighbouring case away.
`within` bounds sizes, {"M": [1, 8]}, where the config is not legal beyond.
kernels/config.py reads `case`, `config` and `within` and no more. An entry whose stamp differs from what is here is
stale: it is still used, and `draftwood doctor` says so.
"""

import json
import math
from pathlib import Path
from typing import Any

from ..kernels.config import CONFIGS, entries, homes, nearest
from .outcome import Verdict
from .space import Point, Problem
from .timer import Machine

SCHEMA = 2
STAMPED = ("torch", "triton", "driver")


def stamp(problem: Problem, machine: Machine) -> dict[str, str]:
    versions = {key: getattr(machine, key) for key in STAMPED}
    return {"kernel": problem.kernel_hash, "space": problem.space_hash, **versions, "date": machine.date}


def within(problem: Problem, asked: dict[str, Any], point: Point) -> dict[str, list[int | None]]:
    """Sizes that the launcher is asked by, and the least and the largest of each for which the config is legal, as far
    as the op's cases tell; only where there is such a bound. A launch outside is not served."""
    spec, legal, own = problem.op.spec, problem.op.module("autotune").legal, problem.case
    found: dict[str, list[int | None]] = {}
    if legal(point, own, problem.gpu) is not None:
        # a default beside the space: it runs anywhere
        return found
    sizes = {name: size for name, size in asked.items() if not isinstance(size, str) and own.get(name) == size}
    for name, size in sizes.items():
        listed = {case[name] for group in spec.cases.values() for case in group if isinstance(case.get(name), int)}
        probes = sorted({size, *listed, *(value + 1 for value in listed)})
        bad = [value for value in probes if legal(point, own.but(**{name: value}), problem.gpu) is not None]
        low = max((value + 1 for value in bad if value < size), default=0)
        high = min((value - 1 for value in bad if value > size), default=None)
        if low or high is not None:
            found[name] = [low, high]
    return _kept_from(problem, asked, sizes, point, found)


def _kept_from(
    problem: Problem, asked: dict[str, Any], sizes: dict[str, int], point: Point, found: dict[str, list[int | None]]
) -> dict[str, list[int | None]]:
    """The same bounds, narrower where a case would be served that differs in what the launcher is not asked by, say an
    epilogue, and the config is not legal there."""
    spec, legal, own = problem.op.spec, problem.op.module("autotune").legal, problem.case
    strings = {name for name, value in asked.items() if isinstance(value, str)}
    listed = dict.fromkeys(case for group in spec.cases.values() for case in group)
    like = [case for case in listed if all(case.get(name) == own.get(name) for name in strings)]
    near = dict.fromkeys(one for case in like for one in (case, *(case.but(**{n: own[n]}) for n in sizes)))
    for case in near:
        apart = {n: math.log2(max(1, case[n])) - math.log2(max(1, own[n])) for n in sizes}
        far = max(apart, key=lambda n: abs(apart[n]), default="")
        entry = {"case": own.as_dict(), "config": {}, "within": found}
        served = far and apart[far] and nearest([entry], {n: case[n] for n in sizes})
        if not served or spec.refuse(case) is not None or legal(point, case, problem.gpu) is None:
            continue
        low, high = found.get(far, [0, None])
        found[far] = [case[far] + 1, high] if apart[far] < 0 else [low, case[far] - 1]
    return found


def made(
    problem: Problem, machine: Machine, verdict: Verdict, read_gb_s: float, asked: dict[str, Any] | None = None
) -> dict[str, Any]:
    p20, p50, p80 = (round(us, 3) for us in verdict.us)
    roof = problem.op.spec.cost(problem.case).bytes / p50 / 1e3 / read_gb_s if read_gb_s else 0.0
    bounds = within(problem, asked or {}, verdict.winner) if not verdict.kept else {}
    return {
        "case": problem.case.as_dict(),
        "config": {} if verdict.kept else {**problem.defaults, **verdict.winner},
        "us": {"p20": p20, "p50": p50, "p80": p80},
        "default_us": round(verdict.default_us, 3),
        "roof": round(roof, 4),
        "tried": verdict.tried,
        "of": len(problem.points),
        "stamp": stamp(problem, machine),
        **({"within": bounds} if bounds else {}),
        **({"default": {**problem.defaults, **verdict.winner}} if verdict.kept else {}),
    }


def stays(
    problem: Problem,
    machine: Machine,
    default: Point,
    us: tuple[float, float, float],
    read_gb_s: float,
    before: dict[str, Any],
) -> dict[str, Any]:
    """An entry of the default, where what was picked (`before`: the case's own entry, if any) was raced and lost."""
    verdict = Verdict(default, us, us[1], "", before.get("tried", 0), kept=True)
    return made(problem, machine, verdict, read_gb_s)


def load(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["entries"] if file.exists() else []


def save(op: str, gpu: str, found: list[dict[str, Any]], home: Path = CONFIGS) -> Path:
    """Write entries into the op's file for this GPU; entries of other cases that stand there stay."""
    file = home / gpu / f"{op}.json"
    merged = {json.dumps(one["case"], sort_keys=True): one for one in (*load(file), *found)}
    head = {"schema": SCHEMA, "op": op, "gpu": gpu}
    lines = ",\n".join(json.dumps(merged[key]) for key in sorted(merged))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head)[:-1] + ', "entries": [\n' + lines + "\n]}\n")
    return file


def carried(problem: Problem, listed: list[dict[str, Any]]) -> Point | None:
    """What won on the nearest of these cases, where it can be tried on this one."""
    dims = {name: value for name, value in problem.case.as_dict().items() if isinstance(value, (int, str))}
    if (entry := nearest(listed, dims, math.inf)) is None:
        return None
    point = {knob: entry["config"].get(knob, problem.defaults.get(knob)) for knob in problem.space}
    return point if point in problem.points else None


def warm(problem: Problem, most: int = 3) -> tuple[Point, ...]:
    """What won on the nearest case here, on a GPU of the same architecture, on an older relative: tried first."""
    found: list[Point] = []
    for home, _ in homes(problem.gpu):
        point = carried(problem, entries(problem.op_name, home))
        if point is not None and point not in found:
            found.append(point)
    return tuple(found[:most])


def stale(one: dict[str, Any], problem: Problem, machine: Machine) -> list[str]:
    """What has changed since the entry was made; 'no stamp' where it does not say."""
    then = one.get("stamp")
    if then is None:
        return ["no stamp"]
    now = stamp(problem, machine)
    named = {"kernel": "the kernel's code", "space": "the space"}
    return [
        f"{named[key]} has changed" if key in named else f"{key} {then[key]} -> {now[key]}"
        for key in ("kernel", "space", *(STAMPED if machine.gpu != "cpu" else ()))
        if then[key] != now[key]
    ]
