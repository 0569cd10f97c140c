"""What an op IS, as data: `SPEC` in `reference/<op>.py` is a `Spec`, and everything else only reads it.

    dims + choices  -> hypothesis strategies, tuner buckets, the op's page
    inputs          -> the only maker of inputs: case, generator -> keyword arguments of the op
    cases           -> named lists: smoke (seconds in the interpreter), edge (bounds), qwen35 (27B shapes), perf (timed)
    tolerance       -> Bitwise, or Calibrated against the error of the same arithmetic in torch
    cost            -> least bytes moved and flops done, for rooflines

Reference and kernel take the same keyword arguments; the kernel takes `config=None` besides. A reference computes in
f32, or in f64 where its inputs are f64: so the lab gets its ground truth by handing the same function inputs raised to
f64.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Value = int | float | str | bool
Inputs = dict[str, Any]
Call = Callable[..., Any]


@dataclass(frozen=True)
class Dim:
    """A named size. `low..high` is what the op supports, `fuzz` how large a random test makes it."""

    name: str
    low: int
    high: int
    fuzz: int = 0
    multiple: int = 1
    doc: str = ""


@dataclass(frozen=True)
class Case:
    """One point of an op's space: named dims, dtypes and formats. Its id is its command-line name."""

    values: tuple[tuple[str, Value], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.values)[name]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.values).get(name, default)

    def as_dict(self) -> dict[str, Value]:
        return dict(self.values)

    @property
    def id(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.values)

    def but(self, **changes: Value) -> "Case":
        """This case with some values changed; a name it does not have is refused."""
        unknown = set(changes) - set(dict(self.values))
        if unknown:
            raise ValueError(f"case {self.id} has no value named {sorted(unknown)}")
        return Case(tuple((name, changes.get(name, value)) for name, value in self.values))


def case(**values: Value) -> Case:
    return Case(tuple(values.items()))


def product(**axes: Value | tuple[Value, ...]) -> tuple[Case, ...]:
    """Every combination of the axes that are tuples: `product(T=(1, 2), dtype="f32")` is two cases."""
    rows: list[dict[str, Value]] = [{}]
    for name, values in axes.items():
        spread = values if isinstance(values, tuple) else (values,)
        rows = [{**row, name: value} for row in rows for value in spread]
    return tuple(case(**row) for row in rows)


@dataclass(frozen=True)
class Bitwise:
    """Equal bit for bit to the reference: packing, indices, moves."""


@dataclass(frozen=True)
class Calibrated:
    """error(kernel) <= factor * error(torch at the same precision) + slack, both errors against the f64 reference.

    Held element by element and in the root mean square. The slack is `ulps` units of `compute`, the precision of the
    op's inner sums, at the element's size plus the tensor's rms, and one unit of the output's own dtype.
    """

    factor: float = 2.0
    ulps: float = 8.0
    compute: torch.dtype = torch.float32


Tolerance = Bitwise | Calibrated


@dataclass(frozen=True)
class Cost:
    """The least an op must do: bytes that must cross device memory, each once, and floating-point operations."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Mismatch:
    """What an op-specific oracle found: where, and the two values."""

    where: str
    got: float
    want: float


@dataclass(frozen=True)
class Spec:
    op: str
    formula: str
    dims: tuple[Dim, ...]
    inputs: Callable[[Case, torch.Generator], Inputs]
    cases: Mapping[str, tuple[Case, ...]]
    cost: Callable[[Case], Cost]
    tolerance: Tolerance | Callable[[Case], Mapping[str, Tolerance] | Tolerance] = Calibrated()
    choices: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    # names of what the function returns, in order
    outputs: tuple[str, ...] = ("out",)
    # inputs that the op changes in place; they are compared like outputs
    updates: tuple[str, ...] = ()
    # float inputs into which the lab plants NaN and infinities; "x:nan" is NaN alone
    nonfinite: tuple[str, ...] | Callable[[Case], tuple[str, ...]] = ()
    # inputs that a step reads cold from memory; the timer rotates these past the L2, the rest stays warm as in life
    cold: tuple[str, ...] = ()
    # a sentence for a combination of dims that the op does not support, else None
    illegal: Callable[[Case], str | None] = lambda _case: None
    # the op's own oracles: name -> (call, inputs, case, seed) -> mismatches; `call(op, **inputs)` runs the
    # implementation under test
    oracles: Mapping[str, Callable[[Callable[..., Any], Inputs, Case, int], Iterator[Mismatch]]] = field(
        default_factory=dict
    )
    # the standard deviation of the outputs of kernels of that precision, since each rounds its operands once
    scatter: Callable[[Case, Inputs], tuple[torch.Tensor, ...]] | None = None
    # what a user would pick instead: name -> prepare(inputs) -> run(), or None where it is no choice
    baselines: Mapping[str, Callable[[Inputs], Callable[[], Any] | None]] = field(default_factory=dict)

    def tolerances(self, case: Case) -> dict[str, Tolerance]:
        """The tolerance of every output and updated input of this case."""
        rule = self.tolerance if isinstance(self.tolerance, (Bitwise, Calibrated)) else self.tolerance(case)
        names = (*self.outputs, *self.updates)
        return (
            dict.fromkeys(names, rule)
            if isinstance(rule, (Bitwise, Calibrated))
            else {name: rule[name] for name in names}
        )

    def planted(self, case: Case) -> dict[str, tuple[float, ...]]:
        """The values that are planted in each float input of this case, one at a time."""
        entries = self.nonfinite(case) if callable(self.nonfinite) else self.nonfinite
        every = (float("nan"), float("inf"), float("-inf"))
        return {entry.split(":")[0]: every[:1] if entry.endswith(":nan") else every for entry in entries}

    def dim(self, name: str) -> Dim:
        return next(dim for dim in self.dims if dim.name == name)

    def refuse(self, case: Case) -> str | None:
        """Why this case is outside the op, in a sentence, or None."""
        known = {dim.name for dim in self.dims} | set(self.choices)
        if set(case.as_dict()) != known:
            return f"{self.op} takes {', '.join(sorted(known))}; the case names {', '.join(sorted(case.as_dict()))}"
        for dim in self.dims:
            size = case[dim.name]
            if not (isinstance(size, int) and dim.low <= size <= dim.high and size % dim.multiple == 0):
                grid = f" in steps of {dim.multiple}" if dim.multiple > 1 else ""
                return f"{self.op} supports {dim.name} from {dim.low} to {dim.high}{grid}, not {size}"
        for name, supported in self.choices.items():
            if case[name] not in supported:
                return f"{self.op} supports {name} in {', '.join(map(str, supported))}, not {case[name]}"
        return self.illegal(case)


DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def accumulator(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype a reference computes in: f64 if an input is f64, else f32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in it changed; tuples, lists and dicts are walked."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def raised(inputs: Inputs) -> Inputs:
    """The inputs with every float tensor in f64: what the f64 reference is given."""
    return map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t.clone())
