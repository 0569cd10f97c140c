"""The registry: names, and where each op's files are found. No decorators, no import-time registration.

An op is a module `reference/<op>.py` with a function `<op>` and a `SPEC`, and beside it `kernels/<op>.py` and, where it
is tunable, `autotune/<op>.py`. The repository's own ops are the tuple below. Others live in a folder or package of the
same layout:

    my_ops/reference/scale_rows.py   SPEC, scale_rows()
    my_ops/kernels/scale_rows.py     scale_rows(..., config=None)

named by `--ops PATH_OR_PACKAGE`, the environment variable DRAFTWOOD_OPS, or an entry point of the group
`draftwood.ops`.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .spec import Spec

OPS = (
    "dequant_matmul",
    "tree_gdn",
    "gdn_commit",
    "gdn_prefill",
    "tree_conv",
    "conv_line",
    "conv_commit",
    "kv_quant",
    "kv_move",
    "tree_attention",
    "prefill_attention",
    "tree_mask",
    "ddtree",
    "ddtree_walk",
    "topk_logprobs",
    "rms_norm",
    "gated_rms_norm",
    "rope",
    "qk_rope",
    "swiglu",
    "embed",
    "ring_rows",
    "ring_store",
    "advance",
)
HOME = "draftwood"


@dataclass(frozen=True)
class Op:
    """An op and the package its files live in."""

    name: str
    package: str = HOME

    def module(self, folder: str) -> ModuleType:
        """`folder` is reference, kernels or autotune."""
        return importlib.import_module(f"{self.package}.{folder}.{self.name}")

    def has(self, folder: str) -> bool:
        try:
            return importlib.util.find_spec(f"{self.package}.{folder}.{self.name}") is not None
        except ModuleNotFoundError:
            return False

    @property
    def spec(self) -> Spec:
        return self.module("reference").SPEC

    def function(self, folder: str) -> Any:
        return getattr(self.module(folder), self.name)


def registered(extra: Iterable[str] = ()) -> dict[str, Op]:
    """Every op by name: the repository's, those of installed entry points, then `extra` folders or packages."""
    found = {name: Op(name) for name in OPS}
    packages = [entry.value for entry in importlib.metadata.entry_points(group="draftwood.ops")]
    for source in (*packages, *(item for item in extra if item)):
        package, names = _outside(source)
        for name in names:
            if name in found:
                raise ValueError(f"op '{name}' of {source} is already registered by {found[name].package}")
            found[name] = Op(name, package)
    return found


def find(name: str, extra: Iterable[str] = ()) -> Op:
    ops = registered(extra)
    if name not in ops:
        raise ValueError(f"no op named '{name}'; there are {', '.join(ops)}")
    return ops[name]


def _outside(source: str) -> tuple[str, list[str]]:
    """The package name and the ops of a folder or importable package laid out like this repository."""
    path = Path(source)
    if path.is_dir():
        package, root = mount(path), path
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise ValueError(f"'{source}' is neither a folder nor an importable package ({error})") from error
        package, root = source, Path(next(iter(module.__path__)))
    names = sorted(file.stem for file in (root / "reference").glob("*.py") if not file.stem.startswith("_"))
    names = [name for name in names if hasattr(Op(name, package).module("reference"), "SPEC")]
    if not names:
        raise ValueError(f"{source} holds no reference/<op>.py with a SPEC")
    return package, names


def mount(folder: Path, package: str = "") -> str:
    """Make a folder importable as a package of its own and return the package's name; nothing is put on sys.path."""
    package = package or "draftwood_ops_" + "".join(c if c.isalnum() else "_" for c in str(folder.resolve()))
    if package not in sys.modules:
        module = ModuleType(package)
        module.__path__ = [str(folder.resolve())]
        sys.modules[package] = module
        importlib.invalidate_caches()
    return package
