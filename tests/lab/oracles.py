"""The oracles: what must hold for any implementation of any op, on any case.

    numeric      agrees with the f64 reference as well as torch at the same precision does
    nonfinite    NaN and infinities planted in the inputs come out where the reference puts them
    poison       every element of every output is written
    redzone      not a byte next to an output, buffer or input is written, nor between its rows
    unchanged    inputs are as they were, but for those that the op updates
    repeat       the same inputs give the same bits, again and again, and a call leaves earlier results alone
    order        the order in which programs run changes no bit         (interpreter)
    bounds       no address outside the tensors of a launch is touched  (interpreter)
    race         no two programs touch the same bytes unordered         (interpreter)

and each op's own: `path` on the tree ops says that a node in a tree equals the last node of its path run as a chain.
A failure carries what is needed to see it again: op, case, seed, worst element, both values, and the command.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..reference.ops import Op
from ..reference.spec import Case, Inputs, Spec, map_tensors, raised
from . import interpreter
from .compare import Worst, bits, compare, same_bits
from .guard import Allocations, Guarded, guard_inputs, poison_pattern

GENERAL = ("numeric", "nonfinite", "poison", "redzone", "unchanged", "repeat", "order", "bounds", "race")
INTERPRETED = ("order", "bounds", "race")
REPEATS = 2
# and so many calls in a row on a GPU, each with another's bytes in the L2: copies that overtake what reads them do so
# one time in ten, and where memory is far
IN_A_ROW, L2 = 24, 128 << 20


@dataclass(frozen=True)
class Verdict:
    """One oracle on one case. status is pass, fail, error (the op raised) or skip."""

    op: str
    case: str
    seed: int
    oracle: str
    status: str
    detail: str = ""
    command: str = ""

    def __str__(self) -> str:
        head = f"{self.op} {self.case} seed {self.seed}: {self.oracle} {self.status}"
        return f"{head}: {self.detail}\n    {self.command}" if self.detail else head


@dataclass(frozen=True)
class Subject:
    """An implementation under test: `call(op_name, **inputs)`, and how to name it on the command line."""

    call: Callable[..., Any]
    device: torch.device
    flags: str = ""


def implementation(op: Op, folder: str, siblings: dict[str, Op], config: object = None) -> Callable[..., Any]:
    """`call(name, **inputs)` over the functions of one folder; `config` goes to the op itself."""

    def call(name: str, **inputs: Any) -> Any:
        target = op if name == op.name else siblings[name]
        extra = {"config": config} if config is not None and name == op.name else {}
        return target.function(folder)(**inputs, **extra)

    return call


def named(spec: Spec, inputs: Inputs, result: Any) -> dict[str, torch.Tensor]:
    """Outputs and updated inputs by name."""
    values = result if isinstance(result, tuple) else () if result is None else (result,)
    if len(values) != len(spec.outputs):
        raise ValueError(
            f"{spec.op} returned {len(values)} values, its SPEC names {len(spec.outputs)}: {', '.join(spec.outputs)}"
        )
    return {**dict(zip(spec.outputs, values, strict=True)), **{name: inputs[name] for name in spec.updates}}


def draw(spec: Spec, case: Case, seed: int, device: torch.device) -> Inputs:
    """The inputs of a case, made where they are used: a GPU draws other numbers from a seed than a CPU does."""
    with torch.device(device):
        return spec.inputs(case, torch.Generator(device).manual_seed(seed))


def names(spec: Spec) -> tuple[str, ...]:
    """The oracles that say something about this op."""
    return (*(name for name in GENERAL if name != "nonfinite" or spec.nonfinite), *spec.oracles)


@dataclass(frozen=True)
class Run:
    """What one run left: outputs and updated inputs, all inputs, every guarded buffer, and what the interpreter saw."""

    outputs: dict[str, torch.Tensor]
    inputs: Inputs
    zones: list[Guarded]
    watch: interpreter.Watch | None


@dataclass(frozen=True)
class Expected:
    """The reference's outputs at the op's own precision and in f64, and how far the rounding of operands scatters them,
    where the SPEC says."""

    native: dict[str, torch.Tensor]
    exact: dict[str, torch.Tensor]
    scatter: dict[str, torch.Tensor]


@dataclass
class Trial:
    """One op, one case, one seed: expected values once, then each oracle."""

    op: Op
    case: Case
    seed: int
    subject: Subject
    off: frozenset[str] = frozenset()
    reference: Callable[..., Any] | None = None
    repeats: int = REPEATS
    in_a_row: int | None = None

    def __post_init__(self) -> None:
        self.spec = self.op.spec
        self.device = self.subject.device
        if self.in_a_row is None:
            self.in_a_row = IN_A_ROW if torch.device(self.device).type == "cuda" else 0
        self.inputs = draw(self.spec, self.case, self.seed, self.device)

    # -- runs ----------------------------------------------------------------------------------------------------------

    @cached_property
    def expected(self) -> Expected:
        """What the trial's own inputs should give; one trial may judge many configs of a kernel."""
        return self._expected(self.inputs)

    def _expected(self, inputs: Inputs) -> Expected:
        function = self.reference or self.op.function("reference")
        native_in, exact_in = self._placed(inputs), self._placed(raised(inputs))
        native = named(self.spec, native_in, function(**native_in))
        scatter = self.spec.scatter(self.case, exact_in) if self.spec.scatter else ()
        exact = named(self.spec, exact_in, function(**exact_in))
        return Expected(native, exact, dict(zip(self.spec.outputs, scatter, strict=False)))

    def _placed(self, inputs: Inputs) -> Inputs:
        return map_tensors(inputs, lambda t: t.to(self.device, copy=True))

    def _run(self, inputs: Inputs, order: int | str | None = None, races: bool = False) -> "Run":
        """One run on guarded copies. Every run is guarded: a stray write must not reach what others hold."""
        guarded, zones = guard_inputs(inputs, self.device)
        allocations = Allocations(poison="poison" not in self.off)
        with interpreter.watching(order, races) if interpreter.active() else nullcontext() as watch, allocations:
            result = self.subject.call(self.op.name, **guarded)
        return Run(named(self.spec, guarded, result), guarded, [*zones, *allocations.made], watch)

    @cached_property
    def _again(self) -> "Run":
        """A run after the first: what a first call alone does is not in it."""
        return self._run(self.inputs)

    # -- the oracles ---------------------------------------------------------------------------------------------------

    def verdicts(self, wanted: Sequence[str] | None = None) -> list[Verdict]:
        chosen = [name for name in names(self.spec) if name not in self.off and (wanted is None or name in wanted)]
        # the subject may be another than it was
        self.__dict__.pop("_again", None)
        try:
            expected = self.expected
            first = self._run(self.inputs, races="race" not in self.off)
        except Exception as error:  # an implementation under test may raise anything: it is a verdict
            return [self._verdict(name, "error", f"{type(error).__name__}: {error}") for name in chosen[:1]]
        found = []
        for name in chosen:
            try:
                detail = self._judge(name, first, expected)
            except Exception as error:
                found.append(self._verdict(name, "error", f"{type(error).__name__}: {error}"))
                continue
            skipped = name in INTERPRETED and first.watch is None
            found.append(self._verdict(name, "skip" if skipped else "fail" if detail else "pass", detail or ""))
        return found

    def _judge(self, name: str, first: Run, expected: Expected) -> str | None:
        """What the oracle objects to, in a sentence, or None."""
        match name:
            case "numeric":
                return _text(self._worst(first.outputs, expected))
            case "nonfinite":
                return self._nonfinite()
            case "poison":
                return self._poison(first.outputs, expected.native)
            case "redzone":
                return next((text for text in (zone.damage() for zone in first.zones) if text), None)
            case "unchanged":
                return self._unchanged(first.inputs)
            case "repeat":
                return self._repeat(first.outputs)
            case "order":
                return self._order() if first.watch else None
            case "bounds" | "race":
                return (
                    next((str(stray) for stray in first.watch.strays if stray.kind == name), None)
                    if first.watch
                    else None
                )
        # watched, so that a stray write of the implementation stays without effect
        with interpreter.watching(races=False) if interpreter.active() else nullcontext():
            mismatches = self.spec.oracles[name](self.subject.call, self._placed(self.inputs), self.case, self.seed)
            found = next(iter(mismatches), None)
        return f"at {found.where}: got {found.got!r}, want {found.want!r}" if found else None

    def _worst(self, outputs: dict[str, torch.Tensor], expected: Expected) -> Worst | None:
        rules = self.spec.tolerances(self.case)
        found = [
            compare(name, outputs[name], native, expected.exact[name], rules[name], expected.scatter.get(name))
            for name, native in expected.native.items()
        ]
        return max((worst for worst in found if worst), key=lambda worst: worst.ratio, default=None)

    def _nonfinite(self) -> str | None:
        """Plant NaN, +inf and -inf, one kind at a time, in each float input that the SPEC names."""
        for number, (target, values) in enumerate(self.spec.planted(self.case).items()):
            if not isinstance(self.inputs[target], torch.Tensor) or not self.inputs[target].is_floating_point():
                continue
            for shift, value in enumerate(values):
                planted = map_tensors(self.inputs, torch.clone)
                if not (count := planted[target].numel()):
                    continue
                at = torch.tensor((self.seed + 7919 * number + 104729 * shift) % count)
                planted[target][torch.unravel_index(at, planted[target].shape)] = value
                if worst := self._worst(self._run(planted).outputs, self._expected(planted)):
                    return f"{value} planted in {target}: {worst}"
        return None

    def _poison(self, outputs: dict[str, torch.Tensor], native: dict[str, torch.Tensor]) -> str | None:
        for name, tensor in outputs.items():
            if name in self.spec.updates:
                continue
            mask = _poisoned(tensor) & ~_poisoned(native[name])
            if mask.any():
                first = mask.nonzero()[0].tolist()
                return f"{name}: {int(mask.sum())} of {mask.numel()} elements never written, first {first}"
        return None

    def _unchanged(self, guarded: Inputs) -> str | None:
        for name, before in self.inputs.items():
            if name in self.spec.updates:
                continue
            after = guarded[name]
            pairs = zip(_tensors(before), _tensors(after), strict=True)
            if any(not same_bits(a, b) for a, b in pairs):
                return f"input {name} was changed"
        return None

    def _repeat(self, outputs: dict[str, torch.Tensor]) -> str | None:
        for name, tensor in outputs.items():
            if tensor.numel() and tensor.data_ptr() == self._again.outputs[name].data_ptr():
                return f"{name}: a second call writes into the memory of the first one's result"
        others = [self._again, *(self._run(self.inputs) for _ in range(self.repeats - 1))]
        return self._same(outputs, others) or self._in_a_row(outputs)

    def _in_a_row(self, outputs: dict[str, torch.Tensor]) -> str | None:
        """Bare calls, close behind each other."""
        if self.spec.updates or not self.in_a_row:
            return None
        inputs, calls = self._placed(self.inputs), self.in_a_row
        size = L2 if torch.device(self.device).type == "cuda" else 1
        others = torch.empty(size, dtype=torch.uint8, device=self.device)
        differ = {name: torch.zeros((), dtype=torch.int64, device=self.device) for name in outputs}
        for i in range(calls):
            others.fill_(i)
            found = named(self.spec, inputs, self.subject.call(self.op.name, **inputs))
            for name, tensor in outputs.items():
                differ[name] += (bits(tensor) != bits(found[name])).any()
        texts = (f"{name}: {int(n)} of {calls} calls in a row gave other bits" for name, n in differ.items() if n)
        return next(texts, None)

    def _same(self, outputs: dict[str, torch.Tensor], others: list[Run]) -> str | None:
        for other in others:
            for name, tensor in outputs.items():
                if not same_bits(tensor, other.outputs[name]):
                    apart = bits(tensor) != bits(other.outputs[name])
                    return f"{name}: {int(apart.sum())} of {apart.numel()} elements changed on the same inputs"
        return None

    def _order(self) -> str | None:
        for order in ("reverse", self.seed + 1):
            if text := self._same(self._again.outputs, [self._run(self.inputs, order=order)]):
                return f"programs run in {'reverse' if order == 'reverse' else 'shuffled'} order: {text}"
        return None

    def _verdict(self, oracle: str, status: str, detail: str) -> Verdict:
        where = f"--case '{self.case.id}' --seed {self.seed} --oracle {oracle}{self.subject.flags}"
        command = f"draftwood check {self.op.name} {where}"
        return Verdict(
            self.op.name,
            self.case.id,
            self.seed,
            oracle,
            status,
            detail,
            command if status in ("fail", "error") else "",
        )


def _text(worst: Worst | None) -> str | None:
    return str(worst) if worst else None


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """Elements that hold exactly the poison of guard.py. Bytes and bools are too narrow to tell poison from data."""
    if tensor.element_size() == 1:
        return torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    return bits(tensor) == poison_pattern(tensor.dtype)
