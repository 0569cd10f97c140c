"""path, length, next_token = the branch of a verified tree that the target agrees with, from the root down.

    node        0    1    2    3    4    5         posterior[i]: the target's token after node i
    token       .    a    b    c    d    c
    parent     -1    0    0    1    1    2         0 -a-> 1 -d-> 4 -x   path 0 1 4 -1 .., length 3, next_token x
    posterior   a    d    c    .    x    .

    a step: among the slots in registers, the lowest whose parent is the node at hand and whose token is its posterior

Latency-bound: tokens and parents are read once into one warp, a step is a warp reduction and a load of one posterior
from L1. A step that finds no child leaves the node as it is, so the steps after it find none either: no flag, no early
exit.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    num_warps: int = 1


@triton.jit
def _ddtree_walk(
    tokens,
    parents,
    posterior,
    path,
    length,
    next_token,
    T,
    D,
    BT: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    o_t = tl.arange(0, BT)
    m_t = o_t < T
    b_token = tl.load(tokens + i_b * T + o_t, mask=m_t, other=0)
    b_parent = tl.load(parents + i_b * T + o_t, mask=m_t, other=-2)
    tl.store(path + i_b * D, 0)
    node = 0
    wanted = tl.load(posterior + i_b * T)
    nodes = 1
    for i_d in range(1, D):
        found = tl.min(tl.where((b_parent == node) & (b_token == wanted), o_t, BT))
        m_found = found < BT
        tl.store(path + i_b * D + i_d, tl.where(m_found, found, -1))
        node = tl.where(m_found, found, node)
        wanted = tl.load(posterior + i_b * T + node)
        nodes += m_found.to(tl.int32)
    tl.store(length + i_b, nodes)
    tl.store(next_token + i_b, wanted)


def ddtree_walk(
    tokens: torch.Tensor,
    parents: torch.Tensor,
    posterior: torch.Tensor,
    depth_max: int,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, T = tokens.shape
    if not all(t.shape == (B, T) and t.is_contiguous() for t in (tokens, parents, posterior)):
        given = [(tuple(t.shape), t.stride()) for t in (tokens, parents, posterior)]
        raise ValueError(f"ddtree_walk takes contiguous tokens, parents and posterior [B, T], not {given}")
    if T < 1 or depth_max < 1:
        raise ValueError(
            f"ddtree_walk takes a tree of at least its root and a depth_max of at least 1, not {T}, {depth_max}"
        )
    config = config or pick("ddtree_walk", Config(), tokens.device, B=B, T=T)
    path = torch.empty((B, depth_max), dtype=torch.int32, device=tokens.device)
    length, next_token = torch.empty_like(path[:, 0]), torch.empty_like(path[:, 0])
    slots = triton.next_power_of_2(T)
    _ddtree_walk[(B,)](
        tokens, parents, posterior, path, length, next_token, T, depth_max, BT=slots, num_warps=config.num_warps
    )
    return path, length, next_token
