"""Every op, once for all: its SPEC is sound, its kernel agrees with its reference on named and on random cases."""

import inspect
import itertools
from dataclasses import asdict

import pytest
import torch
from draftwood.lab.check import target
from draftwood.lab.oracles import Subject, Trial, draw, implementation
from draftwood.reference.ops import OPS, registered
from draftwood.reference.spec import Case, Spec, map_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALL = registered()
DEVICE = torch.device(target())
# cheap and telling: one run of the kernel each
QUICK = ("numeric", "poison", "redzone", "unchanged", "bounds")


def cases(spec: Spec) -> st.SearchStrategy[Case]:
    """Random legal cases, small enough for the interpreter: sizes up to each dim's `fuzz`, shrinking to its lowest."""

    def sizes(low: int, high: int, step: int) -> st.SearchStrategy[int]:
        first = -(-low // step)
        return st.integers(first, max(first, high // step)).map(lambda n: n * step)

    dims = {dim.name: sizes(dim.low, max(dim.low, min(dim.fuzz, dim.high)), dim.multiple) for dim in spec.dims}
    choices = {name: st.sampled_from(values) for name, values in spec.choices.items()}
    order = [name for name, _ in spec.cases["smoke"][0].values]

    def build(values: dict[str, int | str]) -> Case:
        return Case(tuple((name, values[name]) for name in order))

    return st.fixed_dictionaries({**dims, **choices}).map(build).filter(lambda case: spec.refuse(case) is None)


def trial(name, case, seed=0):
    op = ALL[name]
    return Trial(op, case, seed, Subject(implementation(op, "kernels", ALL), DEVICE))


@pytest.mark.parametrize("name", OPS)
def test_a_spec_names_its_op_its_cases_and_nothing_illegal(name):
    spec = ALL[name].spec
    assert spec.op == name and spec.formula
    assert {"smoke", "edge", "qwen35", "perf"} <= set(spec.cases)
    for group, listed in spec.cases.items():
        assert listed, f"{name} has no {group} cases"
        ids = [case.id for case in listed]
        assert len(set(ids)) == len(ids)
        for case in listed:
            assert spec.refuse(case) is None, spec.refuse(case)
            assert spec.cost(case).bytes > 0
    assert set(spec.cold) | set(spec.updates) <= set(draw(spec, spec.cases["smoke"][0], 0, torch.device("cpu")))


@pytest.mark.parametrize("name", OPS)
def test_the_same_seed_makes_the_same_inputs_and_another_seed_others(name):
    spec = ALL[name].spec

    def tensors(case, seed):
        found = []
        map_tensors(draw(spec, case, seed, torch.device("cpu")), lambda t: found.append(t.nan_to_num()) or t)
        return found

    def same(case, one, other):
        return all(map(torch.equal, tensors(case, one), tensors(case, other)))

    listed = [*spec.cases["smoke"], *spec.cases["edge"]]
    assert all(same(case, 1, 1) for case in listed)
    assert not all(same(case, 1, 2) for case in listed)


@pytest.mark.parametrize("name", OPS)
def test_reference_and_kernel_take_the_same_arguments(name):
    op = ALL[name]
    reference = inspect.signature(op.function("reference")).parameters
    kernel = inspect.signature(op.function("kernels")).parameters
    assert [*reference, "config"] == list(kernel)
    assert {k: p.default for k, p in reference.items()} == {k: p.default for k, p in kernel.items() if k != "config"}


@pytest.mark.parametrize("name", OPS)
def test_the_space_of_an_op_holds_its_defaults_and_refuses_in_sentences(name):
    op = ALL[name]
    module, default = op.module("autotune"), asdict(op.module("kernels").Config())
    assert set(module.SPACE) <= set(default)
    assert all(default[knob] in values for knob, values in module.SPACE.items())
    case = op.spec.cases["perf"][0]
    points = itertools.islice(itertools.product(*module.SPACE.values()), 20_000)
    refusals = [module.legal(dict(zip(module.SPACE, point, strict=True)), case, "sm90-h200") for point in points]
    assert any(refusal is None for refusal in refusals)
    assert all(len(refusal.split()) > 3 for refusal in refusals if refusal is not None)


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_kernel_agrees_with_the_reference_on_random_cases(name, data):
    case = data.draw(cases(ALL[name].spec))
    seed = data.draw(st.integers(0, 1000))
    failed = [str(v) for v in trial(name, case, seed).verdicts(QUICK) if v.status in ("fail", "error")]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", OPS)
def test_every_oracle_passes_on_the_smoke_cases(name):
    for case in ALL[name].spec.cases["smoke"]:
        failed = [str(v) for v in trial(name, case).verdicts() if v.status in ("fail", "error")]
        assert not failed, "\n".join(failed)
