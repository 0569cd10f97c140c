"""Run smoke cases under triton-viz's symbolic sanitizer: `python -m draftwood.lab.symbolic [OP …]`, in its own
environment.

The sanitizer does not execute a kernel: it asks a solver whether any address can leave its tensor. Outputs stay as they
were, so nothing is compared here. A kernel that uses what it does not model is named, not passed.
"""

import argparse
import sys
from typing import Any

import torch
import triton
import triton_viz
from triton_viz.clients import Sanitizer

_jit = triton.jit
_watching: list[Sanitizer] = []


def _watched_jit(fn: Any = None, **options: Any) -> Any:
    """triton.jit whose kernels are traced; put in place before any kernel is imported."""
    if fn is None:
        return lambda inner: _watched_jit(inner, **options)
    _watching.append(Sanitizer(abort_on_error=False))
    return triton_viz.trace(client=_watching[-1])(_jit(fn, **options))


def _found() -> int:
    return sum(len(sanitizer.records) for sanitizer in _watching)


def main() -> int:
    triton.jit = _watched_jit
    from ..reference.ops import registered

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="*")
    parser.add_argument("--ops", action="append", default=[])
    args = parser.parse_args()
    found = registered(args.ops)
    objections = unmodelled = 0
    for name in args.op or found:
        op = found[name]
        for case in op.spec.cases["smoke"]:
            before = _found()
            inputs = op.spec.inputs(case, torch.Generator().manual_seed(0))
            try:
                op.function("kernels")(**inputs)
            except Exception as error:  # the solver's own limits, whatever they raise
                unmodelled += 1
                print(f"{name} {case.id}: not modelled: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
            outside = _found() - before
            objections += outside
            print(f"{name} {case.id}: {f'{outside} accesses out of bounds' if outside else 'within bounds'}")
    print(f"{objections} objections, {unmodelled} cases beyond the solver")
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main())
