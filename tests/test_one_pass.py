"""Laws of one pass: kernels/lib/one_pass.py and plain_pass.py, and those that they are of. Only sm90 runs them:
elsewhere `lab/gluon.py` does, from their text."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import triton
from draftwood.autotune.binary import serial
from draftwood.kernels.lib import eights, feed, fragments, one_pass, plain_pass, rotated, weights
from draftwood.kernels.tree_attention import Config
from draftwood.lab import gluon, planted
from draftwood.lab.oracles import Subject, Trial
from draftwood.reference.hadamard import unrotate
from draftwood.reference.ops import find
from draftwood.reference.tree_attention import SPEC

module = importlib.import_module("draftwood.kernels.tree_attention")
FORMATS = ("q4_0", "q8_0", "tq3_0", "f16")
BASE = SPEC.cases["edge"][0].but(
    T=23, H=6, Hkv=1, D=256, context=300, spare=3, window=0, tree="random", scores="normal", dtype="bf16", gate=False
)
# values, scores and the copy of the cache: who goes on first
ORDERS = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1))
PARTS = {
    "eights": eights,
    "fragments": fragments,
    "feed": feed,
    "rotated": rotated,
    "weights": weights,
    "one_pass": one_pass,
    "plain_pass": plain_pass,
}
KERNELS = (one_pass.one_pass, plain_pass.plain_pass)
SOURCES = {name: Path(str(part.__file__)).read_text() for name, part in PARTS.items()}
formats = pytest.mark.parametrize("format", FORMATS)


def some(names, pairs, often):
    """Those that every run has, and the rest with -m "long or not long"."""
    return pytest.mark.parametrize(
        names, [pytest.param(*p, marks=[] if often(*p) else [pytest.mark.long]) for p in pairs]
    )


def of(format, **values):
    return BASE.but(format_k=format, format_v=format).but(**values)


def indexed(launch):
    return type("Kernel", (), {"__getitem__": lambda self, grid: launch(grid)})()


def join(
    part_o, part_m, part_l, ancestors, gate, _s_t, _s_h, out, _H, _parts, *, D, BT, BD, BP, GATED, ROTATED, **_how
):  # fmt: skip
    """`_join` in torch: the interpreter takes seconds for it."""
    weights = part_l * torch.exp2(part_m - part_m.max(0).values)
    o = (part_o.float() * weights[..., None]).sum(0) / weights.sum(0)[..., None]
    o[ancestors.amax(1) == 0] = 0.0
    if ROTATED:
        o = unrotate(o)
    out.copy_(o * torch.sigmoid(gate.float()) if GATED else o)


def verdicts(
    monkeypatch, case, kernels=KERNELS, late=False, order=ORDERS[0], seed=0, programs=3, joined=False, queries=144,
    wanted=("numeric", "redzone", "unchanged"), long=True,
):  # fmt: skip
    """What the lab says of the launcher with these kernels in place of those that want a GPU."""

    def emulated(kernel):
        def at(grid):
            return lambda *args, num_warps=0, **more: gluon.launch(kernel, grid, args, late, order, **more)

        return indexed(at)

    monkeypatch.setattr(module, "one_pass", emulated(kernels[0]))
    monkeypatch.setattr(module.plain_pass, "plain_pass", emulated(kernels[1]))
    monkeypatch.setattr(module, "compiled_for", lambda device: "sm90")
    if not joined:
        monkeypatch.setattr(module, "_join", indexed(lambda grid: join))
    config = Config("keys", 64, queries, programs, 1, num_stages=2)
    # 48 queries of so few rows would have one side
    monkeypatch.setattr(one_pass, "LONG", 0 if long else 8)

    def call(_name, **inputs):
        return module.tree_attention(**inputs, config=config)

    return Trial(find("tree_attention"), case, seed, Subject(call, torch.device("cpu"))).verdicts(wanted)


def right(*args, **more):
    found = verdicts(*args, **more)
    assert found and all(verdict.status == "pass" for verdict in found), "\n".join(map(str, found))


@some(
    ("queries", "format"),
    list(itertools.product((48, 144), FORMATS)),
    lambda queries, format: (queries == 144) == (format in ("tq3_0", "f16")),
)
def test_with_the_join_behind_it_it_means_what_the_reference_means(queries, format, monkeypatch):
    right(monkeypatch, of(format, T=17, gate=True), late=True, joined=True, queries=queries)


@some(
    ("queries", "order", "late", "format"),
    [(*of_all, format) for of_all in itertools.product(one_pass.QUERIES, ORDERS, (False, True)) for format in FORMATS],
    lambda queries, order, late, format: (
        order == ORDERS[(queries // 16 + FORMATS.index(format)) % 3] and (late or queries == 48)
    ),
)
def test_whoever_goes_first_and_whatever_comes_late_it_means_the_same(queries, order, late, format, monkeypatch):
    right(monkeypatch, of(format), late=late, order=order, queries=queries)


@formats
@pytest.mark.parametrize("long", [False, True])
def test_of_few_queries_one_side_gives_what_two_do(long, format, monkeypatch):
    right(monkeypatch, of(format, T=8, context=700), late=True, programs=2, queries=48, long=long)


TREES = ((1, 48), (3, 80), (9, 48), (13, 80), (16, 144), (20, 80), (23, 48), (24, 144))


@some(
    ("tree", "format"),
    list(itertools.product(range(len(TREES)), FORMATS)),
    lambda tree, format: (tree + FORMATS.index(format)) % 2 == 0,
)
def test_trees_of_one_pass(tree, format, monkeypatch):
    T, queries = TREES[tree]
    right(monkeypatch, of(format, T=T), seed=T, queries=queries)


SHAPES = (
    {"context": 0},
    {"context": 63},
    {"context": 128, "T": 16},
    {"context": 129, "window": 128},
    {"context": 400, "window": 150, "tree": "padded"},
    {"context": 250, "tree": "padded", "T": 24, "spare": 0},
    {"context": 250, "tree": "block", "gate": True},
    {"context": 700, "tree": "chain", "dtype": "f16"},
    {"context": 200, "H": 12, "Hkv": 2},
    {"context": 190, "T": 64, "tree": "star"},
    {"context": 320, "scores": "flat"},
)


@some(
    ("shape", "queries", "format"),
    list(itertools.product(range(len(SHAPES)), (48, 144), FORMATS)),
    lambda shape, queries, format: shape % 2 == (queries == 48) and (shape // 2 + FORMATS.index(format)) % 4 == 0,
)
def test_shares_a_remainder_a_window_and_padding(shape, queries, format, monkeypatch):
    values = SHAPES[shape]
    programs = (2 * values.get("Hkv", 1) + 1) * (1 if queries == 144 else 3)
    right(monkeypatch, of(format, **values), late=True, programs=programs, queries=queries)


@some(
    ("queries", "order", "format"),
    list(itertools.product(one_pass.QUERIES, ORDERS, FORMATS)),
    lambda queries, order, format: (
        queries == (48 if format == "q8_0" else 144) and order == ORDERS[FORMATS.index(format) % 3]
    ),
)
def test_a_share_that_passes_its_first_tile_is_walked_again(queries, format, order, monkeypatch):
    right(monkeypatch, of(format, scores="sharp", context=500), late=True, order=order, queries=queries)


@pytest.mark.parametrize(("format_k", "format_v"), [("q4_0", "q8_0"), ("q8_0", "tq3_0"), ("tq3_0", "q4_0")])
@pytest.mark.parametrize("queries", [48, 144])
def test_keys_and_values_may_be_of_two_formats(queries, format_k, format_v, monkeypatch):
    right(monkeypatch, of(format_k, format_v=format_v), late=True, queries=queries)


@pytest.mark.parametrize("format", ["q4_0", "f16"])
@some(
    ("programs", "queries"),
    [(programs, queries) for programs in (1, 2, 5, 9, 40) for queries in (48, 144)],
    lambda programs, queries: (programs in (2, 9)) == (queries == 144),
)
def test_any_number_of_shares_gives_the_same(queries, programs, format, monkeypatch):
    right(monkeypatch, of(format, context=512), programs=programs * 144 // queries, queries=queries)


@some(
    ("queries", "format"),
    list(itertools.product((48, 144), FORMATS)),
    lambda queries, format: (queries == 48) == (format == "f16"),
)
def test_what_is_no_number_stays_in_its_query(queries, format, monkeypatch):
    right(monkeypatch, of(format), wanted=("nonfinite",), queries=queries)


BUGS = {
    # who waits for whom
    "a tile of K is overwritten before it is read": (
        "feed",
        "wait(at_b + AT[1] + 8 * slot, round ^ 1, 4)",
        "pass",
    ),
    "a tile of V is overwritten before it is read": (
        "feed",
        "wait(at_b + AT[3] + 8 * slot, round ^ 1, 4)",
        "pass",
    ),
    "a tile is told of before it has come": (
        "feed",
        """            _words(k_scales.index(slot), p, row, bound, s_k, 0)
            copied(at_b + AT[0] + 8 * slot, 4)
