"""Seeded bugs: does the lab catch them?

A mutant is a copy of `reference/` and `kernels/` with one bug written in, imported as a package of its own and put
through the same trials as the real thing. A change in a kernel is held against the sound reference; where a bug is
written into the reference and the kernel alike, only an oracle that needs no reference can see it. A mutant nobody
kills names a hole in the lab.
"""

import importlib
import pkgutil
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..reference import ops, spec
from . import mutants as _mutants
from .oracles import Subject, Trial, Verdict, implementation

ROOT = Path(ops.__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """`changes` are (file, old text, new text); the old text stands exactly once in the file. A bug in what no default
    takes is tried with values of the kernel's `config`, on the cases whose id holds `where`."""

    name: str
    op: str
    bug: str
    changes: tuple[tuple[str, str, str], ...]
    config: tuple[tuple[str, object], ...] = ()
    where: str = ""


@dataclass(frozen=True)
class Fate:
    mutant: Mutant
    killer: Verdict | None

    @property
    def killed(self) -> bool:
        return self.killer is not None


def seeded(names: Iterable[str] | None = None) -> list[Mutant]:
    """Every mutant of the named ops, or of all."""
    wanted = None if names is None else set(names)
    found = []
    for module in sorted(info.name for info in pkgutil.iter_modules(_mutants.__path__)):
        if wanted is None or module in wanted:
            found += importlib.import_module(f"{_mutants.__name__}.{module}").MUTANTS
    # one that has lost its place would raise where it is tried, and count as caught
    for mutant in found:
        edited(mutant)
    return found


def edited(mutant: Mutant) -> dict[str, str]:
    """The text of every file it changes; a ValueError if a change does not find its place."""
    texts: dict[str, str] = {}
    for file, old, new in mutant.changes:
        text = texts.get(file) or (ROOT / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"mutant {mutant.name}: {file} holds {text.count(old)} times, not once: {old!r}")
        texts[file] = text.replace(old, new)
    return texts


def planted(mutant: Mutant, folder: Path) -> str:
    """Write the mutant's tree into `folder` and return the package it is importable as."""
    for part in ("reference", "kernels"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in edited(mutant).items():
        (folder / file).write_text(text)
    package = ops.mount(folder)
    # one Spec type for all: the lab asks isinstance() of rules that the mutant's SPEC made
    importlib.import_module(f"{package}.reference")
    sys.modules[f"{package}.reference.spec"] = spec
    return package


def fate(mutant: Mutant, device: torch.device, off: frozenset[str] = frozenset()) -> Fate:
    """Try the mutant on the op's cases until an oracle objects."""
    return Fate(mutant, next(objections(mutant, device, off), None))


def killers(mutant: Mutant, device: torch.device) -> tuple[set[str], set[str]]:
    """The oracles that object on any case; and those that do when fresh memory is zero instead of poison."""
    seen = {verdict.oracle for verdict in objections(mutant, device, frozenset())}
    return seen, {v.oracle for v in objections(mutant, device, frozenset({"poison"}))} if "poison" in seen else seen


def objections(mutant: Mutant, device: torch.device, off: frozenset[str]) -> Iterator[Verdict]:
    """Every failure of the mutant on the op's smoke and edge cases, as it is found."""
    with tempfile.TemporaryDirectory(prefix="draftwood-mutant-") as name:
        package = planted(mutant, Path(name))
        try:
            siblings = {op: ops.Op(op, package) for op in ops.OPS}
            op = siblings[mutant.op]
            config = op.module("kernels").Config(**dict(mutant.config)) if mutant.config else None
            subject = Subject(implementation(op, "kernels", siblings, config), device)
            for case in (*op.spec.cases["smoke"], *op.spec.cases["edge"]):
                if mutant.where not in case.id:
                    continue
                for verdict in Trial(op, case, 0, subject, off).verdicts():
                    if verdict.status in ("fail", "error"):
                        yield verdict
        finally:
            for loaded in [module for module in sys.modules if module.split(".")[0] == package]:
                del sys.modules[loaded]
