"""DFlash: a few layers that denoise a block of 16 at once, from what the target's own layers made of the context.

    features of committed rows   [n E'] -> fc -> norm -> T     the same T gives every layer its context keys and values
    block                        root, MASK x 15 -> the target's embedding -> layers -> norm -> the target's head

                                       context rows (T)      own rows
    keys and values of a layer   ring | p % cap ........ | min(start, cap) + 0 .. 15 |    queries: own rows only

A full layer sees all of its ring and all of its block; a sliding one has a ring of `window` rows, anchored at the
block's first row, and is causal inside the block. Softmax knows no order, so a ring need not be unrolled. Row i
predicts the token at its own position; row 0 is the root and predicts nothing.
"""

from dataclasses import dataclass

import torch

from ..reference.rope import frequencies
from .arithmetic import Arithmetic, Precision
from .ops import table
from .state import RING, Cache, State
from .target import Take, Target
from .target import logits as head
from .weights import Weight, arrange, gate_up, join


@dataclass(frozen=True)
class Config:
    """L layers, hidden E, MLP F, H heads over Hkv of D; windows: rows a layer sees of the context, 0 for all; causal:
    whether a layer's block is; captured: the target's layers whose outputs are the features, of E_target each."""

    L: int
    E: int
    F: int
    H: int
    Hkv: int
    D: int
    E_target: int
    captured: tuple[int, ...]
    windows: tuple[int, ...]
    causal: tuple[bool, ...]
    mask_token: int
    theta: float
    eps: float = 1e-6
    block: int = 16


