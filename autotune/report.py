"""A study as one HTML file, pictures inside: best so far, importance of knobs, landscape, roofline, and every trial.

Needs matplotlib (pip install 'draftwood[report]'); the pictures are PNGs in the page, which needs nothing else.
"""

import base64
import html
import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .space import Problem
from .storage import open_storage
from .surrogate import Surrogate
from .trials import Record, Trials

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:2px 8px;text-align:left}"
    "img{max-width:100%}figure{margin:1em 0}code{font-size:12px}.bad{color:#a00}"
)


def write(problem: Problem, storage: str, read_gb_s: float, home: Path) -> Path:
    """The report of one problem's study; the file's name is the study's."""
    if find_spec("matplotlib") is None:
        raise ValueError("a report needs matplotlib; pip install 'draftwood[report]'")
    records = sorted(Trials(problem, open_storage(storage)).finished().values(), key=lambda record: record.number)
    if not records:
        raise ValueError(f"{problem.name} has no finished trial in this storage")
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in problem.name)
    home.mkdir(parents=True, exist_ok=True)
    pictures = draw(problem, records, read_gb_s)
    for kind, png in pictures.items():
        (home / f"{name}.{kind}.png").write_bytes(png)
    file = home / f"{name}.html"
    file.write_text(page(problem, records, pictures))
    return file


def draw(problem: Problem, records: list[Record], read_gb_s: float) -> dict[str, bytes]:
    """PNGs by name."""
    ran = [record for record in records if record.outcome.status == "ok"]
    if not ran:
        return {}
    pictures = {"best-so-far": _best_so_far(records), "landscape": _landscape(problem, ran)}
    if len(ran) >= 5:
        pictures["importance"] = _importance(problem, ran)
    if read_gb_s:
        pictures["roofline"] = _roofline(problem, ran, read_gb_s)
    return pictures


def importance(problem: Problem, ran: list[Record]) -> dict[str, float]:
    """How much of log2(us) each knob moves, alone: the spread of a model's mean over the knob's values, other knobs
    averaged over the legal points. In shares of their sum."""
    axes = {knob: values for knob, values in problem.space.items() if len(values) > 1}
    inside = [record for record in ran if all(record.point.get(knob) in axes[knob] for knob in axes)]
    if len(inside) < 3 or not axes:
        return {}
    code = lambda point: [axes[knob].index(point[knob]) / (len(axes[knob]) - 1) for knob in axes]
    tried = [code(record.point) for record in inside]
    x = np.array(tried + [code(point) for point in problem.points])
    model = Surrogate(x, np.zeros(len(x)))
    model.fit(list(range(len(tried))), np.log2([record.outcome.us for record in inside]))
    mean = model.expected(np.arange(len(tried), len(model.x)))
    moved = {}
    for knob, values in axes.items():
        groups = [[m for m, p in zip(mean, problem.points, strict=True) if p[knob] == value] for value in values]
        moved[knob] = float(np.var([np.mean(group) for group in groups if group]))
    total = sum(moved.values()) or 1.0
    return dict(sorted(((knob, part / total) for knob, part in moved.items()), key=lambda pair: -pair[1]))


# -- pictures ----------------------------------------------------------------------------------------------------------


def _figure(width: float = 8.0, height: float = 4.0) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    held = io.BytesIO()
    # no date in the file: the same study is the same picture
    figure.savefig(held, format="png", metadata={"Software": None})
    return held.getvalue()


def _best_so_far(records: list[Record]) -> bytes:
    figure, axis = _figure()
    best, line = math.inf, []
    for count, record in enumerate(records, start=1):
        if record.outcome.status == "ok":
            best = min(best, record.outcome.us)
            axis.plot(count, record.outcome.us, ".", color="tab:blue")
        else:
            axis.axvline(count, color="tab:red", alpha=0.25, linewidth=1)
        line.append(best)
    axis.step(range(1, len(line) + 1), line, where="post", color="black", label="best so far")
    axis.set(xlabel="trial (red: wrong, refused, crashed, hung)", ylabel="µs", yscale="log")
    axis.legend()
    return _png(figure)


def _importance(problem: Problem, ran: list[Record]) -> bytes:
    figure, axis = _figure(height=3.0)
    shares = importance(problem, ran)
    axis.barh(list(shares)[::-1], list(shares.values())[::-1])
    axis.set(xlabel="share of what the knobs move", xlim=(0, 1))
    return _png(figure)


