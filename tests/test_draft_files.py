"""Drafts from every form they are published in: the same draft whatever the spelling; one sentence where it is none."""

import json
import random
from pathlib import Path

import gguf as peer
import pytest
import torch
from draftwood.models import draft, draft_files, safetensors
from draftwood.models.arithmetic import PRECISIONS
from draftwood.models.gguf import BadFile
from draftwood.reference import formats

CPU = torch.device("cpu")
# a file holds eps in f32
EPS = torch.tensor(1e-6).item()
C = draft.Config(2, 256, 256, 4, 2, 64, 256, (1, 3), (0, 0), (False, False), 90, 1e6, EPS, block=8)
SLIDING = {"attention.sliding_window": 5, "attention.sliding_window_pattern": [True, False]}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in draft.tensors(C).items()}


def write_gguf(path: Path, arch: str = "qwen35-dflash-draft", rename=None, format="bf16", drop=(), **extra) -> Path:
    """A draft as converters write it; `rename` maps our tensor names to theirs."""
    native = arch == "dflash"
    own = "" if native else "dflash."
    keys = {
        "block_count": C.L,
        "embedding_length": C.E,
        "feed_forward_length": C.F,
        "attention.head_count": C.H,
        "attention.head_count_kv": C.Hkv,
        "attention.key_length": C.D,
        "rope.freq_base": C.theta,
        "attention.layer_norm_rms_epsilon": C.eps,
        f"{own}block_size": C.block,
        f"{own}mask_token_id": C.mask_token,
        **({"target_layers": [2, 4]} if native else {"dflash.target_layer_ids": [1, 3]}),
        **extra,
    }
    writer = peer.GGUFWriter(path, arch)
    for key, value in keys.items():
        if key in drop:
            continue
        one = value[0] if isinstance(value, list) else value
        kind = {bool: "BOOL", int: "INT32" if isinstance(value, list) else "UINT32", float: "FLOAT32"}[type(one)]
        of = peer.GGUFValueType[kind]
        many = isinstance(value, list)
        writer.add_key_value(
            f"{arch}.{key}", value, peer.GGUFValueType.ARRAY if many else of, sub_type=of if many else None
        )
    for name, data in weights().items():
        if name in drop:
            continue
        name = (rename or (lambda name: name))(name)
        if data.dim() == 1:
            writer.add_tensor(name, data.float().numpy())
        else:
            kind = peer.GGMLQuantizationType[format.upper()]
            raw = formats.quantise(data, format).numpy()
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(folder: Path, config: dict | None = None, drop=(), dtype=torch.bfloat16) -> Path:
    folder.mkdir(exist_ok=True)
    header, blob = {}, b""
    for name, data in weights().items():
        held = draft_files.hugging_face(name)
        if held in drop:
            continue
        raw = data.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
        label = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}[dtype]
        offsets = [len(blob), len(blob) + len(raw)]
        header[held] = {"dtype": label, "shape": list(data.shape), "data_offsets": offsets}
        blob += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    settings = {
        "num_hidden_layers": C.L,
        "hidden_size": C.E,
        "intermediate_size": C.F,
        "num_attention_heads": C.H,
        "num_key_value_heads": C.Hkv,
        "head_dim": C.D,
        "rms_norm_eps": C.eps,
        "rope_theta": C.theta,
        "block_size": C.block,
        "num_target_layers": 64,
        "dflash_config": {"mask_token_id": C.mask_token, "target_layer_ids": [1, 3]},
    }
    (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    return folder


def opened(path: Path, window: int = 0) -> draft.Draft:
    return draft_files.load(path, CPU, PRECISIONS["f32"], "reference", window)


def matrices(found: draft.Draft) -> list[torch.Tensor]:
    layers = [w.data for layer in found.layers for w in (*layer.inputs, layer.out, *layer.gate_up, layer.down)]
    norms = [t for layer in found.layers for t in (layer.norm, layer.post_norm, layer.q_norm, layer.k_norm)]
    return [found.fc.data, found.hidden_norm, found.norm, *layers, *norms]


SPELLINGS = {
    "the converter's": {},
    "another architecture": {"arch": "dflash-draft"},
    "underscores": {"rename": lambda n: n.replace("dflash.fc", "dflash_fc").replace("dflash.hidden", "dflash_hidden")},
    "post_attention_norm": {"rename": lambda n: n.replace("ffn_norm", "post_attention_norm")},
    "llama.cpp's own": {
        "arch": "dflash",
        "rename": lambda n: n.replace("dflash.fc", "fc").replace("dflash.hidden_norm", "enc.output_norm"),
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_gguf_of_any_spelling_and_a_checkpoint_hold_the_same_draft(tmp_path, spelling):
    a = opened(write_gguf(tmp_path / "x.gguf", **SPELLINGS[spelling]))
    b = opened(write_safetensors(tmp_path / "x"))
    assert a.config == b.config == C
    assert all(torch.equal(one, other) for one, other in zip(matrices(a), matrices(b), strict=True))


@pytest.mark.parametrize("format", ["f16", "q8_0", "q4_k"])
def test_quantised_drafts_load(tmp_path, format):
    found = opened(write_gguf(tmp_path / "x.gguf", format=format))
    assert found.layers[0].out.format == format
    assert all(t.isfinite().all() for t in matrices(found) if t.is_floating_point())


def test_layers_slide_where_the_file_says_so_and_where_the_user_does(tmp_path):
    told = opened(write_gguf(tmp_path / "x.gguf", **SLIDING))
    assert (told.config.windows, told.config.causal) == ((5, 0), (True, False))
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
    assert opened(write_safetensors(tmp_path / "x", kinds)).config == told.config
    silent = write_gguf(tmp_path / "y.gguf")
    assert opened(silent).config.windows == (0, 0)
    assert opened(silent, window=2048).config.windows == (2048, 0)


def test_the_rotary_base_has_no_default(tmp_path):
    with pytest.raises(BadFile, match=r"x.gguf has no qwen35-dflash-draft.rope.freq_base"):
        opened(write_gguf(tmp_path / "x.gguf", drop=("rope.freq_base",)))
    path = write_safetensors(tmp_path / "x", {"rope_theta": None})
    with pytest.raises(BadFile, match=r"config.json has no rope_theta"):
        opened(path)
    nested = {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}
    assert opened(write_safetensors(tmp_path / "x", nested)).config.theta == 1e6


def test_the_weights_win_over_the_metadata(tmp_path):
    found = opened(write_gguf(tmp_path / "x.gguf", **{"attention.head_count": 32, "dflash.n_target_layers": 7}))
    assert (found.config.H, found.config.E_target) == (4, 256)


def test_a_mask_token_may_be_kept_with_the_tokenizer(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", drop=("dflash.mask_token_id",))
    with pytest.raises(BadFile, match=r"x.gguf has no tokenizer.ggml.mask_token_id"):
        opened(path)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda p: write_gguf(p / "x.gguf", arch="qwen35"), "x.gguf holds the architecture 'qwen35'; a draft is "),
        (lambda p: write_gguf(p / "x.gguf", drop=("blk.1.attn_k.weight",)), "x.gguf has no tensor blk.1.attn_k.weight"),
        (
            lambda p: write_gguf(p / "x.gguf", feed_forward_length=512),
            "x.gguf: tensor blk.0.ffn_gate.weight is [256, 256], its settings make it [512, 256]",
        ),
        (
            lambda p: write_gguf(p / "x.gguf", **{"dflash.target_layer_ids": [3, 1]}),
            "x.gguf reads the layers [3, 1], which do not ascend",
        ),
        (
            lambda p: write_gguf(p / "x.gguf", **{"dflash.target_layer_ids": [1, 2, 3]}),
            "x.gguf reads 3 layers, but its fc takes 512 numbers",
        ),
        (lambda p: write_safetensors(p / "x", drop=("fc.weight",)), "x has no tensor fc.weight"),
        (lambda p: write_safetensors(p / "x", {"dflash_config": {}}), "x: config.json has no target_layer_ids"),
        (lambda p: write_safetensors(p / "x", {"layer_types": ["mamba"] * 2}), "x: config.json's layer_types are not "),
        (lambda p: p, " holds no .safetensors file"),
    ],
)
def test_what_is_no_draft_is_refused_in_one_sentence(tmp_path, make, sentence):
    with pytest.raises(BadFile) as error:
        opened(make(tmp_path))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_the_reader_sees_what_the_safetensors_package_sees(tmp_path):
    peer_package = pytest.importorskip("safetensors.torch")
    held = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(7), "c": torch.randn(2, 2, 2).half()}
    peer_package.save_file(held, tmp_path / "x.safetensors", metadata={"by": "a test"})
    found = safetensors.load(tmp_path / "x.safetensors")
    assert set(found.entries) == set(held)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in held.items())


def test_mutated_checkpoints_are_refused_or_read(tmp_path):
    folder = write_safetensors(tmp_path / "x")
    raw = (folder / "model.safetensors").read_bytes()
    length, taken = int.from_bytes(raw[:8], "little") + 8, 0
    for seed in range(150):
        rng, data = random.Random(seed), bytearray(raw)
        for _ in range(rng.choice((1, 2))):
            at = rng.randrange(length)
            data[at] = rng.randrange(256) if rng.random() < 0.7 else rng.choice(b'0{}[]",:')
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (folder / "model.safetensors").write_bytes(data)
        try:
            taken += bool(opened(folder))
        except BadFile as error:
            assert "\n" not in str(error)
    assert 0 < taken < 150
