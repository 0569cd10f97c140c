"""Laws of the ring of 8-bit integers (kernels/lib/ring_int8.py). Only sm90 runs it: elsewhere `lab/gluon.py` does, from
its text."""

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from draftwood.kernels.dequant_matmul import Config
from draftwood.kernels.lib import by_shape, handed, over_tiles, ring_exact, ring_int8, rows_int8, workspace
from draftwood.lab import gluon, planted
from draftwood.reference import formats, tiles
from draftwood.reference.dequant_matmul import SMALLEST, group_of, quantise_activations
from draftwood.reference.dequant_matmul import dequant_matmul as meaning

module = importlib.import_module("draftwood.kernels.dequant_matmul")
TILED = tuple(tiles.RECORD)
# what the one has of the other, sums' ways out, may have a bug, too
SOURCES = {part.__name__.split(".")[-1]: Path(str(part.__file__)).read_text() for part in (ring_exact, ring_int8)}


def ring_of(ring, late=False, order=(0, 1)):
    """The ring's module with, in place of the kernel that wants a GPU, a launch of what that one's text says."""

    def at(grid):
        def launch(*args, num_warps=0, launch_pdl=False, maxnreg=0, **more):
            # where one share of a group takes, it waits for shares before it alone
            K, least, longer = args[-9:-6]
            groups = (grid[0] * least + longer) // (K // 256)
            together = 1 if more["EACH"] == more["E"] * more["R"] else handed.sharers(groups, K // 256, grid[0])
            gluon.launch(ring.ring_int8, grid, args, late, order, together, **more)

        return launch

    kernel = type("Kernel", (), {"__getitem__": lambda self, grid: at(grid)})()
    return types.SimpleNamespace(ring_int8=kernel, stages=ring.stages, PIECE=ring.PIECE)


def case(name, M, N, K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=generator) * 10 ** torch.empty(M, 1).uniform_(-1, 1, generator=generator)
    return formats.draw(name, N, K, generator), x.half()


def run(
    monkeypatch, x, blocks, name, ring=ring_int8, late=False, order=(0, 1), warps=4, resident=1, pair=False, **more
):
    monkeypatch.setattr(over_tiles, "ring_8", ring_of(ring, late, order))
    for there in (module, over_tiles):
        monkeypatch.setattr(there, "has_wgmma", lambda device: True)
    config = Config(algorithm="ring", warps=warps, resident=resident, pair=pair)
    held = tiles.to_tiles(blocks, name)
    return module.dequant_matmul(x, held, name, "int8", layout="tiles", out_dtype=torch.float32, config=config, **more)


def means(y, x, blocks, name, **more):
    """Integers are exact: what is left are roundings of sums in f32, row by row of x."""
    want = meaning(x.double(), blocks, name, "int8", **more)
    return bool(((y - want).abs() <= 1e-5 * want.abs().amax(1, keepdim=True)).all())


@pytest.mark.parametrize("late", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("M", [1, 2, 9, 23, 33, 64])
@pytest.mark.parametrize("name", TILED)
def test_it_means_what_the_reference_means(name, M, late, monkeypatch):
    blocks, x = case(name, M, 128, 1280, M)
    x[M // 2] = 0
    y = run(monkeypatch, x, blocks, name, late=late, warps=4 if M < 50 else 8)
    assert means(y, x, blocks, name)


@pytest.mark.parametrize("warps, resident", [(4, 1), (4, 4), (8, 2), (8, 3), (16, 1), (16, 2)])
def test_shares_of_programs_lose_and_repeat_no_record(warps, resident, monkeypatch):
    blocks, x = case("q4_k", 5, 512, 1792)
    y = run(monkeypatch, x, blocks, "q4_k", warps=warps, resident=resident)
    assert means(y, x, blocks, "q4_k")
    assert (workspace.parts(torch.device("cpu"), 1) == -1).all()


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("M, N, K, warps, resident, swiglu", [
    (33, 256, 1280, 4, 2, False), (12, 128, 512, 4, 1, True), (5, 512, 1792, 8, 1, False), (9, 192, 512, 4, 1, False),
])  # fmt: skip
def test_warps_with_rows_of_two_tiles(name, M, N, K, warps, resident, swiglu, monkeypatch):
    monkeypatch.setattr(over_tiles, "processors", lambda device: 3)
    blocks, x = case(name, M, N, K)
    x = x * 2.0**-6
    y = run(monkeypatch, x, blocks, name, warps=warps, resident=resident, pair=True, swiglu=swiglu)
    assert means(y, x, blocks, name, swiglu=swiglu)
    assert (workspace.parts(torch.device("cpu"), 1) == -1).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_more_programs_than_records_of_a_group_share_it(order, monkeypatch):
    monkeypatch.setattr(over_tiles, "processors", lambda device: 7)
    blocks, x = case("q5_k", 3, 64, 2048)
    assert means(run(monkeypatch, x, blocks, "q5_k", order=order), x, blocks, "q5_k")


@pytest.mark.parametrize("M", [3, 20])
@pytest.mark.parametrize("warps", [8, 16])
def test_gate_and_up_meet_in_their_own_rows(M, warps, monkeypatch):
    blocks, x = case("q4_k", M, 512, 768)
    x = x * 2.0**-6
    y = run(monkeypatch, x, blocks, "q4_k", warps=warps, swiglu=True)
    assert means(y, x, blocks, "q4_k", swiglu=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_is_added_once_and_rows_of_x_may_lie_apart(dtype, monkeypatch):
    blocks, x = case("q6_k", 10, 192, 1024)
    x = torch.zeros(10, 1027, dtype=dtype)[:, 3:].copy_(x)
    residual = torch.randn(10, 192, generator=torch.Generator().manual_seed(5))
    y = run(monkeypatch, x, blocks, "q6_k", residual=residual)
    assert means(y, x, blocks, "q6_k", residual=residual)


@pytest.mark.parametrize("name", ["q4_k", "q8_0"])
def test_a_row_that_is_not_finite_is_nan_and_no_other(name, monkeypatch):
    blocks, x = case(name, 11, 64, 512)
    x[2, 300], x[9, 5] = torch.nan, -torch.inf
    y = run(monkeypatch, x, blocks, name)
    rows = torch.zeros(11, dtype=torch.bool)
    rows[[2, 9]] = True
    assert torch.equal(y.isnan(), rows[:, None].expand(11, 64))


@pytest.mark.parametrize("name", TILED)
def test_a_piece_of_x_is_what_the_reference_rounds_to(name):
    M, K, piece, by_32 = 11, 512, ring_int8.PIECE[name], group_of(name) == 32
    _, x = case(name, M, 64, K)
    x[3], x[4, 256:] = 0, 127
    held = torch.full((K // 256, 2, piece // 4), -1, dtype=torch.int32)
    rows_int8.quantise_pieces[(K // 256, 2)](
        x, x.stride(0), held, M, FORMAT=name, PIECE=piece, SMALLEST=SMALLEST, EARLY="no", ASM=False, num_warps=8
    )  # fmt: skip
    d, q = quantise_activations(torch.cat((x, torch.zeros(5, K))), group_of(name))
    q = q.reshape(2, 8, K // 256, 4, 2, 2, 2, 4, 2)  # eight n k, then c e r1 s t h
    words = held[..., :512].contiguous().view(torch.int8).view(K // 256, 2, 4, 8, 4, 2, 2, 2, 2)  # c n t e r1 h s
    assert torch.equal(words.permute(1, 3, 0, 2, 5, 6, 8, 4, 7).float(), q)
    if by_32:
        found = held[..., 512:].view(torch.float32).view(K // 256, 2, 8, 8).permute(1, 3, 0, 2)
        assert torch.equal(found.reshape(16, -1), d)
        return
    found = held[..., -8:].view(torch.float32).permute(1, 2, 0)
    assert torch.equal(found.reshape(16, -1), d)
    if name != "q6_k":
        sums = held[..., 512:576].contiguous().view(torch.float16).view(K // 256, 2, 8, 4, 2, 2).float().sum(-2)
        whole = q.sum((5, 6, 7, 8)).reshape(16, K // 256, 8)
        assert torch.equal(sums.permute(1, 2, 0, 3, 4).reshape(16, K // 256, 8), whole)


def test_sums_of_the_largest_codes_are_exact(monkeypatch):
    fields = formats.unpack(formats.draw("q4_k", 64, 256, torch.Generator().manual_seed(0)), "q4_k")
    fields["q"][:], fields["scale"][:], fields["min"][:] = 15, 63, 62
    fields["d"][:], fields["dmin"][:] = 0.5, 1.0
    blocks, x = formats.pack(fields, "q4_k"), torch.full((2, 256), 127.0).half()
    x[1, ::2] = -127
    y = run(monkeypatch, x, blocks, "q4_k")
    assert torch.equal(y, meaning(x.double(), blocks, "q4_k", "int8").float())


BUGS = {
    "the ring's slot is refilled while it is read": ("mbarrier.wait(barriers.index(FREE + slot), parity)", "pass"),
    "a record is read before it is there": ("(at_barriers + slot * 8, parity, W)", "(at_barriers + slot * 8, 1, W)"),
    "a slot is not given back": ("    give_back(at_free, True, W)", "    give_back(at_free, False, W)"),
    "another slot is given back": ("at_free = at_barriers + (FREE + slot) * 8", "at_free = at_barriers + FREE * 8"),
    "x is not waited for": ("BYTES: gl.constexpr = CODES + E * PIECE", "BYTES: gl.constexpr = CODES"),
    "the second tile of a group is the first": ("first = tile + i\n", "first = tile + i * 0\n"),
    "the second tile lies on the first": ("at + i * RECORD, RECORD", "at, RECORD"),
    "up is gate": ("first = tile + tiles + (i - SIDE // 2)", "first = tile + (i - SIDE // 2)"),
    "x does not begin again with a group": ("gl.where(column_x + 1 == records, 0, column_x + 1)", "column_x + 1"),
    "x of a share's first record": ("    column_x = column\n", "    column_x = column * 0\n"),
    "x stays at its first columns": ("p = pieces + column.to(gl.int64)", "p = pieces + column_x.to(gl.int64)"),
    "every eight rows of x are the first": ("PIECE * e + 512 * c, 4)", "512 * c, 4)"),
    "every 64 columns of x are the first": ("PIECE * e + 512 * c, 4)", "PIECE * e, 4)"),
    "d is of the first eight rows": ("PIECE * e + PIECE - 32", "PIECE - 32"),
    "sums are of the first eight rows": (
        "sums = _words(at_x + lane * 8, PIECE * e",
        "sums = _words(at_x + lane * 8, 0 * e",
    ),
    "the second group's d of x is the first's": ("PIECE * e + 2080 + 64 * c", "PIECE * e + 2048 + 64 * c"),
    "rows g + 8 take the scales of rows g": ("SCALES + 128 + NEXT", "SCALES + NEXT"),
    "rows g + 8 take the minimums of rows g": ("at_minimums, SCALES + 128)", "at_minimums, SCALES)"),
    "rows g + 8 take the d of rows g": ("D + 32, 1)", "D, 1)"),
    "rows g + 8 of q6_k take the d of rows g": ("_half_word(at_d, D + 16)", "_half_word(at_d, D)"),
    "every lane takes the same minimums": ("_ds(at_scales + t * 4,", "_ds(at_scales,"),
    "the odd bit of a sum is lost": ('"$4, $5, $4, $5", "$6, $7"', '"$4, $5, $4, $5", "$6, z"'),
    "minimums are scales": ("0x64646464, 0x4341", "0x64646464, 0x4240"),
    "minimums are added": ("f[0] - m[0] * g[1]", "f[0] + m[0] * g[1]"),
    "the even group counts once": ("((w << 4) & 0xFF0, (w >> 16) & 255)", "(w & 255, (w >> 16) & 255)"),
    "scales of q6_k have no sign": ("w = w ^ -0x7F7F7F80", "w = w ^ 0"),
    "the first columns' sums are lost": ("x, c == 0, FORMAT)", "x, c < 2, FORMAT)"),
    "codes of q4_0 are not less 8": ("(v, -0x0F0F0F10, -0x7F7F7F80))", "(v, -0x0F0F0F10, 0))"),
    "odd groups of q4_k take the even codes": ("_masked(v, -0x0F0F0F10, 0)", "_masked(v, 0x0F0F0F0F, 0)"),
    "the second plane of q8_0 is the first": ("_words(at_codes, 8192 + 2048 * c", "_words(at_codes, 2048 * c"),
    "fifth bits are those of the first columns": ("_fifth(v, high[C], 1)", "_fifth(v, high[0], 1)"),
    "bits above are the other word's": ("h1 if i > 1 else h0", "h0 if i > 1 else h1"),
    "sums begin a little late": ("12582912.0) * (z[i] * d1)", "12582913.0) * (z[i] * d1)"),
    "a warp takes the scales of another": ("tile + w * 256 + lane", "tile + (3 - w) * 256 + lane"),
    "the second of a program's tiles is not read": ("warp // 4 * RECORD", "warp * 0"),
    "a warp's second tile has the first one's codes": (
        "_words(at_codes, 2048 * c + NEXT * i, 4)",
        "_words(at_codes, 2048 * c, 4)",
    ),
    "and its scales": ("SCALES + 128 + NEXT * i, 4)", "SCALES + 128, 4)"),
    "and its minimums and d": ("SCALES + NEXT * i, D + NEXT * i)", "SCALES, D)"),
    "and its bits above": ("high[ABOVE * i : ABOVE * i + ABOVE]", "high[:ABOVE]"),
    "two tiles lie where one is": ("i_n * 2 + 1", "i_n * 2"),
    "what is up has the gate's own": ("* two[r],)", "* one[r],)"),
    "who takes two tiles takes the first share's": (
        "take(partial + (i_s + 1).to(gl.int64) * SLOT",
        "take(partial + i_s.to(gl.int64) * SLOT",
    ),
}
DRAWN = (
    ("q4_k", 20, 192, 2816, {}),
    ("q6_k", 10, 64, 2048, {}),
    ("q8_0", 9, 64, 512, {}),
    ("q4_0", 3, 64, 1792, {}),
    ("q5_k", 3, 64, 768, {}),
    ("q4_k", 3, 256, 768, {"swiglu": True, "warps": 8}),
    ("q4_k", 9, 384, 2816, {"warps": 8}),
    ("q4_k", 12, 256, 1536, {"pair": True}),
    ("q6_k", 9, 128, 768, {"pair": True}),
    ("q5_k", 3, 128, 512, {"pair": True, "swiglu": True}),
)


def differs(monkeypatch, ring, late, programs, name, M, N, K, more):
    monkeypatch.setattr(over_tiles, "processors", lambda device: programs)
    blocks, x = case(name, M, N, K)
    parts = workspace.parts(torch.device("cpu"), 1)
    try:
        y = run(monkeypatch, x, blocks, name, ring=ring, late=late, **more)
        return not means(y, x, blocks, name, swiglu=bool(more.get("swiglu"))) or bool((parts != -1).any())
    except (IndexError, RuntimeError):
        return True
    finally:
        parts.fill_(-1)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("programs", [2, 7])
@pytest.mark.parametrize("drawn", DRAWN)
def test_without_a_bug_none_is_seen(drawn, programs, late, monkeypatch):
    assert not differs(monkeypatch, ring_int8, late, programs, *drawn)


# a few of them in every run, all of them with -m "long or not long"
@pytest.mark.parametrize("bug", [pytest.param(b, marks=[pytest.mark.long] * (i % 13 > 0)) for i, b in enumerate(BUGS)])
def test_a_planted_bug_is_seen(bug, monkeypatch):
    broken = planted.modules(monkeypatch, SOURCES, None, *BUGS[bug])["ring_int8"]
    assert any(
        differs(monkeypatch, broken, late, programs, *drawn)
        for programs in (7, 2)
        for late in (False, True)
        for drawn in DRAWN
    )


@pytest.mark.parametrize("name", TILED)
def test_whatever_the_shape_chooses_has_room(name):
    for M in range(2, by_shape.MOST_ROWS + 1):
        for N, K, swiglu in ((64, 256, False), (1024, 5120, False), (17408, 5120, False), (34816, 5120, True)):
            config = by_shape.by_shape(Config(), M, N, K, name, "int8", swiglu, True, True, True, True)
            warps = max(8 if swiglu and not config.pair else 4, config.warps)
            assert config.algorithm == "ring"
            assert by_shape.ring_stages("int8", name, M, warps, config.resident, swiglu, config.pair) >= 2
            assert ring_exact.registers(warps, config.resident) >= 64


def test_what_has_no_room_is_refused_with_its_numbers(monkeypatch):
    blocks, x = case("q8_0", 64, 256, 512)
    with pytest.raises(ValueError, match="no room for 4 programs of 16 warps and 64 rows"):
        run(monkeypatch, x, blocks, "q8_0", warps=16, resident=4)


@pytest.mark.long
def test_more_rows_than_a_program_takes_go_another_way(monkeypatch):
    blocks, x = case("q4_k", 65, 64, 256)
    monkeypatch.setattr(over_tiles, "ring_8", None)
    for there in (module, over_tiles):
        monkeypatch.setattr(there, "has_wgmma", lambda device: True)
    y = module.dequant_matmul(x, tiles.to_tiles(blocks, "q4_k"), "q4_k", "int8", layout="tiles")
    assert torch.allclose(y.double(), meaning(x.double(), blocks, "q4_k", "int8"), rtol=1e-2, atol=1e-2)


def test_where_it_is_not_it_says_so():
    blocks, x = case("q4_k", 9, 64, 256)
    config = Config(algorithm="ring", warps=4)
    with pytest.raises(ValueError, match="sm90"):
        module.dequant_matmul(x, tiles.to_tiles(blocks, "q4_k"), "q4_k", "int8", layout="tiles", config=config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the ring runs on sm90 only")
@pytest.mark.parametrize("M, dtype", [(2, torch.float16), (23, torch.bfloat16), (64, torch.float32)])
@pytest.mark.parametrize("name", TILED)
def test_the_ring_and_rows_of_their_own_give_the_same_numbers(name, M, dtype):
    blocks = formats.draw(name, 256, 1792, torch.Generator().manual_seed(0))
    held, x = tiles.to_tiles(blocks, name).cuda(), torch.randn(M, 1792, device="cuda").to(dtype)
    rows, y = (
        module.dequant_matmul(x, held, name, "int8", layout="tiles", out_dtype=torch.float32, config=config)
        for config in (Config(warps=4), Config(algorithm="ring", warps=4 if M < 9 else 8, resident=1))
    )
    assert torch.allclose(y, rows, rtol=1e-5, atol=1e-5 * float(rows.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the ring runs on sm90 only")
@pytest.mark.parametrize("M, swiglu", [(9, False), (23, True), (40, True)])
@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0"])
def test_two_tiles_a_warp_give_the_same_numbers(name, M, swiglu):
    blocks = formats.draw(name, 512, 1792, torch.Generator().manual_seed(0))
    held, x = tiles.to_tiles(blocks, name).cuda(), torch.randn(M, 1792, device="cuda").half() / 64
    one, two = (
        module.dequant_matmul(
            x, held, name, "int8", swiglu=swiglu, layout="tiles", out_dtype=torch.float32,
            config=Config(algorithm="ring", warps=8 if swiglu and not pair else 4, resident=1, pair=pair),
        )
        for pair in (False, True)
    )  # fmt: skip
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


COMPILED = """
from draftwood.autotune import elsewhere
from draftwood.reference.ops import find
from draftwood.reference.spec import case
from triton.backends.compiler import GPUTarget

elsewhere.claim(GPUTarget("cuda", 90, 32))
op = find("dequant_matmul")
for precision in ("exact", "int8"):
    drawn = elsewhere.drawn(op.spec, case(
        M=2, N=5120, K=1024, format="q4_k", precision=precision, dtype="f16", epilogue="none", scales="usual",
        layout="tiles",
    ))
    kernels = elsewhere.launches(lambda: op.function("kernels")(**elsewhere.hollow(drawn)))
    print(*(kernel.asm["ptx"] for kernel in kernels if "ring" in kernel.name))
"""


def test_a_slot_is_given_back_behind_a_fence_of_the_proxies(tmp_path):
    """Loads that are under way do not hold an arrival up, and the TMA's copies overtake them."""
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1] / ".typings")}
    env.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    # what expects bytes arrives, too, and reads nothing
    before = re.split(r"mbarrier\.arrive\.shared", run.stdout)[:-1]
    assert len(before) >= 2
    assert all("fence.proxy.async.shared::cta" in re.split(r"ld\.shared|ldmatrix", text)[-1] for text in before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the ring runs on sm90 only")
@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("M", [8, 32, 64])
def test_what_the_ring_reads_is_not_overwritten(M, precision):
    """A slot was given back with loads under way: a fifth of the calls on a long K gave other numbers."""
    generator = torch.Generator().manual_seed(0)
    held = [tiles.to_tiles(formats.draw("q4_k", 1280, 17408, generator), "q4_k").cuda() for _ in range(4)]
    x = torch.randn(M, 17408, generator=generator).half().cuda()
    first = [module.dequant_matmul(x, w, "q4_k", precision, layout="tiles") for w in held]
    again = [[module.dequant_matmul(x, w, "q4_k", precision, layout="tiles") for w in held] for _ in range(200)]
    assert all(torch.equal(a, b) for ys in again for a, b in zip(ys, first, strict=True))