def full(L: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """windows and causal of layers that see everything."""
    return (0,) * L, (False,) * L


def sliding(L: int, window: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """windows and causal where all layers but the last slide."""
    return (*(window,) * (L - 1), 0), (*(True,) * (L - 1), False)


OF_27B = Config(5, 5120, 17408, 32, 8, 128, 5120, (1, 16, 31, 46, 61), *full(5), mask_token=248070, theta=1e7)


@dataclass(frozen=True)
class Layer:
    norm: torch.Tensor
    inputs: tuple[Weight, ...]
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    out: Weight
    post_norm: torch.Tensor
    gate_up: tuple[Weight, ...]
    down: Weight


@dataclass(frozen=True)
class Draft:
    """sees: [T, T] u8 a layer, which rows of the block each of them sees; masks: the block's tokens after the root."""

    config: Config
    do: Arithmetic
    fc: Weight
    hidden_norm: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    inv_freq: torch.Tensor
    sees: tuple[torch.Tensor, ...]
    masks: torch.Tensor


def tensors(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a draft and its shape, by GGUF's names."""
    layer = {
        "attn_norm.weight": (c.E,),
        "attn_q.weight": (c.H * c.D, c.E),
        "attn_k.weight": (c.Hkv * c.D, c.E),
        "attn_v.weight": (c.Hkv * c.D, c.E),
        "attn_output.weight": (c.E, c.H * c.D),
        "attn_q_norm.weight": (c.D,),
        "attn_k_norm.weight": (c.D,),
        "ffn_norm.weight": (c.E,),
        "ffn_gate.weight": (c.F, c.E),
        "ffn_up.weight": (c.F, c.E),
        "ffn_down.weight": (c.E, c.F),
    }
    found: dict[str, tuple[int, ...]] = {
        "dflash.fc.weight": (c.E, len(c.captured) * c.E_target),
        "dflash.hidden_norm.weight": (c.E,),
        "output_norm.weight": (c.E,),
    }
    return found | {f"blk.{i}.{name}": shape for i in range(c.L) for name, shape in layer.items()}


def rings(c: Config, device: torch.device, dtype: torch.dtype = torch.bfloat16, ring: int = RING) -> tuple[Cache, ...]:
    """Empty caches: a layer's ring and, after it, room for a block."""

    def cache(window: int) -> torch.Tensor:
        return torch.zeros(c.Hkv, min(window or ring, ring) + c.block, c.D, dtype=dtype, device=device)

    return tuple(Cache(cache(window), cache(window)) for window in c.windows)


def forward(draft: Draft, target: Target, state: State) -> torch.Tensor:
    """Logits [block - 1, vocab] of what follows state.root; up to `block` newly committed rows join the rings first."""
    c, do, table = draft.config, draft.do, target.embedding
    sizes = {capacity(draft, ring) for ring in state.rings} | {state.ring}
    # alike in rings of one size: positions of the context's new rows and of the block's, their slots, the block's first
    stand = {n: do.ops.ring_rows(state.drafted, state.start, n, c.block) for n in sizes}
    positions, placed, _ = stand[state.ring]
    T = context(draft, state, placed[: c.block])
    h = do.ops.embed(torch.cat((state.root, draft.masks)), table.data, table.format, do.precision.residual)
    for layer, ring, sees in zip(draft.layers, state.rings, draft.sees, strict=True):
        rows = torch.cat((T, do.normed(h, layer.norm)))
        _, slots, begin = stand[capacity(draft, ring)]
        q = store(draft, layer, ring, rows, positions, slots)[c.block :]
        o = do.ops.tree_attention(q, ring.keys, ring.values, begin, sees, *formats(ring))
        h = do.linear(o.flatten(1), layer.out, h)
        h = do.mlp(h, layer.post_norm, layer.gate_up, layer.down)
    state.drafted.copy_(state.start)
    return head(target, do.ops.rms_norm(h[1:], draft.norm, c.eps, target.do.precision.activations))


def absorb(draft: Draft, state: State, first: int, last: int, chunk: int = 512) -> None:
    """Join the rows of positions first .. last - 1, all committed, to the rings: what a prompt leaves to catch up."""
    for begin in range(max(first, last - state.ring), last, chunk):
        new = torch.arange(begin, min(begin + chunk, last), dtype=torch.int32, device=state.start.device)
        T = context(draft, state, new % state.ring)
        for layer, ring in zip(draft.layers, state.rings, strict=True):
            # of a chunk longer than the ring only the last rows stay
            n = capacity(draft, ring)
            store(draft, layer, ring, T[-n:], new[-n:], new[-n:] % n)
    state.drafted.fill_(last)


def context(draft: Draft, state: State, slots: torch.Tensor) -> torch.Tensor:
    """[n, E] of the features in these rows of their ring, as every layer's keys and values take them; -1: of zeros."""
    do = draft.do
    rows = do.ops.embed(slots, state.features, "bf16", do.precision.activations)
    return do.normed(do.linear(rows, draft.fc), draft.hidden_norm)


def store(
    draft: Draft, layer: Layer, ring: Cache, rows: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """Put the keys and values of rows [n, E] into the ring; their queries [n, H, D]."""
    c, do = draft.config, draft.do
    q, k, v = (part.unflatten(1, (-1, c.D)) for part in do.project(rows, layer.inputs))
    q, k = do.ops.qk_rope(q, k, layer.q_norm, layer.k_norm, positions, draft.inv_freq, c.eps)
    do.ops.kv_quant(k, v, ring.keys, ring.values, slots, *formats(ring))
    return q


def capacity(draft: Draft, ring: Cache) -> int:
    """Rows of the context that a ring holds."""
    return ring.keys.shape[1] - draft.config.block


def formats(ring: Cache) -> tuple[str, str]:
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[ring.keys.dtype]
    return name, name


def assemble(c: Config, take: Take, device: torch.device, precision: Precision, impl: str = "kernels") -> Draft:
    """The draft from its tensors by GGUF's names; `take` gives each once, on the device."""
    tiles, T = precision.tiles, c.block

    def layer(i: int) -> Layer:
        def matrix(*names: str) -> tuple[Weight, ...]:
            return join([take(f"blk.{i}.{name}.weight") for name in names], tiles)

        def floats(name: str) -> torch.Tensor:
            return take(f"blk.{i}.{name}.weight").floats()

        return Layer(
            norm=floats("attn_norm"),
            inputs=matrix("attn_q", "attn_k", "attn_v"),
            q_norm=floats("attn_q_norm"),
            k_norm=floats("attn_k_norm"),
            out=matrix("attn_output")[0],
            post_norm=floats("ffn_norm"),
            gate_up=gate_up(take(f"blk.{i}.ffn_gate.weight"), take(f"blk.{i}.ffn_up.weight"), tiles),
            down=matrix("ffn_down")[0],
        )

    everything = torch.ones(T, T, dtype=torch.uint8, device=device)
    return Draft(
        config=c,
        do=Arithmetic(table(impl), precision, c.eps),
        fc=arrange([take("dflash.fc.weight")], tiles),
        hidden_norm=take("dflash.hidden_norm.weight").floats(),
        layers=tuple(layer(i) for i in range(c.L)),
        norm=take("output_norm.weight").floats(),
        inv_freq=frequencies(c.D, c.theta).to(device),
        sees=tuple(everything.tril() if causal else everything for causal in c.causal),
        masks=torch.full((T - 1,), c.mask_token, dtype=torch.int32, device=device),
    )
