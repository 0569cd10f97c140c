"""What can be tried on one case, and what makes two trials the same.

    SPACE, legal (autotune/<op>.py)  ->  points: knob -> value, the legal ones
    a point over the op's defaults   ->  config: every field of the kernel's Config
    config + kernel hash + versions  ->  identity: two trials of one identity are one trial

The kernel hash covers the code of `kernels/<op>.py` and of what it uses from `kernels/`, without comments, docstrings
and empty lines: a reworded comment re-times nothing, nor does another function beside those that are used; a changed
line does.
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
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

    @cached_property
    def _legal(self) -> Callable[[Point, Case, str], str | None]:
        return self.op.module("autotune").legal

    def refusal(self, point: Point) -> str | None:
        """Why the point cannot be tried, in a sentence, or None."""
        return self._legal(point, self.case, self.gpu)

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
        return _hashed(Path(self.op.module("kernels").__file__ or "").parent, self.op_name)

    @cached_property
    def space_hash(self) -> str:
        return digest(self.space, [list(point.values()) for point in self.points])


@cache
def _hashed(root: Path, name: str) -> str:
    # an op's cases share it: to read the code takes longer than a trial
    return digest(code(root, name))


def code(root: Path, name: str) -> dict[str, str]:
    """The code of `kernels/<name>.py` and of what it uses from that folder, relative path -> text: of a file beside it
    only the definitions that are reached, so that another op's function changes nothing here."""
    needed: dict[Path, dict[int, ast.stmt]] = {}
    waiting: list[tuple[Path, str]] = [(root / f"{name}.py", "")]
    seen: set[tuple[Path, str]] = set()
    while waiting:
        file, wanted = found = waiting.pop()
        # config.py chooses a config and is no part of what runs with it
        if found in seen or file == root / "config.py" or not file.is_file():
            continue
        seen.add(found)
        body, (owned, borrowed) = _parsed(file).body, _names(root, file)
        for node in [node for node in body if not wanted or wanted in _defined(node)]:
            needed.setdefault(file, {})[node.lineno] = node
            if isinstance(node, ast.ImportFrom):
                continue
            used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            waiting += [(file, one) for one in used & owned if wanted]
            waiting += [borrowed[one] for one in used & borrowed.keys()]
        # a name that is handed on from another file
        waiting += [borrowed[wanted]] if wanted in borrowed else []
    return {
        file.relative_to(root).as_posix(): "\n".join(_text(file, nodes[line]) for line in sorted(nodes))
        for file, nodes in sorted(needed.items())
    }


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return set()


@cache
def _names(root: Path, file: Path) -> tuple[set[str], dict[str, tuple[Path, str]]]:
    """What a file defines, and what it borrows from others of the folder: (file, name), or (file, "") for all of it."""
    owned, borrowed = set[str](), dict[str, tuple[Path, str]]()
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                module = base / f"{alias.name}.py"
                source = (module, "") if module.is_file() else (base.with_suffix(".py"), alias.name)
                if source[0].is_relative_to(root):
                    borrowed[alias.asname or alias.name] = source
    for statement in _parsed(file).body:
        owned |= _defined(statement)
    return owned, borrowed


def _text(file: Path, node: ast.stmt) -> str:
    decorators = getattr(node, "decorator_list", [])
    start = min([node.lineno, *(one.lineno for one in decorators)])
    return _bare("\n".join(file.read_text().splitlines()[start - 1 : node.end_lineno]))


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
