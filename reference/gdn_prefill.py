"""The gated delta rule over T tokens in a row: T = 1 is decode, many are prefill. The state moves to the last token.

S -> token 0 -> S_0 -> token 1 -> S_1 -> ... -> S_(T-1)          o_t = S_t q^_t, the step is that of delta_rule.py
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import delta_rule, paths
from .spec import Case, Cost, Dim, Inputs, Spec, Value, accumulator, product


def gdn_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    head_map: str = "tiled",
) -> torch.Tensor:
    """q, k: [B, T, Hk, K]; v: [B, T, Hv, V]; a, b: [B, T, Hv]; all raw, rows at any stride; A, dt_bias: [Hv] f32;
    state: [B, Hv, V, K], updated -> o [B, T, Hv, V] of v's dtype."""
    wide = accumulator(v, state)
    heads = delta_rule.key_heads(k.shape[2], v.shape[2], head_map).to(v.device)
    q, k, values = delta_rule.query(q, heads, wide), delta_rule.key(k, heads, wide), v.to(wide)
    g, beta = delta_rule.log_decay(a, A, dt_bias, wide), b.to(wide).sigmoid()
    S = state.to(wide)
    o = torch.empty_like(values)
    for t in range(v.shape[1]):
        o[:, t], _, S = delta_rule.step(S, q[:, t], k[:, t], values[:, t], g[:, t], beta[:, t])
    state.copy_(S)
    return o.to(v.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    return {**delta_rule.draw(case, case["T"], generator), "head_map": case["head_map"]}


def _cost(case: Case) -> Cost:
    B, T, Hv, V, K = (case[name] for name in ("B", "T", "Hv", "V", "K"))
    return Cost(bytes=delta_rule.token_bytes(case, T) + 2 * delta_rule.state_bytes(case), flops=7 * B * T * Hv * V * K)


def _torch(inputs: Inputs) -> Callable[[], Any] | None:
    """The recurrence in f32, all heads at once; no choice for a long prompt, where it takes a second."""
    if inputs["v"].shape[1] > 4096:
        return None
    q, k, v, a, b, A, dt_bias, state = (inputs[name] for name in ("q", "k", "v", "a", "b", "A", "dt_bias", "state"))
    heads = delta_rule.key_heads(k.shape[2], v.shape[2], inputs["head_map"]).to(v.device)

    def run() -> torch.Tensor:
        qn, kn = delta_rule.query(q, heads, torch.float32), delta_rule.key(k, heads, torch.float32)
        decay = delta_rule.log_decay(a, A, dt_bias, torch.float32).exp()
        beta = b.float().sigmoid()
        S, rows = state.float(), []
        for t in range(v.shape[1]):
            S = S * decay[:, t, :, None, None]
            u = beta[:, t, :, None] * (v[:, t] - (S @ kn[:, t, :, :, None])[..., 0])
            S = S + u[..., None] * kn[:, t, :, None, :]
            rows.append((S @ qn[:, t, :, :, None])[..., 0])
        state.copy_(S)
        return torch.stack(rows, 1).to(v.dtype)

    return run


def peers(inputs: Inputs) -> tuple[Inputs, torch.Tensor]:
    """Arguments of flash-linear-attention's kernels over these tokens, and the state it starts from. It knows grouped
    heads alone and wants dense rows: both are made here, outside of what is timed."""
    Hk, Hv = inputs["k"].shape[2], inputs["v"].shape[2]
    order = torch.arange(Hv).view(-1, Hk).T.flatten() if inputs["head_map"] == "tiled" else torch.arange(Hv)
    order = order.to(inputs["v"].device)
    per_head = {name: inputs[name][:, :, order].contiguous() for name in ("v", "a", "b")}
    arguments = {
        **{name: inputs[name].contiguous() for name in ("q", "k")},
        "v": per_head["v"],
        "g": per_head["a"],
        "beta": per_head["b"],
        "A_log": (-inputs["A"][order]).log(),
        "dt_bias": inputs["dt_bias"][order],
        "initial_state": inputs["state"][:, order].contiguous(),
    }
    flags = ("output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "state_v_first")
    return {**arguments, **dict.fromkeys((*flags, "use_beta_sigmoid_in_kernel"), True)}, order


def _fla_chunk(inputs: Inputs) -> Callable[[], Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return partial(chunk_gated_delta_rule, **peers(inputs)[0])


def fla_recurrent(inputs: Inputs) -> Callable[[], Any]:
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    return partial(fused_recurrent_gated_delta_rule, **peers(inputs)[0])


_TINY: dict[str, Value] = {
    "B": 1,
    "T": 9,
    "Hk": 1,
    "Hv": 2,
    "K": 32,
    "V": 32,
    "dtype": "f32",
    "state": "f32",
    "values": "typical",
    "head_map": "tiled",
}
_27B: dict[str, Value] = {
    "B": 1,
    "Hk": 16,
    "Hv": 48,
    "K": 128,
    "V": 128,
}


def _tiny(**changes: Value | tuple[Value, ...]) -> tuple[Case, ...]:
    """Small cases; an axis that is a tuple is spread."""
    return product(**{**_TINY, **changes})


def _qwen35(**changes: Value | tuple[Value, ...]) -> tuple[Case, ...]:
    return _tiny(**{**_27B, "dtype": "bf16", **changes})


SPEC = Spec(
    op="gdn_prefill",
    formula="S_t = e^g S_(t-1) + u k^T,  u = beta (v - e^g S_(t-1) k),  o_t = S_t q",
    dims=(*delta_rule.DIMS, Dim("T", 1, 1 << 20, fuzz=80, doc="tokens")),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "state": ("f32", "bf16", "f16"),
        "values": delta_rule.VALUES,
        "head_map": delta_rule.HEAD_MAPS,
    },
    illegal=delta_rule.illegal,
    inputs=_inputs,
    updates=("state",),
    cases={
        "smoke": (
            *_tiny(T=(1, 21), Hk=2, Hv=4),
            *_tiny(T=5, dtype="bf16"),
        ),
        "edge": (
            *_tiny(T=(2, 15, 16, 17), B=2, V=16),
            *_tiny(T=(1, 20), Hk=2, Hv=6, head_map="grouped", dtype="f16"),
            *_tiny(T=63, values="equal", K=16),
            *_tiny(T=70, values="extreme", K=64),
            *_tiny(T=130, K=16, V=16, dtype="bf16", state="f16"),
            *_tiny(T=66, values="zero", state="bf16"),
            *_tiny(T=40, values="extreme", dtype="bf16"),
            *_tiny(T=9, values="extreme", V=64),
            *_tiny(T=1, Hv=1, values="zero", K=128, V=128),
        ),
        "qwen35": _qwen35(T=(1, 9, 23, 64, 200)),
        "perf": _qwen35(T=(1, 512, 4096, 32768)),
    },
    cost=_cost,
    cold=("A", "dt_bias", "state"),
    oracles={"path": paths.gdn_prefill},
    baselines={"torch": _torch, "fla chunk": _fla_chunk, "fla recurrent": fla_recurrent},
)
