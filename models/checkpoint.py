"""Qwen3.5 from Hugging Face's safetensors: the same tensors under other names, and four differences in what they hold.

    norms               w, where 1 + w is multiplied; but the delta net's own norm holds what is multiplied
    linear_attn.A_log   A = -exp(A_log)
    conv1d.weight       [C, 1, W]
    value heads         grouped: head h reads key head h // (Hv / Hk); nothing is put in another order here

A checkpoint of text and images nests the text model one level deeper; `mtp` and `visual` tensors are left alone.
"""

from typing import Any

import torch

from . import qwen35
from .gguf import BadFile
from .qwen35 import Config
from .safetensors import Checkpoint
from .target import Target, assemble
from .weights import Rows

TYPES = ("qwen3_5", "qwen3_5_text")
NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
FORMATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str = "bf16",
    impl: str = "kernels",
    captured: tuple[int, ...] = (),
) -> Target:
    """The target of a checkpoint, its weights in the types they are stored in."""
    c, prefix = config(checkpoint), _prefix(checkpoint)
    shapes = qwen35.tensors(c)
    for name, shape in shapes.items():
        held = _name(name, prefix)
        if held not in checkpoint.entries:
            raise BadFile(f"{checkpoint.path.name} has no tensor {held}")
        found = checkpoint.entries[held].shape
        if found != (_of_conv(shape) if "conv1d" in name else shape):
            raise BadFile(f"{checkpoint.path.name}: tensor {held} is {list(found)}, the config makes it {list(shape)}")

    def take(name: str) -> Rows:
        data = checkpoint.read(_name(name, prefix)).to(device).reshape(shapes[name])
        if data.dim() == 1 or "conv1d" in name:
            data = data.float()
        if name.endswith("norm.weight") and not name.endswith("ssm_norm.weight"):
            data = 1 + data
        if name.endswith("ssm_a"):
            data = -data.exp()
        return Rows(data, FORMATS[data.dtype])

    return assemble(c, take, device, precision, impl, captured)


def _of_conv(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], 1, shape[1])


def _prefix(checkpoint: Checkpoint) -> str:
    for prefix in ("model.language_model.", "model."):
        if f"{prefix}embed_tokens.weight" in checkpoint.entries:
            return prefix
    raise BadFile(f"{checkpoint.path.name} has no tensor model.embed_tokens.weight")


def _name(ours: str, prefix: str) -> str:
    if ours == "output.weight":
        return "lm_head.weight"
    if not ours.startswith("blk."):
        return prefix + NAMES[ours]
    _, i, rest = ours.split(".", 2)
    return f"{prefix}layers.{i}.{NAMES[rest]}"


def config(checkpoint: Checkpoint) -> Config:
    """The sizes that config.json gives; those of its text_config where there is one."""
    name, whole = checkpoint.path.name, checkpoint.config
    if whole.get("model_type") not in TYPES:
        raise BadFile(f"{name} holds a model of type {str(whole.get('model_type'))[:40]!r}; a target is {TYPES[0]}")
    held = whole.get("text_config", whole)
    rotary = held.get("rope_parameters", held) if isinstance(held, dict) else {}

    def get(key: str, kind: type = int, place: Any = held) -> Any:
        value = place.get(key) if isinstance(place, dict) else None
        if not isinstance(value, (int, float) if kind is float else kind) or (kind is int and isinstance(value, bool)):
            raise BadFile(f"{name}: config.json has no {key}")
        if isinstance(value, int) and not 0 < value <= 1 << 24:
            raise BadFile(f"{name}: config.json's {key} is {value}")
        return value

    types, D = get("layer_types", list), get("head_dim")
    if len(types) != get("num_hidden_layers") or not set(types) <= {"linear_attention", "full_attention"}:
        raise BadFile(f"{name}: config.json's layer_types are not linear_attention or full_attention, one a layer")
    Hv, V = get("linear_num_value_heads"), get("linear_value_head_dim")
    found = Config(
        L=len(types),
        E=get("hidden_size"),
        F=get("intermediate_size"),
        vocab=get("vocab_size"),
        H=get("num_attention_heads"),
        Hkv=get("num_key_value_heads"),
        Hv=Hv,
        tied="lm_head.weight" not in checkpoint.entries,
        recurrent=tuple(one == "linear_attention" for one in types),
        D=D,
        Hk=get("linear_num_key_heads"),
        K=get("linear_key_head_dim"),
        V=V,
        W=get("linear_conv_kernel_dim"),
        rotary=int(D * get("partial_rotary_factor", float, rotary)),
        theta=float(get("rope_theta", float, rotary)),
        eps=float(get("rms_norm_eps", float)),
        context=get("max_position_embeddings"),
        head_map="grouped",
    )
    if problem := qwen35.impossible(found, D, Hv * V):
        raise BadFile(f"{name}: {problem}")
    return found
