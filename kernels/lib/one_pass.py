"""A share of tree_attention for up to 144 queries at once: every row of the cache is read and unpacked once (sm90).

    warps  4: copy     rows of K and V as they are  ──cp.async──>  shared, three tiles of 64 rows of each
           4: scores   S^T = K q^T  [64, 128 + 16],  P = 2^(S - m)  ──> shared, f16, two tiles;  l = sum P
           8: values   O^T [256, 128 + 16] += V^T P   in registers

K and V^T are left operands, unpacked in the registers that multiply them (fragments.py), the next piece under the
product of this one; only q and P are read from shared memory by the tensor cores. Barriers in shared memory hand tiles
on. 23 nodes of 6 heads are 138 queries, at 131072 rows 77 GFLOP: 78 us of tensor cores on an H200. Products of 128 + 16
columns take 88 cycles instead of 72, 2,900 a tile, and stand still for most of the 1,100 in which P is made.

The first tile of a share sets the maximum m of each query, and 2^6 above it: later scores may pass it by 2^21 before a
weight leaves f16. A share where one does is walked again, first for its maximum and then with it.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .early import ASK_SOME
from .feed import fed, told, turn
from .fragments import asked_lanes, in_order, queries_for, value_words, values, values_product
from .newer import reinterpret
from .weights import weighed

# queries of a program: columns of the two products that S^T and O^T are
QUERIES = 128 + 16
# a thread's, of the warps of scores and of those that copy; the eight of values take the rest
import os
REGISTERS = tuple(map(int, os.environ.get("COLS_REGS", "120,24").split(",")))
# tiles of K, of V and of P in shared memory
STAGES = (3, 3, 2)
# each ring's barriers lie apart
APART = gl.constexpr((0, 0, 0, 0))


@gluon.jit
def _queries(q, s_q_t, s_q_h, i_kv, first, rows, G: gl.constexpr, N: gl.constexpr, FORMAT: gl.constexpr):
    """[16 N, 16] f16, columns as those of K's operand."""
    B: gl.constexpr = asked_lanes(N, FORMAT)
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    o_m = first + gl.arange(0, N, gl.SliceLayout(1, B))
    o_q = (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    b_q = gl.load(q + o_q[:, None] + o_d[None, :], mask=(o_m < rows)[:, None], other=0.0).to(gl.float16)
    return queries_for(b_q, FORMAT)


@gluon.jit
def ancestry(bits, begin, words, first, end, T, rows, ancestors, G: gl.constexpr):
    """bits [4, 256]: which of 32 rows, from begin on, a query sees; so many words."""
    B: gl.constexpr = gl.BlockedLayout([1, 32], [32, 1], [8, 1], [1, 0])
    o_m, o_s = first + gl.arange(0, 256, gl.SliceLayout(1, B))[:, None], gl.arange(0, 32, gl.SliceLayout(0, B))[None, :]
    for i in range(words):
        o_j = begin + i * 32 + o_s - end
        m = (o_j >= 0) & (o_j < T) & (o_m < rows)
        b_a = gl.load(ancestors + o_m // G * T + o_j, mask=m, other=0) != 0
        bits.index(i).store(gl.sum(((o_j < 0) | b_a).to(gl.int32) << o_s, 1))


@gluon.jit
def _put(part_o, o_first, held, b_o0, b_o1, o_m, rows, H, G: gl.constexpr, FORMAT: gl.constexpr):
    """Means of N queries, by way of the shared memory of q: there they come into order."""
    N: gl.constexpr = b_o0.shape[1]
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    held = reinterpret(held, gl.float16, [N, 256], gl.NVMMASharedLayout(128, 16, 2))
    held.store(in_order(b_o0.to(gl.float16), b_o1.to(gl.float16), FORMAT))
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    for i in gl.static_range(N // 16):
        o_q = o_m + i * 16 + gl.arange(0, 16, gl.SliceLayout(1, B))
        o_part = (o_first + o_q // G * H + o_q % G).to(gl.int64) * 256
        b_x = held.slice(i * 16, 16).load(B)
        gl.store(part_o + o_part[:, None] + o_d[None, :], b_x, mask=(o_q < rows)[:, None])


@gluon.jit
def _summed(
    q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, q1, q2, bits, asked, masked, codes, high, scales, p1, p2,
    sums, v_full, v_free, p_full, p_free, again, verdict, summed, tiles, part_o, o_first, first, T, H, rows,
    G: gl.constexpr, FORMAT_K: gl.constexpr, FORMAT: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    # while the first rows of the cache come
    q1.store(_queries(q, s_q_t, s_q_h, i_kv, first, rows, G, 128, FORMAT_K))
    q2.store(_queries(q, s_q_t, s_q_h, i_kv, first + 128, rows, G, 16, FORMAT_K))
    fence_async_shared()
    mbarrier.arrive(asked, count=1)
    # long before the last of its tiles
    if last:
        ancestry(bits, begin + seen * 64, (tiles - seen) * 2, first, end, T, rows, ancestors, G)
        mbarrier.arrive(masked, count=1)
    L1: gl.constexpr = values_product(128)
    L2: gl.constexpr = values_product(16)
    A2: gl.constexpr = gl.DotOperandLayout(0, L2, 2)
    # halves of the values, queries 0 .. 127 and the others
    a1, a2 = gl.zeros((128, 128), gl.float32, L1), gl.zeros((128, 16), gl.float32, L2)
    b1, b2 = gl.zeros((128, 128), gl.float32, L1), gl.zeros((128, 16), gl.float32, L2)
    # products under way while the next half of the values is unpacked. With none the scores', of one warp where these
    # are of two, get more of the tensor cores, and come sooner
    LEFT: gl.constexpr = 2 if FORMAT == "q8_0" else 0
    done, walk = 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, verdict)
        for j in range(tiles * walk):
            slot, round = turn(done, VS)
            slot_p, round_p = turn(done, PS)
            mbarrier.wait(v_full.index(slot), round)
            for c in gl.static_range(4):
                words = value_words(codes.index(slot), high.index(slot), scales.index(slot), c, FORMAT)
                x = values(words, 0, 128, FORMAT)
                if c == 0:
                    mbarrier.wait(p_full.index(slot_p), round_p)
                use = (j > 0) if c == 0 else True
                pa, pb = p1.index(slot_p).slice(16 * c, 16), p2.index(slot_p).slice(16 * c, 16)
                a1 = warpgroup_mma(x, pa, a1, use_acc=use, is_async=True)
                a2 = warpgroup_mma(gl.convert_layout(x, A2, assert_trivial=True), pb, a2, use_acc=use, is_async=True)
                if c > 0:
                    b1, b2 = warpgroup_mma_wait(LEFT, deps=[b1, b2])
                x = values(words, 1, 128, FORMAT)
                b1 = warpgroup_mma(x, pa, b1, use_acc=use, is_async=True)
                b2 = warpgroup_mma(gl.convert_layout(x, A2, assert_trivial=True), pb, b2, use_acc=use, is_async=True)
                a1, a2 = warpgroup_mma_wait(LEFT, deps=[a1, a2])
            b1, b2 = warpgroup_mma_wait(0, deps=[b1, b2])
            mbarrier.arrive(v_free.index(slot), count=1)
            mbarrier.arrive(p_free.index(slot_p), count=1)
            done += 1
    mbarrier.wait(summed, 0)
    l1, l2 = sums.slice(0, 128).load(gl.SliceLayout(0, L1)), sums.slice(128, 16).load(gl.SliceLayout(0, L2))
    l1, l2 = l1[None, :], l2[None, :]
    _put(part_o, o_first, q1, a1 * l1, b1 * l1, first, rows, H, G, FORMAT)
    _put(part_o, o_first, q2, a2 * l2, b2 * l2, first + 128, rows, H, G, FORMAT)


@gluon.jit
def ahead(p, row, rows, s: gl.constexpr):
    """So many rows, if any, on their way to the L2."""
    at = p.to(gl.int64) + row.to(gl.int64) * s
    gl.inline_asm_elementwise(ASK_SOME, "=r,l,r", [at, rows * s], gl.int32, is_pure=False, pack=1)


@gluon.jit
def share(end, T, window, i_split, splits):
    """A share's first row, its tiles, those of them that all queries see, and whether it is the last share."""
    low = gl.where(window > 0, gl.maximum(end - window, 0), 0)
    whole = (end - low) // 64
    every = whole + (end + T - low - whole * 64 + 63) // 64
    last = i_split == splits
    begin = gl.minimum(i_split * every // (splits + 1), whole)
    tiles = gl.where(last, every, gl.minimum((i_split + 1) * every // (splits + 1), whole)) - begin
    return low + begin * 64, tiles, gl.where(last, whole - begin, tiles), last


@gluon.jit
def one_pass(
    q, s_q_t, s_q_h,
    cache_k, s_k_h, s_k_s: gl.constexpr,
    cache_v, s_v_h, s_v_s: gl.constexpr,
    start,
    ancestors,
    part_o,
    part_m,
    part_l,
    T, H, window, scale, splits, S,
    G: gl.constexpr,
    FORMAT_K: gl.constexpr,
    FORMAT_V: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Programs (share, KV head, 144 queries). The last share ends with rows that not all queries see: nodes, and what
    makes no whole tile before them, two tiles at most of 64 nodes."""
    i_split, i_kv, first, rows = gl.program_id(0), gl.program_id(1), gl.program_id(2) * 144, T * G
    p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
    KS: gl.constexpr = STAGES[0]
    VS: gl.constexpr = STAGES[1]
    PS: gl.constexpr = STAGES[2]
    Q: gl.constexpr = gl.NVMMASharedLayout(32, 16, 2)
    C: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    C3: gl.constexpr = gl.SwizzledSharedLayout(4, 2, 4, [1, 0])
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    F2: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    M: gl.constexpr = mbarrier.MBarrierLayout()
    q1 = gl.allocate_shared_memory(gl.float16, [1, 16 * 128, 16], Q)
    q2 = gl.allocate_shared_memory(gl.float16, [1, 16 * 16, 16], Q)
    less1 = gl.allocate_shared_memory(gl.float16, [1, 128, 16], Q)
    less2 = gl.allocate_shared_memory(gl.float16, [1, 16, 16], Q)
    K3: gl.constexpr = FORMAT_K == "tq3_0"
    V3: gl.constexpr = FORMAT_V == "tq3_0"
    WK: gl.constexpr = 64 if FORMAT_K == "q8_0" else 32
    WV: gl.constexpr = 64 if FORMAT_V == "q8_0" else 32
    k_codes = gl.allocate_shared_memory(gl.int32, [KS, 64, 16 if K3 else WK], C3 if K3 else C)
    v_codes = gl.allocate_shared_memory(gl.int32, [VS, 64, 16 if V3 else WV], C3 if V3 else C)
    k_high, v_high = k_codes, v_codes
    if K3:
        k_high = gl.allocate_shared_memory(gl.int32, [KS, 64, 8], F2)
    if V3:
        v_high = gl.allocate_shared_memory(gl.int32, [VS, 64, 8], F2)
    k_scales = gl.allocate_shared_memory(gl.int32, [KS, 64, 4], F2)
    v_scales = gl.allocate_shared_memory(gl.int32, [VS, 8, 32], F2)
    p1 = gl.allocate_shared_memory(gl.float16, [PS, 64, 128], gl.NVMMASharedLayout(128, 16, 2))
    p2 = gl.allocate_shared_memory(gl.float16, [PS, 64, 16], gl.NVMMASharedLayout(32, 16, 2))
    tops = gl.allocate_shared_memory(gl.float32, [256], F)
    sums = gl.allocate_shared_memory(gl.float32, [256], F)
    again = gl.allocate_shared_memory(gl.int32, [1], F)
    bits = gl.allocate_shared_memory(gl.int32, [4, 256], F)
    k_full = gl.allocate_shared_memory(gl.int64, [KS, 1], M)
    k_free = gl.allocate_shared_memory(gl.int64, [KS, 1], M)
    v_full = gl.allocate_shared_memory(gl.int64, [VS, 1], M)
    v_free = gl.allocate_shared_memory(gl.int64, [VS, 1], M)
    p_full = gl.allocate_shared_memory(gl.int64, [PS, 1], M)
    p_free = gl.allocate_shared_memory(gl.int64, [PS, 1], M)
    verdict = gl.allocate_shared_memory(gl.int64, [1], M)
    summed = gl.allocate_shared_memory(gl.int64, [1], M)
    asked = gl.allocate_shared_memory(gl.int64, [1], M)
    masked = gl.allocate_shared_memory(gl.int64, [1], M)
    for i in gl.static_range(KS):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_free.index(i), count=1)
    for i in gl.static_range(VS):
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_free.index(i), count=1)
    for i in gl.static_range(PS):
        mbarrier.init(p_full.index(i), count=1)
        mbarrier.init(p_free.index(i), count=1)
    mbarrier.init(verdict, count=1)
    mbarrier.init(summed, count=1)
    mbarrier.init(asked, count=1)
    mbarrier.init(masked, count=1)
    if EARLY:
        # before the wait `start` may be that of the step before: good enough to ask the L2 for the first tile
        end = gl.minimum(gl.load(start, volatile=True), S - T)
        begin, tiles, _seen, _last = share(end, T, window, i_split, splits)
        coming = gl.where((tiles > 0) & (begin + 64 <= S), 64, 0)
        ahead(p_k, begin, coming, s_k_s)
        ahead(p_v, begin, coming, s_v_s)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    end = gl.load(start)
    begin, tiles, seen, last = share(end, T, window, i_split, splits)
    o_first = i_split * T * H + i_kv * G
    gl.warp_specialize(
        [
            (_summed, (q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, q1.index(0), q2.index(0), bits, asked,
                       masked, v_codes, v_high, v_scales, p1, p2, sums, v_full, v_free, p_full, p_free, again, verdict,
                       summed, tiles, part_o, o_first, first, T, H, rows, G, FORMAT_K, FORMAT_V, VS, PS)),
            (weighed, (q1, q2, less1, less2, asked, masked, k_codes, k_high, k_scales, p1, p2, tops, sums, seen, bits,
                       k_full, k_free, p_full, p_free, again, verdict, summed, tiles, scale, part_m, part_l, o_first,
                       first, T, H, rows, G, FORMAT_K, KS, PS)),
            (fed, (p_k, p_v, begin, tiles, end, T, ancestors, k_codes, k_high, k_scales, v_codes, v_high, v_scales,
                   k_full, k_free, v_full, v_free, again, verdict, asked, s_k_s, s_v_s, FORMAT_K, FORMAT_V, KS, VS, APART)),
        ],
        [4, 4], [REGISTERS[0], REGISTERS[1]],
    )  # fmt: skip
