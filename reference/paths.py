"""The path oracle: a node in a tree equals the last node of its path run as a chain, over consecutive steps.

    tree lineage    tree op on [T] slots -> commit of the accepted path -> tree op on fresh tokens -> ...
    chain lineage   the accepted tokens alone, fed one after the other

Each step draws one leaf a tree, holds every node on the way to it against the chain, accepts a random part of that path
and holds the committed state against the chain's. Neither side is the reference: a bug that both share is seen too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import delta_rule, tree
from .spec import Case, Inputs, Mismatch, map_tensors

STEPS = 3
ACCEPT = ("random", "leaf", "none")
# a chain sums in another order; of f32 also what `_lost` says a sum may be off, which two lineages carry on
ULPS = {torch.float64: 64, torch.float32: 8, torch.float16: 3, torch.bfloat16: 3}

Call = Callable[..., Any]
Draw = Callable[[Case, torch.Generator], Inputs]


def leaves(parents: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] -> the path to a random leaf of each tree, [B, T] i32 padded with -1, and its length [B] i32."""
    B, T = parents.shape
    path, length = torch.full((B, T), -1, dtype=torch.int32), torch.zeros(B, dtype=torch.int32)
    for b, row in enumerate(parents):
        inner = set(row.tolist())
        ends = [node for node in range(T) if row[node] != tree.PAD and node not in inner]
        if ends:
            nodes = tree.path(row, ends[int(torch.randint(len(ends), (1,), generator=generator))])
            path[b, : len(nodes)] = torch.tensor(nodes, dtype=torch.int32)
            length[b] = len(nodes)
    return path, length


