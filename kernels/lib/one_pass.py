"""A share of tree_attention for up to 144 queries at once: every row of the cache is read and unpacked once.

    warps  4: copy     codes ──registers──> K, V tiles [64, 256], f16, shared, two of each
           4: scores   S^T = K q^T  [64, 128 + 16],  P = 2^(S - m)  ──> shared, f16;  l = sum P
           8: values   O^T [256, 128 + 16] += V^T P   in registers

The three parts hand tiles to each other through barriers in shared memory. 23 nodes of 6 heads are 138 queries, at
131072 rows 77 GFLOP: 78 us of tensor cores on an H200, 110 of shared memory, which both operands of every product come
from. It takes 353 us (q4_0): the four warps of scores bind, perf/LOG.md says by what. Written in Gluon: layouts and
barriers are explicit.

The first tile of a share sets the maximum m of each query, and 2^6 above it: later scores may pass it by 2^21 before a
weight leaves f16. A share where one does is walked again, first for its maximum and then with it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .feed import copied, told, turn, unpacked

# queries of a program: columns of the two products that S^T and O^T are
QUERIES = 128 + 16
# a thread's, of the warps of scores and of those that copy, by what they copy; the eight of values take the rest
REGISTERS = {"f16": (120, 40), "q8_0": (104, 56), "q4_0": (112, 48), "tq3_0": (112, 48)}
# tiles of K, of V and of P in shared memory
STAGES = (2, 2, 1)
# the first tile's maximum is taken for this much more, in units of log 2, and f16 holds weights up to the other
ABOVE = gl.constexpr(6.0)
MOST = gl.constexpr(32768.0)
LOWEST = gl.constexpr(-3.0e38)


@gluon.jit
def _columns(c, FORMAT: gl.constexpr):
    """Which value of a row column c of a tile holds: units lie in pairs, code by code."""
    p = c & 1
    if FORMAT == "q4_0":
        c = (c & -32) | (c >> 1 & 1) << 4 | (c >> 4 & 1) << 3 | p << 2 | (c >> 2 & 3)
    elif FORMAT == "q8_0":
        c = (c & -8) | p << 2 | (c >> 1 & 3)
    elif FORMAT == "tq3_0":
        c = (c & -16) | p << 3 | (c >> 1 & 7)
    return c


@gluon.jit
def _in_order(x, FORMAT: gl.constexpr):
    """[256 columns, N] -> [N, 256 values in order]: the inverse of `_columns`."""
    N: gl.constexpr = x.shape[1]
    if FORMAT == "q4_0":
        x = gl.permute(gl.reshape(x, (8, 2, 4, 2, 2, N)), (5, 0, 3, 1, 4, 2))
    elif FORMAT == "q8_0":
        x = gl.permute(gl.reshape(x, (32, 4, 2, N)), (3, 0, 2, 1))
    elif FORMAT == "tq3_0":
        x = gl.permute(gl.reshape(x, (16, 8, 2, N)), (3, 0, 2, 1))
    else:
        x = gl.permute(x, (1, 0))
    return gl.reshape(x, (N, 256))


# a lane keeps $1 or $2, the one that stands for its half of the columns, and adds what the lane 16 on has of it
_EXCHANGE = gl.constexpr(
    """
{
.reg .b32 lane, other;
.reg .pred upper;
mov.u32 lane, %laneid;
and.b32 lane, lane, 16;
setp.ne.u32 upper, lane, 0;
selp.b32 other, $1, $2, upper;
selp.b32 $0, $2, $1, upper;
shfl.sync.bfly.b32 other, other, 16, 31, 0xffffffff;
add.f32 $0, $0, other;
}
"""
)


@gluon.jit
def _folded(b_p):
    """[64, N] -> [4, 8, N / 2]: sums over the rows of a lane and of the lane 16 on, half the columns each."""
    N: gl.constexpr = b_p.shape[1]
    b_p = gl.reshape(gl.sum(gl.reshape(b_p, (4, 2, 8, N)), 1), (4, 8, 2, N // 2))
    low, high = gl.split(gl.permute(b_p, (0, 1, 3, 2)))
    return gl.inline_asm_elementwise(_EXCHANGE, "=&r,r,r", [low, high], gl.float32, is_pure=True, pack=1)


@gluon.jit
def _sums(b_l):
    """What `_folded` left -> [N]."""
    H: gl.constexpr = b_l.shape[2]
    return gl.reshape(gl.sum(gl.sum(gl.reshape(b_l, (4, 2, 4, H)), 2), 0), (2 * H,))


@gluon.jit
def _masked(b_s, bits, j, first: gl.constexpr, L: gl.constexpr):
    """Scores of tile j, no number where a query of the last share does not see the row."""
    N: gl.constexpr = b_s.shape[1]
    o_s = gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    low = bits.index(2 * j).slice(first, N).load(gl.SliceLayout(0, L))
    high = bits.index(2 * j + 1).slice(first, N).load(gl.SliceLayout(0, L))
    b_b = gl.where(o_s < 32, low[None, :], high[None, :]) >> (o_s & 31) & 1
    return gl.where(b_b == 1, b_s, float("-inf"))


@gluon.jit
def _peaks(b_s):
    """[64, N] -> [4, 8, N]: the greatest of a lane's rows."""
    N: gl.constexpr = b_s.shape[1]
    return gl.max(gl.reshape(b_s, (4, 2, 8, N)), 1)


