"""Golden vectors of rope and attention: writes attention.npz beside this file.

    pip install transformers==5.23.0 torch==2.13.0 numpy==2.4.6     (CPU)
    python make_attention.py

Runs the rotary embedding and the eager attention of transformers' Qwen3.5 in f32: text and image positions up to the
last one; a causal block, a window, a token tree behind a context. Inputs are f16 values, as a cache holds them.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

HERE = Path(__file__).parent
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 5]


def rope(made: dict[str, np.ndarray], generator: torch.Generator) -> None:
    config = Qwen3_5TextConfig(
        head_dim=256,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    )
    rotary = qwen.Qwen3_5TextRotaryEmbedding(config)
    x = torch.randn(1, 2, 5, 256, generator=generator).half().float()
    text = torch.tensor([0, 1, 4095, 131072, 262143])
    image = torch.stack([text, torch.tensor([3, 77, 9000, 5, 200000]), torch.tensor([8, 2, 1234, 150000, 1])])
    made["rope_x"], made["rope_inv_freq"] = x[0].transpose(0, 1).half().numpy(), rotary.inv_freq.numpy()
    for name, positions in (("text", text.expand(3, -1)), ("image", image)):
        cos, sin = rotary(x, positions[:, None])
        out, _ = qwen.apply_rotary_pos_emb(x, x, cos, sin)
        made[f"rope_{name}_positions"] = positions.to(torch.int32).numpy()
        made[f"rope_{name}_out"] = out[0].transpose(0, 1).numpy()


def attention(made: dict[str, np.ndarray], generator: torch.Generator) -> None:
    T, H, Hkv, D, context = len(PARENTS), 6, 2, 64, 21
    q = torch.randn(1, H, T, D, generator=generator).half().float() * 2
    k, v = torch.randn(2, 1, Hkv, context + T, D, generator=generator).half().float()
    own = torch.zeros(T, T, dtype=torch.bool)
    for node, parent in enumerate(PARENTS):
        own[node] = own[parent] if parent >= 0 else False
        own[node, node] = True
    row, last = torch.arange(context + T), torch.arange(context, context + T)[:, None]
    masks = {
        "tree": torch.cat((torch.ones(T, context, dtype=torch.bool), own), 1),
        "causal": row <= last,
        "window": (row <= last) & (row > last - 9),
    }
    made["attention_q"] = q[0].transpose(0, 1).half().numpy()
    made["attention_k"], made["attention_v"] = k[0].half().numpy(), v[0].half().numpy()
    made["attention_ancestors"] = own.to(torch.uint8).numpy()
    module = SimpleNamespace(num_key_value_groups=H // Hkv, training=False)
    for name, visible in masks.items():
        hidden = torch.zeros(T, context + T).masked_fill(~visible, float("-inf"))
        out, _ = qwen.eager_attention_forward(module, q, k, v, hidden, D**-0.5)
        made[f"attention_{name}"] = out[0].numpy()


def main() -> None:
    generator = torch.Generator().manual_seed(20261120)
    made: dict[str, np.ndarray] = {}
    rope(made, generator)
    attention(made, generator)
    np.savez_compressed(HERE / "attention.npz", **made)


if __name__ == "__main__":
    main()