def _landscape(problem: Problem, ran: list[Record]) -> bytes:
    """Time over the two knobs that move it most: the best of all trials in each cell."""
    shares = list(importance(problem, ran)) or [knob for knob, values in problem.space.items() if len(values) > 1]
    across, *rest = shares or list(problem.space)
    down = rest[0] if rest else across
    rows, columns = problem.space[down], problem.space[across]
    cells = np.full((len(rows) if rest else 1, len(columns)), np.nan)
    for record in ran:
        if record.point.get(across) in columns and record.point.get(down) in rows:
            at = (rows.index(record.point[down]) if rest else 0, columns.index(record.point[across]))
            cells[at] = np.nanmin([cells[at], record.outcome.us])
    figure, axis = _figure(height=1.2 + 0.6 * len(cells))
    image = axis.imshow(cells, aspect="auto", cmap="viridis_r")
    axis.set_xticks(range(len(columns)), [str(value) for value in columns])
    axis.set_yticks(range(len(cells)), [str(value) for value in rows] if rest else [""])
    axis.set(xlabel=across, ylabel=down if rest else "")
    for (row, column), us in np.ndenumerate(cells):
        if not np.isnan(us):
            axis.text(column, row, f"{us:.4g}", ha="center", va="center", fontsize=8, color="white")
    figure.colorbar(image, ax=axis, label="µs, the best of the cell")
    return _png(figure)


def _roofline(problem: Problem, ran: list[Record], read_gb_s: float) -> bytes:
    cost = problem.op.spec.cost(problem.case)
    floor = cost.bytes / read_gb_s / 1e3
    figure, axis = _figure(height=3.0)
    shares = sorted(floor / record.outcome.us for record in ran)
    axis.bar(range(len(shares)), shares, width=1.0)
    axis.axhline(1.0, color="black", linewidth=1)
    axis.set(xlabel="configs, slowest first", ylabel="share of the roof", ylim=(0, 1.05))
    axis.set_title(f"{cost.bytes / 1e6:.3g} MB at {read_gb_s:.0f} GB/s take {floor:.3g} µs", fontsize=10)
    return _png(figure)


# -- the page ----------------------------------------------------------------------------------------------------------


def page(problem: Problem, records: list[Record], pictures: dict[str, bytes]) -> str:
    ran = [record for record in records if record.outcome.status == "ok"]
    best = min(ran, key=lambda record: record.outcome.us, default=None)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(problem.name)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(problem.op_name)}</h1><p>{html.escape(problem.gpu)} · {html.escape(problem.case.id)}</p>",
        f"<p>{len(records)} of {len(problem.points)} legal points tried, {len(records) - len(ran)} were not right.</p>",
    ]
    if best:
        parts.append(f"<p>Fastest: <code>{_config(best)}</code>, {best.outcome.us:.3f} µs.</p>")
    for kind, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(f"<h2>{kind}</h2><figure><img alt='{kind}' src='data:image/png;base64,{data}'></figure>")
    parts.append("<h2>refused by the rules</h2><table>")
    parts += [f"<tr><td>{n}<td>{html.escape(text)}" for text, n in problem.refusals().most_common()]
    parts.append("</table><h2>trials</h2><table><tr><th>#<th>config<th>result<th>µs<th>p20–p80<th>notes")
    parts += [_row(record) for record in sorted(records, key=_rank)]
    return "\n".join([*parts, "</table>"])


def _rank(record: Record) -> tuple[bool, float, int]:
    return record.outcome.status != "ok", record.outcome.us, record.number


def _config(record: Record) -> str:
    return html.escape(" ".join(f"{knob}={value}" for knob, value in record.point.items()))


def _row(record: Record) -> str:
    outcome = record.outcome
    notes = html.escape(", ".join(outcome.notes))
    head = f"<tr><td>{record.number}<td><code>{_config(record)}</code>"
    if outcome.status == "ok":
        return f"{head}<td>ok<td>{outcome.us:.3f}<td>{outcome.spread[0]:.3f}–{outcome.spread[1]:.3f}<td>{notes}"
    why = f"{html.escape(outcome.why)}<br><code>{html.escape(outcome.command)}</code>"
    return f"{head}<td class=bad>{outcome.status}<td colspan=2>{why}<td>{notes}"
