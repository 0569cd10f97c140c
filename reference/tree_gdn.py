"""The gated delta rule over a token tree: every node continues the state of its parent, a root that of the context.

    parents = [-1, 0, 0, 1]          S_0 = step(S, 0)     S_1 = step(S_0, 1)
            0                        S_2 = step(S_0, 2)   S_3 = step(S_1, 3)
           / \\
          1   2                      o_i = S_i q^_i       the step is that of delta_rule.py
         /
        3                            the state itself stays as it is; gdn_commit moves it to an accepted node

What is saved for the commit:

    store_f32  S_i of every node [B, T, Hv, V, K] f32
    store_f16  the same in f16; a node whose parent is not the slot before it continues the rounded S
    wy         u_i of every node [B, T, Hv, V] f32: S of any node is e^G S + sum of e^(G - G_j) u_j k^_j^T down its path
    replay     nothing, [0] f32
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from . import delta_rule, paths, tree
from .gdn_prefill import fla_recurrent
from .spec import Calibrated, Case, Cost, Dim, Inputs, Spec, Tolerance, Value, accumulator, product
from .tree_mask import tree_mask

STRATEGIES = ("wy", "store_f32", "store_f16", "replay")


def tree_gdn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    parents: torch.Tensor,
    ancestors: torch.Tensor,
    strategy: str = "wy",
    head_map: str = "tiled",
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k: [B, T, Hk, K]; v: [B, T, Hv, V]; a, b: [B, T, Hv]; all raw, rows at any stride; A, dt_bias: [Hv] f32;
    state: [B, Hv, V, K]; parents: [B, T] i32; ancestors: [B, T, T] u8, as tree_mask makes them of parents
    -> o [B, T, Hv, V] of v's dtype, saved. Padding is 0 in both."""
    if strategy not in STRATEGIES:
        raise ValueError(f"tree_gdn's strategies are {', '.join(STRATEGIES)}, not '{strategy}'")
    wide = accumulator(v, state)
    B, T, Hv, V = v.shape
    K = k.shape[-1]
    heads = delta_rule.key_heads(k.shape[2], Hv, head_map).to(v.device)
    q, k, values = delta_rule.query(q, heads, wide), delta_rule.key(k, heads, wide), v.to(wide)
    g, beta = delta_rule.log_decay(a, A, dt_bias, wide), b.to(wide).sigmoid()
    o, u = torch.zeros(B, T, Hv, V, dtype=wide, device=v.device), torch.zeros(B, T, Hv, V, dtype=wide, device=v.device)
    states = torch.zeros(B, T, Hv, V, K, dtype=wide, device=v.device)
    batch = torch.arange(B, device=v.device)

    def where(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
        return torch.where(condition.view(-1, *[1] * (x.dim() - 1)), x, y)

    for node in range(T):
        parent = parents[:, node].long()
        S = states[batch, parent.clamp_min(0)]
        if strategy == "store_f16":
            S = where(parent != node - 1, S.float().half().to(wide), S)
        S = where(parent == tree.ROOT, state.to(wide), S)
        new = delta_rule.step(S, q[:, node], k[:, node], values[:, node], g[:, node], beta[:, node])
        o[:, node], u[:, node], states[:, node] = (where(parent != tree.PAD, x, 0.0) for x in new)
    match strategy:
        case "wy":
            saved = u
        case "replay":
            saved = torch.empty(0, dtype=wide, device=v.device)
        case _:
            saved = states
    if wide == torch.float32 and strategy == "store_f16":
        saved = saved.half()
    return o.to(v.dtype), saved


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    parents = tree.draw_batch(case["shape"], case["B"], case["T"], generator)
    return {
        **delta_rule.draw(case, case["T"], generator),
        "parents": parents,
        "ancestors": tree_mask(parents)[0],
        "strategy": case["strategy"],
        "head_map": case["head_map"],
    }


def saved_bytes(case: Case, T: int) -> int:
    """What `T` nodes leave behind for a commit."""
    B, Hv, V, K = case["B"], case["Hv"], case["V"], case["K"]
    return B * T * Hv * V * {"wy": 4, "store_f32": 4 * K, "store_f16": 2 * K, "replay": 0}[case["strategy"]]


def _cost(case: Case) -> Cost:
    B, T, Hv, V, K = (case[name] for name in ("B", "T", "Hv", "V", "K"))
    mask = B * T * T if case["strategy"] in ("wy", "replay") else 4 * B * T
    moved = delta_rule.token_bytes(case, T) + delta_rule.state_bytes(case) + saved_bytes(case, T) + mask
    return Cost(bytes=moved, flops=7 * B * T * Hv * V * K)


def _tolerance(case: Case) -> Mapping[str, Tolerance] | Tolerance:
    # the last bit of f32 may turn a reloaded f16 state over to its neighbour; a chain reloads nothing
    if case["strategy"] == "store_f16" and case["shape"] != "chain":
        return Calibrated(ulps=0.5, compute=torch.float16)
    return Calibrated()


def _torch(inputs: Inputs) -> Callable[[], Any]:
    """The WY form in batched matmuls; what is saved is its own."""
    q, k, v, a, b, A, dt_bias, state = (inputs[name] for name in ("q", "k", "v", "a", "b", "A", "dt_bias", "state"))
    heads = delta_rule.key_heads(k.shape[2], v.shape[2], inputs["head_map"]).to(v.device)
    above = inputs["ancestors"].bool()[:, None]
    strictly = above & ~torch.eye(v.shape[1], dtype=torch.bool, device=v.device)
    eye = torch.eye(v.shape[1], device=v.device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        qn, kn = (x[:, :, heads].float().transpose(1, 2) for x in (q, k))
        qn, kn = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + delta_rule.EPS) for x in (qn, kn))
        g = (A * torch.nn.functional.softplus(a.float() + dt_bias)).transpose(1, 2)
        beta = b.float().sigmoid().transpose(1, 2)[..., None]
        G = (above.float() @ g[..., None]).squeeze(-1)
        D = (G[..., :, None] - G[..., None, :]).exp()
        S = state.float().transpose(-1, -2)
        u = beta * (v.float().transpose(1, 2) - G.exp()[..., None] * (kn @ S))
        system = eye + (beta * (kn @ kn.mT) * D).where(strictly, 0)
        u = torch.linalg.solve_triangular(system, u, upper=False, unitriangular=True)
        o = G.exp()[..., None] * (qn @ S) + ((qn @ kn.mT) * D).where(above, 0) @ u
        return (o * qn.shape[-1] ** -0.5).transpose(1, 2).to(v.dtype), u.transpose(1, 2)

    return run


