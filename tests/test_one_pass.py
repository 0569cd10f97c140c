"""Laws of one pass (kernels/lib/one_pass.py, feed.py). Only sm90 runs it: elsewhere `lab/gluon.py` does, from its
text."""

import importlib
import linecache
import sys
import types
from pathlib import Path

import pytest
import torch
from draftwood.kernels.lib import feed, one_pass
from draftwood.kernels.tree_attention import Config
from draftwood.lab import gluon
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
ORDERS = ((0, 1, 2), (2, 1, 0), (2, 0, 1))
SOURCES = {name: Path(str(part.__file__)).read_text() for name, part in (("one_pass", one_pass), ("feed", feed))}
orders = pytest.mark.parametrize("order", ORDERS, ids=str)
copies = pytest.mark.parametrize("late", [False, True])


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
    monkeypatch, case, kernel=one_pass.one_pass, late=False, order=ORDERS[0], seed=0, programs=3, joined=False,
    wanted=("numeric", "redzone", "unchanged"),
):  # fmt: skip
    """What the lab says of the launcher with this kernel in place of the one that wants a GPU."""

    def at(grid):
        return lambda *args, num_warps=0, **more: gluon.launch(kernel, grid, args, late, order, **more)

    monkeypatch.setattr(module, "one_pass", indexed(at))
    monkeypatch.setattr(module, "compiled_for", lambda device: "sm90")
    if not joined:
        monkeypatch.setattr(module, "_join", indexed(lambda grid: join))
    config = Config("keys", 64, one_pass.QUERIES, programs, 1, num_stages=2)

    def call(_name, **inputs):
        return module.tree_attention(**inputs, config=config)

    return Trial(find("tree_attention"), case, seed, Subject(call, torch.device("cpu"))).verdicts(wanted)


def right(*args, **more):
    found = verdicts(*args, **more)
    assert found and all(verdict.status == "pass" for verdict in found), "\n".join(map(str, found))


@pytest.mark.parametrize("format", FORMATS)
def test_with_the_join_behind_it_it_means_what_the_reference_means(format, monkeypatch):
    right(monkeypatch, of(format, T=17, gate=True), late=True, joined=True)


@orders
@copies
@pytest.mark.parametrize("format", FORMATS)
def test_whoever_goes_first_and_whatever_comes_late_it_means_the_same(format, late, order, monkeypatch):
    right(monkeypatch, of(format), late=late, order=order)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("T", range(16, 25, 2))
def test_trees_of_one_pass(T, format, monkeypatch):
    right(monkeypatch, of(format, T=T), seed=T)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "values",
    [
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
    ],
    ids=lambda values: ",".join(f"{name}={value}" for name, value in values.items()),
)
def test_shares_a_remainder_a_window_and_padding(values, format, monkeypatch):
    right(monkeypatch, of(format, **values), late=True, programs=2 * values.get("Hkv", 1) + 1)


@orders
@pytest.mark.parametrize("format", FORMATS)
def test_a_share_that_passes_its_first_tile_is_walked_again(format, order, monkeypatch):
    right(monkeypatch, of(format, scores="sharp", context=500), late=True, order=order)


@pytest.mark.parametrize(("format_k", "format_v"), [("q4_0", "q8_0"), ("q8_0", "tq3_0"), ("tq3_0", "q4_0")])
def test_keys_and_values_may_be_of_two_formats(format_k, format_v, monkeypatch):
    right(monkeypatch, of(format_k, format_v=format_v), late=True)


@pytest.mark.parametrize("programs", [1, 2, 5, 9, 40])
def test_any_number_of_shares_gives_the_same(programs, monkeypatch):
    right(monkeypatch, of("q4_0", context=512), programs=programs)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_number_stays_in_its_query(format, monkeypatch):
    right(monkeypatch, of(format), wanted=("nonfinite",))


