"""What a bring-up found, as Markdown for a pull request."""

from typing import Any

from . import bench
from .port import Journal, Order, Part, turns


def report(order: Order, done: Journal, finished: bool) -> str:
    machine = done.of("doctor").get(("machine",))
    if machine is None:
        return f"# {order.gpu}\n\nNothing was done yet.\n"
    facts, packages = machine["machine"], machine["packages"]
    lines = [
        f"# {facts['GPU']} ({facts['folder']})",
        "",
        f"Written by `draftwood port`{'' if finished else '; NOT finished: the same command goes on'}. "
        f"torch {packages['torch']}, triton {packages['triton']}, driver {facts.get('driver', 'none')};",
        f"{facts.get('multiprocessors', '?')} multiprocessors, {facts.get('memory', '?')}, bandwidth measured: "
        f"{facts.get('bandwidth measured', 'not')}.",
        "",
        "| step | done | trouble | seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for step in ("doctor", "compile", "check", "bench", "tune", "again"):
        found = done.of(step)
        bad = sum(_bad(step, outcome) for outcome in found.values())
        lines.append(f"| {step} | {len(found)} | {bad or '–'} | {done.spent(step):.0f} |")
    lines += ["", "## Check", "", *_checked(done.of("check"))]
    lines += ["", "## Tune", "", *_by_op(turns(order, done), done.of("tune"))]
    lines += ["", "## Gain", "", *_gained(done.of("again"))]
    lines += ["", "## Bench", "", *_timed({**done.of("bench"), **done.of("again")})]
    lines += ["", "## Tuned cases", "", *_tuned(done.of("tune"))]
    return "\n".join(lines) + "\n"


def _bad(step: str, outcome: Any) -> bool:
    if step == "check":
        return any(verdict["status"] in ("fail", "error") for verdict in outcome)
    if step == "compile":
        return bool(outcome)
    if step == "tune":
        return outcome["entry"] is None
    return step in ("bench", "again") and "error" in outcome


def bad(done: Journal) -> int:
    """How many parts of any step went wrong."""
    return sum(
        _bad(step, outcome) for step, found in done.steps.items() if step != "seconds" for outcome in found.values()
    )


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _checked(found: dict[Part, Any]) -> list[str]:
    verdicts = [verdict for outcome in found.values() for verdict in outcome]
    wrong = [verdict for verdict in verdicts if verdict["status"] in ("fail", "error")]
    lines = [f"{len(verdicts)} verdicts on {len(found)} cases: {len(wrong)} failed.", ""]
    lines += [_row("op", "cases", "verdicts", "failed"), "| --- | ---: | ---: | ---: |"]
    for op in dict.fromkeys(op for op, _ in found):
        of = [verdict for verdict in verdicts if verdict["op"] == op]
        failed = sum(verdict["status"] in ("fail", "error") for verdict in of)
        lines.append(_row(op, sum(name == op for name, _ in found), len(of), failed))
    return [*lines, "", *(f"* {v['op']} {v['oracle']}: {v['detail']} `{v['command']}`" for v in wrong)]


def _timed(found: dict[Part, Any]) -> list[str]:
    lines = [_row("op", "case", "µs", "p20–p80", "of measured bandwidth", "x torch")]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for (op, case), row in found.items():
        if "error" in row:
            lines.append(_row(op, case, row["error"], "", "", ""))
            continue
        us, torch_us = row["us"], next(iter(row["baselines"].values()), None)
        times = f"{torch_us / us['p50']:.1f}" if torch_us else "–"
        spread = f"{us['p20']:.1f}–{us['p80']:.1f}"
        lines.append(_row(op, case.replace(",", " "), f"{us['p50']:.1f}", spread, f"{row['roof']:.0%}", times))
    return lines


def _by_op(parts: list[Part], found: dict[Part, Any]) -> list[str]:
    """What became of every op that can be tuned."""
    lines = [_row("op", "cases", "another config", "default stays", "nothing right", "not reached", "trials")]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for op in dict.fromkeys(op for op, _ in parts):
        cases = [part for part in parts if part[0] == op]
        listed = [found[part] for part in cases if part in found]
        moved, lost = sum(one["moved"] for one in listed), sum(one["entry"] is None for one in listed)
        tried = sum(one["entry"]["tried"] for one in listed if one["entry"])
        stays = len(listed) - moved - lost
        lines.append(_row(op, len(cases), moved, stays, lost or "–", len(cases) - len(listed) or "–", tried))
    return [*lines, "", "The default stays where nothing that was tried is faster beyond the noise."]


def _gained(found: dict[Part, Any]) -> list[str]:
    """The configs picked at the end, each raced against the default (against.json)."""
    raced = [bench.gain_row(op, row) for (op, _), row in found.items() if "default" in row]
    lines = [_row("op", "cases", "faster", "no difference", "slower", "mean gain", "largest")]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in bench.gains(raced):
        level = one["cases"] - one["faster"] - one["slower"]
        counts = one["cases"], one["faster"], level, one["slower"]
        lines.append(_row(one["op"], *counts, f"{one['mean']:.3f}", f"{one['most']:.2f}"))
    return lines


def _tuned(found: dict[Part, Any]) -> list[str]:
    lines = [
        _row("op", "case", "default µs", "µs", "gain", "tried", "config"),
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for (op, case), outcome in found.items():
        entry = outcome["entry"]
        if entry is None:
            lines.append(_row(op, case.replace(",", " "), outcome["why"], "", "", "", ""))
            continue
        us, default = entry["us"]["p50"], entry["default_us"]
        gain = f"{default / us:.2f}" if default and outcome["moved"] else "="
        config = (
            " ".join(f"{knob}={value}" for knob, value in entry["config"].items()) if outcome["moved"] else "default"
        )
        tried = f"{entry['tried']}/{entry['of']}"
        lines.append(_row(op, case.replace(",", " "), f"{default:.1f}", f"{us:.1f}", gain, tried, config))
    return lines
