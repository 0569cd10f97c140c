"""Properties of kv_quant."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from draftwood.kernels.kv_quant import Config
from draftwood.kernels.kv_quant import kv_quant as kernel
from draftwood.lab.check import target
from draftwood.reference import cache as caches
from draftwood.reference import formats
from draftwood.reference.kv_quant import kv_quant as reference
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "quantisers.npz")
either = pytest.mark.parametrize("quantise", [reference, kernel], ids=["reference", "kernel"])
every_format = pytest.mark.parametrize("format", caches.FORMATS)


def stored(quantise, x: torch.Tensor, format: str, **extra) -> torch.Tensor:
    """x: [T, Hkv, D] -> the rows [T, Hkv, row] it became, token t in slot t, as K and as V."""
    T, Hkv, D = x.shape
    k, v = (caches.empty(Hkv, T, D, format).to(target()) for _ in range(2))
    slots = torch.arange(T, dtype=torch.int32, device=target())
    quantise(x.to(target()), x.to(target()), k, v, slots, format, format, **extra)
    assert torch.equal(bits(k), bits(v))
    return k.transpose(0, 1).cpu()


def bits(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.uint8 else x.contiguous().view(torch.int16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@either
@pytest.mark.parametrize("format", ["q8_0", "q4_0"])
def test_blocks_are_the_bytes_of_libggml(quantise, format):
    wanted = torch.from_numpy(GOLDEN[format])
    mantissa = torch.from_numpy(GOLDEN["mantissa"][: len(wanted)].view(np.int16)).view(torch.bfloat16).float()
    x = mantissa * torch.from_numpy(GOLDEN["scale"][: len(wanted)])
    rows = stored(quantise, x[:, None], format)
    assert torch.equal(formats.from_planes(rows[:, 0], format), wanted)


@either
@pytest.mark.parametrize("format", ["q8_0", "q4_0"])
def test_blocks_are_the_bytes_of_gguf(quantise, format):
    x = normal(40, 1, 128, seed=3) * 10 ** torch.linspace(-12, 30, 40)[:, None, None]
    # zeros, and what f32 holds with fewer bits than its own
    x[7], x[8, :, 32:] = 0, 0
    x[9] = torch.where(normal(1, 128) > 0, 1e-40, -3e-41)
    kind = gguf.GGMLQuantizationType[format.upper()]
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.quants.quantize(x[:, 0].numpy(), kind))
    got = formats.from_planes(stored(quantise, x, format)[:, 0], format)
    # of such small blocks the codes are undefined in ggml, the scale is not
    assert torch.equal(got[torch.arange(40) != 9], wanted[torch.arange(40) != 9])
    size = formats.find(format).bytes
    assert not (got[9].unflatten(0, (-1, size))[:, :2].contiguous().view(torch.int16) & 0x7FFF).any()


@either
def test_tq3_0_of_a_sine_is_the_bytes_of_its_definition(quantise):
    rows = stored(quantise, torch.sin(torch.arange(128.0))[None, None], "tq3_0")
    blocks = formats.from_planes(rows[0, 0], "tq3_0").unflatten(0, (4, 14))
    assert [bytes(block.tolist()).hex() for block in blocks] == [
        "124843c1d688e2b0debd50f53205",
        "1248c5326b5dc06be38693900192",
        "1248bb651e74f5d42d021049d0ec",
        "12488cf313ca85da9454257a47f7",
    ]


@either
def test_tq3_0_of_zeros_and_of_a_unit_vector_are_as_defined(quantise):
    x = torch.zeros(2, 1, 128)
    x[1, 0, 0] = 1
    zeros, unit = formats.from_planes(stored(quantise, x, "tq3_0")[:, 0], "tq3_0").unflatten(1, (4, 14))
    assert bytes(zeros[0].tolist()).hex() == "0000" + "00" * 8 + "ff" * 4
    assert float(unit[0, :2].contiguous().view(torch.float16)) == pytest.approx(1.345, abs=1e-3)


@every_format
@given(seed=st.integers(0, 50))
def test_kernel_and_reference_store_the_same_bits(format, seed):
    x = normal(6, 2, 128, seed=seed) * 10 ** (4 * normal(6, 2, 1, seed=seed + 1))
    assert torch.equal(bits(stored(kernel, x, format)), bits(stored(reference, x, format)))


@either
@every_format
def test_a_value_that_is_not_finite_spoils_its_block_and_no_other(quantise, format):
    x = normal(4, 1, 256)
    sound = caches.values(stored(quantise, x, format), format)[0]
    for value in (float("nan"), float("inf"), float("-inf")):
        x[0, 0, 40] = value
        row = caches.stored(stored(quantise, x, format)[0], format)[0]
        if format in caches.QUANTISED:
            width = 128 if format == "tq3_0" else 32
            lost = torch.arange(256) // width == 40 // width
            assert row[lost].isnan().all() and not row[~lost].isnan().any()
        else:
            wanted = sound[0].clone()
            wanted[40] = value
            assert torch.equal(row.nan_to_num(1e9, 2e9, -2e9), wanted.nan_to_num(1e9, 2e9, -2e9))


@either
@every_format
def test_tokens_without_a_slot_are_skipped_and_the_order_of_tokens_is_free(quantise, format):
    x, device = normal(5, 2, 128).to(target()), target()
    # slots 0, 4 and 2 of 5, and two that are none
    slots = torch.tensor([4, -1, 2, 5, 0], dtype=torch.int32, device=device)
    turned = torch.tensor([3, 0, 4, 1, 2], device=device)
    filled = []
    for tokens, places in ((x, slots), (x[turned], slots[turned])):
        k, v = caches.empty(2, 5, 128, format).to(device), caches.empty(2, 5, 128, format).to(device)
        untouched = k[:, [1, 3]].clone()
        quantise(tokens, tokens, k, v, places, format, format)
        assert torch.equal(bits(k[:, [1, 3]]), bits(untouched))
        filled.append(bits(k))
    assert torch.equal(*filled)


@pytest.mark.parametrize(("format", "error"), [("f16", 3e-4), ("q8_0", 6e-3), ("q4_0", 0.1), ("tq3_0", 0.19)])
def test_what_is_stored_is_as_near_as_its_format_can_be(format, error):
    x = normal(32, 1, 128, seed=5)
    miss = caches.values(stored(kernel, x, format), format) - x
    assert error / 3 < float(miss.square().mean().sqrt()) < error


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_how_many_rows_a_program_takes_does_not_matter(rows):
    x = normal(5, 3, 128)
    config = Config(BLOCK_R=rows)
    assert torch.equal(stored(kernel, x, "tq3_0", config=config), stored(reference, x, "tq3_0"))


@pytest.mark.parametrize(("format", "D"), [("q5_1", 128), ("tq3_0", 64), ("q8_0", 96)])
def test_what_it_cannot_store_is_refused_in_a_sentence(format, D):
    x, cache = torch.zeros(1, 1, D), torch.zeros(1, 1, D, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"not {format} of {D}"):
        kernel(x, x, cache, cache, torch.zeros(1, dtype=torch.int32), format, "f16")
