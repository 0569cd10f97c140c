"""Each oracle of the lab catches the bug it is there for, and only sound implementations pass them all.

Example: python -m pytest tests/test_lab.py -q
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from draftwood.lab import interpreter
from draftwood.lab.compare import compare
from draftwood.lab.guard import guard_inputs
from draftwood.lab.mutation import Mutant, edited, seeded
from draftwood.lab.oracles import GENERAL, Subject, Trial
from draftwood.reference import ops
from draftwood.reference.spec import Bitwise, Calibrated

OUTSIDE = str(Path(__file__).parent / "outside")
OP = ops.find("scale_rows", [OUTSIDE])
CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    not interpreter.active(), reason="watches Triton's interpreter; kernels are compiled here"
)


def judge(call: Callable[..., torch.Tensor], group: str = "edge", off: frozenset[str] = frozenset()) -> dict[str, str]:
    """The failing oracles of an implementation of scale_rows and what they say, over one case list."""
    subject = Subject(lambda _, **inputs: call(**inputs), CPU)
    found: dict[str, str] = {}
    for case in OP.spec.cases[group]:
        for verdict in Trial(OP, case, 0, subject, off).verdicts():
            if verdict.status in ("fail", "error"):
                found.setdefault(verdict.oracle, verdict.detail)
    return found


def sound(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.mul(x, s[:, None], out=torch.empty_like(x))


def test_a_sound_implementation_passes_every_oracle():
    assert judge(sound) == {}
    assert judge(OP.function("kernels")) == {}


def test_numeric_sees_one_wrong_element():
    def wrong(x, s):
        out = sound(x, s)
        out[-1, -1] *= 1 + 1e-5
        return out

    assert "numeric" in judge(wrong)


def test_numeric_sees_a_small_error_everywhere():
    exact = torch.linspace(1, 2, 4096, dtype=torch.float64)
    native = exact.float()
    biased = (exact * (1 + 1.5e-6)).float()
    assert compare("out", biased, native, exact, Calibrated()) is not None
    assert compare("out", native, native, exact, Calibrated()) is None


def test_bitwise_names_the_first_difference():
    want = torch.tensor([1, 2, 3], dtype=torch.int32)
    worst = compare("ids", torch.tensor([1, 5, 4], dtype=torch.int32), want, want, Bitwise())
    assert worst is not None and worst.where == "ids[1]" and (worst.got, worst.want) == (5, 2)


def test_nan_and_infinities_are_sets():
    want = torch.tensor([1.0, float("nan"), float("inf")])
    for got in ([1.0, float("nan"), float("-inf")], [1.0, 2.0, float("inf")], [float("nan")] * 3):
        assert compare("out", torch.tensor(got), want, want.double(), Calibrated()) is not None
    assert compare("out", want.clone(), want, want.double(), Calibrated()) is None


def test_nonfinite_sees_a_swallowed_nan():
    assert set(judge(lambda x, s: sound(x.nan_to_num(), s))) == {"nonfinite"}


def test_poison_sees_an_unwritten_zero():
    def lazy(x, s):
        out = torch.empty_like(x)
        product = x * s[:, None]
        written = product.abs() > 0.05
        out[written] = product[written]
        return out

    assert "poison" in judge(lazy)


def test_redzone_sees_a_byte_past_the_end():
    def spills(x, s):
        out = sound(x, s)
        torch.as_strided(out, (1,), (1,), out.storage_offset() + out.numel()).fill_(0.0)
        return out

    assert set(judge(spills)) == {"redzone"}


def test_redzone_sees_what_moves_between_rows():
    rows = torch.empty_strided((3, 4), (7, 1)).copy_(torch.randn(3, 4))
    guarded, (zone,) = guard_inputs({"x": rows}, CPU)
    assert zone.damage() is None
    guarded["x"][1] = 0.0
    assert zone.damage() is None
    wide = guarded["x"].as_strided((2, 7), (7, 1))
    wide[0] = wide[1].clone()
    assert zone.damage() == "input x: element 4, in a gap, was overwritten"


def test_unchanged_sees_a_written_input():
    def scribbles(x, s):
        out = sound(x, s)
        x[0, 0] += 1
        return out

    assert set(judge(scribbles)) == {"unchanged"}


def test_repeat_sees_what_a_first_call_left_behind():
    calls = []

    def remembers(x, s):
        calls.append(1)
        return sound(x, s) * (1 + 1e-7 * (len(calls) % 2))

    assert "repeat" in judge(remembers)


def test_repeat_sees_on_a_gpu_what_one_call_in_ten_does():
    """There calls follow each other without guards; here as many are asked for."""
    calls = 0

    def races(x, s):
        nonlocal calls
        out, calls = sound(x, s), calls + 1
        if calls % 10 == 0:
            out.view(-1)[-1] += 1
        return out

    subject, case = Subject(lambda _, **inputs: races(**inputs), CPU), OP.spec.cases["smoke"][0]
    few, many = (Trial(OP, case, 0, subject, in_a_row=n).verdicts(("repeat",))[0] for n in (0, 24))
    assert (few.status, many.status) == ("pass", "fail")
    assert "of 24 calls in a row gave other bits" in many.detail


def test_repeat_sees_a_result_that_a_second_call_writes_over():
    kept: dict[torch.Size, torch.Tensor] = {}

    def keeps(x, s):
        return torch.mul(x, s[:, None], out=kept.setdefault(x.shape, torch.empty_like(x)))

    assert set(judge(keeps)) == {"repeat"}


def test_what_only_a_first_call_does_is_not_put_on_the_order_of_programs():
    seen = set()

    def warms_up(x, s):
        late = x.shape in seen
        seen.add(x.shape)
        return sound(x, s) * (1 + 1.2e-7 * late)

    assert set(judge(warms_up)) == {"repeat"}


def test_an_exception_is_a_verdict_with_its_command():
    def breaks(x, s):
        raise RuntimeError("no such path")

    subject = Subject(lambda _, **inputs: breaks(**inputs), CPU)
    (verdict,) = Trial(OP, OP.spec.cases["smoke"][0], 7, subject).verdicts()
    assert verdict.status == "error" and "no such path" in verdict.detail
    assert verdict.command == "draftwood check scale_rows --case 'M=3,N=20' --seed 7 --oracle numeric"


@triton.jit
def _scale_with(x, s, out, N, BN: tl.constexpr, BUG: tl.constexpr):
    i_m = tl.program_id(0)
    o_n = tl.arange(0, BN)
    bound = N + 1 if BUG == "read" else N
    b_x = tl.load(x + i_m * N + o_n, mask=o_n < bound, other=0.0)
    b_y = tl.where(o_n < N, b_x * tl.load(s + i_m), 0.0)
    stored = N + 1 if BUG == "race" else N
    tl.store(out + i_m * N + o_n, b_y, mask=(o_n < stored) & (i_m * N + o_n < tl.num_programs(0) * N))


def _with_bug(bug: str) -> Callable[..., torch.Tensor]:
    def run(x, s):
        out = torch.empty_like(x)
        _scale_with[(x.shape[0],)](x, s, out, x.shape[1], BN=64, BUG=bug)
        return out

    return run


@interpreted
def test_bounds_sees_a_read_that_no_output_shows():
    found = judge(_with_bug("read"))
    assert set(found) == {"bounds"} and "4 bytes past the end" in found["bounds"] and "test_lab.py" in found["bounds"]


@interpreted
def test_race_sees_two_programs_on_the_same_bytes():
    assert "race" in judge(_with_bug("race"))


@triton.jit
def _sum_in_turn(x, s, out, M, N, BN: tl.constexpr):
    # every program adds its share of every element with atomics: right, but rounded in the order of arrival
    i_m = tl.program_id(0)
    o_n = tl.arange(0, BN)
    for m in range(0, M):
        b_x = tl.load(x + m * N + o_n, mask=o_n < N, other=0.0) * tl.load(s + m)
        share = b_x * tl.where(i_m == 0, 0.3, tl.where(i_m == 1, 0.2, 0.5))
        tl.atomic_add(out + m * N + o_n, share, mask=o_n < N)


@interpreted
def test_order_sees_a_sum_in_order_of_arrival():
    def run(x, s):
        out = torch.zeros_like(x)
        _sum_in_turn[(3,)](x, s, out, x.shape[0], x.shape[1], BN=64)
        return out

    assert set(judge(run)) == {"order"}


@triton.jit
def _hand_over(x, s, out, flag, N, BN: tl.constexpr):
    # program m writes its row and raises a flag; the next doubles back over it: ordered by the flag
    i_m = tl.program_id(0)
    o_n = tl.arange(0, BN)
    mine = tl.load(x + i_m * N + o_n, mask=o_n < N, other=0.0) * tl.load(s + i_m)
    tl.store(out + i_m * N + o_n, mine, mask=o_n < N)
    seen = tl.atomic_add(flag, 1)
    if seen == tl.num_programs(0) - 1:
        for m in range(0, tl.num_programs(0)):
            row = tl.load(out + m * N + o_n, mask=o_n < N, other=0.0)
            tl.store(out + m * N + o_n, row, mask=o_n < N)


@interpreted
def test_an_atomic_between_two_programs_is_no_race():
    def run(x, s):
        out = torch.empty_like(x)
        _hand_over[(x.shape[0],)](x, s, out, torch.zeros(1, dtype=torch.int32), x.shape[1], BN=64)
        return out

    assert judge(run) == {}


def test_an_oracle_that_is_off_says_nothing():
    for oracle in GENERAL:
        subject = Subject(lambda _, **inputs: sound(**inputs), CPU)
        verdicts = Trial(OP, OP.spec.cases["smoke"][0], 0, subject, frozenset({oracle})).verdicts()
        assert oracle not in {verdict.oracle for verdict in verdicts}


def test_every_seeded_bug_finds_its_place_and_one_that_does_not_is_refused():
    bugs = seeded()
    assert len({bug.name for bug in bugs}) == len(bugs) > 250
    with pytest.raises(ValueError, match="0 times"):
        edited(Mutant("lost", "rope", "its text is gone", (("kernels/rope.py", "no such text", ""),)))
