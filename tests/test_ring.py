"""Laws of the ring (kernels/lib/ring_exact.py). Only sm90 runs it: elsewhere `lab/gluon.py` does, from its text."""

import importlib
import types
from pathlib import Path

import pytest
import torch
from draftwood.kernels.dequant_matmul import Config
from draftwood.kernels.lib import by_shape, handed, over_tiles, ring_exact, workspace
from draftwood.kernels.lib.handed import owner, share
from draftwood.lab import gluon, planted
from draftwood.reference import formats, tiles
from draftwood.reference.dequant_matmul import dequant_matmul as meaning
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.experimental import gluon as gluon_language
from triton.experimental.gluon import language as gl

module = importlib.import_module("draftwood.kernels.dequant_matmul")
TILED, LONG = tuple(tiles.RECORD), pytest.mark.long
SOURCES = {m.__name__.split(".")[-1]: Path(str(m.__file__)).read_text() for m in (handed, ring_exact)}


def ring_of(ring, late=False, order=(0, 1)):
    """The ring's module with, in place of the kernel that wants a GPU, a launch of what that one's text says."""

    def at(grid):
        def launch(*args, num_warps=0, launch_pdl=False, maxnreg=0, **more):
            # where one share of a group takes, it waits for shares before it alone
            K, least, longer = args[-9:-6]
            groups = (grid[0] * least + longer) // (K // 256)
            together = 1 if more["EACH"] == more["E"] else handed.sharers(groups, K // 256, grid[0])
            gluon.launch(ring.ring_exact, grid, args, late, order, together, **more)

        return launch

    stand_in = types.SimpleNamespace(**{name: getattr(ring, name) for name in dir(ring) if name[0] != "_"})
    stand_in.ring_exact = type("Kernel", (), {"__getitem__": lambda self, grid: at(grid)})()
    return stand_in


def case(name, M, N, K, seed=0):
    """Blocks whose products with whole numbers are exact, as test_tiles.py has them, and such numbers."""
    generator = torch.Generator().manual_seed(seed)
    fields = formats.unpack(formats.draw(name, N, K, generator), name)
    for d in {"d", "dmin"} & set(fields):
        fields[d] = 2.0 ** -torch.randint(7, 9, fields[d].shape, generator=generator).to(fields[d].dtype)
    if name in ("q4_k", "q5_k"):
        fields["scale"], fields["min"] = fields["scale"] % 4, fields["min"] % 16
    if name == "q6_k":
        fields["scale"] = fields["scale"] % 5 - 2
    blocks = formats.pack(fields, name)
    return blocks, torch.randint(-4, 5, (M, K), generator=generator).half()


def run(monkeypatch, x, blocks, name, ring=ring_exact, late=False, order=(0, 1), warps=4, resident=1, **more):
    monkeypatch.setattr(over_tiles, "ring", ring_of(ring, late, order))
    for there in (module, over_tiles):
        monkeypatch.setattr(there, "has_wgmma", lambda device: True)
    config = Config(algorithm="ring", warps=warps, resident=resident)
    held = tiles.to_tiles(blocks, name)
    return module.dequant_matmul(x, held, name, layout="tiles", config=config, **{"out_dtype": torch.float32, **more})


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("M", [1, 9, 17, 33, pytest.param(40, marks=LONG), 50, 64, pytest.param(72, marks=LONG), 96])
@pytest.mark.parametrize("name", TILED)
def test_it_means_what_the_reference_means_to_the_bit_where_sums_are_exact(name, M, late, monkeypatch):
    blocks, x = case(name, M, 128, 1280, M)
    y = run(monkeypatch, x, blocks, name, late=late, warps=4 if 16 < M < 50 else 8)
    assert torch.equal(y, meaning(x.float(), blocks, name))


@pytest.mark.parametrize("name", TILED)
def test_whatever_the_shape_chooses_has_room(name):
    shapes = (
        (64, 256, False), (1024, 5120, False), (5120, 17408, False), (17408, 5120, False), (34816, 5120, True),
        (248320, 5120, False),
    )  # fmt: skip
    for M in range(1, by_shape.RING_ROWS + 1):
        for N, K, swiglu in shapes:
            config = by_shape.by_shape(Config(), M, N, K, name, "exact", swiglu, True, True, True, True)
            warps = max(8 if swiglu else 4, config.warps)
            assert config.algorithm == "ring"
            assert ring_exact.stages(name, M, warps, config.resident, swiglu)[0] >= 2
            registers, E = ring_exact.registers(warps, config.resident), ring_exact.eights_of(M)
            assert registers >= 64
            # of its sums, a part's and what a lane needs besides
            assert 4 * E * (1 + handed.at_once(E, registers, 9)) <= registers
            assert 132 * config.resident * warps * E * 128 <= workspace.PARTS


@pytest.mark.parametrize("warps, resident", [(4, 1), (4, 4), (8, 2), (8, 3), (16, 1), (16, 2)])
def test_shares_of_programs_lose_and_repeat_no_record(warps, resident, monkeypatch):
    blocks, x = case("q4_k", 5, 512, 1792)
    y = run(monkeypatch, x, blocks, "q4_k", warps=warps, resident=resident)
    assert torch.equal(y, meaning(x.float(), blocks, "q4_k"))
    assert (workspace.parts(torch.device("cpu"), 1) == -1).all()


@gluon_language.jit
def _shares(out, numbers, groups, records, LAST):
    i_s, first, last = share(numbers, groups, records, LAST)
    p = out + gl.program_id(0) * 4
    gl.store(p, i_s)
    gl.store(p + 1, first)
    gl.store(p + 2, last)
    gl.store(p + 3, owner(last - 1, numbers))


@given(st.integers(1, 12), st.integers(1, 24), st.integers(1, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_shares_are_every_record_once_and_who_takes_comes_behind(groups, records, programs, last):
    programs = min(programs, groups * records)
    out = torch.zeros(programs, 4, dtype=torch.int32)
    numbers = handed.shares(groups, records, programs)
    gluon.launch(_shares, (programs,), (out, numbers, groups, records, last), late=False)
    place = {i_s: i for i, (i_s, *_) in enumerate(out.tolist())}
    held = sorted(out.tolist())
    assert [i_s for i_s, *_ in held] == list(range(programs)) == [whose for *_, whose in held]
    assert [begin for _, begin, _, _ in held] == [0, *(end for _, _, end, _ in held[:-1])]
    assert held[-1][2] == groups * records
    for i_s, begin, end, _ in held:
        group = (end - 1) // records
        behind = [other for other, at, _, _ in held if other > i_s and at < (group + 1) * records]
        assert begin > group * records or all(place[other] < place[i_s] for other in behind)
    if last and programs > groups:
        begun = [i_s for i_s, begin, end, _ in held if -(-begin // records) * records < end]
        assert sorted(place[i_s] for i_s in begun) == list(range(programs - groups, programs))


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 60), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_a_groups_last_share_does_not_take_and_places_are_enough(groups, records, programs, E):
    """It has its part first, and would wait for shares that end later, each for the next."""
    programs = min(programs, groups * records)
    least, more, *_ = handed.shares(groups, records, programs)
    each = handed.each(E, least, records, True)
    whose = [i for i in range(programs) for _ in range(least + (i < more))]
    many = [1 + whose[(g + 1) * records - 1] - whose[g * records] for g in range(groups)]
    assert handed.sharers(groups, records, programs) == max(many)
    for g in range(groups):
        first, last = whose[g * records], whose[(g + 1) * records - 1]
        assert first == last or (last - first) * each >= E
    # of the words that are between launches, for as many programs as an H200 has multiprocessors
    assert each == E or 2 * (programs + groups) <= 3 * programs


def test_more_programs_than_records_of_a_group_share_it(monkeypatch):
    monkeypatch.setattr(over_tiles, "processors", lambda device: 7)
    blocks, x = case("q5_k", 3, 64, 2048)
    y = run(monkeypatch, x, blocks, "q5_k", resident=1)
    assert torch.equal(y, meaning(x.float(), blocks, "q5_k"))


@pytest.mark.parametrize("M", [3, 20])
@pytest.mark.parametrize("warps", [8, 16])
def test_gate_and_up_meet_in_their_own_rows(M, warps, monkeypatch):
    blocks, x = case("q4_k", M, 512, 768)
    x = x * 2.0**-6
    y = run(monkeypatch, x, blocks, "q4_k", warps=warps, swiglu=True)
    assert torch.allclose(y, meaning(x.float(), blocks, "q4_k", swiglu=True), rtol=1e-5, atol=1e-5)


def test_a_residual_is_added_once(monkeypatch):
    blocks, x = case("q6_k", 10, 192, 1024)
    residual = torch.randint(-9, 9, (10, 192), generator=torch.Generator().manual_seed(5)).float()
    y = run(monkeypatch, x, blocks, "q6_k", residual=residual)
    assert torch.equal(y, meaning(x.float(), blocks, "q6_k", residual=residual))


@pytest.mark.parametrize("M, programs", [(3, 2), (20, 7), (33, 7)])
@pytest.mark.parametrize("residual", [False, True])
def test_a_result_of_halves_is_the_one_of_f32_rounded(M, programs, residual, monkeypatch):
    monkeypatch.setattr(over_tiles, "processors", lambda device: programs)
    blocks, x = case("q4_k", M, 192, 2816)
    # rows further apart than they are long
    added = torch.randint(-9, 9, (M, 201), generator=torch.Generator().manual_seed(5)).half()[:, :192]
    added = added if residual else None
    y = run(monkeypatch, x, blocks, "q4_k", residual=added, out_dtype=torch.float16)
    assert torch.equal(y, meaning(x.float(), blocks, "q4_k", residual=added).half())


def test_rows_of_x_beyond_the_last_are_not_read(monkeypatch):
    blocks, x = case("q4_0", 17, 64, 512)
    # memory ends with the last row: the machine refuses what lies behind it
    y = run(monkeypatch, x.clone(), blocks, "q4_0")
    assert torch.equal(y, meaning(x.float(), blocks, "q4_0"))


BUGS = {
    "the ring's slot is refilled while it is read": ("mbarrier.wait(barriers.index(FREE + slot), parity)", "pass"),
    "a record is read before it is there": ("(barriers + slot * 8, parity, W)", "(barriers + slot * 8, parity ^ 1, W)"),
    "with products over two records a slot is given back at once": ("(before if OVER else slot)", "slot"),
    "and the last of a group is not": ("            arrive(barriers + (FREE + before) * 8, begin < end, W)\n", ""),
    "the last products are not waited for": ("            acc = waited(acc, 0)\n", ""),
    "a group begins with the sums of the one before": ("1 if c else later.to(gl.int32)", "1"),
    "a slot is not given back": ("arrive(at_free, True, W)", "arrive(at_free, False, W)"),
    "rounds of the ring are not told apart": ("gl.where(slot == S - 1, parity ^ 1, parity)", "parity * 1"),
    "the last eight rows of x are not waited for": ("RECORD + E * 4096", "RECORD + (E - 1) * 4096"),
    "the next group's tiles are this one's": ("gl.where(column == records, TILES, 0)", "column * 0"),
    "x does not begin again with a group": ("gl.where(column_x + 1 == records, 0, column_x + 1)", "column_x + 1"),
    "x of a share's first record": ("    column_x = column\n", "    column_x = column * 0\n"),
    "every eight rows of x are the first": ("[column * 4, 8 * e, 0]", "[column * 4, e, 0]"),
    "x stays at its first columns": ("at + 64 * c", "at"),
    "x is the first record's in the ring": ("at + slot_x * (256 * E)", "at"),
    "x is said to come for another record": ("slot_x, next_x = 0, 0, 0, SX % S", "slot_x, next_x = 0, 0, 0, 0"),
    "x goes on in another slot": ("_next(slot_x, SX)", "_next(slot_x, S)"),
    "a sharer is left out": ("(g1 + 1) * records - 1, shares)", "(g1 + 1) * records - 1, shares) - 1"),
    "a sharer is counted twice": ("acc = take(partial + (i_s + 1)", "acc = take(partial + (i_s + 2)"),
    "shares hand over to one place": ("hand(partial + i_s.to(gl.int64) * SLOT", "hand(partial + i_s.to(gl.int64) * 0"),
    "the group's first part is handed over, too": ("if mine > 0:", "if mine >= 0:"),
    "parts of two groups lie on each other": (" + i_n).to(gl.int64)", ").to(gl.int64)"),
    "a share takes its own part, too": ("setp.gt.s32 o{k}", "setp.ge.s32 o{k}"),
    "what a share keeps is handed over": ('f"@p{e // each} "', '""'),
    "a share keeps another's columns": ("chosen(acc, mine, EACH)", "chosen(acc, 0, EACH)"),
    "a share's columns are stored as the first": ("8 * EACH * mine", "0"),
    "a share takes the first columns": ("        p += mine * (128 * W * EACH)\n", "        p += 0\n"),
    "a part's registers lie on each other": ("[$1+{512 * W * e}]", "[$1+{64 * W * e}]"),
    "later sharers are the first ones": ("        p += AT * 128 * W * E\n", ""),
    "later sharers of those on their way are the first": ("{512 * W * (E * k + e)}", "{512 * W * e}"),
    "one part more is taken than there are": ("setp.gt.s32 p{k}, ", "setp.ge.s32 p{k}, "),
    "what was taken is left": ("{at}, empty;", "{at}, other;"),
    "who waits comes first": ("programs - 1 - gl.program_id(0)", "gl.program_id(0)"),
    "a share with nothing to take is another": ("behind = i_s - groups + 1", "behind = i_s - groups + 2"),
    "none of the longer shares has nothing to take": ("longer = behind <= alone", "longer = behind < 0"),
    "a share is divided by as a longer one": ("longer, shares[5], shares[4]", "longer, shares[5], shares[5]"),
    "what is left of a group by a longer share is as by others": ("shares[7], shares[6]", "shares[6], shares[6]"),
    "a quotient is twice as large": (" * by) >> 30", " * by) >> 29"),
    "the longer shares come last": ("(i_s < more).to(gl.int32)", "(i_s >= more).to(gl.int32)"),
    "rows g and g + 8 change places": ("return _four(b0, W), _four(b1, W)", "return _four(b1, W), _four(b0, W)"),
    "odd rows take the even rows' d": ("low = (d >> (16 * odd)) & 0xFFFF", "low = d & 0xFFFF"),
    "minimums are added": ("^ -2147450880", ""),
    "the bits above are the other word's": ("h1 = high[2 * C + 1]", "h1 = high[2 * C]"),
    "up is gate": ("[sides * step, step, 32, 1]", "[0, step, 32, 1]"),
    "the second plane of q8_0 is the first": ("_words(codes.index(slot), 4 + c, W)", "_words(codes.index(slot), c, W)"),
    "rows of x beyond the last are read": ("[K // 64, M, 64]", "[K // 64, M + 1, 64]"),
    "gate's rows g and g + 8 change places": ("(0, 4, 1, 2, 3)), (16 * W, 8)", "(0, 1, 4, 2, 3)), (16 * W, 8)"),
    "sums of rows g and g + 8 change places": ("r // 2 % 2 * 8", "(1 - r // 2 % 2) * 8"),
    "halves of rows g and g + 8 change places": ("+ r % 2 * 4)", "+ (1 - r % 2) * 4)"),
    "halves of eight rows of x lie on each other": ("r // 2 * 4 * N", "0 * N"),
    "a word's halves change places": ("x2.f32 t, $2, $1", "x2.f32 t, $1, $2"),
}


DRAWN = (
    ("q4_k", 20, 192, 2816, {}),
    # a fourth record of W, and three of x
    ("q4_k", 20, 192, 2816, {"resident": 3}),
    ("q6_k", 10, 64, 2048, {"out_dtype": torch.float16}),
    ("q6_k", 3, 64, 2048, {}),
    ("q8_0", 9, 64, 512, {}),
    ("q4_0", 60, 64, 1792, {}),
    ("q4_k", 3, 256, 768, {"swiglu": True, "warps": 8}),
    ("q4_k", 50, 384, 2816, {"warps": 8}),
    # of eight shares six are longer, of which some have nothing to take
    ("q4_k", 3, 192, 2560, {"resident": 4}),
)


def differs(monkeypatch, ring, late, programs, name, M, N, K, more):
    monkeypatch.setattr(over_tiles, "processors", lambda device: programs)
    blocks, x = case(name, M, N, K)
    parts = workspace.parts(torch.device("cpu"), 1)
    try:
        y = run(monkeypatch, x, blocks, name, ring=ring, late=late, **more)
        want = meaning(x.float(), blocks, name, swiglu=bool(more.get("swiglu"))).to(y.dtype)
        return not torch.allclose(y, want, rtol=1e-5, atol=1e-5) or bool((parts != -1).any())
    except (IndexError, RuntimeError):
        return True
    finally:
        parts.fill_(-1)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("programs", [2, 7])
@pytest.mark.parametrize("drawn", DRAWN)
def test_without_a_bug_none_is_seen(drawn, programs, late, monkeypatch):
    assert not differs(monkeypatch, ring_exact, late, programs, *drawn)


# a few of them in every run, all of them with -m "long or not long"
@pytest.mark.parametrize("bug", [pytest.param(b, marks=[pytest.mark.long] * (i % 13 > 0)) for i, b in enumerate(BUGS)])
def test_a_planted_bug_is_seen(bug, monkeypatch):
    broken = planted.modules(monkeypatch, SOURCES, None, *BUGS[bug])["ring_exact"]
    assert any(
        differs(monkeypatch, broken, late, programs, *drawn)
        for programs in (7, 2)
        for late in (False, True)
        for drawn in DRAWN
    )


def test_what_has_no_room_is_refused_with_its_numbers(monkeypatch):
    blocks, x = case("q8_0", 64, 256, 512)
    with pytest.raises(ValueError, match="no room for 4 programs of 16 warps and 64 rows"):
        run(monkeypatch, x, blocks, "q8_0", warps=16, resident=4)


def test_rows_of_x_that_the_tma_cannot_take_go_another_way(monkeypatch):
    blocks, x = case("q4_k", 9, 64, 512)
    apart = torch.zeros(9, 516, dtype=x.dtype)[:, :512].copy_(x)
    monkeypatch.setattr(ring_exact, "described", None)
    with pytest.raises(TypeError):
        run(monkeypatch, x, blocks, "q4_k")
    y = run(monkeypatch, apart, blocks, "q4_k")
    assert torch.allclose(y, meaning(x.float(), blocks, "q4_k"), rtol=1e-3, atol=1e-3 * float(y.abs().max()))


def test_where_there_is_no_wgmma_it_says_so():
    blocks, x = case("q4_k", 9, 64, 256, 0)
    with pytest.raises(ValueError, match="sm90"):
        module.dequant_matmul(
            x, tiles.to_tiles(blocks, "q4_k"), "q4_k", layout="tiles", config=Config(algorithm="ring", warps=4)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the ring runs on sm90 only")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("M", [1, 9, 23, 40, 64, 96])
@pytest.mark.parametrize("name", TILED)
def test_the_ring_and_the_wide_kernel_give_the_same_numbers(name, M, dtype):
    blocks = formats.draw(name, 256, 1792, torch.Generator().manual_seed(0))
    held, x = tiles.to_tiles(blocks, name).cuda(), torch.randn(M, 1792, device="cuda").to(dtype)
    configs = (
        Config(algorithm="wide", warps=4),
        *(Config(algorithm="ring", warps=w, resident=r) for w, r in ((4, 2 if M <= 64 else 1), (8, 1))),
    )
    wide, *rings = (
        module.dequant_matmul(x, held, name, layout="tiles", out_dtype=torch.float32, config=config)
        for config in configs
    )
    for y in rings:
        assert torch.allclose(y, wide, rtol=2e-3, atol=2e-3 * float(wide.abs().max()))


@given(st.integers(1, 1 << 18), st.integers(1, 1 << 18))
@settings(max_examples=300, deadline=None)
def test_divisors_are_divided_by_exactly(i, d):
    i = min(i, ((1 << 30) - 1) // d)
    for number in (i, i // d * d, max(0, i // d * d - 1)):
        assert (number * handed.by(d)) >> 30 == number // d


def test_a_weight_of_more_records_than_are_counted_is_another_algorithms():
    assert handed.countable(248320 // 64, 20, 16) and handed.countable(1 << 14, 16, 132)
    assert not handed.countable(1 << 20, 64, 132)
    with pytest.raises(ValueError, match="132 programs do not take 1048576 groups of 64 records"):
        handed.shares(1 << 20, 64, 132)
