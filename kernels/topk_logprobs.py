"""ids, logprobs = the k best of log_softmax(logits / T) a row, best first, ties to the lower id.

    stage 1, program (c, r):  logits[r, c BV : (c + 1) BV] as BG groups of BL neighbours

        group 0   |. . . . 7 . . .|  ->  7 \\                      max and sum of exp of the chunk
        group 1   |. 9 . . . 4 . .|  ->  9  > best group: 1, re-read: 9 comes out, its next best is 4
        group 2   |. . 8 . . . . .|  ->  8 /  best group: 2, ...                    k keys a chunk

    stage 2, program r:       the k best of NC k keys, and the chunks' sums in one

A key is order(logit) << 32 | (2^31 - 1 - id): the largest key is the largest logit and among equals the lowest id. All
keys differ, so "not taken yet" is "smaller than the last one taken" and needs no mask. Ranked are the logits, not their
quotients by T: these can round to ties. A NaN ranks as -inf and makes every log-prob of its row NaN.

Memory-bound in the large: one pass over the logits, a vocabulary of 248,320 in 61 chunks a row. The k rounds touch BG
group maxima in registers and one group in L1 each, not the chunk: rounds over the chunk would cost k times the pass.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.order import NOTHING_64, order, value


@dataclass(frozen=True)
class Config:
    GROUPS: int = 128
    GROUP: int = 32
    num_warps: int = 4
    merge_warps: int = 4


@triton.jit
def _finite(x):
    """What to subtract before exp: the maximum, but 0 where that is -inf, so that exp(-inf - 0) is 0."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def _chunks(
    logits, s_logits_r,
    keys,
    top,
    mass,
    V, NC,
    inverse_t,
    K: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    i_c, i_r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_logits = logits + i_r * s_logits_r
    o_g, o_l = tl.arange(0, BG), tl.arange(0, BL)
    start = i_c * (BG * BL)
    o_v = start + o_g[:, None] * BL + o_l[None, :]
    b_x = tl.load(p_logits + o_v, mask=o_v < V, other=float("-inf")).to(tl.float32)  # [BG, BL]
    b_best = tl.max(order(b_x), 1)  # [BG]
    x_max = value(tl.max(b_best))
    tl.store(top + i_r * NC + i_c, x_max)
    tl.store(mass + i_r * NC + i_c, tl.sum(tl.exp((b_x - _finite(x_max)) * inverse_t)))

    taken = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
    for i_k in range(K):
        best = tl.max(b_best)
        i_g = tl.min(tl.where(b_best == best, o_g, BG))
        o_near = start + i_g * BL + o_l
        b_near = tl.load(p_logits + o_near, mask=o_near < V, other=float("-inf")).to(tl.float32)  # [BL]
        b_key = (order(b_near).to(tl.int64) << 32) | (0x7FFFFFFF - o_near)
        b_key = tl.where(b_key < taken, b_key, NOTHING_64)
        taken = tl.max(b_key)
        tl.store(keys + (i_r * NC + i_c) * K + i_k, taken)
        rest = tl.max(tl.where(b_key < taken, b_key, NOTHING_64))
        b_best = tl.where(o_g == i_g, (rest >> 32).to(tl.int32), b_best)


@triton.jit
def _merge(
    keys,
    top,
    mass,
    ids,
    logprobs,
    NC,
    inverse_t,
    K: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    o_c, o_k = tl.arange(0, BC), tl.arange(0, BK)
    b_top = tl.load(top + i_r * NC + o_c, mask=o_c < NC, other=float("-inf"))
    b_mass = tl.load(mass + i_r * NC + o_c, mask=o_c < NC, other=0.0)
    x_max = _finite(tl.max(b_top))
    log_mass = tl.log(tl.sum(b_mass * tl.exp((b_top - x_max) * inverse_t)))
    b_key = tl.load(keys + i_r * NC * K + o_k, mask=o_k < NC * K, other=NOTHING_64)
    for i_k in range(K):
        best = tl.max(b_key)
        b_key = tl.where(b_key == best, NOTHING_64, b_key)
        x = value((best >> 32).to(tl.int32))
        tl.store(ids + i_r * K + i_k, 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32))
        tl.store(logprobs + i_r * K + i_k, (x - x_max) * inverse_t - log_mass)


def topk_logprobs(
    logits: torch.Tensor, k: int, temperature: float = 1.0, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    R, V = logits.shape
    if logits.stride(1) != 1 or not 1 <= k <= min(16, V) or V > 1 << 20:
        raise ValueError(
            f"topk_logprobs takes logits [R, V] with unit stride in V, V up to 2^20 and k of 1 to min(16, V), "
            f"not {tuple(logits.shape)} strides {logits.stride()} and k {k}"
        )
    # f16 is read as bf16 is
    width = "f32" if logits.dtype == torch.float32 else "bf16"
    config = config or pick("topk_logprobs", Config(), logits.device, R=R, V=V, k=k, dtype=width)
    chunks, inverse_t = triton.cdiv(V, config.GROUPS * config.GROUP), 1.0 / max(temperature, 1e-3)
    keys = torch.empty((R, chunks, k), dtype=torch.int64, device=logits.device)
    top, mass = torch.empty((2, R, chunks), dtype=torch.float32, device=logits.device)
    ids = torch.empty((R, k), dtype=torch.int32, device=logits.device)
    logprobs = torch.empty((R, k), dtype=torch.float32, device=logits.device)
    _chunks[(chunks, R)](
        logits, logits.stride(0), keys, top, mass, V, chunks, inverse_t,
        K=k, BG=config.GROUPS, BL=config.GROUP, num_warps=config.num_warps,
    )  # fmt: skip
    _merge[(R,)](
        keys, top, mass, ids, logprobs, chunks, inverse_t,
        K=k, BC=triton.next_power_of_2(chunks), BK=triton.next_power_of_2(chunks * k), num_warps=config.merge_warps,
    )  # fmt: skip
    return ids, logprobs
