"""Models into files: GGUF as `gguf.py` reads it and llama.cpp does, drafts as safetensors with a config.json too.

The tensors of a file follow one another in the order given, each at a multiple of 32 bytes.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..reference.formats import find, quantise
from . import draft, draft_files, qwen35
from .gguf import ARRAY, MAGIC, SCALARS, STRING, VERSIONS
from .qwen35 import ARCH

ALIGNMENT = 32
# llama.cpp's numbers for what most of a file's weights are
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
CODES = {code: number for number, code in SCALARS.items()}
Metadata = Mapping[str, str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int]]


@dataclass(frozen=True)
class Tensor:
    """data: the values, f32; format: what they are stored as."""

    name: str
    data: torch.Tensor
    format: str


def write_gguf(path: Path, metadata: Metadata, tensors: Iterable[Tensor]) -> None:
    """Whole numbers are written as u32, fractions as f32; in arrays whole numbers as i32."""
    held = list(tensors)
    blobs = [quantise(one.data, one.format).numpy().tobytes() for one in held]
    head = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(held), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), _value(value)]
    offset = 0
    for one, blob in zip(held, blobs, strict=True):
        dims = one.data.shape[::-1]
        place = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, find(one.format).type_id, offset)
        head += [_text(one.name), place]
        offset += len(blob) + -len(blob) % ALIGNMENT
    start = sum(map(len, head))
    parts = [*head, bytes(-start % ALIGNMENT)]
    for blob in blobs:
        parts += [blob, bytes(-len(blob) % ALIGNMENT)]
    path.write_bytes(b"".join(parts))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """The type's number and the value."""
    match value:
        case bool():
            return struct.pack("<I?", CODES["?"], value)
        case int():
            return struct.pack("<II", CODES["I"], value)
        case float():
            return struct.pack("<If", CODES["f"], value)
        case str():
            return struct.pack("<I", STRING) + _text(value)
    first = value[0]
    if isinstance(first, str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    code = "?" if isinstance(first, bool) else "i"
    return struct.pack(f"<IIQ{len(value)}{code}", ARRAY, CODES[code], len(value), *value)


# -- the target --------------------------------------------------------------------------------------------------------


def target_metadata(c: qwen35.Config, name: str, file_type: str) -> dict[str, Any]:
    """What llama.cpp asks of a qwen35 file."""
    third, half = c.rotary // 6, c.rotary // 2
    own = {
        "block_count": c.L,
        "context_length": c.context,
        "embedding_length": c.E,
        "feed_forward_length": c.F,
        "attention.head_count": c.H,
        "attention.head_count_kv": c.Hkv,
        "attention.key_length": c.D,
        "attention.value_length": c.D,
        "attention.layer_norm_rms_epsilon": float(c.eps),
        "attention.recurrent_layers": list(c.recurrent),
        "rope.dimension_count": c.rotary,
        # text turns by one position: how the frequencies are shared out makes no difference to it
        "rope.dimension_sections": [half - 2 * third, third, third, 0],
        "rope.freq_base": float(c.theta),
        "ssm.conv_kernel": c.W,
        "ssm.state_size": c.K,
        "ssm.group_count": c.Hk,
        "ssm.time_step_rank": c.Hv,
        "ssm.inner_size": c.Hv * c.V,
        "full_attention_interval": c.recurrent.index(False) + 1,
        "vocab_size": c.vocab,
    }
    return _general(ARCH, name, file_type) | {f"{ARCH}.{key}": value for key, value in own.items()}


def _general(arch: str, name: str, file_type: str) -> dict[str, Any]:
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[file_type],
    }


def tokenizer_metadata(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], kinds: Sequence[int], end: int, pre: str
) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": list(kinds),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.padding_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }


def mixed(mix: qwen35.Mix, tied: bool = False) -> qwen35.Mix:
    """A mix for small models: as llama-quantize, q6_k for an embedding that is the head too; q8_0 for gates of a few
    rows."""

    def choose(name: str, i: int, n: int) -> str:
        if name in ("ssm_alpha", "ssm_beta"):
            return "q8_0"
        return mix("output" if tied and name == "token_embd" else name, i, n)

    return choose


def all_in(format: str) -> qwen35.Mix:
    """Every matrix in one format, vectors in f32."""
    return lambda name, i, n: "f32" if qwen35.q4_k_m(name, i, n) == "f32" else format


def stored(data: torch.Tensor, name: str, mix: qwen35.Mix, L: int) -> Tensor:
    """The tensor in the mix's format; in q8_0 where its rows are no multiple of the format's blocks."""
    format = "f32" if data.dim() == 1 else qwen35.format_of(mix, name, L)
    whole = data.shape[-1] % find(format).elements == 0
    return Tensor(name, data.float().cpu().contiguous(), format if whole else "q8_0")


def target(
    path: Path,
    c: qwen35.Config,
    weights: Mapping[str, torch.Tensor],
    words: Mapping[str, Any],
    name: str,
    mix: qwen35.Mix,
    file_type: str,
) -> None:
    """weights as a GGUF means them, by its names; words: the tokenizer's metadata."""
    metadata = {**target_metadata(c, name, file_type), **words}
    write_gguf(path, metadata, [stored(weights[one], one, mix, c.L) for one in qwen35.tensors(c)])


# -- the draft ---------------------------------------------------------------------------------------------------------


def draft_gguf(
    path: Path, c: draft.Config, weights: Mapping[str, torch.Tensor], name: str, mix: qwen35.Mix, file_type: str
) -> None:
    arch = draft_files.ARCHS[0]
    own = {
        "block_count": c.L,
        "embedding_length": c.E,
        "feed_forward_length": c.F,
        "attention.head_count": c.H,
        "attention.head_count_kv": c.Hkv,
        "attention.key_length": c.D,
        "attention.value_length": c.D,
        "attention.layer_norm_rms_epsilon": float(c.eps),
        "rope.freq_base": float(c.theta),
        "dflash.n_target_layers": len(c.captured),
        "dflash.target_layer_ids": list(c.captured),
        "dflash.block_size": c.block,
        "dflash.mask_token_id": c.mask_token,
    }
    metadata = _general(arch, name, file_type) | {f"{arch}.{key}": value for key, value in own.items()}
    write_gguf(path, metadata, [stored(weights[one], one, mix, c.L) for one in draft.tensors(c)])


def draft_safetensors(folder: Path, c: draft.Config, weights: Mapping[str, torch.Tensor]) -> None:
    """model.safetensors in bf16 under Hugging Face's names, and config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    held = {draft_files.hugging_face(name): weights[name].bfloat16().cpu().contiguous() for name in draft.tensors(c)}
    save_file(held, folder / "model.safetensors")
    config = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "num_hidden_layers": c.L,
        "hidden_size": c.E,
        "intermediate_size": c.F,
        "num_attention_heads": c.H,
        "num_key_value_heads": c.Hkv,
        "head_dim": c.D,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "block_size": c.block,
        "layer_types": ["full_attention"] * c.L,
        "dflash_config": {"mask_token_id": c.mask_token, "target_layer_ids": list(c.captured)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
