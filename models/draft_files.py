"""Drafts as they are published: safetensors with a config.json, or GGUF in the spellings of its converters.

    architecture                         keys                      layers                 fc and its norm
    qwen35-dflash-draft, dflash-draft    <arch>.dflash.<key>       target_layer_ids: k    dflash.fc, dflash.hidden_norm
    dflash                               dflash.<key>              target_layers: k + 1   fc, enc.output_norm

llama.cpp names the layer whose input is read, the others that whose output is: the same vector. Of a file's shapes and
its metadata, the shapes win. Converters drop what is said about sliding layers: `window` puts it back.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from . import draft, gguf, safetensors
from .arithmetic import Precision
from .draft import Config, Draft
from .gguf import BadFile, File
from .safetensors import Checkpoint
from .weights import Rows

ARCHS = ("qwen35-dflash-draft", "dflash-draft", "dflash")
# our name -> what converters call it
ALSO = {
    "dflash.fc.weight": ("dflash_fc.weight", "fc.weight"),
    "dflash.hidden_norm.weight": ("dflash_hidden_norm.weight", "enc.output_norm.weight"),
    "ffn_norm.weight": ("post_attention_norm.weight",),
}
FROM_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FROM_TOP = {"dflash.fc": "fc", "dflash.hidden_norm": "hidden_norm", "output_norm": "norm"}


def load(path: Path, device: torch.device, precision: Precision, impl: str = "kernels", window: int = 0) -> Draft:
    """The draft in a GGUF, a .safetensors file or a folder; `window`: all its layers but the last slide."""
    if path.suffix == ".gguf":
        return from_gguf(gguf.load(path), device, precision, impl, window)
    return from_safetensors(safetensors.load(path), device, precision, impl, window)


def from_gguf(file: File, device: torch.device, precision: Precision, impl: str, window: int) -> Draft:
    names = {name: _spelling(file, name) for name in draft.tensors(_sizes(file))}
    c = _windowed(_sizes(file), window)
    _check(file.path.name, draft.tensors(c), {name: file.entries[held].shape for name, held in names.items()})

    def take(name: str) -> Rows:
        return Rows(file.read(names[name]).to(device), file.entries[names[name]].format)

    return draft.assemble(c, take, device, precision, impl)


def _spelling(file: File, name: str) -> str:
    parts = name.split(".", 2) if name.startswith("blk.") else ["", "", name]
    prefix = name[: -len(parts[2])]
    for spelling in (parts[2], *ALSO.get(parts[2], ())):
        if prefix + spelling in file.entries:
            return prefix + spelling
    raise BadFile(f"{file.path.name} has no tensor {name}")


def _sizes(file: File) -> Config:
    arch = file.get("general.architecture", str)
    if arch not in ARCHS:
        raise BadFile(f"{file.path.name} holds the architecture {arch[:40]!r}; a draft is {', '.join(ARCHS)}")
    own = arch if arch == "dflash" else f"{arch}.dflash"

    def size(name: str) -> int:
        return file.size(f"{arch}.{name}")

    L = file.size(f"{arch}.block_count", most=256)
    captured = tuple(_integers(file, f"{own}.target_layer_ids", f"{own}.target_layers"))
    windows, causal = draft.full(L)
    if (slide := file.metadata.get(f"{arch}.attention.sliding_window_pattern")) is not None:
        if not isinstance(slide, list) or len(slide) != L or not all(type(one) is bool for one in slide):
            raise BadFile(f"{file.path.name}: {arch}.attention.sliding_window_pattern is not one truth value a layer")
        windows = tuple(size("attention.sliding_window") if one else 0 for one in slide)
        causal = tuple(slide)
    if file.get(f"{own}.context_kv_layer_norm", bool, False):
        raise BadFile(f"{file.path.name} norms its context once more in every layer, which is not supported")
    E, D = size("embedding_length"), size("attention.key_length")
    rows = {name: file.entries[_spelling(file, f"blk.0.{name}.weight")].shape[0] for name in ("attn_q", "attn_k")}
    width = file.entries[_spelling(file, "dflash.fc.weight")].shape[-1]
    if not captured or width % len(captured):
        raise BadFile(f"{file.path.name} reads {len(captured)} layers, but its fc takes {width} numbers")
    c = Config(
        L=L,
        E=E,
        F=size("feed_forward_length"),
        H=rows["attn_q"] // D,
        Hkv=rows["attn_k"] // D,
        D=D,
        E_target=width // len(captured),
        captured=captured,
        windows=windows,
        causal=causal,
        mask_token=_mask(file, own),
        theta=file.get(f"{arch}.rope.freq_base", float),
        eps=file.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        block=file.size(f"{own}.block_size", most=16),
    )
    return _plausible(file.path.name, c)


def _mask(file: File, own: str) -> int:
    """The mask token's id; llama.cpp's own converter keeps it with the tokenizer."""
    key = f"{own}.mask_token_id"
    return file.size(key if key in file.metadata else "tokenizer.ggml.mask_token_id")


def _integers(file: File, ours: str, inputs: str) -> list[int]:
    """Layers whose outputs are read, from either spelling."""
    key = ours if ours in file.metadata else inputs
    value = file.metadata.get(key)
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise BadFile(f"{file.path.name} has no list of layers to read, {ours} or {inputs}")
    return [one - 1 for one in value] if key == inputs else value


def from_safetensors(
    checkpoint: Checkpoint, device: torch.device, precision: Precision, impl: str, window: int
) -> Draft:
    c = _windowed(_from_json(checkpoint), window)
    names = {name: hugging_face(name) for name in draft.tensors(c)}
    for held in names.values():
        if held not in checkpoint.entries:
            raise BadFile(f"{checkpoint.path.name} has no tensor {held}")
    found = {name: checkpoint.entries[held].shape for name, held in names.items()}
    _check(checkpoint.path.name, draft.tensors(c), found)

    def take(name: str) -> Rows:
        data = checkpoint.read(names[name]).to(device)
        data = data if data.dim() == 2 and data.dtype != torch.float64 else data.float()
        return Rows(data, {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[data.dtype])

    return draft.assemble(c, take, device, precision, impl)


def hugging_face(name: str) -> str:
    if not name.startswith("blk."):
        return FROM_TOP[name.removesuffix(".weight")] + ".weight"
    _, i, part, _ = name.split(".")
    return f"layers.{i}.{FROM_LAYER[part]}.weight"


def _from_json(checkpoint: Checkpoint) -> Config:
    name, held = checkpoint.path.name, checkpoint.config
    if not held:
        raise BadFile(f"{name} has no config.json beside it")
    inner = held.get("dflash_config") or {}
    rotary = held.get("rope_parameters") or held.get("rope_scaling") or {}

    def get(key: str, kind: type | tuple[type, ...], *places: Any) -> Any:
        for place in places or (held,):
            if isinstance(place, dict) and isinstance(place.get(key), kind) and not isinstance(place[key], bool):
                return place[key]
        raise BadFile(f"{name}: config.json has no {key}")

    L, E = get("num_hidden_layers", int), get("hidden_size", int)
    types = held.get("layer_types") or ["full_attention"] * L
    if not isinstance(types, list) or len(types) != L or not set(types) <= {"full_attention", "sliding_attention"}:
        raise BadFile(f"{name}: config.json's layer_types are not full_attention or sliding_attention, one a layer")
    slides = tuple(one == "sliding_attention" for one in types)
    captured = get("target_layer_ids", list, inner, held)
    if not all(type(one) is int for one in captured):
        raise BadFile(f"{name}: config.json's target_layer_ids are no whole numbers")
    c = Config(
        L=L,
        E=E,
        F=get("intermediate_size", int),
        H=get("num_attention_heads", int),
        Hkv=get("num_key_value_heads", int),
        D=get("head_dim", int),
        E_target=E,
        captured=tuple(captured),
        windows=tuple(get("sliding_window", int) if one else 0 for one in slides),
        causal=slides,
        mask_token=get("mask_token_id", int, inner, held),
        # no default: drafts with 1e6 and with 1e7 exist
        theta=float(get("rope_theta", (int, float), held, rotary)),
        eps=float(get("rms_norm_eps", (int, float))),
        block=get("block_size", int, held, inner),
    )
    return _plausible(name, c)


def _plausible(name: str, c: Config) -> Config:
    sizes = (c.L, c.E, c.F, c.H, c.Hkv, c.D, c.E_target)
    fits = all(0 < size <= 1 << 24 for size in sizes) and c.L <= 256 and 2 <= c.block <= 16 and c.H % c.Hkv == 0
    layers = len(c.captured) > 0 and all(0 <= one < 1024 for one in c.captured)
    if not (fits and layers and 0 < c.theta < 1e12 and 0 < c.eps < 1 and c.D in (32, 64, 128, 256)):
        raise BadFile(f"{name} describes a draft that is not supported: {c}")
    if list(c.captured) != sorted(set(c.captured)):
        raise BadFile(f"{name} reads the layers {list(c.captured)}, which do not ascend")
    return c


def _windowed(c: Config, window: int) -> Config:
    if not window:
        return c
    windows, causal = draft.sliding(c.L, window)
    return dataclasses.replace(c, windows=windows, causal=causal)


def _check(name: str, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for tensor, shape in wanted.items():
        if found[tensor] != shape:
            raise BadFile(f"{name}: tensor {tensor} is {list(found[tensor])}, its settings make it {list(shape)}")
