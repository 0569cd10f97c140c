"""The same steps by other code on the same GPU: Hugging Face's transformers, on random bf16 weights of the same shapes.

A step is what its `generate` runs: one eager forward over the cache, the arg-max of its logits fed to the next, and the
host waiting for it. Which fast paths it found (flash-linear-attention, causal-conv1d) is noted; without them its delta
nets are plain torch. The context's keys and values are drawn as well: no prompt is run.
"""

import importlib
import importlib.metadata
import importlib.util
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from ..models.qwen35 import Config

FAST_PATHS = ("fla", "causal_conv1d", "kernels", "flash_attn")


def config_of(c: Config) -> Any:
    """transformers' configuration of these sizes."""
    from transformers import Qwen3_5TextConfig

    half, third = c.rotary // 2, c.rotary // 6
    return Qwen3_5TextConfig(
        vocab_size=c.vocab,
        hidden_size=c.E,
        intermediate_size=c.F,
        num_hidden_layers=c.L,
        num_attention_heads=c.H,
        num_key_value_heads=c.Hkv,
        head_dim=c.D,
        linear_num_key_heads=c.Hk,
        linear_num_value_heads=c.Hv,
        linear_key_head_dim=c.K,
        linear_value_head_dim=c.V,
        linear_conv_kernel_dim=c.W,
        layer_types=["linear_attention" if recurrent else "full_attention" for recurrent in c.recurrent],
        rms_norm_eps=c.eps,
        tie_word_embeddings=c.tied,
        max_position_embeddings=c.context,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": c.theta,
            "partial_rotary_factor": c.rotary / c.D,
            "mrope_section": [(half - third + 1) // 2, (half - third) // 2, third],
            "mrope_interleaved": True,
        },
    )


def begin_to_import() -> None:
    """In a thread: it takes as long as all that is timed here."""
    threading.Thread(
        target=importlib.import_module, args=("transformers.models.qwen3_5.modeling_qwen3_5",), daemon=True
    ).start()


def build(c: Config, device: torch.device) -> Any:
    """The model, its weights drawn where they stay: made without memory, then given it, then filled."""
    from transformers import Qwen3_5ForCausalLM

    settings = config_of(c)
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(settings)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    # its frequencies are no weights
    model.model.rotary_emb = type(model.model.rotary_emb)(settings).to(device)
    return model


def entries(
    c: Config, device: torch.device, rate: float, contexts: tuple[int, ...], rows: int = 24, steps: int = 8
) -> Iterator[dict[str, Any]]:
    """A row for one token after another, and one for several at once, at each context; `rate` in GB/s."""
    began = time.perf_counter()
    model = build(c, device)
    read = sum(one.nbytes for one in model.parameters()) - model.model.embed_tokens.weight.nbytes * (not c.tied)
    found = [name for name in FAST_PATHS if importlib.util.find_spec(name)]
    notes = {"version": importlib.metadata.version("transformers"), "found": found}
    for context in contexts:
        cache = _after(model, context, device)
        for name, width in (("ar", 1), (f"{rows} rows", rows)):
            ms = _timed(model, cache, width, steps, device)
            case = {"layers": c.L, "mix": "bf16", "step": name, "context": context, "kv": "bf16", "precision": "bf16"}
            yield {
                "case": case,
                "impl": "transformers",
                "ms": {key: round(value, 4) for key, value in ms.items()},
                "floor_ms": round(read / rate / 1e6, 3),
                "of_floor": round(read / rate / 1e6 / ms["p50"], 3),
                "tokens_a_step": 1.0,
                "tokens_per_s": round(1e3 / ms["p50"], 1) if width == 1 else 0.0,
                "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else 0.0,
                "notes": {**notes, "seconds": round(time.perf_counter() - began, 1)},
            }
        del cache


@torch.inference_mode()
def _after(model: Any, context: int, device: torch.device) -> Any:
    """The cache as after `context` tokens: states after a few, keys and values drawn for all."""
    ids = torch.zeros(1, 8, dtype=torch.int64, device=device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            _, heads, _, D = layer.keys.shape
            layer.keys, layer.values = torch.randn(2, 1, heads, context, D, dtype=layer.keys.dtype, device=device)
    assert cache.get_seq_length() == context
    return cache


@torch.inference_mode()
def _timed(model: Any, cache: Any, width: int, steps: int, device: torch.device) -> dict[str, float]:
    ids, spent = torch.zeros(1, width, dtype=torch.int64, device=device), []
    for _ in range(steps + 2):
        _wait(device)
        began = time.perf_counter()
        ids = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=width).logits.argmax(-1)
        _wait(device)
        spent.append(1e3 * (time.perf_counter() - began))
    cuts = statistics.quantiles(spent[2:], n=10)
    return {"p20": cuts[1], "p50": cuts[4], "p80": cuts[7]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
