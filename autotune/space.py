"""What can be tried on one case, and what makes two trials the same.

    SPACE, legal (autotune/<op>.py)  ->  points: knob -> value, the legal ones
    a point over the op's defaults   ->  config: every field of the kernel's Config
    config + kernel hash + versions  ->  identity: two trials of one identity are one trial

The kernel hash covers the code of `kernels/<op>.py` and of what it imports from `kernels/`, without comments,
docstrings and empty lines: a reworded comment re-times nothing, a changed line does.
"""

import ast
import dataclasses
import hashlib
import io
import itertools
import json
import re
import tokenize
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton

from ..reference.ops import Op, registered
from ..reference.spec import Case

Point = dict[str, Any]


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Problem:
    """One study: an op on one case on one GPU. Small enough to send to another process."""

    op_name: str
    case: Case
    gpu: str
    sources: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # what is cached belongs to this process: another mounts the sources itself
        return Problem, (self.op_name, self.case, self.gpu, self.sources)

    @cached_property
    def op(self) -> Op:
        return registered(self.sources)[self.op_name]

    @property
    def name(self) -> str:
        return f"{self.op_name}/{self.gpu}/{self.case.id}"

    @cached_property
    def space(self) -> dict[str, tuple[Any, ...]]:
        return self.op.module("autotune").SPACE

    def refusal(self, point: Point) -> str | None:
        """Why the point cannot be tried, in a sentence, or None."""
        return self.op.module("autotune").legal(point, self.case, self.gpu)

    @cached_property
    def points(self) -> list[Point]:
        """The legal points, in the order of SPACE. A module may name by `unread_by(case)` what a case does not read:
        `legal` refuses every value of such a knob but the first, and they are not gone through."""
        unread = getattr(self.op.module("autotune"), "unread_by", lambda _case: ())(self.case)
        axes = [values[:1] if knob in unread else values for knob, values in self.space.items()]
        every = (dict(zip(self.space, values, strict=True)) for values in itertools.product(*axes))
        return [point for point in every if self.refusal(point) is None]

    def refusals(self) -> Counter[str]:
        """How many points each sentence of `legal` refuses, numbers blanked so that like ones count together."""
        every = (dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values()))
        sentences = (self.refusal(point) for point in every)
        return Counter(re.sub(r"\d+", "#", text) for text in sentences if text)

    @cached_property
    def defaults(self) -> Point:
        """Every field of the kernel's Config at its default."""
        return dataclasses.asdict(self.op.module("kernels").Config())

    def config(self, point: Point) -> Any:
        return dataclasses.replace(self.op.module("kernels").Config(), **point)

    def identity(self, point: Point) -> str:
        return digest({**self.defaults, **point}, self.kernel_hash, torch.__version__, triton.__version__)

    @cached_property
    def kernel_hash(self) -> str:
        return digest(code(Path(self.op.module("kernels").__file__ or "").parent, self.op_name))

    @cached_property
    def space_hash(self) -> str:
        return digest(self.space, [list(point.values()) for point in self.points])


def code(root: Path, name: str) -> dict[str, str]:
    """The code of `kernels/<name>.py` and of what it imports from that folder, relative path -> text."""
    found: dict[str, str] = {}
    waiting = [root / f"{name}.py"]
    while waiting:
        file = waiting.pop()
        key = file.relative_to(root).as_posix()
        # config.py chooses a config and is no part of what runs with it
        if key in found or key == "config.py" or not file.is_file():
            continue
        text = file.read_text()
        found[key] = _bare(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                files = (base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names))
                waiting += [named for named in files if named.is_relative_to(root)]
    return found


def _bare(text: str) -> str:
    """Python source without comments, docstrings and empty lines; the same under every version of Python."""
    spans = [
        (t.start, t.end) for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False):
            at = node.body[0]
            assert at.end_lineno is not None and at.end_col_offset is not None
            spans.append(((at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)))
    lines = text.splitlines()
    for (row, start), (last, end) in sorted(spans, reverse=True):
        kept = lines[row - 1][:start] + lines[last - 1][end:]
        lines[row - 1 : last] = [kept, *[""] * (last - row)]
    return "\n".join(line.rstrip() for line in lines if line.strip())
