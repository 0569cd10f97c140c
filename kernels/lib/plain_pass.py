"""A share of tree_attention for 16 E queries at once, 144, 80 or 48, over rows of f16 (sm90).

    warps  4: fetch    64 rows of K, twice 32 of V     ──TMA──> shared, tiles of K, halves of V
           4: scores   S^T = K q^T  [64, 16 E],  P = 2^(S - m)  ──> shared, f16;  l = sum P
           8: values   O^T [256, 16 E] += V^T P   in registers

As one_pass.py, whose shares, masks, maxima and means these are, but nothing is unpacked: tensor cores read K and V
where the TMA has put them. Memory is the limit: 64 KiB a tile are 3,480 cycles of a multiprocessor's part of an H200,
both products 2,376 for 144 queries. Then 112 KiB of the cache and 72 of queries leave P one tile.

Rows of V that no query sees may hold anything, and nothing times infinity is no number: those are made zeros.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .addresses import came, kept, tell, wait
from .eights import SWIZZLED_32, SWIZZLED_128, lanes, met, waited
from .feed import told, turn
from .newer import fetch
from .one_pass import (
    FETCHED,
    PANEL,
    ancestry,
    asked_for,
    barriers_of,
    begun_at,
    bits_of,
    early,
    nothing,
    panels,
    place,
    put,
    queries,
    share,
    words_of,
)
from .weights import (
    ASKED,
    BARRIERS,
    K_FREE,
    K_FULL,
    LANDED,
    MASKED,
    P_FREE,
    P_FULL,
    SUMMED,
    V_FREE,
    V_FULL,
    VERDICT,
    weighed,
)

# tiles of K, halves of V and tiles of P in shared memory
STAGES = {48: (3, 4, 2), 80: (2, 4, 2), 144: (2, 3, 1)}


def suits(cache: torch.Tensor) -> bool:
    """Whether the TMA can take rows of it: heads whole rows apart, at 16 bytes."""
    head, row, one = cache.stride()
    return cache.dtype == torch.float16 and one == 1 and row % 8 == 0 and head % row == 0 and cache.data_ptr() % 16 == 0


def described(cache: torch.Tensor, rows: int) -> TensorDescriptor:
    """Boxes of so many rows, of all heads' one after the other, and 64 columns."""
    (heads, S, D), (head, row, _) = cache.shape, cache.stride()
    layout = gl.NVMMASharedLayout(128, 16, 2)
    return TensorDescriptor(cache, [(heads - 1) * (head // row) + S, D], [row, 1], [rows, 64], layout)


@gluon.jit
def _summed(
    b_q, q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, asked_of, bits, at_v, at_p, at_b, sums, again, tiles,
    part_o, o_first, first, T, H, rows,
    G: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr, E: gl.constexpr,
):  # fmt: skip
    # while the first rows of the cache come
    if E > 5:
        asked_for(asked_of, queries(q, s_q_t, s_q_h, i_kv, first, rows, G, "f16", E), "f16")
    else:
        asked_for(asked_of, b_q, "f16")
    came(at_b + ASKED, 8)
    # long before the last of its tiles
    if last:
        ancestry(bits, begin + seen * 64, (tiles - seen) * 2, first, end, T, rows, ancestors, G)
        came(at_b + MASKED, 8)
    # the 64 values of a warp group, in 4 KiB, and those 128 further on
    L: gl.constexpr = lanes(8)
    at_v += 256 * (gl.arange(0, 8, gl.SliceLayout(1, L))[:, None] // 4) + gl.zeros((8, 32), gl.int32, L)
    a, b = nothing(E), nothing(E)
    done, walk = 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, at_b + VERDICT, 8)
        for j in range(tiles * walk):
            slot_p, round_p = turn(done, PS)
            for half in gl.static_range(2):
                slot, round = turn(2 * done + half, VS)
                wait(at_b + V_FULL + 8 * slot, round, 8)
                if half == 0:
                    wait(at_b + P_FULL + 8 * slot_p, round_p, 8)
                use = gl.where(j > 0, 1, 0) if half == 0 else 1
                at_x, at = at_v + slot * 1024, at_p + slot_p * (128 * E) + 64 * half
                a = met(a, at_x, at, use, 8, 2, SWIZZLED_128, SWIZZLED_32, 1)
                b = met(b, at_x + 512, at, use, 8, 2, SWIZZLED_128, SWIZZLED_32, 1)
                if half == 1:
                    a, b = waited(a, 2), waited(b, 2)
                    before, _ = turn(2 * done, VS)
                    came(at_b + V_FREE + 8 * before, 8)
            a, b = waited(a, 0), waited(b, 0)
            slot, _ = turn(2 * done + 1, VS)
            came(at_b + V_FREE + 8 * slot, 8)
            came(at_b + P_FREE + 8 * slot_p, 8)
            done += 1
    wait(at_b + SUMMED, 0, 8)
    put(part_o, o_first, asked_of, sums, a, b, first, rows, H, G, "f16")


@gluon.jit
def _cleared(v, slot, row, end, T, ancestors):
    """Rows that no query sees, not committed and no node its own ancestor, are zeros."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_j = row + gl.arange(0, 32, gl.SliceLayout(1, B)) - end
    b_a = gl.load(ancestors + gl.maximum(o_j, 0) * (T + 1), mask=(o_j >= 0) & (o_j < T), other=0)
    for c in gl.static_range(4):
        piece = v.index(4 * slot + c)
        piece.store(gl.where(((o_j < 0) | (b_a != 0))[:, None], piece.load(B), 0.0))
    fence_async_shared()


@gluon.jit
def _rows(boxes, row, landing, memory, slot, ROWS: gl.constexpr):
    """Rows on their way, as panels of 64 columns."""
    mbarrier.expect(landing, ROWS * 512)
    for c in gl.static_range(4):
        fetch(boxes, [row, 64 * c], landing, memory.index(4 * slot + c))


@gluon.jit
def _fetched(
    rows_k, rows_v, first_k, first_v, begin, tiles, seen, end, T, ancestors, k, v, barriers, at_b, again,
    KS: gl.constexpr, VS: gl.constexpr,
):  # fmt: skip
    """Tiles of K and halves of V in turn; if the share is walked again, all of K once more, and then both."""
    done, given, cleared, walk = 0, 0, 0, 1
    for phase in range(3):
        if phase == 1:
            walk = told(again, at_b + VERDICT, 4)
        both, steps = phase != 1, tiles * walk
        for j in range(steps + gl.minimum(steps, 1)):
            if j < steps:
                slot, round = turn(done + j, KS)
                wait(at_b + K_FREE + 8 * slot, round ^ 1, 4)
                _rows(rows_k, first_k + begin + j * 64, barriers.index((BARRIERS + K_FULL) // 8 + slot), k, slot, 64)
            # queries come before all but the first keys, or behind them
            if (phase == 0) & (j == 0):
                wait(at_b + ASKED, 0, 4)
            # the second half of the tile before comes when the first half of that is free
            for i in gl.static_range(2):
                h = 2 * j + i - 1
                if both & (h >= 0) & (h < 2 * steps):
                    slot, round = turn(given + h, VS)
                    wait(at_b + V_FREE + 8 * slot, round ^ 1, 4)
                    row = begin + h * 32
                    if h < 2 * seen:
                        _rows(rows_v, first_v + row, barriers.index((BARRIERS + V_FULL) // 8 + slot), v, slot, 32)
                    else:
                        _rows(rows_v, first_v + row, barriers.index((BARRIERS + LANDED) // 8), v, slot, 32)
                        wait(at_b + LANDED, cleared & 1, 4)
                        cleared += 1
                        _cleared(v, slot, row, end, T, ancestors)
                        mbarrier.arrive(barriers.index((BARRIERS + V_FULL) // 8 + slot), count=1)
        done += steps
        given += gl.where(both, 2 * steps, 0)


@gluon.jit
def plain_pass(
    q, s_q_t, s_q_h,
    cache_k, s_k_h, s_k_s: gl.constexpr,
    cache_v, s_v_h, s_v_s: gl.constexpr,
    start,
    ancestors,
    part_o,
    part_m,
    part_l,
    T, H, window, scale, splits, S,
    rows_k, rows_v,
    G: gl.constexpr,
    E: gl.constexpr,
    SIDES: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Programs (share, KV head, 16 E queries); the last share as that of `one_pass`."""
    i_split, i_kv, first, rows = gl.program_id(0), gl.program_id(1), gl.program_id(2) * (16 * E), T * G
    KS: gl.constexpr = STAGES[0]
    VS: gl.constexpr = STAGES[1]
    PS: gl.constexpr = STAGES[2]
    W: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    asked_of, p, less = panels(E, 256), panels(E * PS, 64), panels(SIDES, 256)
    k = gl.allocate_shared_memory(gl.float16, [KS * 4, 64, 64], W)
    v = gl.allocate_shared_memory(gl.float16, [VS * 4, 32, 64], W)
    held_bits, bits = bits_of()
    tell(8)
    at_q, at_p, at_less = place(asked_of, 8192), place(p, 2048) + PANEL, place(less, 8192)
    at_k, at_v = place(k, 8192), place(v, 4096)
    at_bits = place(held_bits, 4096) * 16
    at_b, barriers = at_less * 16 + BARRIERS, barriers_of(less)
    begun_at(at_b, FETCHED)
    tops = gl.allocate_shared_memory(gl.float32, [256 * SIDES], F)
    sums = gl.allocate_shared_memory(gl.float32, [256], F)
    again = gl.allocate_shared_memory(gl.int32, [1], F)
    if EARLY:
        p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
        early(start, p_k, p_v, T, S, window, i_split, splits, s_k_s, s_v_s)
    end = gl.load(start)
    b_q = queries(q, s_q_t, s_q_h, i_kv, first, rows, G, "f16", E if E < 9 else 0)
    begin, tiles, seen, last = share(end, T, window, i_split, splits)
    o_first = i_split * T * H + i_kv * G
    gl.warp_specialize(
        (
            (_summed, (b_q, q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, asked_of, bits, at_v, at_p, at_b,
                       sums, again, tiles, part_o, o_first, first, T, H, rows, G, VS, PS, E)),
            (weighed, (at_q, at_less, at_k, at_p, at_bits, at_b, less, k, k, k, tops, sums, seen, again, tiles, scale,
                       part_m, part_l, o_first, first, T, H, rows, G, "f16", KS, PS, E, 0, SIDES)),
            (_fetched, (rows_k, rows_v, i_kv * (s_k_h // s_k_s), i_kv * (s_v_h // s_v_s), begin, tiles, seen, end, T,
                        ancestors, k, v, barriers, at_b, again, KS, VS)),
            (weighed, (at_q, at_less, at_k, at_p, at_bits, at_b, less, k, k, k, tops, sums, seen, again, tiles, scale,
                       part_m, part_l, o_first, first, T, H, rows, G, "f16", KS, PS, E, 1, SIDES)),
        )[: 2 + SIDES],
        (4, 4, 4)[: 1 + SIDES],
        (REGISTERS[0], REGISTERS[1], REGISTERS[0])[: 1 + SIDES],
    )  # fmt: skip
    kept(words_of(p, 2048), 8)
