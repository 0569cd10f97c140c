"""Laws of rows that each warp walks alone (kernels/lib/own_rows.py, lane_rows.py). Only sm90 runs them: elsewhere
`lab/gluon.py` does, from their text."""

import importlib
from pathlib import Path

import pytest
import torch
from draftwood.kernels.lib import lane_rows, own_rows
from draftwood.kernels.tree_attention import Config
from draftwood.lab import gluon, planted
from draftwood.lab.oracles import Subject, Trial
from draftwood.reference.ops import find
from draftwood.reference.quantisers import TQ3_CODES
from draftwood.reference.tree_attention import SPEC

from .test_one_pass import indexed, join

module = importlib.import_module("draftwood.kernels.tree_attention")
FORMATS = ("q4_0", "q8_0", "tq3_0")
BASE = SPEC.cases["edge"][0].but(
    T=1, H=6, Hkv=1, D=256, context=300, spare=3, window=0, tree="chain", scores="normal", dtype="bf16", gate=False
)
SOURCES = {
    name: Path(str(part.__file__)).read_text() for name, part in (("lane_rows", lane_rows), ("own_rows", own_rows))
}


def of(format, **values):
    return BASE.but(format_k=format, format_v=format).but(**values)


def verdicts(
    monkeypatch, case, queries=8, warps=4, programs=3, kernel=own_rows.own_rows, seed=0,
    wanted=("numeric", "poison", "redzone", "unchanged"),
):  # fmt: skip
    """What the lab says of the launcher with this kernel in place of the one that wants a GPU."""

    def at(grid):
        return lambda *args, num_warps=0, launch_pdl=False, **more: gluon.launch(kernel, grid, args, False, **more)

    monkeypatch.setattr(module, "own_rows", indexed(at))
    monkeypatch.setattr(module, "_join", indexed(lambda grid: join))
    monkeypatch.setattr(module, "compiled_for", lambda device: "sm90")
    config = Config("own", BLOCK_M=queries, programs=programs, least_tiles=1, num_warps=warps)

    def call(_name, **inputs):
        return module.tree_attention(**inputs, config=config)

    return Trial(find("tree_attention"), case, seed, Subject(call, torch.device("cpu"))).verdicts(wanted)


def right(*args, **more):
    found = verdicts(*args, **more)
    assert found and all(verdict.status == "pass" for verdict in found), "\n".join(map(str, found))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("queries", "warps"), [(8, 4), (8, 8), (16, 4), (16, 8)])
def test_it_means_what_the_reference_means(queries, warps, format, monkeypatch):
    right(monkeypatch, of(format, gate=True), queries, warps)
    right(monkeypatch, of(format, T=5, tree="random"), queries, warps)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "values",
    [
        {"context": 0},
        {"context": 63},
        {"context": 64, "tree": "chain"},
        {"context": 129, "window": 128},
        {"context": 400, "window": 150, "tree": "padded"},
        {"context": 250, "tree": "padded", "T": 24, "spare": 0},
        {"context": 250, "tree": "block", "gate": True},
        {"context": 500, "tree": "chain", "dtype": "f16"},
        {"context": 200, "H": 12, "Hkv": 2},
        {"context": 190, "T": 70, "tree": "star"},
        {"context": 320, "scores": "flat"},
        {"context": 500, "scores": "sharp"},
        {"context": 300, "scores": "sharp", "dtype": "f16"},
    ],
    ids=lambda values: ",".join(f"{name}={value}" for name, value in values.items()),
)
def test_shares_a_remainder_a_window_and_padding(values, format, monkeypatch):
    right(monkeypatch, of(format, T=6, tree="random").but(**values), 16, programs=5 * values.get("Hkv", 1))


@pytest.mark.parametrize("formats", [("q4_0", "q8_0"), ("q8_0", "tq3_0"), ("tq3_0", "q4_0")])
def test_keys_and_values_may_be_of_two_formats(formats, monkeypatch):
    right(monkeypatch, of(formats[0], format_v=formats[1]))


@pytest.mark.parametrize("programs", [1, 2, 5, 9, 40])
def test_any_number_of_shares_gives_the_same(programs, monkeypatch):
    right(monkeypatch, of("q4_0", context=512), programs=programs)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_number_stays_in_its_query(format, monkeypatch):
    right(monkeypatch, of(format), wanted=("nonfinite",))


def test_f16_holds_the_larger_codebook_ten_times_as_well():
    codes = torch.tensor(TQ3_CODES).double()
    plain, larger = (((codes * by).half().double() / by / codes - 1).abs().max() for by in (1.0, lane_rows.LARGER))
    assert larger < plain / 10


