"""tokens, parents = the `budget` most probable prefixes under one candidate list a depth, best first.

    node n of the tree owns one candidate: its best child that is not in the tree yet

      tree so far          slot    0      1      2      3     [BN] slots in one warp's registers
        0                  node    0      1      2      3
       / \\                 next    0.c    1.b    2.a    3.a    rank of the next child
      1   2                w       lw0+   lw1+   lw2+   lw3+   log-weight of that child
      |                    key     0x3..  0x12.  0x21.  0x111  its ranks + 1, a nibble a depth from the left
      3

    a step: the largest w, among equal w the smallest key, becomes node t; its parent's slot moves on to the next rank and slot t
    opens with rank 0. That is the heap of the published algorithm: it holds exactly the next sibling and the first child of every
    node popped, and a nibble string from the left orders as the tuple of ranks does, a prefix before what extends it.

Latency-bound: a step waits for the one before it. So one warp holds the whole frontier: three reductions and two loads of a row
that stays in L1 make a step, with no barrier. The seed chain needs no reduction at all: its slots are written at once.
Log-weights are sums from the root down in f32, parent + log-prob, here and in the reference.
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

    # what a rank adds to the key at depth 0; at depth d it is this >> 4 d, and nothing at depth 15
    unit = tl.full((), 1 << 56, tl.int64)
    o_n = tl.arange(0, BN)
    b_w = tl.zeros((BN,), tl.float32)
    if SEED:
        # slots 0 .. L-1: the spine, each with its rank 1 next
        m_n = (o_n < L) & (o_n < budget)
        w = 0.0
        for i_d in tl.static_range(L - 1):
            w += tl.load(p_lp + i_d * K)
            w = tl.where(w == w, w, float("-inf"))
            b_w = tl.where(o_n == i_d + 1, w, b_w)
        tl.store(p_token + o_n + 1, tl.load(p_id + o_n * K, mask=m_n, other=0), mask=m_n)
        tl.store(p_parent + o_n + 1, o_n, mask=m_n)
        b_lp = tl.load(p_lp + o_n * K + 1, mask=m_n & (K > 1), other=0.0)
        b_best = tl.where(m_n & (K > 1), order(b_w + b_lp), NOTHING)
        # rank 0 above, rank 1 here: nibbles 1 1 .. 1 2
        b_key = (0x111111111111111 - (0x111111111111111 >> (4 * tl.minimum(o_n + 1, 15)).to(tl.int64))) + (
            unit >> (4 * tl.minimum(o_n, 15)).to(tl.int64)
        )
        b_node = o_n | (tl.minimum(o_n, 15) << 10) | (1 << 14)
        first = tl.minimum(budget, L) + 1
    else:
        b_best = tl.where(o_n == 0, order(b_w + tl.load(p_lp)), NOTHING)
        b_key = tl.zeros((BN,), tl.int64) + unit
        # node | depth of the node << 10 | rank of its next child << 14
        b_node = o_n
        first = 1

    for i_n in range(first, budget + 1):
        best = tl.max(b_best)
        live = best > NOTHING
        m_p = (b_best == best) & live
        key = tl.min(tl.where(m_p, b_key, 0x7FFFFFFFFFFFFFFF))
        m_p = m_p & (b_key == key)
        node = tl.sum(tl.where(m_p, b_node, 0))
        i_p, i_d, i_r = node & 1023, (node >> 10) & 15, node >> 14
        sibling, child = live & (i_r + 1 < K), live & (i_d + 1 < L)
        lp_sibling = tl.load(p_lp + i_d * K + i_r + 1, mask=sibling, other=0.0)
        lp_child = tl.load(p_lp + (i_d + 1) * K, mask=child, other=0.0)
        tl.store(p_token + i_n, tl.load(p_id + i_d * K + i_r, mask=live, other=0))
        tl.store(p_parent + i_n, tl.where(live, i_p, -2))

        w = value(best)
        b_best = tl.where(m_p, tl.where(sibling, order(b_w + lp_sibling), NOTHING), b_best)
        b_key += tl.where(m_p, unit >> (4 * i_d).to(tl.int64), 0)
        b_node += tl.where(m_p, 1 << 14, 0)
        m_n = o_n == i_n
        b_best = tl.where(m_n, tl.where(child, order(w + lp_child), NOTHING), b_best)
        b_key = tl.where(m_n, key + (unit >> (4 * i_d + 4).to(tl.int64)), b_key)
        b_node = tl.where(m_n, i_n | ((i_d + 1) << 10), b_node)
        b_w = tl.where(m_n, w, b_w)


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
