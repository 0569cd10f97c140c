"""Kernels as they run where a lane has few registers (RDNA) or nothing shares the rows of a product (sm75)."""

import sys

import pytest
from draftwood.lab import interpreter
from draftwood.lab.check import target
from draftwood.lab.oracles import Subject, Trial, implementation
from draftwood.reference.ops import registered
from draftwood.reference.spec import Case

# what kernels/lib/device.py says of either
NARROW = {
    "sm75": {"is_narrow": True, "lacks_dot": True, "has_few_registers": False, "lacks_imma": True, "has_imma": False},
    "rdna": {"is_narrow": True, "lacks_dot": False, "has_few_registers": True, "lacks_imma": True, "has_imma": False},
}
ATTENTION = {"H": 2, "Hkv": 1, "D": 256, "spare": 3, "scores": "normal", "gate": True, "dtype": "f16"}
CASES = [
    ("prefill_attention", {**ATTENTION, "T": 17, "context": 20, "window": 0, "format_k": "f16", "format_v": "f16"}),
    ("prefill_attention", {**ATTENTION, "T": 17, "context": 20, "window": 9, "format_k": "q8_0", "format_v": "q4_0"}),
    ("prefill_attention", {**ATTENTION, "T": 3, "context": 30, "window": 17, "format_k": "tq3_0", "format_v": "tq3_0"}),
    ("tree_attention", {**ATTENTION, "T": 5, "context": 35, "window": 0, "format_k": "q4_0", "format_v": "f16"}),
    ("tree_attention", {**ATTENTION, "T": 5, "context": 35, "window": 19, "format_k": "tq3_0", "format_v": "q8_0"}),
    ("tree_attention", {**ATTENTION, "T": 1, "context": 0, "window": 0, "format_k": "f16", "format_v": "tq3_0"}),
    ("gdn_prefill", {"B": 1, "T": 33, "Hk": 1, "Hv": 2, "K": 64, "V": 16, "dtype": "bf16"}),
    ("gdn_prefill", {"B": 1, "T": 33, "Hk": 1, "Hv": 1, "K": 32, "V": 16, "dtype": "f32", "state": "f16"}),
    ("tree_gdn", {"B": 1, "T": 9, "Hk": 1, "Hv": 2, "K": 64, "V": 16, "dtype": "bf16", "strategy": "wy"}),
    ("tree_gdn", {"B": 1, "T": 37, "Hk": 1, "Hv": 1, "K": 32, "V": 16, "dtype": "f32", "strategy": "replay"}),
    ("dequant_matmul", {"M": 9, "N": 64, "K": 512, "format": "q5_k", "layout": "tiles", "precision": "exact"}),
    (
        "dequant_matmul",
        {"M": 3, "N": 128, "K": 1024, "format": "q6_k", "dtype": "f16", "layout": "tiles", "epilogue": "swiglu"},
    ),
    ("dequant_matmul", {"M": 9, "N": 64, "K": 512, "format": "q6_k", "layout": "tiles", "precision": "int8"}),
    ("dequant_matmul", {"M": 19, "N": 40, "K": 512, "format": "q4_k", "layout": "gguf", "precision": "exact"}),
    ("dequant_matmul", {"M": 5, "N": 40, "K": 320, "format": "f16", "layout": "gguf", "dtype": "f16"}),
    ("conv_line", {"B": 1, "T": 9, "C": 40}),
]


@pytest.fixture(params=NARROW)
def narrow(request, monkeypatch):
    """As if kernels were compiled for one; they ask by names that each file has imported."""
    for module in [module for name, module in sys.modules.items() if name.startswith("draftwood.kernels")]:
        for name, value in NARROW[request.param].items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda _device, value=value: value)
    return request.param


def case_of(op: str, changes: dict) -> Case:
    """A smoke case of the op with these values, the rest as in the first that has what `changes` says by words."""
    cases = registered()[op].spec.cases["smoke"]
    words = {name: value for name, value in changes.items() if isinstance(value, str)}
    near = max(cases, key=lambda case: sum(case.as_dict().get(name) == value for name, value in words.items()))
    return near.but(**changes)


# the slowest of them on demand
@pytest.mark.parametrize(
    ("op", "changes"),
    [pytest.param(*case, marks=[pytest.mark.long] * (2 <= number <= 4)) for number, case in enumerate(CASES)],
    ids=[f"{op}-{number}" for number, (op, _) in enumerate(CASES)],
)
def test_what_runs_there_is_right_and_stays_in_its_memory(op, changes, narrow):
    interpreter.install()
    known = registered()
    case = case_of(op, changes)
    assert known[op].spec.refuse(case) is None
    trial = Trial(known[op], case, 0, Subject(implementation(known[op], "kernels", known), target()))
    verdicts = trial.verdicts()
    assert not [str(verdict) for verdict in verdicts if verdict.status in ("fail", "error")]
    assert {verdict.oracle for verdict in verdicts if verdict.status == "pass"} >= {"numeric", "poison", "unchanged"}
