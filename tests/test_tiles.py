"""Laws of the rearranged weight (reference/tiles.py) and of the products over it."""

import pytest
import torch
from draftwood.kernels.dequant_matmul import Config, dequant_matmul
from draftwood.kernels.lib import workspace
from draftwood.reference import formats, tiles
from hypothesis import given
from hypothesis import strategies as st

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILED = tuple(tiles.RECORD)


def exact_blocks(N: int, K: int, name: str, seed: int = 0) -> torch.Tensor:
    """Weights that are small integers times 2^-8: every product and sum with small integers is exact in f16 and f32."""
    generator = torch.Generator().manual_seed(seed)
    fields = formats.unpack(formats.draw(name, N, K, generator), name)
    for d in {"d", "dmin"} & set(fields):
        fields[d] = torch.full_like(fields[d], 2.0**-8)
    if name in ("q4_k", "q5_k"):
        fields["scale"], fields["min"] = fields["scale"] % 4, fields["min"] % 16
    if name == "q6_k":
        fields["scale"] = fields["scale"] % 5 - 2
    return formats.pack(fields, name)


def whole_numbers(M: int, K: int) -> torch.Tensor:
    return torch.randint(-4, 5, (M, K), generator=torch.Generator().manual_seed(M)).half().to(DEVICE)


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("name", TILED)
@given(N=st.sampled_from([64, 192]), records=st.integers(1, 3), seed=st.integers(0, 1000))
def test_tiles_give_back_the_blocks_bit_for_bit(name, lanes, N, records, seed):
    blocks = torch.randint(
        0, 256, (N, formats.row_bytes(name, 256 * records)), generator=torch.Generator().manual_seed(seed)
    ).to(torch.uint8)
    held = tiles.to_tiles(blocks, name, lanes)
    assert held.shape == (N // 64, records, tiles.RECORD[name])
    assert torch.equal(tiles.from_tiles(held, name, lanes), blocks)


@pytest.mark.parametrize("name", TILED)
def test_tiles_of_rows_are_rows_of_the_tiles(name, monkeypatch):
    blocks = formats.draw(name, 256, 512, torch.Generator().manual_seed(0))
    held = tiles.to_tiles(blocks, name)
    assert torch.equal(torch.cat([tiles.to_tiles(part, name) for part in blocks.split(64)]), held)
    monkeypatch.setattr(tiles, "_rows_at_once", lambda K: 128)
    assert torch.equal(tiles.to_tiles(blocks, name), held)


@pytest.mark.parametrize("lanes", [False, True])
def test_a_word_holds_the_row_and_columns_of_the_drawing(lanes):
    generator = torch.Generator().manual_seed(1)
    blocks = formats.draw("q4_k", 64, 256, generator)
    q = formats.unpack(blocks, "q4_k")["q"].reshape(64, 256).int()
    words = tiles.to_tiles(blocks, "q4_k", lanes)[0, 0, :8192].view(torch.int16).int().view(4, 4, 8, 4, 2, 2, 2)
    for c, w, lhi, llo, r1, r0, h in torch.randint(0, 2, (40, 7), generator=generator).tolist():
        c, w, lhi, llo = 3 * c, 2 * w + r0, 5 * lhi + r1, 3 * llo
        column = 16 * c + 8 * r1 + 2 * llo + h
        if lanes:
            column = 32 * (c // 2) + 8 * llo + 4 * (c % 2) + 2 * r1 + h
        codes = [int(words[c, w, lhi, llo, r1, r0, h]) >> 4 * j & 15 for j in range(4)]
        assert codes == [int(q[16 * w + 8 * r0 + lhi, 64 * j + column]) for j in range(4)]


@pytest.mark.parametrize("name", TILED)
def test_all_layouts_give_the_same_bits_where_arithmetic_is_exact(name):
    blocks, x = exact_blocks(128, 512, name), whole_numbers(16, 512)
    held = {layout: tiles.to_tiles(blocks, name, layout == "lanes").to(DEVICE) for layout in ("tiles", "lanes")}
    want = dequant_matmul(x, blocks.to(DEVICE), name, out_dtype=torch.float32, config=Config(block_n=128, block_m=16))
    for layout, weight in held.items():
        assert torch.equal(dequant_matmul(x, weight, name, out_dtype=torch.float32, layout=layout), want)


@pytest.mark.parametrize("M", [1, 9])
def test_shares_of_warps_lose_and_repeat_no_record(M):
    # every sum is exact: whatever the shares, the bits are the same
    held = tiles.to_tiles(exact_blocks(64, 768, "q4_k"), "q4_k", True).to(DEVICE)
    x = whole_numbers(M, 768)
    y = [
        dequant_matmul(x, held, "q4_k", out_dtype=torch.float32, layout="lanes", config=config)
        for config in (Config(), Config(warps=8, num_stages=1), Config(warps=2, row_blocks=2))
    ]
    assert all(torch.equal(other, y[0]) for other in y[1:])


def test_shares_of_programs_lose_and_repeat_no_record():
    held = tiles.to_tiles(exact_blocks(128, 512, "q6_k"), "q6_k", True).to(DEVICE)
    x = whole_numbers(65, 512)
    y = [
        dequant_matmul(x, held, "q6_k", out_dtype=torch.float32, layout="lanes", config=config)
        for config in (Config(), Config(resident=2, warps=8))
    ]
    assert all(torch.equal(other, y[0]) for other in y[1:])
    assert not workspace.counters(torch.device(DEVICE), 1).any()


def test_a_row_of_x_gives_the_same_alone_and_in_any_tile_of_rows():
    held = tiles.to_tiles(exact_blocks(64, 256, "q5_k"), "q5_k", True).to(DEVICE)
    x = whole_numbers(70, 256)
    alone = torch.cat([dequant_matmul(x[i : i + 1], held, "q5_k", layout="lanes") for i in (0, 23)])
    for M in (24, 70):
        y = dequant_matmul(x[:M], held, "q5_k", layout="lanes")
        assert torch.equal(y[[0, 23]], alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="inline PTX runs on a GPU only")
@pytest.mark.parametrize("name", TILED)
def test_inline_ptx_and_its_plain_twin_give_the_same_bits(name, monkeypatch):
    import importlib

    module = importlib.import_module("draftwood.kernels.dequant_matmul")
    held = tiles.to_tiles(formats.draw(name, 128, 512, torch.Generator().manual_seed(0)), name, True).to(DEVICE)
    x = torch.randn(9, 512, device=DEVICE).half()
    y = dequant_matmul(x, held, name, layout="lanes")
    monkeypatch.setattr(module, "has_ptx", lambda device: False)
    assert torch.equal(dequant_matmul(x, held, name, layout="lanes"), y)


def test_what_does_not_fit_tiles_is_refused_with_its_value():
    with pytest.raises(ValueError, match="96 x 256"):
        tiles.to_tiles(torch.zeros(96, 144, dtype=torch.uint8), "q4_k")
    with pytest.raises(ValueError, match="'tq3_0'"):
        tiles.to_tiles(torch.zeros(64, 144, dtype=torch.uint8), "tq3_0")
    held = torch.zeros(1, 2, tiles.RECORD["q4_k"], dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match="K = 512"):
        dequant_matmul(whole_numbers(1, 256), held, "q4_k", layout="lanes")
    with pytest.raises(ValueError, match="float32"):
        dequant_matmul(whole_numbers(1, 512).float(), held, "q4_k", layout="lanes")
