"""Make qwen35_hf-<r>.npz: tiny random Qwen3.5 checkpoints and their logits, by transformers' own code.

    python tests/golden/make_qwen35.py        transformers 5.23.0, torch 2.13.0; flash-linear-attention not installed

r value heads share a key head: 1, 2, 3. Norms, A_log and dt_bias are drawn anew, since their initial values hide a
missing 1 + w or a wrong sign. Weights are rounded to bf16 and stored as its bits; logits are of the rounded model, f32.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

HERE = Path(__file__).parent


def make(ratio: int) -> None:
    torch.manual_seed(ratio)
    config = Qwen3_5TextConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2 * ratio,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
        layer_types=["linear_attention", "full_attention"],
        rms_norm_eps=1e-6,
        tie_word_embeddings=ratio == 2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    )
    model = Qwen3_5ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(0.3 * torch.randn_like(weight) + ("linear_attn.norm" in name))
            elif name.endswith("A_log"):
                weight.copy_(torch.randn_like(weight))
            elif name.endswith("dt_bias"):
                weight.copy_(torch.randn_like(weight) - 1)
            else:
                weight.copy_(torch.randn_like(weight) * (0.5 if "conv1d" in name else weight.shape[-1] ** -0.5))
            weight.copy_(weight.bfloat16())
        ids = torch.randint(0, 64, (1, 80))
        logits = model(ids).logits[0]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    held = {n: w.detach().bfloat16().view(torch.int16).numpy() for n, w in model.state_dict().items() if n not in tied}
    np.savez_compressed(
        HERE / f"qwen35_hf-{ratio}.npz",
        config=json.dumps(config.to_dict()),
        ids=ids[0].int().numpy(),
        logits=logits.numpy(),
        **{f"weight.{name}": bits for name, bits in held.items()},
    )
    print(ratio, sum(bits.nbytes for bits in held.values()), logits.std().item())


for r in (1, 2, 3):
    make(r)
