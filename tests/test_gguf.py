"""The GGUF reader against gguf-py's, and what it says about files that are broken, cut off or something else."""

import random
import tracemalloc
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
from draftwood.models import gguf, qwen35
from draftwood.models.gguf import BadFile
from draftwood.models.qwen35 import FAMILY, MIXES, format_of, more_bits, tensors
from draftwood.models.target_files import load
from draftwood.reference.formats import row_bytes

GOLDEN = Path(__file__).parent / "golden" / "tiny-qwen35-q4_k_m.gguf"
CPU = torch.device("cpu")


def rewrite(target: Path, drop=(), tensors_first=(), without=(), arch="qwen35", shapes=None, **metadata) -> Path:
    """The golden file written anew by gguf-py, keys changed or dropped, tensors left out or in another order."""
    reader = peer.GGUFReader(GOLDEN)
    writer = peer.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        key = name.removeprefix("qwen35.")
        if name.startswith("GGUF.") or name == "general.architecture" or key in (*drop, *metadata):
            continue
        of = field.types[-1] if field.types[0] == peer.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
    for key, (value, kind) in metadata.items():
        many = isinstance(value, list)
        writer.add_key_value(
            f"qwen35.{key}", value, peer.GGUFValueType.ARRAY if many else kind, sub_type=kind if many else None
        )
    order = sorted(reader.tensors, key=lambda tensor: tensor.name not in tensors_first)
    for tensor in order:
        if tensor.name not in without:
            data = (shapes or {}).get(tensor.name, tensor.data)
            writer.add_tensor(tensor.name, data, raw_dtype=None if data is not tensor.data else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def opened(path: Path) -> qwen35.Config:
    file = gguf.load(path)
    found = qwen35.config(file)
    qwen35.check(file, found)
    return found


def test_the_reader_sees_what_gguf_py_sees():
    file, reader = gguf.load(GOLDEN), peer.GGUFReader(GOLDEN)
    ours = {**file.metadata}
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert ours == theirs
    assert set(file.entries) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        entry, data = file.entries[tensor.name], file.read(tensor.name)
        assert entry.format == tensor.tensor_type.name.lower()
        assert entry.shape == tuple(tensor.shape[::-1].tolist())
        assert data.contiguous().view(torch.uint8).numpy().tobytes() == np.ascontiguousarray(tensor.data).tobytes()


def test_a_vocabulary_of_strings_is_read(tmp_path):
    words = [f"wörd-{i}" for i in range(3000)]
    file = gguf.load(rewrite(tmp_path / "x.gguf", words=(words, peer.GGUFValueType.STRING)))
    assert file.metadata["qwen35.words"] == words


def test_the_golden_models_sizes_come_from_its_metadata():
    found = opened(GOLDEN)
    assert (found.L, found.E, found.F, found.vocab, found.H, found.Hkv) == (4, 256, 512, 512, 2, 1)
    assert (found.Hk, found.Hv, found.C, found.rotary, found.theta) == (2, 6, 1280, 64, 1e7)
    assert found.recurrent == (True, True, True, False) and not found.tied
    assert found.eps == pytest.approx(1e-6)


def test_layers_for_multi_token_prediction_are_no_part_of_the_trunk(tmp_path):
    u32, flag = peer.GGUFValueType.UINT32, peer.GGUFValueType.BOOL
    changes = {"block_count": (5, u32), "nextn_predict_layers": (1, u32)}
    changes["attention.recurrent_layers"] = ([True, True, True, False, False], flag)
    found = opened(rewrite(tmp_path / "x.gguf", **changes))
    assert found.L == 4 and found.recurrent == (True, True, True, False)


def test_the_list_of_recurrent_layers_comes_before_the_interval(tmp_path):
    u32 = peer.GGUFValueType.UINT32
    assert opened(rewrite(tmp_path / "x.gguf", **{"full_attention_interval": (2, u32)})).recurrent[1]
    listless = rewrite(tmp_path / "y.gguf", drop=("attention.recurrent_layers",))
    assert opened(listless).recurrent == (True, True, True, False)


def test_a_model_without_an_output_matrix_is_tied(tmp_path):
    path = rewrite(tmp_path / "x.gguf", without=("output.weight",))
    assert opened(path).tied
    model = load(gguf.load(path), CPU, "f32", "reference")
    assert torch.equal(model.head.data, model.embedding.data)


def test_the_vocabulary_is_as_long_as_the_embedding_where_no_key_says_so(tmp_path):
    assert opened(rewrite(tmp_path / "x.gguf", drop=("vocab_size",))).vocab == 512


def test_tensors_may_stand_in_any_order(tmp_path):
    moved = rewrite(tmp_path / "x.gguf", tensors_first=("blk.3.attn_v.weight", "blk.0.ssm_a"))
    a, b = gguf.load(GOLDEN), gguf.load(moved)
    assert list(b.entries) != list(a.entries)
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.entries)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"arch": "llama"}, "x.gguf holds the architecture 'llama'; a target is qwen35"),
        ({"without": ("blk.2.ssm_a",)}, "x.gguf has no tensor blk.2.ssm_a"),
        ({"without": ("token_embd.weight",)}, "x.gguf has no tensor token_embd.weight"),
        ({"drop": ("ssm.group_count",)}, "x.gguf has no qwen35.ssm.group_count"),
        (
            {"feed_forward_length": (768, peer.GGUFValueType.UINT32)},
            "x.gguf: tensor blk.0.ffn_gate.weight is [512, 256], the metadata makes it [768, 256]",
        ),
        ({"block_count": ("four", peer.GGUFValueType.STRING)}, "x.gguf: qwen35.block_count is 'four', not int"),
        ({"block_count": (0, peer.GGUFValueType.UINT32)}, "x.gguf: qwen35.block_count is 0; it takes 1 to 16777216"),
        (
            {"attention.head_count_kv": (3, peer.GGUFValueType.UINT32)},
            "x.gguf: 2 query heads over 3, 6 value heads over 2: neither may leave a rest",
        ),
        (
            {"attention.recurrent_layers": ([True, False], peer.GGUFValueType.BOOL)},
            "x.gguf: qwen35.attention.recurrent_layers is not one truth value a block",
        ),
        (
            {"shapes": {"blk.1.ssm_norm.weight": np.ones(64, np.float32)}},
            "x.gguf: tensor blk.1.ssm_norm.weight is [64], the metadata makes it [128]",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, change, sentence):
    with pytest.raises(BadFile) as error:
        opened(rewrite(tmp_path / "x.gguf", **change))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "x.gguf cannot be mapped: cannot mmap an empty file"),
        (b"GG", "x.gguf is cut off: the magic needs 4 bytes at byte 0, 2 are left"),
        (b"PK\x03\x04rest", "x.gguf is no GGUF file: it begins with b'PK\\x03\\x04'"),
        (b"GGUF\x01\0\0\0", "x.gguf is GGUF version 1; little-endian 2 and 3 are read"),
        (
            b"GGUF\x03\0\0\0" + b"\xff" * 8,
            "x.gguf: the count of tensors is 18446744073709551615, too many for the 0 bytes",
        ),
    ],
)
def test_what_is_no_gguf_is_refused_in_one_sentence(tmp_path, data, sentence):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(BadFile) as error:
        gguf.load(tmp_path / "x.gguf")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"there is no file .*nowhere.gguf"):
        gguf.load(tmp_path / "nowhere.gguf")


