"""Laws of the rearranged weight (reference/tiles.py) and of the products over it."""

import pytest
import torch
from draftwood.kernels.dequant_matmul import Config, dequant_matmul
from draftwood.kernels.lib import over_tiles, workspace
from draftwood.reference import formats, tiles
from draftwood.reference.dequant_matmul import dequant_matmul as meaning
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


@pytest.mark.parametrize("name", TILED)
@given(N=st.sampled_from([64, 192]), records=st.integers(1, 3), seed=st.integers(0, 1000))
def test_tiles_give_back_the_blocks_bit_for_bit(name, N, records, seed):
    blocks = torch.randint(
        0, 256, (N, formats.row_bytes(name, 256 * records)), generator=torch.Generator().manual_seed(seed)
    ).to(torch.uint8)
    held = tiles.to_tiles(blocks, name)
    assert held.shape == (N // 64, records, tiles.RECORD[name])
    assert torch.equal(tiles.from_tiles(held, name), blocks)


@pytest.mark.parametrize("name", TILED)
def test_tiles_of_rows_are_rows_of_the_tiles(name, monkeypatch):
    blocks = formats.draw(name, 256, 512, torch.Generator().manual_seed(0))
    held = tiles.to_tiles(blocks, name)
    assert torch.equal(torch.cat([tiles.to_tiles(part, name) for part in blocks.split(64)]), held)
    monkeypatch.setattr(tiles, "_rows_at_once", lambda K: 128)
    assert torch.equal(tiles.to_tiles(blocks, name), held)


def test_a_word_holds_the_row_and_columns_of_the_drawing():
    generator = torch.Generator().manual_seed(1)
    blocks = formats.draw("q4_k", 64, 256, generator)
    q = formats.unpack(blocks, "q4_k")["q"].reshape(64, 256).int()
    words = tiles.to_tiles(blocks, "q4_k")[0, 0, :8192].view(torch.int16).int().view(4, 4, 8, 4, 2, 2, 2)
    for c, w, lhi, llo, r1, r0, h in torch.randint(0, 2, (40, 7), generator=generator).tolist():
        c, w, lhi, llo = 3 * c, 2 * w + r0, 5 * lhi + r1, 3 * llo
        codes = [int(words[c, w, lhi, llo, r1, r0, h]) >> 4 * j & 15 for j in range(4)]
        columns = [64 * c + 32 * p + 16 * r1 + 8 * s + 2 * llo + h for s in (0, 1) for p in (0, 1)]
        assert codes == [int(q[16 * w + 8 * r0 + lhi, column]) for column in columns]


@pytest.mark.parametrize("N", [64, pytest.param(128, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", TILED)
def test_both_layouts_give_the_same_bits_where_arithmetic_is_exact(name, N):
    blocks, x = exact_blocks(N, 512, name), whole_numbers(16, 512)
    held = tiles.to_tiles(blocks, name).to(DEVICE)
    want = dequant_matmul(x, blocks.to(DEVICE), name, out_dtype=torch.float32, config=Config(block_n=N, block_m=16))
    for algorithm in ("rows", "wide"):
        y = dequant_matmul(
            x, held, name, out_dtype=torch.float32, layout="tiles", config=Config(algorithm=algorithm, num_stages=1)
        )
        assert torch.equal(y, want)


@pytest.mark.parametrize("algorithm", ["rows", "wide"])
@pytest.mark.parametrize("name", ["q4_k", "q5_k"])
def test_weights_lose_little_more_than_by_one_rounding(name, algorithm):
    # codes are around 0: what a scale loses when it is rounded is not multiplied by up to 15 or 31 (2.8 and 3.2 times)
    blocks = formats.draw(name, 64, 256, torch.Generator().manual_seed(4))
    x = torch.zeros(64, 256)
    x[torch.arange(64), torch.arange(64) * 4] = 1
    config, held = Config(algorithm=algorithm, num_stages=1), tiles.to_tiles(blocks, name).to(DEVICE)
    y = dequant_matmul(x.half().to(DEVICE), held, name, out_dtype=torch.float32, layout="tiles", config=config).cpu()
    want = formats.dequantise(blocks, name)[:, ::4].T
    assert (y - want).pow(2).mean() < 2.5**2 * (want.half().float() - want).pow(2).mean()


# warps, how many on other rows, 32 rows a warp, records in flight
SHARES = ((4, 1, False, 1), (4, 2, True, 2), (4, 4, False, 1), (2, 1, True, 1))


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("M, N", [(2, 64), *(pytest.param(M, 128, marks=pytest.mark.long) for M in (2, 9))])
def test_shares_of_warps_lose_and_repeat_no_record(M, N, precision):
    # every sum is exact: whatever the shares, the bits are the same
    held = tiles.to_tiles(exact_blocks(N, 768, "q4_k"), "q4_k").to(DEVICE)
    x = whole_numbers(M, 768)
    x[:, 0] = 127 if precision == "int8" else 4
    x[:, 256::256] = x[:, :1]
    y = []
    for warps, warp_rows, pair, stages in SHARES:
        config = Config(algorithm="rows", warps=warps, warp_rows=warp_rows, pair=pair, num_stages=stages)
        y.append(dequant_matmul(x, held, "q4_k", precision, out_dtype=torch.float32, layout="tiles", config=config))
    assert all(torch.equal(other, y[0]) for other in y[1:])


def test_shares_of_programs_lose_and_repeat_no_record():
    held = tiles.to_tiles(exact_blocks(128, 512, "q6_k"), "q6_k").to(DEVICE)
    x = whole_numbers(65, 512)
    y = [
        dequant_matmul(x, held, "q6_k", out_dtype=torch.float32, layout="tiles", config=config)
        for config in (Config(algorithm="wide", resident=3, warps=4), Config(algorithm="wide", resident=2, warps=8))
    ]
    assert all(torch.equal(other, y[0]) for other in y[1:])
    assert not workspace.counters(torch.device(DEVICE), 1).any()


def test_a_row_of_x_gives_the_same_alone_and_in_any_tile_of_rows():
    held = tiles.to_tiles(exact_blocks(64, 256, "q5_k"), "q5_k").to(DEVICE)
    x = whole_numbers(70, 256)
    alone = torch.cat([dequant_matmul(x[i : i + 1], held, "q5_k", layout="tiles") for i in (0, 23)])
    for M in (24, 70):
        y = dequant_matmul(x[:M], held, "q5_k", layout="tiles")
        assert torch.equal(y[[0, 23]], alone)


@pytest.mark.parametrize("name", TILED)
def test_rows_of_int8_are_the_one_row_each(name):
    held = tiles.to_tiles(formats.draw(name, 64, 512, torch.Generator().manual_seed(0)), name).to(DEVICE)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x[1] = 0
    together = dequant_matmul(x, held, name, "int8", layout="tiles")
    alone = torch.cat([dequant_matmul(row[None], held, name, "int8", layout="tiles") for row in x])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize(("M", "swiglu", "split"), [(1, False, 2), (17, True, 1)])
@pytest.mark.parametrize("name", TILED)
def test_int8_without_integer_tensor_cores_means_the_same(name, M, swiglu, split):
    held = tiles.to_tiles(formats.draw(name, 128, 512, torch.Generator().manual_seed(0)), name)
    x = torch.randn(M, 512, generator=torch.Generator().manual_seed(M))
    x[M // 2, :256], x[-1, 256:] = 0, x[-1, 256:] * 1e4
    want = meaning(x, held, name, "int8", swiglu=swiglu, layout="tiles")
    config = Config(algorithm="split", split=split)
    y = dequant_matmul(x.to(DEVICE), held.to(DEVICE), name, "int8", swiglu=swiglu, layout="tiles", config=config)
    assert torch.allclose(y.cpu(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    if M > 1:
        return
    x[-1, 300] = torch.nan
    y = dequant_matmul(x.to(DEVICE), held.to(DEVICE), name, "int8", layout="tiles", config=config)
    assert y.isnan().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="inline PTX runs on a GPU only")
@pytest.mark.parametrize("algorithm", ["wide", "rows", "int8", "one row of int8"])
@pytest.mark.parametrize("name", TILED)
def test_inline_ptx_and_its_plain_twin_give_the_same_numbers(name, algorithm, monkeypatch):
    import importlib

    module = importlib.import_module("draftwood.kernels.dequant_matmul")
    held = tiles.to_tiles(formats.draw(name, 128, 512, torch.Generator().manual_seed(0)), name).to(DEVICE)
    x = torch.randn(1 if algorithm == "one row of int8" else 9, 512, device=DEVICE).half()
    precision = "int8" if "int8" in algorithm else "exact"
    config = Config(warps=4) if precision == "int8" else Config(algorithm=algorithm)
    y = dequant_matmul(x, held, name, precision, layout="tiles", out_dtype=torch.float32, config=config)
    monkeypatch.setattr(over_tiles, "has_ptx", lambda device: False)
    for there in (module, over_tiles):
        monkeypatch.setattr(there, "has_imma", lambda device: False)
    plain = dequant_matmul(x, held, name, precision, layout="tiles", out_dtype=torch.float32, config=config)
    assert torch.allclose(plain, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_what_does_not_fit_tiles_is_refused_with_its_value():
    with pytest.raises(ValueError, match="96 x 256"):
        tiles.to_tiles(torch.zeros(96, 144, dtype=torch.uint8), "q4_k")
    with pytest.raises(ValueError, match="'tq3_0'"):
        tiles.to_tiles(torch.zeros(64, 144, dtype=torch.uint8), "tq3_0")
    held = torch.zeros(1, 2, tiles.RECORD["q4_k"], dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match="K = 512"):
        dequant_matmul(whole_numbers(1, 256), held, "q4_k", layout="tiles")
    with pytest.raises(ValueError, match="float32"):
        dequant_matmul(whole_numbers(1, 512).float(), held, "q4_k", layout="tiles")