""",
        """            copied(at_b + AT[0] + 8 * slot, 4)
            _words(k_scales.index(slot), p, row, bound, s_k, 0)
""",
    ),
    "V is told of where K is": ("feed", "copied(at_b + AT[2] + 8 * slot, 4)", "copied(at_b + AT[0] + 8 * slot, 4)"),
    "rows that not all see are copied as if they did": ("feed", "if j < seen:", "if j < seen + 2:"),
    "weights are overwritten while they are read": ("weights", "wait(at_b + P_FREE + 8 * slot, round ^ 1, 4)", "pass"),
    "weights are read before they are there": ("one_pass", "wait(at_b + P_FULL + 8 * slot_p, round_p, 8)", "pass"),
    "the last sums are taken before they are there": ("one_pass", "    wait(at_b + SUMMED, 0, 8)\n", ""),
    "scores are taken before the queries are there": ("weights", "        wait(at_b + ASKED, 0, 4)\n", ""),
    "scores are masked before the mask is there": ("weights", "wait(at_b + MASKED, 0, 4)", "pass"),
    "weights are given away before they are written": (
        "weights",
        """                p = _weights(s, at_lane + slot * (2048 * E), scale, FORMAT)
                fence_async_shared()
                came(at_b + P_FULL + 8 * slot, 4)