def test_what_does_not_suit_is_refused():
    inputs = SPEC.inputs(of("q4_0"), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="does not suit"):
        module.tree_attention(**inputs, config=Config("own", BLOCK_M=8))


BUGS = {
    # the walk
    "a share leaves out its last tile": ("(i_split + 1) * tiles // splits", "((i_split + 1) * tiles - 1) // splits"),
    "the window begins a row late": ("gl.maximum(end - window, 0)", "gl.maximum(end - window + 1, 0)"),
    "the next keys are this tile's": ("p_k, at + ROWS, stop, s_k_s, 1", "p_k, at, stop, s_k_s, 1"),
    "the next values are those after": ("p_v, at + ROWS, stop", "p_v, at + 2 * ROWS, stop"),
    "a row behind the tree is read": ("gl.minimum(low + (i_split", "gl.maximum(low + (i_split"),
    "all warps walk the first one's rows": ("o_row = row + along(W, 0, L) * 16", "o_row = row + along(W, 0, L) * 0"),
    # what is seen
    "a padded slot is read": ("(o_row < end) | (b_a != 0)", "(o_row < end) | (b_a == b_a)"),
    "the tail is not masked": ("if at + ROWS > end:", "if at > end:"),
    "a node sees its descendants": ("ancestors + o_m // G * T + o_j", "ancestors + o_j * T + o_m // G"),
    # what is where
    "keys' halves change places": ("block = HALF * _blocks", "block = (1 - HALF) * _blocks"),
    "lanes have each other's blocks": ("return (1, 2) if FORMAT", "return (4, 1) if FORMAT"),
    "q4_0's nibbles change places": ("(3, 5, 2, 1, 4, 0)", "(3, 2, 5, 1, 4, 0)"),
    "p is not turned": ("movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "mov.b32 $0, $1;"),
    "channels of q4_0's halves change places": ("(4, 3, 2, 0, 1)", "(4, 3, 0, 2, 1)"),
    "the codebook is not taken back": ("scale *= SMALLER", "pass"),
    "high bits are those of the next code": ("shl.b32 t, z, 2;", "shl.b32 t, z, 1;"),
    "odd codes are even ones": ("shr.u32 s, a, 2;", "mov.b32 s, a;"),
    # sums
    "sums are not lowered to the new maximum": ("b_o * gl.expand_dims(b_old, 1))", "b_o)"),
    "weights are not lowered to the new maximum": ("b_l * gl.expand_dims(b_old, 1) + b_p", "b_l + b_p"),
    "a warp's maximum is all warps'": ("b_w = gl.exp2(b_m - gl.expand_dims(b_top, 0))", "b_w = gl.exp2(b_m - b_m)"),
    "the warps' weights are their maxima": ("held.index(1).load(M)", "held.index(0).load(M)"),
    "pieces of the sums change places": ("(0, 2, 5, 3, 1, 4, 6)), (W, 256, N)", "(0, 2, 3, 5, 1, 4, 6)), (W, 256, N)"),
    "means are sums": ('(SMALLER if FORMAT_V == "tq3_0" else 1.0) / b_sum, b_sum)', "1.0, b_sum)"),
    "no piece of a group is turned round": ("gl.where(odd % 2 == 1, -1.0, 1.0)", "1.0"),
    "the upper half of a group is not turned round": ("(o_l & (i // W))", "(o_l & 0)"),
    "butterflies leave one out": ("for i in gl.static_range(STEPS)", "for i in gl.static_range(1, STEPS)"),
}
DRAWN = (
    of("q4_0", context=500, window=450, T=5, tree="random", scores="sharp"),
    of("tq3_0", context=300, T=6, tree="padded"),
    of("q8_0", context=300, window=170, T=3, tree="chain"),
)


# a sixth of them in every run, all of them with -m "long or not long"
@pytest.mark.parametrize("bug", [pytest.param(b, marks=[pytest.mark.long] * (i % 6 > 0)) for i, b in enumerate(BUGS)])
def test_a_planted_bug_is_seen(bug, monkeypatch):
    kernel = planted.modules(monkeypatch, SOURCES, None, *BUGS[bug])["own_rows"].own_rows
    found = [v for case in DRAWN for v in verdicts(monkeypatch, case, 16, kernel=kernel, wanted=("numeric",))]
    assert any(v.status == "fail" or "outside the tensor" in v.detail for v in found), "\n".join(map(str, found))
