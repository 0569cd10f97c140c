"""The table of ops that a model runs on: the kernels, or the references they are held against."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..reference.ops import OPS, Op

IMPLS = ("kernels", "reference")


class Ops(SimpleNamespace):
    """One function an op, under the op's name."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"no op named '{name}'")


def table(impl: str) -> Ops:
    if impl not in IMPLS:
        raise ValueError(f"ops come as {' or '.join(IMPLS)}, not '{impl}'")
    return Ops(**{name: Op(name).function(impl) for name in OPS})
