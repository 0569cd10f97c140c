"""Everything that a generation changes, in one place: caches, recurrent states, the ring of features, what is pending.

    committed tokens   | 0 ......... start-1 |          in every cache and state
    pending            | root |                         chosen by the target, not yet run through it

Lengths live on the device: a step reads and moves them there, so that a captured graph can be replayed.
"""

from dataclasses import dataclass

import torch

from ..reference.cache import row_size
from ..reference.spec import DTYPES
from .qwen35 import Config

RING = 4096
# rows a step may write past the context it was given room for: a tree of 257 nodes, and steps begun before the host
# has read that the last one ended
SLACK = 512
# tokens a step commits at most: the root and a drafted block's
LONGEST = 16


@dataclass
class DeltaState:
    """conv: [1, W-1, C], the last inputs of the convolution, oldest first; delta: [1, Hv, V, K] f32."""

    conv: torch.Tensor
    delta: torch.Tensor


@dataclass
class Cache:
    """keys, values: [Hkv, S, row], rows as the formats have them."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass
class State:
    """layers: one DeltaState or Cache a layer; start, root: [1] i32; tokens: [S] i32, the committed ones; features:
    [ring, n E], position p in row p % ring; emitted: [1 + LONGEST] i32, how many tokens the last step committed, and
    which; rings: the draft's caches, a layer each, with `drafted` [1] i32
    positions of the context in them; counting: 0, 1, 2, ... i32; alone: [1, 1, 1] u8, the ancestors of a single row."""

    layers: tuple[DeltaState | Cache, ...]
    format_k: str
    format_v: str
    start: torch.Tensor
    root: torch.Tensor
    tokens: torch.Tensor
    features: torch.Tensor
    emitted: torch.Tensor
    rings: tuple[Cache, ...]
    drafted: torch.Tensor
    counting: torch.Tensor
    alone: torch.Tensor

    @property
    def ring(self) -> int:
        return len(self.features)

    def tensors(self) -> list[torch.Tensor]:
        """All that a step changes."""
        held = [tensor for layer in (*self.layers, *self.rings) for tensor in vars(layer).values()]
        return [*held, self.start, self.root, self.tokens, self.features, self.emitted, self.drafted]

    def reset(self) -> None:
        """As new: nothing committed."""
        for tensor in self.tensors():
            tensor.zero_()


def fresh(
    c: Config,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
    kv: tuple[str, str] = ("f16", "f16"),
    captured: int = 0,
    ring: int = RING,
    rings: tuple[Cache, ...] = (),
) -> State:
    """An empty state with room for `context` tokens; `captured` layers' outputs go to the ring."""
    S = context + SLACK

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def cache(format: str) -> torch.Tensor:
        return zeros(c.Hkv, S, row_size(format, c.D), dtype=DTYPES.get(format, torch.uint8))

    layers = tuple(
        DeltaState(zeros(1, c.W - 1, c.C, dtype=dtype), zeros(1, c.Hv, c.V, c.K, dtype=torch.float32))
        if recurrent
        else Cache(cache(kv[0]), cache(kv[1]))
        for recurrent in c.recurrent
    )
    return State(
        layers=layers,
        format_k=kv[0],
        format_v=kv[1],
        start=zeros(1),
        root=zeros(1),
        tokens=zeros(S),
        features=zeros(ring if captured else 0, captured * c.E, dtype=torch.bfloat16),
        emitted=zeros(1 + LONGEST),
        rings=rings,
        drafted=zeros(1),
        counting=torch.arange(max(S, ring, 2048) + 1, dtype=torch.int32, device=device),
        alone=torch.ones(1, 1, 1, dtype=torch.uint8, device=device),
    )