def test_a_tensor_of_an_unknown_type_is_named_with_what_is_supported(tmp_path):
    raw = bytearray(GOLDEN.read_bytes())
    at = raw.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    raw[at : at + 4] = (11).to_bytes(4, "little")
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(BadFile, match=r"'blk.0.ffn_up.weight' is of ggml's type 11; read are f32 \(0\), f16 \(1\)"):
        gguf.load(tmp_path / "x.gguf")


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """The file with a few bytes of its header changed, or a piece cut out, doubled or cut off."""
    data, header = bytearray(raw), 5300
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(header)
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at : at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
            case 2:
                del data[at : at + rng.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case 4:
                del data[rng.randrange(len(data)) :]
            case _:
                data[at : at + 4] = rng.randrange(2**32).to_bytes(4, "little")
    return bytes(data)


def survive(path: Path, seed: int, complete: bool) -> bool:
    """Open a mutated file; whether it was taken for good. All but BadFile is a failure."""
    rng = random.Random(seed)
    path.write_bytes(mutated(GOLDEN.read_bytes(), rng))
    try:
        file = gguf.load(path)
        found = qwen35.config(file)
        qwen35.check(file, found)
        if complete:
            load(file, CPU, "f32", "reference")
    except BadFile as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return False
    return True


def test_mutated_files_are_refused_or_read_but_never_crash_or_allocate_without_bound(tmp_path):
    tracemalloc.start()
    taken = sum(survive(tmp_path / "x.gguf", seed, False) for seed in range(150))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 5 < taken < 145
    assert peak < 32 << 20


@pytest.mark.long
def test_five_thousand_mutated_files(tmp_path):
    assert sum(survive(tmp_path / "x.gguf", seed, True) for seed in range(5000)) < 4000


# -- sizes of the published models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, billions", [("0.8b", 0.7524), ("2b", 1.8818), ("4b", 4.2058), ("9b", 8.9538), ("27b", 26.8960)]
)
def test_the_family_has_its_published_parameter_counts(name, billions):
    count = sum(int(np.prod(shape)) for shape in tensors(FAMILY[name]).values())
    assert round(count / 1e9, 4) == billions


@pytest.mark.parametrize(
    "mix, data_bytes, counts",
    [
        ("unsloth-3.5", 16_740_812_704 - 10_993_568, {"f32": 353, "q8_0": 96, "q4_k": 263, "q5_k": 96, "q6_k": 43}),
        ("unsloth-3.6", 16_817_244_384 - 10_993_888, {"f32": 449, "q4_k": 289, "q5_k": 48, "q6_k": 65}),
        ("stock", 16_536_406_016, {"f32": 353, "q4_k": 433, "q6_k": 65}),
    ],
)
def test_the_27bs_type_mixes_add_up_to_the_published_files_byte_for_byte(mix, data_bytes, counts):
    shapes, n = tensors(FAMILY["27b"]), FAMILY["27b"].L
    formats = {name: format_of(MIXES[mix], name, n) for name in shapes}
    sizes = [int(np.prod(shape[:-1])) * row_bytes(formats[name], shape[-1]) for name, shape in shapes.items()]
    assert len(shapes) == 851 and sum(-(-size // 32) * 32 for size in sizes) == data_bytes
    assert {format: list(formats.values()).count(format) for format in counts} == counts


def test_the_stock_mix_is_that_of_the_golden_file():
    for name, entry in gguf.load(GOLDEN).entries.items():
        assert entry.format == format_of(MIXES["stock"], name, 4), name


def test_the_layers_with_more_bits_are_those_of_llama_cpp():
    assert [i for i in range(64) if more_bits(i, 64)] == [*range(8), *range(10, 56, 3), *range(56, 64)]
