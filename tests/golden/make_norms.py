"""Golden outputs of transformers' two norms and its MLP activation: writes norms.npz beside this file.

    pip install transformers==5.23.0 torch==2.13.0 numpy
    python make_norms.py

Qwen3_5RMSNorm multiplies by 1 + weight: stored is 1 + weight, as GGUF holds it. All in f32, where transformers does not
round in between.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5MLP, Qwen3_5RMSNorm, Qwen3_5RMSNormGated


@torch.no_grad()
def main() -> None:
    generator = torch.Generator().manual_seed(20261120)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight = draw(5, 192) * torch.tensor([1e-4, 0.1, 1, 30, 0]).view(5, 1), draw(192) * 0.2
    norm = Qwen3_5RMSNorm(192, eps=1e-6)
    norm.weight.copy_(weight)
    heads, gate, scale = draw(3, 4, 128) * 0.01, draw(3, 4, 128) * 3, 1 + draw(128) * 0.2
    gated = Qwen3_5RMSNormGated(128, eps=1e-6)
    gated.weight.copy_(scale)
    # identities as projections leave the activation
    mlp = Qwen3_5MLP(Qwen3_5TextConfig(hidden_size=128), intermediate_size=64)
    mlp.gate_proj.weight.copy_(torch.eye(128)[:64])
    mlp.up_proj.weight.copy_(torch.eye(128)[64:])
    mlp.down_proj.weight.copy_(torch.eye(128)[:, :64])
    halves = draw(4, 128) * 4
    arrays = {
        "x": x,
        "weight": 1 + weight,
        "normed": norm(x),
        "heads": heads,
        "gate": gate,
        "scale": scale,
        "gated": gated(heads, gate),
        "halves": halves,
        "activated": mlp(halves)[:, :64],
    }
    golden = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(Path(__file__).parent / "norms.npz", **golden)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