""",
        """                came(at_b + P_FULL + 8 * slot, 4)
                p = _weights(s, at_lane + slot * (2048 * E), scale, FORMAT)
""",
    ),
    "K is given up while some of it is to come": ("weights", "if c == 16 - HELD:", "if c == 0:"),
    "the first tile is given up though it is needed again": (
        "weights",
        "scales, slot, j, phase > 0, FORMAT",
        "scales, slot, j, phase >= 0, FORMAT",
    ),
    "K of f16 is given up under its product": ("weights", "        s = waited(s, 0)\n        arrive", "        arrive"),
    "scores are weighed while their product runs": ("weights", "0 if c == 15 else 2", "2"),
    "nobody says that V is free": (
        "one_pass",
        "waited(b, 0)\n        came(at_b + V_FREE + 8 * slot, 8)\n",
        "waited(b, 0)\n",
    ),
    "V is given up under its products": ("one_pass", "        b = waited(b, 0)\n", ""),
    "the second walk counts K's tiles anew": (
        "weights",
        "        steps = gl.where(phase == 0,",
        "        done = 0\n        steps = gl.where(phase == 0,",
    ),
    "a walk adds to what was before": ("one_pass", "gl.where(j > 0,", "gl.where(j > -1,"),
    "no share is walked again": ("weights", "(b_l, 0) > MOST, 1, 0)", "(b_l, 0) > MOST, 0, 0)"),
    "the second walk's sums begin with the first's": (
        "weights",
        "        x = ()\n        for _i in gl.static_range((2 * E + 7) // 8):\n",
        "        x = () if phase < 2 else x\n        for _i in gl.static_range(3 if phase < 2 else 0):\n",
    ),
    "the second walk's maximum is that above the first's": (
        "weights",
        "gl.where(weigh, -m2.load(B), 0.0)",
        "-m2.load(B)",
    ),
    # what is where
    "the maximum loses its first part": ("weights", "o_c == 0, high", "o_c == 3, high"),
    "the sums of four warps are two warps'": ("weights", "(a + b) + (c + d)", "(a + b) + (a + b)"),
    "a maximum is that of three warps": ("weights", "gl.maximum(c, d)", "c"),
    "what warps have lies on one another": ("weights", "[:, None] * EACH + o_l", "[:, None] * (EACH - 64) + o_l"),
    "sums of panels change places": ("weights", "o_l // 8 % 2 + o_l // 4 % 2 * 2", "o_l // 8 % 2 * 2 + o_l // 4 % 2"),
    "sums of eights change places": ("weights", "o_l // 16 * 32 + o_l", "(1 - o_l // 16) * 32 + o_l"),
    "lanes that are four on are summed twice": (
        "weights",
        "fours.append(with_(twos, 8))",
        "fours.append(with_(twos, 4))",
    ),
    "the last panel's sums are those of half the lanes": (
        "weights",
        "stay.append(with_(fours, 4))",
        "stay.append(with_(fours, 8))",
    ),
    "the other half of the lanes keeps the other half of the columns": (
        "weights",
        "selp.b32 $0, $3, $2, upper",
        "selp.b32 $0, $2, $3, upper",
    ),
    "a lane adds its neighbour's columns": ("weights", "bfly.b32 $1, other, {far}", "bfly.b32 $1, other, 4"),
    "of a lane's rows one is summed": ("weights", "add.rn.f16x2 $1, c, d;", "mov.b32 $1, c;"),
    "of a lane's rows one is the greatest": ("weights", "x[4 * k + c], x[4 * k + c + 2]", "x[4 * k + c], x[4 * k + c]"),
    "sums are not inverted": ("weights", "gl.where(b_l > 0.0, 1.0 / b_l, b_l)", "b_l"),
    "words that come anew are those of the first columns": (
        "weights",
        "slice((c + 1) // 8 * 32, 32, 1)",
        "slice(0, 32, 1)",
    ),
    "queries of q4_0 have their halves of a block exchanged": (
        "fragments",
        "(2, 4, 6, 0, 3, 1, 5))\n    elif",
        "(2, 4, 3, 0, 6, 1, 5))\n    elif",
    ),
    "queries of q8_0 have their pairs exchanged": ("fragments", "(1, 3, 0, 5, 2, 4)", "(1, 3, 0, 4, 2, 5)"),
    "queries of tq3_0 have two columns exchanged": (
        "fragments",
        "(2, 4, 6, 0, 5, 1, 3))\n    return",
        "(2, 4, 5, 0, 6, 1, 3))\n    return",
    ),
    "values of q8_0 are in the order of tq3_0": ("fragments", "(3, 0, 2, 4, 1)", "(3, 0, 2, 1, 4)"),
    "values of q4_0 are in the order of tq3_0": ("fragments", "(3, 0, 1, 2, 4)", "(3, 0, 2, 1, 4)"),
    "the other half of a word": ("fragments", "g % 2 == 1, 0x7632, 0x5410", "g % 2 == 0, 0x7632, 0x5410"),
    "the other nibble of high bits": ("fragments", "[above, g % 2 * 4]", "[above, g % 2 * 4 ^ 4]"),
    "the wrong byte of low pairs": ("fragments", "byte = g % 4 * 17 + 64", "byte = g // 2 * 17 + 64"),
    "scales of the other block": ("fragments", "scales = s[c // 8 * 2 + r]", "scales = s[2 - c // 8 * 2 + r]"),
    "scales of q8_0 are neighbours'": ("fragments", "t % 2 == 1, 0x3232", "t % 2 == 0, 0x3232"),
    "scales of the row eight on": ("fragments", "_unpacked(TEXT, w[1], s[1])", "_unpacked(TEXT, w[1], s[0])"),
    "scales of two blocks change places": ("fragments", "warp % 2 == 1, 0x7632", "warp % 2 == 0, 0x7632"),
    "scales of two rows change places": ("fragments", "[s[0], s[1], half]", "[s[1], s[0], half]"),
    # of few queries: two sides, weights ahead of products, queries that are turned here
    "of 48, sides take the same tiles": ("weights", "range(SIDE, steps, SIDES)", "range(0, steps, SIDES)"),
    "of 48, a side does not wait for what the other has": ("weights", "        wait(at_b + MET, phase % 2, 4)\n", ""),
    "of 48, a side adds but its own": ("weights", "o = at + 8192 * i\n", "o = at + 8192 * SIDE\n"),
    "of 48, what comes next lies over what is read": ("weights", "4 * EACH * (phase % 2)", "0 * (phase % 2)"),
    "of 48, sides subtract at one place": ("weights", "at_less + 512 * SIDE", "at_less"),
    "of 48, the other side's tiles are not counted": (
        "weights",
        "gl.where(weigh, steps, 0)",
        "gl.where(weigh, steps // SIDES, 0)",
    ),
    "of 48, products do not wait for weights": (
        "one_pass",
        "        if j >= 0:\n            wait(at_b + P_FULL + 8 * slot_p, round_p, 8)\n",
        "",
    ),
    "of 48, V is unpacked before it is there": (
        "one_pass",
        "                    wait(at_b + V_FULL + 8 * after, round, 8)\n",
        "                    pass\n",
    ),
    "of 48, V is given up with half of it to come": ("one_pass", "if c + 2 * PIECES == 4:", "if c + PIECES == 4:"),
    "of 48, nobody says that P is free": (
        "one_pass",
        "        came(at_b + P_FREE + 8 * slot_p, 8, j >= 0)\n    return a, b\n\n\n@gluon.jit\ndef _beside",
        "    return a, b\n\n\n@gluon.jit\ndef _beside",
    ),
    "of 48, the turn of nothing is told of": (
        "one_pass",
        "8 * slot_p, 8, j >= 0)\n    return a, b\n\n\n@gluon.jit\ndef _beside",
        "8 * slot_p, 8)\n    return a, b\n\n\n@gluon.jit\ndef _beside",
    ),
    "of 48, tq3_0: differences for sums": ("one_pass", "gl.where(first, 1.0, -1.0)", "gl.where(first, -1.0, 1.0)"),
    "of 48, tq3_0: the other half's signs": ("one_pass", "sign(o_i, HIGH_1)", "sign(o_i, LOW_1)"),
    "of 48, tq3_0: signs of the end change places": (
        "one_pass",
        "sign(o_i, LOW_2), sign(o_i, HIGH_2)",
        "sign(o_i, HIGH_2), sign(o_i, LOW_2)",
    ),
    "of 48, tq3_0: a butterfly is left out": (
        "rotated",
        "STEPS: gl.constexpr = U.bit_length() - 1",
        "STEPS: gl.constexpr = U.bit_length() - 2",
    ),
    "of 48, tq3_0: scores are scaled twice": ("one_pass", "        scale = scale * 0.0 + 1.0\n", ""),
    "the last 16 queries are the first": ("one_pass", "o_m = first + 16 * i", "o_m = first + 16 * i % 128"),
    "eights of queries change places": ("fragments", "(1, 0, 2, 3))\n    return", "(1, 2, 0, 3))\n    return"),
    "a panel of weights is the next one": ("weights", "at + 2048 * i]", "at + 2048 * (i - i // 8)]"),
    "rows of weights lie without a swizzle": ("weights", "(o_l // 16 ^ o_l // 4 & 1)", "(o_l // 16)"),
    "weights of eight rows change places": ("weights", "o_w * 16 + o_l % 16", "o_w * 16 + (o_l + 8) % 16"),
    "the next rows of V are four on": ("eights", "128 if turned else 2", "64 if turned else 2"),
    "eights of sums change places": ("eights", "(0, 4, 1, 5, 2, 3)", "(0, 5, 1, 4, 2, 3)"),
    "of nodes' rows 32 have a mask": ("one_pass", "(tiles - seen) * 2", "tiles - seen"),
    "the third 32 rows see what the first do": ("weights", "at_bits + o_w // 2 * 1024", "at_bits"),
    "a row's bit is the next one's": ("weights", "% 2 * 16 + gl.arange(0, 32,", "% 2 * 15 + gl.arange(0, 32,"),
    "bits of the row eight on": ("weights", "at + 32 * k, bit, bit << 8]", "at + 32 * k, bit, bit]"),
    "a padded slot is read": ("feed", "(o_j < 0) | (b_a != 0)", "(o_j < T)"),
    "the window begins a row late": ("one_pass", "gl.maximum(end - window, 0)", "gl.maximum(end - window + 1, 0)"),
    "a share leaves out its last tile": (
        "one_pass",
        "gl.minimum((i_split + 1) * every // (splits + 1), whole)",
        "gl.minimum(((i_split + 1) * every - splits - 1) // (splits + 1), whole)",
    ),
    "the first tile under a mask is seen by all": (
        "one_pass",
        "gl.where(last, whole - begin, tiles)",
        "gl.where(last, whole - begin + 1, tiles)",
    ),
    "a row beyond the last is read": ("feed", "bound = 0, 0, 1, end + T", "bound = 0, 0, 1, end + T + 64"),
    # rows of f16, fetched by the TMA
    "a tile of K is fetched over one that is read": (
        "plain_pass",
        "wait(at_b + K_FREE + 8 * slot, round ^ 1, 4)",
        "pass",
    ),
    "half a tile of V is fetched over one that is read": (
        "plain_pass",
        "wait(at_b + V_FREE + 8 * slot, round ^ 1, 4)",
        "pass",
    ),
    "half of V is given up under its products": (
        "plain_pass",
        "waited(a, 2), waited(b, 2)",
        "waited(a, 4), waited(b, 4)",
    ),
    "a warp group has the other's values": ("plain_pass", "// 4) + gl.zeros", "// 4 ^ 1) + gl.zeros"),
    "values of 128 on are those from 64 on": ("plain_pass", "at_x + 512", "at_x + 256"),
    "the second half's weights are the first's": ("plain_pass", "+ 64 * half", "+ 32 * half"),
    "rows that none sees are left as they came": ("plain_pass", "if h < 2 * seen:", "if h < 2 * seen + 4:"),
    "a padded row of f16 is read": ("plain_pass", "(o_j < 0) | (b_a != 0)", "(o_j < T)"),
    "rows are cleared before they have come": ("plain_pass", "cleared & 1", "cleared & 1 ^ 1"),
    "the second walk goes on where no V came": (
        "plain_pass",
        "given += gl.where(both, 2 * steps, 0)",
        "given += 2 * steps",
    ),
    "the second walk of f16 adds to the first": ("plain_pass", "gl.where(j > 0,", "gl.where(j + i_walk > 0,"),
    "values of f16 are fetched from the first row": ("plain_pass", "[row, 64 * c]", "[row, 64 * (c // 2)]"),
}
DRAWN = (
    of("q4_0", context=500, window=450, scores="sharp"),
    of("tq3_0", context=300, tree="padded"),
    of("q8_0", context=300, window=170),
    of("q4_0", context=60, spare=0),
    of("q8_0", context=700, T=16),
    of("f16", context=500, window=450, scores="sharp"),
    of("f16", context=300, tree="padded"),
)


def broken(monkeypatch, part, old, new):
    """The kernels with a bug in one of their files."""
    made = planted.modules(monkeypatch, SOURCES, part, old, new)
    return [getattr(made[name], name) for name in ("one_pass", "plain_pass")]


def seen(verdict):
    """And not an error of a bug that is none of the kernel's."""
    return verdict.status == "fail" or "waits for another" in verdict.detail or "outside the tensor" in verdict.detail


