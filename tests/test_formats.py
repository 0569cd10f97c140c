"""Block formats: the bits of gguf-py and libggml, and laws of packing, planes and the rotation."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from draftwood.kernels.kv_quant import kv_quant
from draftwood.kernels.prefill_attention import prefill_attention
from draftwood.kernels.tree_attention import tree_attention
from draftwood.perf import formats as report
from draftwood.reference import cache, formats, hadamard
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
SHARED = tuple(name for name in formats.QUANTISED if name != "tq3_0")
KINDS = {name: GGMLQuantizationType(formats.FORMATS[name].type_id) for name in (*SHARED, "f16", "bf16", "f32")}
SINE = """
    124843c1d688e2b0debd50f53205 1248c5326b5dc06be38693900192 1248bb651e74f5d42d021049d0ec 12488cf313ca85da9454257a47f7
"""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x), dtype=np.float32).view(np.uint32)


def raw(name: str, blocks: int, seed: int) -> torch.Tensor:
    """Any bytes at all."""
    shape = (2, blocks * formats.FORMATS[name].bytes)
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


def golden_tensors() -> list:  # type: ignore[type-arg]
    return [t for t in GGUFReader(GOLDEN / "tiny-qwen35-q4_k_m.gguf").tensors if len(t.shape) == 2]


# -- against code that is not ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_sizes_and_ids_are_those_of_gguf(name):
    known = formats.FORMATS[name]
    assert (known.elements, known.bytes) == gguf.GGML_QUANT_SIZES[KINDS[name]]
    assert KINDS[name].name.lower() == name


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e-1), (1e-9, 1e6)])
def test_blocks_dequantise_to_the_bits_of_gguf(name, low, high):
    known = formats.FORMATS[name]
    data = formats.draw(name, 32, 64 * known.elements, generator(), low, high)
    want = gguf.dequantize(data.numpy(), KINDS[name])
    assert np.array_equal(bits(formats.dequantise(data, name)), bits(want))


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_bytes_dequantise_to_the_bits_of_gguf_where_they_are_numbers(name):
    data = raw(name, 512, seed=1)
    got, want = formats.dequantise(data, name), gguf.dequantize(data.numpy(), KINDS[name])
    number = ~np.isnan(want)
    assert np.array_equal(~np.isnan(got.numpy()), number)
    assert np.array_equal(bits(got)[number], bits(want)[number])


def test_every_tensor_of_the_golden_file_dequantises_to_the_bits_of_gguf():
    names = {kind: name for name, kind in KINDS.items()}
    seen = set()
    for tensor in golden_tensors():
        name = names[tensor.tensor_type]
        seen.add(name)
        data = torch.from_numpy(np.array(tensor.data))
        got = formats.dequantise(data, name)
        assert np.array_equal(bits(got), bits(gguf.dequantize(tensor.data, tensor.tensor_type))), tensor.name
    assert seen == {"q4_k", "q6_k", "f32"}


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k"])
def test_quantisers_give_the_bytes_of_libggml(name):
    golden = np.load(GOLDEN / "quantisers.npz")
    want = golden[name]
    x = (golden["mantissa"][: len(want)].astype(np.uint32) << 16).view(np.float32) * golden["scale"][: len(want)]
    got = formats.quantise(torch.from_numpy(x), name).numpy()
    wrong = np.flatnonzero((got != want).any(1))
    assert not len(wrong), f"rows {wrong[:8]} of {len(want)} differ"


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_quantisers_give_the_bytes_of_gguf(name):
    x = torch.randn(1000, 256, generator=generator(2)) * 10 ** torch.empty(1000, 1).uniform_(
        -5, 3, generator=generator(3)
    )
    assert np.array_equal(formats.quantise(x, name).numpy(), gguf.quantize(x.numpy(), KINDS[name]))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "tq3_0"])
def test_cache_formats_give_the_bytes_of_their_golden_file(name):
    golden = np.load(GOLDEN / "formats.npz")
    x = (golden["mantissa"].astype(np.uint32) << 16).view(np.float32) * golden["scale"]
    wrong = np.flatnonzero((formats.quantise(torch.from_numpy(x), name).numpy() != golden[name]).any(1))
    assert not len(wrong), f"rows {wrong[:8]} of {len(x)} differ"


def adversarial(rows: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, 64] f32: normal rows of any size, and zeros, ties, halves of a step, subnormals, lone spikes."""
    x = torch.randn(rows, 64, generator=generator) * 10 ** torch.empty(rows, 1).uniform_(-6, 4, generator=generator)
    kind, ramp = torch.arange(rows)[:, None] % 16, torch.arange(64)
    sign = 1 - 2 * torch.randint(0, 2, x.shape, generator=generator)
    whole = torch.randint(-8, 8, x.shape, generator=generator)
    x = torch.where(kind == 1, 0.0, x)
    x = torch.where(kind == 2, 3.0 * sign, x)
    x = torch.where(kind == 3, torch.where(ramp % 32 == 7, 127.0, whole + 0.5), x)
    x = torch.where(kind == 4, torch.where(ramp % 32 == 3, -8.0, whole / 2), x)
    x = torch.where(kind == 5, whole * 1e-40, x)
    x = torch.where(kind == 6, torch.where(ramp % 32 == 9, 1e4 * sign, x * 1e-3), x)
    return torch.where(kind == 7, sign * 2.0 ** (whole - 20).float(), x)