BUGS = {
    # who waits for whom
    "a tile of K is overwritten while it is read": ("feed", "mbarrier.wait(free.index(slot), round ^ 1)", "pass"),
    "a tile of V is overwritten while it is read": ("feed", "mbarrier.wait(v_free.index(slot), round ^ 1)", "pass"),
    "plain V is told of before it has come": (
        "feed",
        "                        async_copy.wait_group(1)\n                    else:",
        "                        async_copy.wait_group(2)\n                    else:",
    ),
    "plain K is told of before it has come": (
        "feed",
        "                    async_copy.wait_group(1)\n                    fence",
        "                    async_copy.wait_group(2)\n                    fence",
    ),
    "weights are overwritten while they are read": (
        "one_pass",
        "mbarrier.wait(p_free.index(slot_p), round_p ^ 1)",
        "pass",
    ),
    "the last sums are taken before they are there": ("one_pass", "    mbarrier.wait(summed, 0)\n", ""),
    "K is given up while its last product runs": (
        "one_pass",
        """                    b, c = warpgroup_mma_wait(0, deps=[b, c])
                    mbarrier.arrive(k_free.index(slot), count=1)
""",
        """                    mbarrier.arrive(k_free.index(slot), count=1)
                    b, c = warpgroup_mma_wait(0, deps=[b, c])
""",
    ),
    "V is given up while its product runs": (
        "one_pass",
        """            a, b = warpgroup_mma_wait(0, deps=[a, b])
            mbarrier.arrive(v_free.index(slot), count=1)
""",
        """            mbarrier.arrive(v_free.index(slot), count=1)
            a, b = warpgroup_mma_wait(0, deps=[a, b])
""",
    ),
    "nobody says that V is free": ("one_pass", "            mbarrier.arrive(v_free.index(slot), count=1)\n", ""),
    "the second walk counts K's tiles anew": (
        "one_pass",
        "    for i_walk in range(2):\n        if walk > 0:\n",
        "    for i_walk in range(2):\n        done = 0\n        if walk > 0:\n",
    ),
    "the second walk adds to the first": ("one_pass", "use_acc=j > 0", "use_acc=j + i_walk > 0"),
    "no share is walked again": ("one_pass", "gl.where(most > MOST, 1, 0)", "gl.where(most > MOST, 0, 0)"),
    "the second walk has the first tile's maximum": (
        "one_pass",
        "gl.where(i_walk == 0, gl.minimum(1, tiles), tiles)",
        "gl.minimum(1, tiles)",
    ),
    # what is where
    "the other half of the lanes keeps the other half of the columns": (
        "one_pass",
        "selp.b32 $0, $2, $1, upper",
        "selp.b32 $0, $1, $2, upper",
    ),
    "a lane adds its neighbour's columns": ("one_pass", "bfly.b32 other, other, 16", "bfly.b32 other, other, 8"),
    "q4_0's nibbles of the upper rows change places": (
        "one_pass",
        "(c >> 1 & 1) << 4 | (c >> 4 & 1) << 3",
        "(c >> 1 & 1) << 3 | (c >> 4 & 1) << 4",
    ),
    "the last 16 queries are the first": (
        "one_pass",
        "_queries(q, s_q_t, s_q_h, i_kv, first + 128",
        "_queries(q, s_q_t, s_q_h, i_kv, first",
    ),
    "the third 32 rows see what the first do": ("one_pass", "bits.index(2 * j + 1)", "bits.index(2 * j)"),
    "a padded slot is read": ("feed", "(o_row < end) | (b_a != 0)", "(o_row < end) | (b_a == b_a)"),
    "the window begins a row late": ("one_pass", "gl.maximum(end - window, 0)", "gl.maximum(end - window + 1, 0)"),
    "a share leaves out its last tile": (
        "one_pass",
        "(i_split + 1) * whole // splits - begin)",
        "((i_split + 1) * whole - 1) // splits - begin)",
    ),
    "the lower pieces of a tile are the upper": ("feed", "i // 2 * 32 * s // UNIT", "i // 2 * 0 * s // UNIT"),
    "the scales are those of the piece before": ("feed", "i // 2 * 16 * s + i % 2 * 4", "i // 2 * 16 * s"),
    "the fourth piece of V comes a tile late": (
        "feed",
        "v3 = _read(vw, vd, vh, 3, None, s_v, FORMAT_V)\n                    else",
        "v3 = v2\n                    else",
    ),
}
DRAWN = (
    of("q4_0", context=500, window=450, scores="sharp"),
    of("f16", context=300, tree="padded"),
    of("q8_0", context=300, window=170),
)


def broken(monkeypatch, part, old, new):
    """The kernel with a bug in one of its two files."""
    assert old in SOURCES[part], f"the text that this changes is gone: {old}"
    texts = {**SOURCES, part: SOURCES[part].replace(old, new)}
    for name in ("feed", "one_pass"):
        made = types.ModuleType(f"draftwood.kernels.lib.{name}_broken")
        made.__package__, made.__file__ = "draftwood.kernels.lib", f"{made.__name__}.py"
        monkeypatch.setitem(sys.modules, made.__name__, made)
        text = texts[name].replace("from .feed import", "from .feed_broken import")
        # Triton asks for the lines of what it decorates
        lines = text.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, made.__file__, (len(text), None, lines, made.__file__))
        exec(compile(text, made.__file__, "exec"), made.__dict__)
    return made.one_pass


def seen(verdict):
    """And not an error of a bug that is none of the kernel's."""
    return verdict.status == "fail" or "waits for another" in verdict.detail or "outside the tensor" in verdict.detail


@orders
@copies
@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case["format_k"])
def test_without_a_bug_none_is_seen(case, late, order, monkeypatch):
    right(monkeypatch, case, broken(monkeypatch, "feed", "", ""), late, order)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug, monkeypatch):
    kernel = broken(monkeypatch, *BUGS[bug])
    assert any(
        seen(verdict)
        for case in DRAWN
        for late in (True, False)
        for order in ORDERS
        for verdict in verdicts(monkeypatch, case, kernel, late, order, wanted=("numeric",))
    )
