"""y = x · Wᵀ (+ residual, SwiGLU) for several rows x and a plain W of x's own type: bf16 or f16.

    program (n, s, m):        |<- K / SPLIT ->|
                      row n0  | BK | BK | .. |     STAGES blocks of W and x on their way to shared memory at once,
                        ...   | BK | BK | .. |     none of them through registers
                      n0 + BN

Nothing is unpacked, so the bytes of W are all there is: what counts is that enough of them are on their way, and that
the programs are many, for 80 tiles would leave half of the GPU idle. The last of a tile's programs adds their sums, in
order.
"""

import torch
import triton
import triton.language as tl

from .device import lacks_dot, processors, shared_memory
from .workspace import counters

# rows of W a program, columns a block, blocks on their way, warps, programs a multiprocessor
SHAPE = (32, 256, 3, 4, 3)
PAIRED = (32, 128, 4, 4, 3)


@triton.jit
def plain_rows(
    x, s_x_m,
    weight, s_weight_n,
    residual, s_residual_m,
    out,
    partial,
    arrived,
    M, N, K,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    i_n, i_s = tl.program_id(0), tl.program_id(1)
    steps, splits = tl.cdiv(K, BK), tl.num_programs(1)
    first, last = steps * i_s // splits, steps * (i_s + 1) // splits
    o_m, o_n, o_k = tl.program_id(2) * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN), tl.arange(0, BK)
    # past the end the last row again: loads without a mask, and nothing of it is stored
    p_x = x + tl.minimum(o_m, M - 1).to(tl.int64)[:, None] * s_x_m + o_k[None, :]
    row = tl.minimum(o_n, N - 1).to(tl.int64)
    p_w = weight + row[:, None] * s_weight_n + o_k[None, :]
    p_up = p_w + tl.cast(N, tl.int64) * s_weight_n
    acc, up = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for i_k in tl.range(first, last, num_stages=STAGES):
        if WHOLE:
            b_x = tl.load(p_x + i_k * BK)
            b_w = tl.load(p_w + i_k * BK, eviction_policy="evict_first")
        else:
            m_k = (i_k * BK + o_k < K)[None, :]
            b_x = tl.load(p_x + i_k * BK, mask=m_k, other=0.0)
            b_w = tl.load(p_w + i_k * BK, mask=m_k, other=0.0)
        acc = tl.dot(b_x, tl.trans(b_w), acc)
        if SWIGLU:
            if WHOLE:
                b_up = tl.load(p_up + i_k * BK, eviction_policy="evict_first")
            else:
                b_up = tl.load(p_up + i_k * BK, mask=(i_k * BK + o_k < K)[None, :], other=0.0)
            up = tl.dot(b_x, tl.trans(b_up), up)

    m_out = (o_m < M)[:, None] & (o_n < N)[None, :]
    o_out = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    complete = True
    if SPLIT:
        # f32 [splits, 1 or 2, M, N]; the counter goes back to zero for the next launch
        plane = tl.cast(M, tl.int64) * N
        p_part = partial + i_s * plane * (2 if SWIGLU else 1) + o_out
        tl.store(p_part, acc, mask=m_out)
        if SWIGLU:
            tl.store(p_part + plane, up, mask=m_out)
        tl.debug_barrier()
        p_arrived = arrived + tl.program_id(2) * tl.num_programs(0) + i_n
        complete = tl.atomic_add(p_arrived, 1, sem="acq_rel") == splits - 1
        if complete:
            tl.store(p_arrived, 0)
            acc, up = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
            for i_p in range(splits):
                p_part = partial + i_p * plane * (2 if SWIGLU else 1) + o_out
                acc += tl.load(p_part, mask=m_out, other=0.0, cache_modifier=".cg")
                if SWIGLU:
                    up += tl.load(p_part + plane, mask=m_out, other=0.0, cache_modifier=".cg")
    if complete:
        if SWIGLU:
            acc = acc * tl.sigmoid(acc) * up
        if residual is not None:
            p_r = residual + o_m.to(tl.int64)[:, None] * s_residual_m + o_n[None, :]
            acc += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
        tl.store(out + o_out, acc.to(out.dtype.element_ty), mask=m_out)


def fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is a product of several rows of one 16-bit type with a matrix of the same."""
    return len(x) > 1 and x.dtype == weight.dtype and x.dtype in (torch.float16, torch.bfloat16)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    swiglu: bool,
    out: torch.Tensor,
    shape: tuple[int, int, int, int, int] | None = None,
) -> torch.Tensor:
    """Fill `out` [M, N]; `shape` as SHAPE and, where gate and up share a program, PAIRED."""
    (M, N), K = out.shape, x.shape[1]
    BN, BK, stages, warps, resident = shape or (PAIRED if swiglu else SHAPE)
    BM = min(64, max(16, triton.next_power_of_2(M)))
    if lacks_dot(x.device):
        # columns that stand in registers, of both
        BM, BK, warps = 16, 32, 8
    # blocks of fewer columns where a program has less shared memory, with some to spare for the end
    while (BM + BN * (2 if swiglu else 1)) * BK * 2 * stages > shared_memory(x.device) - 4096 and BK > 32:
        BK //= 2
    tiles, blocks = triton.cdiv(N, BN), triton.cdiv(M, BM)
    # no share shorter than what is on its way at once
    split = max(1, min(resident * processors(x.device) // (tiles * blocks), triton.cdiv(K, BK) // (2 * stages)))
    planes = split * (2 if swiglu else 1) if split > 1 else 0
    partial = torch.empty(planes * M * N, dtype=torch.float32, device=x.device)
    plain_rows[(tiles, split, blocks)](
        x, x.stride(0), weight, weight.stride(0), residual, 0 if residual is None else residual.stride(0), out,
        partial, counters(x.device, tiles * blocks), M, N, K, SWIGLU=swiglu, SPLIT=split > 1, WHOLE=K % BK == 0,
        BM=BM, BN=BN, BK=BK, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return out
