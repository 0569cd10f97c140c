"""The target: Qwen3.5 over rows that follow the committed context, in a line (prefill, decode) or as a tree (verify).

A line moves the recurrent states on; a tree leaves them as they are, and what `commit` needs to move them down the
accepted path comes back as its Trail:

    rows   start + 0, 1, 2 ...  of the KV caches     tree  0        path 0, 2, 5
                                                          / \\       states, KV rows and features of these three stay,
                                                         1   2      those of the others leave no trace
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from ..reference.rope import frequencies
from .arithmetic import PRECISIONS, Arithmetic
from .ops import Ops, table
from .qwen35 import Config
from .state import Cache, DeltaState, State
from .streams import at_once
from .weights import Rows, Weight, arrange, gate_up, join

Take = Callable[[str], Rows]
# layers that are committed at once
COMMITS = 4


@dataclass(frozen=True)
class Delta:
    """inputs: [qkv | gate | alpha | beta] of C, Hv V, Hv and Hv rows; the rest as in the file."""

    inputs: tuple[Weight, ...]
    conv: torch.Tensor
    A: torch.Tensor
    dt_bias: torch.Tensor
    norm: torch.Tensor
    out: Weight


@dataclass(frozen=True)
class Attention:
    """inputs: [q | k | v], in q of each head D rows of q, then D rows of its gate."""

    inputs: tuple[Weight, ...]
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    out: Weight


@dataclass(frozen=True)
class Layer:
    norm: torch.Tensor
    mixer: Delta | Attention
    post_norm: torch.Tensor
    gate_up: tuple[Weight, ...]
    down: Weight


@dataclass(frozen=True)
class Target:
    config: Config
    do: Arithmetic
    embedding: Weight
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: Weight
    inv_freq: torch.Tensor
    captured: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """The rows of one forward. tokens, positions, slots (rows of the caches): [T] i32; start: [1] i32; parents: [1, T]
    i32, None for a line; ancestors: [1, T, T] u8, None for a line of several rows."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    start: torch.Tensor
    parents: torch.Tensor | None = None
    ancestors: torch.Tensor | None = None


@dataclass
class Trail:
    """What a forward over a tree leaves for `commit`: a delta layer's inputs and saved rows, captured outputs."""

    deltas: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    features: list[torch.Tensor] = field(default_factory=list)


def line(state: State, tokens: torch.Tensor) -> Batch:
    """Tokens that follow the context one after another."""
    rows = state.counting[: len(tokens)] + state.start
    return Batch(tokens, rows, rows, state.start, ancestors=state.alone if len(tokens) == 1 else None)


def tree(ops: Ops, state: State, tokens: torch.Tensor, parents: torch.Tensor) -> Batch:
    """A token tree (reference/tree.py) under the context: tokens, parents [1, T]."""
    ancestors, depth = ops.tree_mask(parents)
    slots = state.counting[: tokens.shape[1]] + state.start
    return Batch(tokens[0], depth[0] + state.start, slots, state.start, parents, ancestors)


def forward(model: Target, state: State, batch: Batch, strategy: str = "wy") -> tuple[torch.Tensor, Trail]:
    """The rows' hidden vectors after the last norm, [T, E], and their trail."""
    do, trail, table = model.do, Trail(), model.embedding
    h = do.ops.embed(batch.tokens, table.data, table.format, do.precision.residual)
    for i, (layer, held) in enumerate(zip(model.layers, state.layers, strict=True)):
        x = do.normed(h, layer.norm)
        if isinstance(layer.mixer, Delta) and isinstance(held, DeltaState):
            h = delta(model, layer.mixer, held, x, h, batch, trail, strategy)
        elif isinstance(layer.mixer, Attention) and isinstance(held, Cache):
            h = attention(model, layer.mixer, held, x, h, batch, state)
        h = do.mlp(h, layer.post_norm, layer.gate_up, layer.down)
        if i in model.captured:
            trail.features.append(h)
    return do.normed(h, model.norm), trail


