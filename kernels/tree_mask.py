"""ancestors[i, j] = j is i or above i; depth[i] = how many are above i.

    program (b, block of i):          j ->
                                 i  | 1 . 1 . . 1 . . |      every row walks from i to its root, one parent a step,
                                    | 1 1 . . . . 1 . |      and marks the columns it meets

As many steps as the deepest node of the block has ancestors, each a gather of parents that sit in L1. Launch-bound.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    BLOCK_I: int = 32
    num_warps: int = 4


@triton.jit
def _tree_mask(
    parents,
    ancestors,
    depth,
    T,
    BI: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    o_i = tl.program_id(1) * BI + tl.arange(0, BI)
    o_j = tl.arange(0, BT)
    p_parents = parents + i_b * T
    m_i = o_i < T
    b_parent = tl.load(p_parents + o_i, mask=m_i, other=-2)  # [BI]
    b_node = tl.where(b_parent == -2, -1, o_i)
    b_depth = tl.full((BI,), -1, tl.int32)
    b_marks = tl.zeros((BI, BT), tl.int32)
    while tl.max(b_node, 0) >= 0:
        m_walk = b_node >= 0
        b_marks = tl.where(o_j[None, :] == b_node[:, None], 1, b_marks)
        b_depth += m_walk.to(tl.int32)
        b_next = tl.load(p_parents + b_node, mask=m_walk, other=-1)
        # a parent is smaller than its child; one that is not ends the walk instead of hanging it
        b_node = tl.where(b_next < b_node, b_next, -1)
    p_out = ancestors + (i_b * T + o_i[:, None]) * T + o_j[None, :]
    tl.store(p_out, b_marks.to(tl.uint8), mask=m_i[:, None] & (o_j[None, :] < T))
    tl.store(depth + i_b * T + o_i, b_depth, mask=m_i)


def tree_mask(parents: torch.Tensor, config: Config | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    B, T = parents.shape
    if parents.dtype != torch.int32 or not parents.is_contiguous() or T > 1024:
        raise ValueError(
            f"tree_mask takes contiguous i32 parents [B, T <= 1024], not {parents.dtype} {tuple(parents.shape)}"
        )
    config = config or pick("tree_mask", Config(), parents.device, B=B, T=T)
    ancestors = torch.empty((B, T, T), dtype=torch.uint8, device=parents.device)
    depth = torch.empty((B, T), dtype=torch.int32, device=parents.device)
    grid = (B, triton.cdiv(T, config.BLOCK_I))
    BT = triton.next_power_of_2(T)
    _tree_mask[grid](parents, ancestors, depth, T, BI=config.BLOCK_I, BT=BT, num_warps=config.num_warps)
    return ancestors, depth