_TINY: dict[str, Value] = {
    "B": 1,
    "T": 7,
    "Hk": 1,
    "Hv": 2,
    "K": 32,
    "V": 32,
    "dtype": "f32",
    "state": "f32",
    "shape": "random",
    "values": "typical",
    "strategy": "wy",
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
    op="tree_gdn",
    formula="S_i = e^g S_parent + u k^T,  u = beta (v - e^g S_parent k),  o_i = S_i q",
    dims=(*delta_rule.DIMS, Dim("T", 1, 1024, fuzz=24, doc="slots of a tree")),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "state": ("f32", "bf16", "f16"),
        "shape": tree.SHAPES,
        "values": delta_rule.VALUES,
        "strategy": STRATEGIES,
        "head_map": delta_rule.HEAD_MAPS,
    },
    illegal=delta_rule.illegal,
    inputs=_inputs,
    outputs=("o", "saved"),
    cases={
        "smoke": _tiny(strategy=STRATEGIES, Hk=2, Hv=4, T=9),
        "edge": (
            *_tiny(T=33, shape="ddtree", K=64),
            *_tiny(T=1, shape="chain", V=16),
            *_tiny(T=1, shape="padded", strategy="store_f32"),
            *_tiny(T=16, shape="chain", values="equal", K=16),
            *_tiny(T=17, shape="padded", values="extreme", V=64),
            *_tiny(T=20, shape="star", strategy="store_f16", dtype="bf16", K=64),
            *_tiny(T=12, shape="forest", strategy="store_f32", values="extreme", B=2),
            *_tiny(T=12, shape="padded", strategy="store_f16", dtype="f16", state="f16"),
            *_tiny(T=10, shape="chain", strategy="store_f16"),
            *_tiny(T=13, shape="forest", dtype="bf16", state="bf16", B=2, Hv=3),
            *_tiny(T=11, Hk=2, Hv=6, head_map="grouped", dtype="f16"),
            *_tiny(T=9, shape="binary", values="zero", strategy="replay"),
            *_tiny(T=70, shape="padded", V=16, K=16, values="extreme"),
            *_tiny(T=130, shape="ddtree", V=16, K=16, Hv=1, strategy="replay"),
        ),
        "qwen35": _qwen35(T=(1, 9, 23, 64), shape="ddtree", strategy=STRATEGIES),
        "perf": _qwen35(T=(9, 23, 64), shape="ddtree", strategy=STRATEGIES),
    },
    cost=_cost,
    tolerance=_tolerance,
    cold=("A", "dt_bias", "state"),
    oracles={"path": partial(paths.gdn, draw=_inputs), "branches": paths.branches},
    baselines={"torch": _torch, "fla recurrent (a chain)": fla_recurrent},
)