def delta(
    model: Target,
    layer: Delta,
    held: DeltaState,
    x: torch.Tensor,
    h: torch.Tensor,
    batch: Batch,
    trail: Trail,
    strategy: str,
) -> torch.Tensor:
    """h + the gated delta net of x."""
    do, ops, c = model.do, model.do.ops, model.config
    u, z, a, b = (part[None] for part in do.project(x, layer.inputs))
    if batch.parents is None:
        y = ops.conv_line(u, layer.conv, held.conv)
    else:
        y = ops.tree_conv(u, layer.conv, held.conv, batch.parents)
    q, k, v = y.split((c.Hk * c.K, c.Hk * c.K, c.Hv * c.V), -1)
    q, k, v = q.unflatten(-1, (c.Hk, c.K)), k.unflatten(-1, (c.Hk, c.K)), v.unflatten(-1, (c.Hv, c.V))
    gates = (a, b, layer.A, layer.dt_bias, held.delta)
    if batch.parents is None:
        o = ops.gdn_prefill(q, k, v, *gates, c.head_map)
    else:
        o, saved = ops.tree_gdn(q, k, v, *gates, batch.parents, batch.ancestors, strategy, c.head_map)
        trail.deltas.append((u, k, v, a, b, saved))
    y = ops.gated_rms_norm(o[0], z[0].unflatten(-1, (c.Hv, c.V)), layer.norm, c.eps)
    return do.linear(y.flatten(1), layer.out, h)


def attention(
    model: Target, layer: Attention, held: Cache, x: torch.Tensor, h: torch.Tensor, batch: Batch, state: State
) -> torch.Tensor:
    """h + the gated attention of x over the cache, in which the rows' own keys and values are stored first."""
    do, ops, c = model.do, model.do.ops, model.config
    q, k, v = (part.unflatten(1, (-1, c.D)) for part in do.project(x, layer.inputs))
    # a head's q, then its gate
    q, gate = q[:, ::2], q[:, 1::2]
    q, k = ops.qk_rope(q, k, layer.q_norm, layer.k_norm, batch.positions, model.inv_freq, c.eps)
    formats = (state.format_k, state.format_v)
    ops.kv_quant(k, v, held.keys, held.values, batch.slots, *formats)
    caches = (held.keys, held.values, batch.start)
    if batch.ancestors is None:
        o = ops.prefill_attention(q, *caches, *formats, gate=gate)
    else:
        o = ops.tree_attention(q, *caches, batch.ancestors[0], *formats, gate=gate)
    return do.linear(o.flatten(1), layer.out, h)


def logits(model: Target, hidden: torch.Tensor) -> torch.Tensor:
    """hidden: [T, E] -> [T, vocab]."""
    return model.do.linear(hidden, model.head)


def commit(
    model: Target,
    state: State,
    batch: Batch,
    trail: Trail,
    path: torch.Tensor,
    length: torch.Tensor,
    following: torch.Tensor,
    strategy: str = "wy",
) -> None:
    """Move the state down the accepted path: path [1, D] i32, nodes from the root, then -1; length: [1] i32 of them;
    following: [1] i32, the root of the next step."""
    ops, deltas = model.do.ops, iter(trail.deltas)
    saved = [next(deltas) if isinstance(held, DeltaState) else () for held in state.layers]

    def layers(some: range) -> None:
        for i in some:
            mixer, held = model.layers[i].mixer, state.layers[i]
            if isinstance(mixer, Delta) and isinstance(held, DeltaState):
                u, k, v, a, b, kept = saved[i]
                gates = (a, b, mixer.A, mixer.dt_bias, held.delta)
                ops.gdn_commit(k, v, *gates, kept, path, length, strategy, model.config.head_map)
                ops.conv_commit(u, held.conv, path, length)
            elif isinstance(held, Cache):
                ops.kv_move(held.keys, held.values, path[0], length, state.start)

    # no layer's state needs another's
    at_once(path.device, [partial(layers, range(i, len(saved), COMMITS)) for i in range(COMMITS)])
    record(model, state, batch.tokens, trail, path[0], length, following)


