"""Hugging Face checkpoints against the logits of transformers' own code (golden/make_qwen35.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from draftwood.models import checkpoint, safetensors, state, target
from draftwood.models.gguf import BadFile

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")


def write(folder: Path, ratio: int, prefix: str = "model.", drop=(), nested: bool = False, **config) -> Path:
    """The checkpoint as Hugging Face would save it, in two files."""
    held = np.load(GOLDEN / f"qwen35_hf-{ratio}.npz")
    weights = {name.removeprefix("weight."): held[name] for name in held.files if name.startswith("weight.")}
    weights = {name.replace("model.", prefix, 1): bits for name, bits in weights.items() if name not in drop}
    weights["mtp.norm.weight"] = np.zeros(3, np.int16)
    settings = {**json.loads(str(held["config"])), **config}
    whole = {"model_type": "qwen3_5", "text_config": settings} if nested else settings
    (folder / "config.json").write_text(json.dumps(whole))
    names = list(weights)
    for i, part in enumerate((names[::2], names[1::2])):
        header, blob = {}, b""
        for name in part:
            raw = weights[name].tobytes()
            offsets = [len(blob), len(blob) + len(raw)]
            header[name] = {"dtype": "BF16", "shape": list(weights[name].shape), "data_offsets": offsets}
            blob += raw
        text = json.dumps(header).encode()
        (folder / f"model-{i}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    return folder


def logits(folder: Path, ratio: int, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    held = np.load(GOLDEN / f"qwen35_hf-{ratio}.npz")
    model = checkpoint.load(safetensors.load(folder), CPU, "f32", "reference")
    at = state.fresh(model.config, 80, CPU, torch.float32)
    found = []
    for ids in torch.from_numpy(held["ids"])[: sum(sizes)].split(sizes):
        batch = target.line(at, ids)
        hidden, trail = target.forward(model, at, batch)
        target.commit_line(model, at, batch, trail, at.root)
        found.append(target.logits(model, hidden))
    return torch.cat(found), torch.from_numpy(held["logits"])[: sum(sizes)]


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_a_checkpoint_gives_the_logits_of_transformers(tmp_path, ratio):
    """With as many value heads as key heads grouped and tiled are the same: only more tell them apart."""
    found, wanted = logits(write(tmp_path, ratio), ratio, [70, 1, 1])
    assert (found - wanted).abs().max() <= 1e-3


def test_a_checkpoint_of_text_and_images_holds_the_same_text_model(tmp_path):
    folder = write(tmp_path, 3, prefix="model.language_model.", nested=True)
    found, wanted = logits(folder, 3, [20])
    assert (found - wanted).abs().max() <= 1e-3


def test_a_tied_head_is_the_embedding(tmp_path):
    model = checkpoint.load(safetensors.load(write(tmp_path, 2)), CPU, "f32", "reference")
    assert model.config.tied and torch.equal(model.head.data, model.embedding.data)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"model_type": "llama"}, "holds a model of type 'llama'; a target is qwen3_5"),
        ({"drop": ("model.layers.0.linear_attn.A_log",)}, "has no tensor model.layers.0.linear_attn.A_log"),
        (
            {"intermediate_size": 32},
            "tensor model.layers.0.mlp.gate_proj.weight is [96, 64], the config makes it [32, 64]",
        ),
        ({"layer_types": ["linear_attention"]}, "config.json's layer_types are not linear_attention or full_attention"),
        ({"head_dim": None}, "config.json has no head_dim"),
        ({"linear_num_value_heads": 5}, "neither may leave a rest"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, change, sentence):
    with pytest.raises(BadFile) as error:
        checkpoint.load(safetensors.load(write(tmp_path, 3, **change)), CPU, "f32", "reference")
    assert sentence in str(error.value) and "\n" not in str(error.value)