@gluon.jit
def _reference(tops, b_t, scale, above):
    L: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    b_m = gl.maximum(gl.max(gl.max(b_t, 1), 0) * scale, LOWEST) + above
    tops.store(gl.convert_layout(b_m, L))


@gluon.jit
def _weigh(b_s, b_l, tops, scale, L: gl.constexpr):
    b_p = gl.exp2(b_s * scale - tops.load(gl.SliceLayout(0, L))[None, :])
    return b_p.to(gl.float16), b_l + _folded(b_p)


@gluon.jit
def _scored(
    q1, q2, k_tiles, p1, p2, tops, sums, last, bits, k_full, k_free, p_full, p_free, again, verdict, summed, tiles,
    scale, part_m, part_l, o_first, first, T, H, rows, G: gl.constexpr, KS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    L1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    L2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16])
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    z1, z2 = gl.zeros((64, 64), gl.float32, L1), gl.zeros((64, 16), gl.float32, L2)
    qa, qb, qc = q1.slice(0, 64).permute((1, 0)), q1.slice(64, 64).permute((1, 0)), q2.permute((1, 0))
    ma, mb, mc = tops.slice(0, 64), tops.slice(64, 64), tops.slice(128, 16)
    done, given, walk = 0, 0, 1
    for i_walk in range(2):
        if walk > 0:
            # the greatest scores: of the first tile, in the second walk of all
            ta, tb, tc = _peaks(z1 + LOWEST), _peaks(z1 + LOWEST), _peaks(z2 + LOWEST)
            for j in range(gl.where(i_walk == 0, gl.minimum(1, tiles), tiles)):
                slot, round = turn(done, KS)
                k = k_tiles.index(slot)
                mbarrier.wait(k_full.index(slot), round)
                a = warpgroup_mma(k, qa, z1, use_acc=False)
                if last:
                    a = _masked(a, bits, j, 0, L1)
                ta = gl.maximum(ta, _peaks(a))
                b = warpgroup_mma(k, qb, z1, use_acc=False)
                if last:
                    b = _masked(b, bits, j, 64, L1)
                tb = gl.maximum(tb, _peaks(b))
                c = warpgroup_mma(k, qc, z2, use_acc=False)
                if last:
                    c = _masked(c, bits, j, 128, L2)
                tc = gl.maximum(tc, _peaks(c))
                mbarrier.arrive(k_free.index(slot), count=1)
                done += 1
            above = gl.where(i_walk == 0, ABOVE, 0.0)
            _reference(ma, ta, scale, above)
            _reference(mb, tb, scale, above)
            _reference(mc, tc, scale, above)
            la, lb, lc = _folded(z1), _folded(z1), _folded(z2)
            if last:
                for j in range(tiles):
                    slot, round = turn(done, KS)
                    k = k_tiles.index(slot)
                    mbarrier.wait(k_full.index(slot), round)
                    slot_p, round_p = turn(given, PS)
                    mbarrier.wait(p_free.index(slot_p), round_p ^ 1)
                    a = _masked(warpgroup_mma(k, qa, z1, use_acc=False), bits, j, 0, L1)
                    pa, la = _weigh(a, la, ma, scale, L1)
                    p1.index(slot_p).slice(0, 64, 1).store(pa)
                    b = _masked(warpgroup_mma(k, qb, z1, use_acc=False), bits, j, 64, L1)
                    pb, lb = _weigh(b, lb, mb, scale, L1)
                    p1.index(slot_p).slice(64, 64, 1).store(pb)
                    c = _masked(warpgroup_mma(k, qc, z2, use_acc=False), bits, j, 128, L2)
                    pc, lc = _weigh(c, lc, mc, scale, L2)
                    p2.index(slot_p).store(pc)
                    mbarrier.arrive(k_free.index(slot), count=1)
                    fence_async_shared()
                    mbarrier.arrive(p_full.index(slot_p), count=1)
                    done += 1
                    given += 1
            elif tiles > 0:
                # one half of the columns is weighed while the tensor cores are at the other
                slot, round = turn(done, KS)
                mbarrier.wait(k_full.index(slot), round)
                a = warpgroup_mma(k_tiles.index(slot), qa, z1, use_acc=False, is_async=True)
                a = warpgroup_mma_wait(0, deps=[a])
                for j in range(tiles):
                    k = k_tiles.index(slot)
                    b = warpgroup_mma(k, qb, z1, use_acc=False, is_async=True)
                    c = warpgroup_mma(k, qc, z2, use_acc=False, is_async=True)
                    pa, la = _weigh(a, la, ma, scale, L1)
                    b, c = warpgroup_mma_wait(0, deps=[b, c])
                    mbarrier.arrive(k_free.index(slot), count=1)
                    done += gl.where(j + 1 < tiles, 1, 0)
                    slot, round = turn(done, KS)
                    mbarrier.wait(k_full.index(slot), round)
                    a = warpgroup_mma(k_tiles.index(slot), qa, z1, use_acc=False, is_async=True)
                    # known already: what follows stays behind the products that it is to run beside
                    mbarrier.wait(k_full.index(slot), round)
                    pb, lb = _weigh(b, lb, mb, scale, L1)
                    pc, lc = _weigh(c, lc, mc, scale, L2)
                    slot_p, round_p = turn(given, PS)
                    mbarrier.wait(p_free.index(slot_p), round_p ^ 1)
                    p1.index(slot_p).slice(0, 64, 1).store(pa)
                    p1.index(slot_p).slice(64, 64, 1).store(pb)
                    p2.index(slot_p).store(pc)
                    fence_async_shared()
                    mbarrier.arrive(p_full.index(slot_p), count=1)
                    given += 1
                    a = warpgroup_mma_wait(0, deps=[a])
                done += 1
            sums.slice(0, 64).store(_sums(la))
            sums.slice(64, 64).store(_sums(lb))
            sums.slice(128, 16).store(_sums(lc))
            if i_walk == 0:
                # a weight is at most the sum that it is part of
                most = gl.maximum(gl.max(gl.ravel(la), 0), gl.maximum(gl.max(gl.ravel(lb), 0), gl.max(gl.ravel(lc), 0)))
                walk = gl.where(most > MOST, 1, 0)
                again.store(gl.full([1], walk, gl.int32, B))
                mbarrier.arrive(verdict, count=1)
    mbarrier.arrive(summed, count=1)
    o_m = first + gl.arange(0, 256, B)
    o_part = o_first + o_m // G * H + o_m % G
    m = (o_m < rows) & (o_m < first + 144)
    gl.store(part_m + o_part, tops.load(B), mask=m)
    gl.store(part_l + o_part, sums.load(B), mask=m)