def record(
    model: Target,
    state: State,
    tokens: torch.Tensor,
    trail: Trail,
    path: torch.Tensor,
    length: torch.Tensor,
    following: torch.Tensor,
) -> None:
    """Note the rows path[:length] as committed: their tokens and features; `following` is the next root."""
    ops, E = model.do.ops, model.config.E
    for i, rows in enumerate(trail.features):
        ops.ring_store(rows, state.features[:, i * E : (i + 1) * E], path, length, state.start)
    ops.advance(tokens, path, length, following, state.tokens, state.emitted, state.start, state.root)


def commit_line(model: Target, state: State, batch: Batch, trail: Trail, following: torch.Tensor) -> None:
    """Note all rows of a line, which has moved the states on itself."""
    T = len(batch.tokens)
    record(model, state, batch.tokens, trail, state.counting[:T], state.counting[T : T + 1], following)


def prefill(model: Target, state: State, tokens: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """Run tokens [T] i32 after the context, a chunk at a time; the last one's logits [1, vocab]."""
    for part in tokens.split(min(chunk, max(state.ring, 1) if model.captured else chunk)):
        batch = line(state, part)
        hidden, trail = forward(model, state, batch)
        commit_line(model, state, batch, trail, state.root)
    return logits(model, hidden[-1:])


def assemble(
    c: Config,
    take: Take,
    device: torch.device,
    precision: str = "exact",
    impl: str = "kernels",
    captured: tuple[int, ...] = (),
    repack: bool = True,
) -> Target:
    """The model from its tensors by name; `take` gives each once, on the device. `repack`: as tiles where possible."""
    numbers = PRECISIONS[precision]
    tiles = repack and numbers.tiles

    def matrix(name: str) -> Weight:
        return arrange([take(name)], tiles)

    def matrices(i: int, *names: str) -> tuple[Weight, ...]:
        return join([take(f"blk.{i}.{name}.weight") for name in names], tiles)

    def layer(i: int) -> Layer:
        def floats(name: str) -> torch.Tensor:
            return take(f"blk.{i}.{name}").floats()

        mixer: Delta | Attention
        if c.recurrent[i]:
            mixer = Delta(
                inputs=matrices(i, "attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta"),
                conv=floats("ssm_conv1d.weight"),
                A=floats("ssm_a"),
                dt_bias=floats("ssm_dt.bias"),
                norm=floats("ssm_norm.weight"),
                out=matrix(f"blk.{i}.ssm_out.weight"),
            )
        else:
            mixer = Attention(
                inputs=matrices(i, "attn_q", "attn_k", "attn_v"),
                q_norm=floats("attn_q_norm.weight"),
                k_norm=floats("attn_k_norm.weight"),
                out=matrix(f"blk.{i}.attn_output.weight"),
            )
        gate, up = take(f"blk.{i}.ffn_gate.weight"), take(f"blk.{i}.ffn_up.weight")
        return Layer(
            norm=floats("attn_norm.weight"),
            mixer=mixer,
            post_norm=floats("post_attention_norm.weight"),
            gate_up=gate_up(gate, up, tiles),
            down=matrix(f"blk.{i}.ffn_down.weight"),
        )

    embedding = arrange([take("token_embd.weight")], tiles=False)
    return Target(
        config=c,
        do=Arithmetic(table(impl), numbers, c.eps),
        embedding=embedding,
        layers=tuple(layer(i) for i in range(c.L)),
        norm=take("output_norm.weight").floats(),
        head=arrange([Rows(embedding.data, embedding.format)], tiles) if c.tied else matrix("output.weight"),
        inv_freq=frequencies(c.rotary, c.theta).to(device),
        captured=captured,
    )
