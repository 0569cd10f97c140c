"""Golden vectors of the gated delta rule, from code this repository did not write.

    python tests/golden/make_gdn.py transformers
    python tests/golden/make_gdn.py fla

gdn_transformers.npz   transformers 5.23.0, torch 2.13.0: one Qwen3_5GatedDeltaNet layer (conv, gates, chunked rule,
                       value heads grouped) on 70 tokens, and the state its recurrent rule ends in
gdn_fla.npz            flash-linear-attention 0.6.0, torch 2.13.0: naive_recurrent_gated_delta_rule down the path of
                       every node of a tree of 24, from a given state

transformers falls back to torch only where flash-linear-attention is absent: give it an environment of its own.
"""

import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
PARENTS = [-1, 0, 1, 2, 0, 4, 3, 1, 7, 6, 9, 5, 10, 8, 12, 12, 2, 16, 14, 18, 15, 0, 21, 19]


def save(name: str, **tensors: torch.Tensor) -> None:
    np.savez_compressed(
        HERE / name, **{key: value.detach().float().contiguous().numpy() for key, value in tensors.items()}
    )


def from_transformers() -> None:
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5 import modeling_qwen3_5 as peer

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        hidden_size=64,
        num_hidden_layers=1,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_conv_kernel_dim=4,
    )
    layer = peer.Qwen3_5GatedDeltaNet(config, 0).float()
    for name, weight in layer.named_parameters():
        if name.startswith(("in_proj", "conv1d")):
            torch.nn.init.normal_(weight, std=0.5 if "conv" in name else 0.2)
    torch.nn.init.normal_(layer.dt_bias, mean=-4)
    seen = {}
    for name in ("in_proj_qkv", "in_proj_a", "in_proj_b"):
        getattr(layer, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    layer.norm.register_forward_pre_hook(lambda _m, inputs: seen.update(o=inputs[0]))
    layer(torch.randn(1, 70, 64))
    u, a, b = seen["in_proj_qkv"], seen["in_proj_a"], seen["in_proj_b"]
    conv = peer.causal_conv1d_fn(u.transpose(1, 2), layer.conv1d.weight.squeeze(1), activation="silu").transpose(1, 2)
    q, k, v = conv.split([64, 64, 192], -1)
    g = -layer.A_log.exp() * torch.nn.functional.softplus(a + layer.dt_bias)
    _, state = peer.torch_recurrent_gated_delta_rule(
        q.unflatten(-1, (2, 32)),
        k.unflatten(-1, (2, 32)),
        v.unflatten(-1, (6, 32)),
        g=g,
        beta=b.sigmoid(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    save(
        "gdn_transformers.npz",
        u=u,
        weight=layer.conv1d.weight.squeeze(1),
        a=a,
        b=b,
        A_log=layer.A_log,
        dt_bias=layer.dt_bias,
        conv=conv,
        o=seen["o"].reshape(1, 70, 6, 32),
        state=state.transpose(-1, -2),
    )


def from_fla() -> None:
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    generator = torch.Generator().manual_seed(0)
    T, H, K, V = len(PARENTS), 2, 32, 16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v, a, b = normal(1, T, H, K), normal(1, T, H, K), normal(1, T, H, V), 2 * normal(1, T, H), 2 * normal(1, T, H)
    A, dt_bias, state = -16 * torch.rand(H, generator=generator), normal(H) - 4, normal(1, H, V, K)
    unit = [x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k)]
    g, beta = A * torch.nn.functional.softplus(a + dt_bias), b.sigmoid()
    outs, states = [], []
    for node in range(T):
        path = [node]
        while PARENTS[path[-1]] >= 0:
            path.append(PARENTS[path[-1]])
        rows = [x[:, path[::-1]] for x in (*unit, v)]
        o, S = naive_recurrent_gated_delta_rule(
            *rows,
            beta=beta[:, path[::-1]],
            g=g[:, path[::-1]],
            initial_state=state.transpose(-1, -2),
            output_final_state=True,
        )
        outs.append(o[:, -1])
        states.append(S.transpose(-1, -2))
    save(
        "gdn_fla.npz",
        q=q,
        k=k,
        v=v,
        a=a,
        b=b,
        A=A,
        dt_bias=dt_bias,
        state=state,
        parents=torch.tensor([PARENTS]),
        o=torch.stack(outs, 1),
        states=torch.stack(states, 1),
    )


if __name__ == "__main__":
    {"transformers": from_transformers, "fla": from_fla}[sys.argv[1]]()
