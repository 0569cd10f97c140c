"""Move the state to an accepted node, from what tree_gdn saved of the tree.

    path = [0, 2, 5, -1], length = 3:      0 -- 2 -- 5        state becomes S_5
                                            \\    \\
                                             1    3, 4        rejected: leaves no trace

    store_*   S_5 as saved
    wy        e^G_5 S + e^(G_5 - G_0) u_0 k^_0^T + e^(G_5 - G_2) u_2 k^_2^T + u_5 k^_5^T,  G = sum of g down the path
    replay    the path's tokens again, one by one
"""

from collections.abc import Callable
from typing import Any

import torch

from . import delta_rule, paths, tree
from .spec import Case, Cost, Dim, Inputs, Spec, Value, accumulator, product
from .tree_gdn import STRATEGIES, saved_bytes, tree_gdn
from .tree_mask import tree_mask


def gdn_commit(
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    saved: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    strategy: str = "wy",
    head_map: str = "tiled",
) -> None:
    """k, v, a, b, A, dt_bias as tree_gdn had them; state: [B, Hv, V, K], updated; saved: as tree_gdn returned it;
    path: [B, D] i32, nodes from the root down, then -1; length: [B] i32 of them are accepted, 0 leaves all as it is."""
    if strategy not in STRATEGIES:
        raise ValueError(f"gdn_commit's strategies are {', '.join(STRATEGIES)}, not '{strategy}'")
    wide = accumulator(v, state)
    heads = delta_rule.key_heads(k.shape[2], v.shape[2], head_map).to(v.device)
    for i, accepted in enumerate(length.tolist()):
        if accepted == 0:
            continue
        nodes = path[i, :accepted].long()
        keys, values = delta_rule.key(k[i, nodes], heads, wide), v[i, nodes].to(wide)
        g, beta = delta_rule.log_decay(a[i, nodes], A, dt_bias, wide), b[i, nodes].to(wide).sigmoid()
        S = state[i].to(wide)
        match strategy:
            case "wy":
                S = g.sum(0).exp()[:, None, None] * S
                for d, node in enumerate(nodes):
                    below = g[d + 1 :].sum(0).exp()[:, None, None]
                    S = S + below * saved[i, node].to(wide)[:, :, None] * keys[d][:, None, :]
            case "replay":
                for d in range(accepted):
                    S = delta_rule.step(S, keys[d], keys[d], values[d], g[d], beta[d])[2]
            case _:
                S = saved[i, nodes[-1]].to(wide)
        state[i] = S.to(state.dtype)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    parents = tree.draw_batch(case["shape"], case["B"], case["T"], generator)
    tokens = delta_rule.draw(case, case["T"], generator)
    forms = {"strategy": case["strategy"], "head_map": case["head_map"]}
    _, saved = tree_gdn(**tokens, parents=parents, ancestors=tree_mask(parents)[0], **forms)
    path, length = paths.accepted(parents, case["D"], case["accept"], generator)
    del tokens["q"]
    return {**tokens, "saved": saved, "path": path, "length": length, **forms}


def _cost(case: Case) -> Cost:
    B, Hv, V, K, D = (case[name] for name in ("B", "Hv", "V", "K", "D"))
    states = 2 * delta_rule.state_bytes(case)
    nodes = min(D, case["T"])
    match case["strategy"]:
        case "wy" | "replay":
            moved = states + saved_bytes(case, nodes) + delta_rule.token_bytes(case, nodes) // 2
        case _:
            moved = states // 2 + saved_bytes(case, 1)
    return Cost(bytes=moved, flops=3 * B * nodes * Hv * V * K)