def plain(case):
    return case["format_k"] == "f16"


@some(
    ("case", "order", "late"),
    list(itertools.product(range(len(DRAWN)), ORDERS, (False, True))),
    lambda case, order, late: order == ORDERS[case % 3] and late == (case % 2 == 0),
)
def test_without_a_bug_none_is_seen(case, order, late, monkeypatch):
    right(monkeypatch, DRAWN[case], broken(monkeypatch, "feed", "", ""), late, order)


# a few of them in every run, all of them with -m "long or not long"
@pytest.mark.parametrize("bug", [pytest.param(b, marks=[pytest.mark.long] * (i % 24 != 2)) for i, b in enumerate(BUGS)])
def test_a_planted_bug_is_seen(bug, monkeypatch):
    part = BUGS[bug][0]
    kernels = broken(monkeypatch, *BUGS[bug])
    cases = sorted(DRAWN, key=lambda case: (case["format_k"] not in bug, plain(case) != (part == "plain_pass")))
    assert any(
        seen(verdict)
        for order in ORDERS
        for late in (True, False)
        for case in cases
        for verdict in verdicts(
            monkeypatch, case, kernels, late, order, wanted=("numeric",), queries=48 if "of 48" in bug else 144
        )
    )


COMPILED = """
import json, sys
import triton
triton.knobs.nvidia.dump_ptxas_log = True
from draftwood.autotune import elsewhere
from draftwood.reference.ops import find
from triton.backends.compiler import GPUTarget
import draftwood.kernels.tree_attention as module
elsewhere.claim(GPUTarget("cuda", 90, 32))
op, roles = find("tree_attention"), module.roles
case = op.spec.cases["perf"][0].but(tree="ddtree")
for name, format, T, context, registers in json.loads(sys.argv[2]):
    module.roles = lambda *asked: {**roles(*asked), **({"REGISTERS": tuple(registers)} if registers else {})}
    of = case.but(T=T, context=context, format_k=format, format_v=format)
    inputs = elsewhere.hollow(elsewhere.drawn(op.spec, of))
    kernels = elsewhere.launches(lambda: op.function("kernels")(**inputs))
    (one,) = [kernel for kernel in kernels if kernel.metadata.name.endswith("pass")]
    open(f"{sys.argv[1]}/{name}", "wb").write(one.asm["cubin"])
    print(f"that was {name}")
"""