@pytest.mark.long
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_million_rows_are_stored_in_the_bytes_of_gguf(name):
    generator, part = torch.Generator().manual_seed(7), 50_000
    for start in range(0, 1_000_000, part):
        x = adversarial(part, generator)
        # what kv_quant defines where gguf's codes are undefined: an inverse that is infinite counts as zero
        top = x.unflatten(-1, (-1, 32)).abs().amax(-1) / cache.STEPS[name]
        tame = (1 / top).isfinite().all(-1) | (top == 0).all(-1)
        got = cache.to_rows(x[tame], name)
        want = torch.from_numpy(gguf.quantize(x[tame].numpy(), KINDS[name]))
        wrong = (got != formats.to_planes(want, name)).any(-1).nonzero()
        assert not len(wrong), f"row {start + int(wrong[0])}: {x[tame][wrong[0, 0]]}"
        assert int(tame.sum()) > part // 2


def test_tq3_0_gives_the_bytes_published_for_a_sine():
    x = torch.sin(torch.arange(128, dtype=torch.float32))
    data = formats.quantise(x, "tq3_0")
    assert bytes(data.tolist()) == bytes.fromhex(SINE)
    back = hadamard.unrotate(formats.dequantise(data, "tq3_0"))
    assert float((back - x).norm() / x.norm()) == pytest.approx(0.1969, abs=1e-4)


def test_tq3_0_gives_the_bytes_published_for_zeros():
    assert (
        bytes(formats.quantise(torch.zeros(256), "tq3_0").tolist()) == bytes.fromhex("0000" + "00" * 8 + "ff" * 4) * 8
    )


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", formats.QUANTISED)
@given(seed=st.integers(0, 1 << 16), blocks=st.integers(1, 9))
def test_packing_what_was_unpacked_gives_the_same_bytes(name, seed, blocks):
    data = raw(name, blocks, seed)
    assert torch.equal(formats.pack(formats.unpack(data, name), name), data)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "tq3_0"])
@given(seed=st.integers(0, 1 << 16), groups=st.integers(1, 4))
def test_planes_are_the_same_bytes_with_the_scales_first(name, seed, groups):
    data = raw(name, 4 * groups, seed)
    planes = formats.to_planes(data, name)
    assert torch.equal(formats.from_planes(planes, name), data)
    scale = formats.unpack(data, name)["norm" if name == "tq3_0" else "d"]
    assert torch.equal(planes[:, : 8 * groups].contiguous().view(torch.int16), scale.view(torch.int16))


def test_planes_of_q8_0_are_its_integers_in_order():
    data = formats.draw("q8_0", 3, 256, generator())
    planes = formats.to_planes(data, "q8_0")
    assert torch.equal(planes[:, 16:].view(torch.int8), formats.unpack(data, "q8_0")["q"].flatten(-2))


@pytest.mark.parametrize(
    ("name", "error"),
    [("q8_0", 0.006), ("q6_k", 0.021), ("q5_k", 0.04), ("q4_k", 0.075), ("q4_0", 0.09), ("tq3_0", 0.19)],
)
def test_quantising_normal_weights_errs_as_the_format_must(name, error):
    x = torch.randn(64, 1024, generator=generator())
    back = formats.dequantise(formats.quantise(x, name), name)
    back = hadamard.unrotate(back) if name == "tq3_0" else back
    assert 0.8 * error < float((back - x).norm() / x.norm()) < error


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_row_is_quantised_alone(name):
    x = torch.randn(5, 512, generator=generator()) * torch.tensor([1e-3, 1.0, 0.0, 1e3, 1.0])[:, None]
    together = formats.quantise(x, name)
    assert together.shape == (5, formats.row_bytes(name, 512))
    assert torch.equal(together, torch.stack([formats.quantise(row, name) for row in x]))


@pytest.mark.parametrize("name", formats.QUANTISED)
def test_drawn_blocks_hold_every_code_and_only_numbers(name):
    data = formats.draw(name, 40, 1024, generator(), 1e-6, 1e8)
    fields = formats.unpack(data, name)
    assert len(fields["q"].unique()) == {"q8_0": 256, "q4_0": 16, "q4_k": 16, "q5_k": 32, "q6_k": 64, "tq3_0": 8}[name]
    assert formats.dequantise(data, name).isfinite().all()
    assert (formats.dequantise(data, name) == 0).any()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_rows_come_back_as_they_are(name):
    x = torch.randn(3, 7, generator=generator()).to(formats.FORMATS[name].dtype)
    assert torch.equal(formats.dequantise(x, name), x.float())
    assert torch.equal(formats.dequantise(formats.quantise(x, name), name), x.float())
    assert formats.dequantise(x.double(), name).dtype == torch.float64