def _torch(inputs: Inputs) -> Callable[[], Any]:
    """The WY sum in one batched matmul; the other strategies as a copy of one saved state and as a loop."""
    k, v, a, b, A, dt_bias = (inputs[name] for name in ("k", "v", "a", "b", "A", "dt_bias"))
    state, saved, path, length = (inputs[name] for name in ("state", "saved", "path", "length"))
    heads = delta_rule.key_heads(k.shape[2], v.shape[2], inputs["head_map"]).to(v.device)
    batch = torch.arange(len(path), device=v.device)
    depth = torch.arange(path.shape[1], device=v.device)

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x[batch[:, None], path.long().clamp_min(0)]

    def wy() -> None:
        inside = (depth < length[:, None])[..., None]
        g = delta_rule.log_decay(rows(a), A, dt_bias, torch.float32) * inside
        below = g.flip(1).cumsum(1).flip(1) - g
        u = rows(saved) * (below.exp() * inside)[..., None]
        fold = torch.einsum("bdhv,bdhk->bhvk", u, delta_rule.key(rows(k), heads, torch.float32))
        state.copy_(g.sum(1).exp()[..., None, None] * state + fold)

    def copy() -> None:
        last = saved[batch, path.long().gather(1, (length.long() - 1).clamp_min(0)[:, None])[:, 0].clamp_min(0)]
        state.copy_(torch.where((length > 0)[:, None, None, None], last.to(state.dtype), state))

    def replay() -> None:
        S = state.float()
        keys, values = delta_rule.key(rows(k), heads, torch.float32), rows(v).float()
        g, beta = delta_rule.log_decay(rows(a), A, dt_bias, torch.float32), rows(b).float().sigmoid()
        for d in range(path.shape[1]):
            new = delta_rule.step(S, keys[:, d], keys[:, d], values[:, d], g[:, d], beta[:, d])[2]
            S = torch.where((d < length)[:, None, None, None], new, S)
        state.copy_(S)

    return {"wy": wy, "replay": replay}.get(inputs["strategy"], copy)


_TINY: dict[str, Value] = {
    "B": 1,
    "T": 9,
    "Hk": 1,
    "Hv": 2,
    "K": 32,
    "V": 32,
    "D": 9,
    "dtype": "f32",
    "state": "f32",
    "shape": "random",
    "values": "typical",
    "strategy": "wy",
    "head_map": "tiled",
    "accept": "leaf",
}
_27B: dict[str, Value] = {
    "B": 1,
    "T": 23,
    "Hk": 16,
    "Hv": 48,
    "K": 128,
    "V": 128,
    "D": 16,
}


def _tiny(**changes: Value | tuple[Value, ...]) -> tuple[Case, ...]:
    """Small cases; an axis that is a tuple is spread."""
    return product(**{**_TINY, **changes})


def _qwen35(**changes: Value | tuple[Value, ...]) -> tuple[Case, ...]:
    return _tiny(**{**_27B, "dtype": "bf16", **changes})


SPEC = Spec(
    op="gdn_commit",
    formula="state = S of the last accepted node",
    dims=(
        *delta_rule.DIMS,
        Dim("T", 1, 1024, fuzz=24, doc="slots of a tree"),
        Dim("D", 1, 1024, fuzz=12, doc="slots of the path"),
    ),
    choices={
        "dtype": ("f32", "bf16", "f16"),
        "state": ("f32", "bf16", "f16"),
        "shape": tree.SHAPES,
        "values": delta_rule.VALUES,
        "strategy": STRATEGIES,
        "head_map": delta_rule.HEAD_MAPS,
        "accept": paths.ACCEPT,
    },
    illegal=delta_rule.illegal,
    inputs=_inputs,
    outputs=(),
    updates=("state",),
    cases={
        "smoke": _tiny(strategy=STRATEGIES, shape="ddtree", Hk=2, Hv=4),
        "edge": (
            *_tiny(strategy=STRATEGIES, accept="none"),
            *_tiny(strategy=("wy", "replay"), accept="random", B=3, state="bf16"),
            *_tiny(T=1, D=1, shape="chain", V=16),
            *_tiny(T=18, D=17, shape="chain", values="extreme", K=16),
            *_tiny(T=40, D=40, shape="chain", values="equal", V=64),
            *_tiny(T=36, D=36, shape="chain", Hv=1),
            *_tiny(T=2, D=2, shape="chain", dtype="bf16"),
            *_tiny(T=12, D=3, Hk=2, Hv=6, head_map="grouped", dtype="bf16"),
            *_tiny(strategy="store_f16", state="f16", shape="star", B=2),
            *_tiny(strategy="replay", shape="padded", dtype="f16", Hk=2, Hv=4),
        ),
        "qwen35": _qwen35(shape="ddtree", strategy=STRATEGIES),
        "perf": _qwen35(shape="ddtree", strategy=STRATEGIES),
    },
    cost=_cost,
    nonfinite=("state", "saved"),
    cold=("A", "dt_bias", "state", "saved"),
    oracles={"path": paths.gdn_commit},
    baselines={"torch": _torch},
)