@gluon.jit
def _put(part_o, o_first, held, b_o, o_m, rows, H, G: gl.constexpr):
    """Means of up to 128 queries, by way of shared memory: there they come into order."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    held.store(b_o)
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    for i in gl.static_range(b_o.shape[0] // 16):
        o_q = o_m + i * 16 + gl.arange(0, 16, gl.SliceLayout(1, B))
        o_part = (o_first + o_q // G * H + o_q % G).to(gl.int64) * 256
        b_x = held.slice(i * 16, 16).load(B)
        gl.store(part_o + o_part[:, None] + o_d[None, :], b_x, mask=(o_q < rows)[:, None])


@gluon.jit
def _summed(
    v_tiles, p1, p2, sums, o1, o2, v_full, v_free, p_full, p_free, again, verdict, summed, tiles, part_o, o_first,
    first, T, H, rows, G: gl.constexpr, FORMAT_V: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    L1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 128, 16])
    L2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 16, 16])
    a, b = gl.zeros((256, 128), gl.float32, L1), gl.zeros((256, 16), gl.float32, L2)
    done, walk = 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, verdict)
        for j in range(tiles * walk):
            slot, round = turn(done, VS)
            slot_p, round_p = turn(done, PS)
            mbarrier.wait(p_full.index(slot_p), round_p)
            mbarrier.wait(v_full.index(slot), round)
            v = v_tiles.index(slot).permute((1, 0))
            a = warpgroup_mma(v, p1.index(slot_p), a, use_acc=j > 0, is_async=True)
            b = warpgroup_mma(v, p2.index(slot_p), b, use_acc=j > 0, is_async=True)
            a, b = warpgroup_mma_wait(0, deps=[a, b])
            mbarrier.arrive(v_free.index(slot), count=1)
            mbarrier.arrive(p_free.index(slot_p), count=1)
            done += 1
    mbarrier.wait(summed, 0)
    la, lb = sums.slice(0, 128).load(gl.SliceLayout(0, L1)), sums.slice(128, 16).load(gl.SliceLayout(0, L2))
    a = a * gl.where(la > 0.0, 1.0 / la, la)[None, :]
    b = b * gl.where(lb > 0.0, 1.0 / lb, lb)[None, :]
    _put(part_o, o_first, o1, _in_order(a.to(gl.float16), FORMAT_V), first, rows, H, G)
    _put(part_o, o_first, o2, _in_order(b.to(gl.float16), FORMAT_V), first + 128, rows, H, G)


@gluon.jit
def _queries(q, s_q_t, s_q_h, i_kv, first, rows, G: gl.constexpr, N: gl.constexpr, FORMAT: gl.constexpr):
    """[N, 256] f16, columns in the order of K's tiles."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    o_c = _columns(gl.arange(0, 256, gl.SliceLayout(0, B)), FORMAT)
    o_m = first + gl.arange(0, N, gl.SliceLayout(1, B))
    o_q = (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    return gl.load(q + o_q[:, None] + o_c[None, :], mask=(o_m < rows)[:, None], other=0.0).to(gl.float16)


@gluon.jit
def _ancestry(bits, begin, first, end, T, rows, ancestors, G: gl.constexpr):
    """bits [4, 256]: which of 32 rows, from begin on, a query sees; four times."""
    B: gl.constexpr = gl.BlockedLayout([1, 32], [32, 1], [8, 1], [1, 0])
    o_m, o_s = first + gl.arange(0, 256, gl.SliceLayout(1, B))[:, None], gl.arange(0, 32, gl.SliceLayout(0, B))[None, :]
    for i in gl.static_range(4):
        o_j = begin + i * 32 + o_s - end
        m = (o_j >= 0) & (o_j < T) & (o_m < rows)
        b_a = gl.load(ancestors + o_m // G * T + o_j, mask=m, other=0) != 0
        bits.index(i).store(gl.sum(((o_j < 0) | b_a).to(gl.int32) << o_s, 1))


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
    T, H, window, scale, splits,
    G: gl.constexpr,
    FORMAT_K: gl.constexpr,
    FORMAT_V: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """Programs (share, KV head, 144 queries). The last share, of the nodes and of rows that make no whole tile, has two
    tiles at most: 64 nodes."""
    i_split, i_kv, first, rows = gl.program_id(0), gl.program_id(1), gl.program_id(2) * 144, T * G
    end = gl.load(start)
    low = gl.where(window > 0, gl.maximum(end - window, 0), 0)
    whole = (end - low) // 64
    last = i_split == splits
    begin = i_split * whole // splits
    tiles = gl.where(last, (end + T - low - whole * 64 + 63) // 64, (i_split + 1) * whole // splits - begin)
    begin = low + begin * 64

    KS: gl.constexpr = STAGES[0]
    VS: gl.constexpr = STAGES[1]
    PS: gl.constexpr = STAGES[2]
    S: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    M: gl.constexpr = mbarrier.MBarrierLayout()
    q1 = gl.allocate_shared_memory(gl.float16, [128, 256], S)
    q2 = gl.allocate_shared_memory(gl.float16, [16, 256], S)
    k_tiles = gl.allocate_shared_memory(gl.float16, [KS, 64, 256], S)
    v_tiles = gl.allocate_shared_memory(gl.float16, [VS, 64, 256], S)
    p1 = gl.allocate_shared_memory(gl.float16, [PS, 64, 128], S)
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
    q1.store(_queries(q, s_q_t, s_q_h, i_kv, first, rows, G, 128, FORMAT_K))
    q2.store(_queries(q, s_q_t, s_q_h, i_kv, first + 128, rows, G, 16, FORMAT_K))
    fence_async_shared()
    if last:
        _ancestry(bits, begin, first, end, T, rows, ancestors, G)

    p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
    o_first = i_split * T * H + i_kv * G
    if FORMAT_K == "f16":
        gl.warp_specialize(
            [
                (_summed, (v_tiles, p1, p2, sums, q1, q2, v_full, v_free, p_full, p_free, again, verdict, summed, tiles,
                           part_o, o_first, first, T, H, rows, G, FORMAT_V, VS, PS)),
                (_scored, (q1, q2, k_tiles, p1, p2, tops, sums, last, bits, k_full, k_free, p_full, p_free, again,
                           verdict, summed, tiles, scale, part_m, part_l, o_first, first, T, H, rows, G, KS, PS)),
                (copied, (p_k, p_v, begin, tiles, last, end, T, ancestors, k_tiles, v_tiles, k_full, k_free, v_full,
                             v_free, again, verdict, s_k_s, s_v_s, KS, VS)),
            ],
            [4, 4], [REGISTERS[0], REGISTERS[1]],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_summed, (v_tiles, p1, p2, sums, q1, q2, v_full, v_free, p_full, p_free, again, verdict, summed, tiles,
                           part_o, o_first, first, T, H, rows, G, FORMAT_V, VS, PS)),
                (_scored, (q1, q2, k_tiles, p1, p2, tops, sums, last, bits, k_full, k_free, p_full, p_free, again,
                           verdict, summed, tiles, scale, part_m, part_l, o_first, first, T, H, rows, G, KS, PS)),
                (unpacked, (p_k, p_v, begin, tiles, last, end, T, ancestors, k_tiles, v_tiles, k_full, k_free, v_full,
                             v_free, again, verdict, s_k_s, s_v_s, FORMAT_K, FORMAT_V, KS, VS)),
            ],
            [4, 4], [REGISTERS[0], REGISTERS[1]],
        )  # fmt: skip