def accepted(
    parents: torch.Tensor, slots: int, accept: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a walk over each tree hands to a commit: path [B, slots] i32 padded with -1, length [B] i32."""
    path, length = leaves(parents, generator)
    path = torch.nn.functional.pad(path, (0, max(0, slots - path.shape[1])), value=-1)[:, :slots]
    length = length.clamp_max(slots)
    match accept:
        case "random":
            length = (length * torch.rand(len(length), generator=generator)).int() + (length > 0)
        case "none":
            length = torch.zeros_like(length)
    path[torch.arange(slots) >= length[:, None]] = -1
    return path.contiguous(), length.int()


def gdn(call: Call, inputs: Inputs, case: Case, seed: int, draw: Draw) -> Iterator[Mismatch]:
    """tree_gdn and gdn_commit against gdn_prefill over the accepted tokens alone."""
    generator = torch.Generator().manual_seed(seed)
    device = inputs["state"].device
    weights = {name: inputs[name] for name in ("A", "dt_bias")}
    grown, chain = inputs["state"].clone(), inputs["state"].clone()
    batch, lost = torch.arange(len(chain), device=device), torch.zeros(chain.shape[:3], device=device)
    for step in range(STEPS):
        if step:
            inputs = map_tensors(draw(case, generator), lambda tensor: tensor.to(device))
        path, length = (t.to(device) for t in leaves(inputs["parents"].cpu(), generator))
        taken = 1 + (length * torch.rand(len(length), generator=generator).to(device)).int()
        taken = torch.minimum(taken, length)
        o, saved = call("tree_gdn", **{**inputs, **weights, "state": grown})
        tokens = {name: _along(path, inputs[name]) for name in ("q", "k", "v", "a", "b")}
        head_map = inputs["head_map"]
        off = _lost(tokens, weights, chain, lost, head_map)
        first = _chain(call, tokens, weights, chain, torch.zeros_like(taken), taken, head_map)
        rest = _chain(call, tokens, weights, chain.clone(), taken, length - taken, head_map)
        want = first + rest
        got = _along(path, o)
        depth = torch.arange(path.shape[1], device=device)
        inside = depth < length[:, None]
        rounded = _rounded(path, length, inputs["strategy"])
        bound = _coarsest(o.dtype, grown.dtype) + rounded[inside]
        yield from _apart(f"step {step} o", got[inside], want[inside], bound, off[:, 1:][inside])
        forms = {name: inputs[name] for name in ("k", "v", "a", "b", "strategy", "head_map")}
        cut = torch.where(depth < taken[:, None], path, -1)
        call("gdn_commit", **forms, **weights, state=grown, saved=saved, path=cut, length=taken)
        bound = _coarsest(grown.dtype) + _installed(path, taken, inputs["strategy"])
        lost = off[batch, taken.long()]
        yield from _apart(f"step {step} state", grown, chain, bound, lost[..., None])
        if inputs["strategy"] == "store_f16":
            # the installed state is rounded; the chain goes on from it
            chain, lost = grown.clone(), torch.zeros_like(lost)


def gdn_commit(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """The committed state is the one after the accepted tokens run as a chain."""
    got, want = inputs["state"].clone(), inputs["state"].clone()
    call("gdn_commit", **{**inputs, "state": got})
    tokens = {name: _along(inputs["path"], inputs[name]) for name in ("k", "v", "a", "b")}
    weights = {name: inputs[name] for name in ("A", "dt_bias")}
    tokens, length = {"q": tokens["k"], **tokens}, inputs["length"]
    off = _lost(tokens, weights, want, torch.zeros_like(want[..., 0]), inputs["head_map"])
    _chain(call, tokens, weights, want, torch.zeros_like(length), length, inputs["head_map"])
    bound = _coarsest(got.dtype) + _installed(inputs["path"], length, inputs["strategy"])
    yield from _apart("state", got, want, bound, off[torch.arange(len(off)), length.long()][..., None])


def gdn_prefill(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """T tokens at once are the same tokens in two runs, cut anywhere."""
    T = inputs["v"].shape[1]
    cut = int(torch.randint(1, max(2, T), (1,), generator=torch.Generator().manual_seed(seed)))
    whole, parts = {**inputs, "state": inputs["state"].clone()}, {**inputs, "state": inputs["state"].clone()}
    off = _lost(inputs, inputs, inputs["state"], torch.zeros_like(inputs["state"][..., 0]), inputs["head_map"])
    got, want = call("gdn_prefill", **whole), []
    for rows in (slice(0, cut), slice(cut, T)):
        if rows.start < T:
            piece = {name: inputs[name][:, rows] for name in ("q", "k", "v", "a", "b")}
            want.append(call("gdn_prefill", **{**parts, **piece}))
    eps = _coarsest(got.dtype, whole["state"].dtype)
    yield from _apart(f"o cut at {cut}", got, torch.cat(want, 1), eps, off[:, 1:])
    yield from _apart(f"state cut at {cut}", whole["state"], parts["state"], eps, off[:, T, ..., None])


def conv(call: Call, inputs: Inputs, case: Case, seed: int, draw: Draw) -> Iterator[Mismatch]:
    """tree_conv and conv_commit against the tokens of a path fed one by one."""
    generator = torch.Generator().manual_seed(seed)
    weight, grown, chain = inputs["weight"], inputs["state"].clone(), inputs["state"].clone()
    B, device = len(grown), grown.device
    root = torch.full((B, 1), tree.ROOT, dtype=torch.int32, device=device)
    for step in range(STEPS):
        if step:
            inputs = map_tensors(draw(case, generator), lambda tensor: tensor.to(device))
        path, length = (t.to(device) for t in leaves(inputs["parents"].cpu(), generator))
        taken = torch.minimum(1 + (length * torch.rand(B, generator=generator).to(device)).int(), length)
        got = _along(path, call("tree_conv", u=inputs["u"], weight=weight, state=grown, parents=inputs["parents"]))
        tokens, probe = _along(path, inputs["u"]), chain.clone()
        eps = _coarsest(inputs["u"].dtype, grown.dtype)
        for d in range(int(length.max())):
            token = tokens[:, d : d + 1]
            want = call("tree_conv", u=token, weight=weight, state=probe, parents=root)
            for state, bound in ((probe, length), (chain, taken)):
                call("conv_commit", u=token, state=state, path=torch.zeros_like(root), length=(d < bound).int())
            inside = d < length
            yield from _apart(f"step {step} depth {d}", got[inside, d], want[inside, 0], eps)
        cut = torch.where(torch.arange(path.shape[1], device=device) < taken[:, None], path, -1)
        call("conv_commit", u=inputs["u"], state=grown, path=cut, length=taken)
        yield from _apart(f"step {step} state", grown, chain, 0.0)


def conv_commit(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """Accepting a path at once is accepting its nodes one by one."""
    got, want = inputs["state"].clone(), inputs["state"].clone()
    call("conv_commit", **{**inputs, "state": got})
    path, length = inputs["path"], inputs["length"]
    for d in range(path.shape[1]):
        call("conv_commit", u=inputs["u"], state=want, path=path[:, d : d + 1].contiguous(), length=(d < length).int())
    yield from _apart("state", got, want, 0.0)


def conv_line(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """A line at once is its tokens one after another."""
    whole, single, want = inputs["state"].clone(), inputs["state"].clone(), []
    got = call("conv_line", **{**inputs, "state": whole})
    for t in range(case["T"]):
        want.append(call("conv_line", u=inputs["u"][:, t : t + 1], weight=inputs["weight"], state=single))
    yield from _apart("out", got, torch.cat(want, 1), _coarsest(got.dtype, whole.dtype))
    yield from _apart("state", whole, single, 0.0)


def branches(call: Call, inputs: Inputs, case: Case, seed: int) -> Iterator[Mismatch]:
    """A node whose parent is not the slot before it starts from the parent's state as saved, rounding included."""
    if not inputs["strategy"].startswith("store"):
        return
    o, saved = call("tree_gdn", **inputs)
    heads = delta_rule.key_heads(inputs["k"].shape[2], o.shape[2], inputs["head_map"]).to(o.device)
    wide = torch.float32
    b, t = ((inputs["parents"] >= 0) & (inputs["parents"] != torch.arange(o.shape[1], device=o.device) - 1)).nonzero().T
    if not len(b):
        return
    q, k = delta_rule.query(inputs["q"][b, t], heads, wide), delta_rule.key(inputs["k"][b, t], heads, wide)
    g = delta_rule.log_decay(inputs["a"][b, t], inputs["A"], inputs["dt_bias"], wide)
    parent = saved[b, inputs["parents"][b, t].long()].to(wide)
    want = delta_rule.step(parent, q, k, inputs["v"][b, t].to(wide), g, inputs["b"][b, t].to(wide).sigmoid())[0]
    tokens = {name: inputs[name][b, t, None] for name in ("k", "v", "a", "b")}
    off = _lost(tokens, inputs, parent, torch.zeros_like(parent[..., 0]), inputs["head_map"])
    yield from _apart("o of branches", o[b, t], want.to(o.dtype), _coarsest(o.dtype), off[:, 1])


def _along(path: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Rows of x [B, T, ...] down a path [B, D]; what lies past its end is row 0."""
    return x[torch.arange(len(path), device=path.device)[:, None], path.long().clamp_min(0)]


def _chain(
    call: Call,
    tokens: Inputs,
    weights: Inputs,
    state: torch.Tensor,
    start: torch.Tensor,
    count: torch.Tensor,
    head_map: str,
) -> torch.Tensor:
    """Feed tokens[start : start + count] of every sequence; updates state, returns outputs in their place, else 0."""
    out = torch.zeros_like(tokens["v"])
    for first, number in sorted({pair for pair in zip(start.tolist(), count.tolist(), strict=True) if pair[1] > 0}):
        rows = ((start == first) & (count == number)).nonzero().flatten()
        piece = {name: x[rows, first : first + number] for name, x in tokens.items()}
        part = state[rows]
        out[rows, first : first + number] = call("gdn_prefill", **piece, **weights, state=part, head_map=head_map)
        state[rows] = part
    return out


def _lost(tokens: Inputs, weights: Inputs, state: torch.Tensor, lost: torch.Tensor, head_map: str) -> torch.Tensor:
    """[B, D + 1, Hv, V]: in units of a rounding, what an element of a row of S, and so of o, is off after d tokens.

        terms = |S|, then e^g terms + |u| |k^|^T            what is summed up in S, without signs
        read  = beta (|v| + e^g terms |k^|)                 and in u
        lost  = before, then sqrt((e^g lost)^2 + mean over K of (terms + read |k^|^T)^2)

    A sum is off by a few roundings of the size of its terms, in whatever order they come and however they cancel. The
    step of a token makes no error longer, and those of different tokens are independent: their squares add up.
    (1,000 chains and 1,000 random trees of 20, five steps: f32 as a recurrence and as a triangular system are off f64
    by 1.4 at most in o and 3.8 in S, and 4.7 from each other.)
    """
    wide = torch.float64
    heads = delta_rule.key_heads(tokens["k"].shape[2], tokens["v"].shape[2], head_map).to(state.device)
    k, v = delta_rule.key(tokens["k"], heads, wide), tokens["v"].to(wide)
    g = delta_rule.log_decay(tokens["a"], weights["A"], weights["dt_bias"], wide)
    beta = tokens["b"].to(wide).sigmoid()
    S, terms, found = state.to(wide), state.to(wide).abs(), [lost.to(wide)]
    for d in range(v.shape[1]):
        e, key = g[:, d, :, None, None].exp(), k[:, d].abs()[..., None, :]
        read = beta[:, d, :, None] * (v[:, d].abs() + (e * terms * key).sum(-1))
        _, u, S = delta_rule.step(S, k[:, d], k[:, d], v[:, d], g[:, d], beta[:, d])
        terms = e * terms + u.abs()[..., None] * key
        rounded = (terms + read[..., None] * key).square().mean(-1)
        found.append(((e[..., 0] * found[-1]).square() + rounded).sqrt())
    return torch.stack(found, 1)


def _rounded(path: torch.Tensor, length: torch.Tensor, strategy: str) -> torch.Tensor:
    """[B, D]: what store_f16's roundings may add down a path: it reloads a state where a run of slots ends."""
    jumps = (path[:, 1:] != path[:, :-1] + 1) & (torch.arange(1, path.shape[1], device=path.device) < length[:, None])
    count = torch.nn.functional.pad(jumps.cumsum(1), (1, 0)).double()
    return count * _coarsest(torch.float16) * (strategy == "store_f16")


def _installed(path: torch.Tensor, length: torch.Tensor, strategy: str) -> torch.Tensor:
    """[B]: the same for the state that is installed, rounded once more."""
    return _rounded(path, length, strategy).amax(1) + _coarsest(torch.float16) * (strategy == "store_f16")


def _coarsest(*dtypes: torch.dtype) -> float:
    return max(ULPS[dtype] * torch.finfo(dtype).eps for dtype in dtypes)


def _apart(
    where: str, got: torch.Tensor, want: torch.Tensor, eps: float | torch.Tensor, lost: torch.Tensor | None = None
) -> Iterator[Mismatch]:
    """The worst element that lies further apart than eps (one, or one a row) of its size plus the tensor's rms, or the
    rms of its own row where that is larger, plus the ulps of f32 of what `_lost` says."""
    if not got.numel():
        return
    got, want = got.double(), want.double()
    if isinstance(eps, torch.Tensor):
        eps = eps.view(-1, *[1] * (got.dim() - 1))
    finite = want.isfinite()
    power = want.where(finite, 0).square()
    # a row is a head's: its channels, or its whole state
    row = power.mean((-2, -1) if got.dim() > 3 else -1, keepdim=True)
    rms = torch.maximum(row, power.mean()).sqrt()
    excess = (got - want).abs() - eps * (want.abs() + rms)
    if lost is not None:
        excess -= _coarsest(torch.float32) * lost.nan_to_num(0)
    excess = excess.where(finite & got.isfinite(), (got != want).double()).where(~(got.isnan() & want.isnan()), 0)
    if excess.max() > 0:
        flat = int(excess.argmax())
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat), got.shape)]
        yield Mismatch(f"{where} {index}", got.reshape(-1)[flat].item(), want.reshape(-1)[flat].item())