def test_the_rotation_is_the_matrix_it_says():
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(7):
        sylvester = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), sylvester)
    matrix = (
        torch.diag(hadamard.signs(hadamard.S2_BITS).double())
        @ sylvester
        @ torch.diag(hadamard.signs(hadamard.S1_BITS).double())
    )
    got = hadamard.rotate(torch.eye(128, dtype=torch.float64)).T
    assert torch.allclose(got, matrix / 128**0.5, atol=1e-15)


def test_the_rotation_keeps_dot_products_and_is_undone():
    q, k = torch.randn(2, 5, 256, generator=generator(), dtype=torch.float64)
    assert torch.allclose((hadamard.rotate(q) * hadamard.rotate(k)).sum(-1), (q * k).sum(-1))
    assert torch.allclose(hadamard.unrotate(hadamard.rotate(q)), q)


def test_the_three_bit_format_errs_as_the_best_quantiser_of_its_size_must():
    assert report.value_error("tq3_0") == pytest.approx(report.theory(), rel=0.02)


def test_the_report_has_every_format_and_what_attention_loses_in_a_cache_of_it():
    rows = {row["format"]: row for row in report.rows("no-such-gpu")}
    assert set(rows) == set(formats.FORMATS)
    errors = [rows[name]["attention"] for name in ("f16", "bf16", "q8_0", "q4_0", "tq3_0")]
    assert errors == sorted(errors) and errors[0] < 1e-3 and errors[-1] < 0.6
    assert rows["tq3_0"]["bits"] == 3.5 and rows["q4_0"]["us"] == {}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_an_unknown_format_is_refused_with_the_known_ones():
    for call in (
        lambda: formats.row_bytes("q4_1", 256),
        lambda: formats.dequantise(torch.zeros(18, dtype=torch.uint8), "q4_1"),
        lambda: formats.quantise(torch.zeros(32), "q4_1"),
        lambda: formats.to_planes(torch.zeros(20, dtype=torch.uint8), "q4_1"),
    ):
        with pytest.raises(ValueError, match=r"q4_k.*not 'q4_1'"):
            call()
    with pytest.raises(ValueError, match="q8_0, q4_0, tq3_0, not 'q4_k'"):
        formats.to_planes(torch.zeros(144, dtype=torch.uint8), "q4_k")


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_is_found_by_its_id(name):
    assert formats.by_id(formats.FORMATS[name].type_id).name == name


@pytest.mark.parametrize("type_id", [-1, 3, 41, 43, 1 << 31])
def test_an_unknown_id_is_refused_with_the_known_ones(type_id):
    with pytest.raises(ValueError, match=rf"q4_0 2.*tq3_0 42, not {type_id}"):
        formats.by_id(type_id)


@pytest.mark.parametrize("read", cache.FORMATS)
@pytest.mark.parametrize("written", cache.FORMATS)
def test_a_cache_is_not_read_as_another_format_than_it_was_written_in(written, read):
    x = torch.randn(1, 16, 256, generator=generator())
    rows, q = cache.to_rows(x, written), torch.zeros(1, 1, 256)
    start, one = torch.tensor([15], dtype=torch.int32), torch.ones(1, 1, dtype=torch.uint8)
    slots = torch.zeros(1, dtype=torch.int32)
    if written == read:
        assert torch.allclose(cache.values(rows, read), x, atol=1.0)
        return
    for call in (
        lambda: tree_attention(q, rows, rows, start, one, read, read),
        lambda: prefill_attention(q, rows, rows, start, read, read),
        lambda: kv_quant(x[:, :1], x[:, :1], rows, rows, slots, read, read),
    ):
        with pytest.raises(ValueError, match=f"{read}"):
            call()


@pytest.mark.parametrize(("written", "read"), [("q8_0", "q4_0"), ("q4_0", "tq3_0"), ("f16", "bf16"), ("tq3_0", "f16")])
def test_the_reference_refuses_rows_of_another_format_by_their_width_or_type(written, read):
    rows = cache.to_rows(torch.zeros(2, 256), written)
    with pytest.raises((ValueError, RuntimeError)):
        cache.values(rows, read).reshape(2, 256)


@pytest.mark.parametrize(("name", "n"), [("q4_k", 128), ("q8_0", 33), ("tq3_0", 96)])
def test_a_row_of_part_of_a_block_is_refused(name, n):
    with pytest.raises(ValueError, match=f"not {n}"):
        formats.quantise(torch.zeros(2, n), name)