WATCHED = (("tq3_0", 12, 131072),)
ALL = [
    (f, T, S) for f in FORMATS for T, S in ((23, 131072), (12, 131072), (8, 131072), (8, 4096)) if f != "f16" or T != 12
]


@pytest.mark.parametrize("watched", [WATCHED, pytest.param(ALL, marks=pytest.mark.long)], ids=["some", "all"])
def test_products_are_under_way_together_and_with_more_registers_for_scores_they_are_not(watched):
    """ptxas waits for each product where one role's registers do not suffice, spills nothing, and says so to nobody."""
    asked = [(f"{format} {T} {S}", format, T, S, ()) for format, T, S in watched]
    asked.append(("few", "q8_0", 23, 131072, (136, 24)))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "TRITON_CACHE_DIR": scratch, "TRITON_DEFAULT_FP_FUSION": "1"}
        env["PYTHONPATH"] = str(Path(__file__).parents[1] / ".typings")
        env.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-c", COMPILED, scratch, json.dumps(asked)]
        run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=scratch)
        assert run.returncode == 0, run.stderr[-2000:]
        said = re.split(r"^that was (.+)$", run.stdout, flags=re.M)
        why = {name: serial(text) for text, name in zip(said[::2], said[1::2], strict=False)}
        for name, *_ in asked:
            command = [str(tool), "-c", f"{scratch}/{name}"]
            code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            products, waits = (len(re.findall(what, code)) for what in (r"\bHGMMA", r"DEPBAR\.LE gsb0, 0x0"))
            assert products >= 25 and (waits >= 24 if name == "few" else waits <= 10), (name, products, waits)
            assert why[name][:6] == ("C7512," if name == "few" else ""), (name, why[name])
