"""tokens, parents = the `budget` most probable prefixes under one candidate list a depth, best first.

    node n of the tree owns one candidate: its best child that is not in the tree yet

      tree so far          slot    0      1      2      3      [BN] slots in one warp's registers
        0                  child   0.c    1.b    2.a    3.a    the candidate: rank 2 below node 0, ...
       / \\                 best    order of the candidate's log-weight, an i32
      1   2                above   log-weight of the node itself
      |                    hi lo   the node's ranks + 1, a nibble a depth from the left: 0  0x1..  0x2..  0x11..
      3                    fields  slot | depth << 10 | rank of the candidate << 14 | 1 << 18

    a step: the largest `best` becomes node t; its parent's slot moves on to the next rank and slot t opens with rank 0

That is the heap of the published algorithm: the next sibling and the first child of every node popped, no more. Equal
weights go by the smaller tuple of ranks, which orders as its nibbles do; only a step that sees a tie compares them.

Latency-bound: a step waits for the one before it. So one warp holds the whole frontier, and a step is two rounds of
one-instruction warp reductions and a load from L1, with no barrier. The seed chain needs no reduction: its slots are
written at once. Log-weights are f32 sums from the root down, parent + log-prob, here and in the reference: both see the
same ties.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.order import NOTHING, order, value


@dataclass(frozen=True)
class Config:
    num_warps: int = 1


@triton.jit
def _only(m, b_x):
    """The element of the one lane where m holds; an i32 sum is a single instruction of a warp."""
    return tl.sum(tl.where(m, b_x, 0))


@triton.jit
def _ddtree(
    logprobs,
    ids,
    root,
    tokens,
    parents,
    budget,
    L: tl.constexpr,
    K: tl.constexpr,
    SEED: tl.constexpr,
    BN: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    p_lp, p_id = logprobs + i_b * (L * K), ids + i_b * (L * K)
    p_token, p_parent = tokens + i_b * (budget + 1), parents + i_b * (budget + 1)
    tl.store(p_token, tl.load(root + i_b))
    tl.store(p_parent, -1)

    # what one rank adds to a tuple's nibbles at depth 0; at depth d it is this >> 4 d, and nothing at depth 15
    unit = tl.full((), 1 << 56, tl.int64)
    o_n = tl.arange(0, BN)
    b_above = tl.zeros((BN,), tl.float32)
    if SEED:
        # slots 0 .. L-1 are the spine, each with rank 1 as its candidate
        m_n = (o_n < L) & (o_n < budget)
        above = 0.0
        for i_l in tl.static_range(L - 1):
            above += tl.load(p_lp + i_l * K)
            above = tl.where(above == above, above, float("-inf"))
            b_above = tl.where(o_n == i_l + 1, above, b_above)
        tl.store(p_token + o_n + 1, tl.load(p_id + o_n * K, mask=m_n, other=0), mask=m_n)
        tl.store(p_parent + o_n + 1, o_n, mask=m_n)
        b_lp = tl.load(p_lp + o_n * K + 1, mask=m_n & (K > 1), other=0.0)
        b_best = tl.where(m_n & (K > 1), order(b_above + b_lp), NOTHING)
        b_depth = tl.minimum(o_n, 15)
        b_ones = 0x111111111111111 - (tl.full((BN,), 0x111111111111111, tl.int64) >> (4 * b_depth).to(tl.int64))
        b_fields = o_n | (b_depth << 10) | (1 << 14) | (1 << 18)
        first = tl.minimum(budget, L) + 1
    else:
        b_best = tl.where(o_n == 0, order(b_above + tl.load(p_lp)), NOTHING)
        b_ones = tl.zeros((BN,), tl.int64)
        b_fields = o_n | (1 << 18)
        first = 1
    b_hi, b_lo = (b_ones >> 32).to(tl.int32), b_ones.to(tl.int32)

    for i_n in range(first, budget + 1):
        best = tl.max(b_best)
        m_p = (b_best == best) & (best > NOTHING)
        fields = _only(m_p, b_fields)
        if (fields >> 18) > 1:
            b_rank = ((b_fields >> 14) & 15) + 1
            b_depth = (b_fields >> 10) & 15
            b_ranks = (b_hi.to(tl.int64) << 32) | (b_lo.to(tl.int64) & 0xFFFFFFFF)
            b_ranks += b_rank * (unit >> (4 * b_depth).to(tl.int64))
            m_p = m_p & (b_ranks == tl.min(tl.where(m_p, b_ranks, 0x7FFFFFFFFFFFFFFF)))
            fields = _only(m_p, b_fields)
        above = _only(m_p, b_above.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
        ranks = (_only(m_p, b_hi).to(tl.int64) << 32) | (_only(m_p, b_lo).to(tl.int64) & 0xFFFFFFFF)
        live = fields != 0
        i_p, i_d, i_r = fields & 1023, (fields >> 10) & 15, (fields >> 14) & 15
        sibling, child = live & (i_r + 1 < K), live & (i_d + 1 < L)
        lp_sibling = tl.load(p_lp + i_d * K + i_r + 1, mask=sibling, other=0.0)
        lp_child = tl.load(p_lp + (i_d + 1) * K, mask=child, other=0.0)
        tl.store(p_token + i_n, tl.load(p_id + i_d * K + i_r, mask=live, other=0))
        tl.store(p_parent + i_n, tl.where(live, i_p, -2))

        weight = value(best)
        ranks += (i_r + 1) * (unit >> (4 * i_d).to(tl.int64))
        m_n = o_n == i_n
        b_best = tl.where(m_p, tl.where(sibling, order(above + lp_sibling), NOTHING), b_best)
        b_best = tl.where(m_n, tl.where(child, order(weight + lp_child), NOTHING), b_best)
        b_fields += tl.where(m_p, 1 << 14, 0)
        b_fields = tl.where(m_n, i_n | ((i_d + 1) << 10) | (1 << 18), b_fields)
        b_above = tl.where(m_n, weight, b_above)
        b_hi = tl.where(m_n, (ranks >> 32).to(tl.int32), b_hi)
        b_lo = tl.where(m_n, ranks.to(tl.int32), b_lo)


def ddtree(
    logprobs: torch.Tensor,
    ids: torch.Tensor,
    root: torch.Tensor,
    budget: int,
    chain_seed: bool,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, L, K = logprobs.shape
    if ids.shape != (B, L, K) or root.shape != (B,) or not all(t.is_contiguous() for t in (logprobs, ids, root)):
        given = [(tuple(t.shape), t.stride()) for t in (logprobs, ids, root)]
        raise ValueError(f"ddtree takes contiguous logprobs and ids [B, L, K] and root [B], not {given}")
    if not (1 <= L <= 15 and 1 <= K <= 15 and 0 <= budget <= 256):
        raise ValueError(f"ddtree takes L and K of 1 to 15 and a budget of 0 to 256, not {L}, {K}, {budget}")
    config = config or pick("ddtree", Config(), logprobs.device, B=B, L=L, K=K, budget=budget)
    tokens = torch.empty((B, budget + 1), dtype=torch.int32, device=logprobs.device)
    parents = torch.empty_like(tokens)
    slots = triton.next_power_of_2(max(budget, 1))
    _ddtree[(B,)](
        logprobs, ids, root, tokens, parents, budget, L, K, SEED=chain_seed, BN=slots, num_warps=config.num_warps
    )
    return tokens, parents
