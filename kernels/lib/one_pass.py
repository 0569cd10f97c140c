"""A share of tree_attention for up to 144 queries at once: every row of the cache is read and unpacked once (sm90).

    warps  4: copy     rows of K and V as they are  ──cp.async──>  shared, three tiles of 64 rows of each
           4: scores   S^T = K q^T  [64, 128 + 16],  P = 2^(S - m)  ──> shared, f16, two tiles;  l = sum P
           8: values   O^T [256, 128 + 16] += V^T P   in registers

K and V^T are left operands, unpacked in the registers that multiply them (fragments.py), the next piece under the
product of this one; only q and P are read from shared memory by the tensor cores. Barriers in shared memory hand tiles
on. 23 nodes of 6 heads are 138 queries, at 131072 rows 77 GFLOP: 78 us of tensor cores on an H200, which bind, and
about a third of the instructions. Written in Gluon: layouts and barriers are explicit.

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

from .feed import fed, told, turn
from .fragments import in_order, key_scales, key_words, keys, keys_product, offset, queries_for, value_words, values, values_product

# queries of a program: columns of the two products that S^T and O^T are
QUERIES = 128 + 16
# a thread's, of the warps of scores and of those that copy; the eight of values take the rest
REGISTERS = (120, 24)
# tiles of K, of V and of P in shared memory
STAGES = (3, 3, 2)
# the first tile's maximum is taken for this much more, in units of log 2, and f16 holds weights up to the other
ABOVE = gl.constexpr(6.0)
MOST = gl.constexpr(32768.0)
# a score that is greater is taken for this one
MOST_SCORE = gl.constexpr(2.0e9)


# a lane keeps $1 or $2, the one that stands for its half of the columns, and adds what the lane so far on has of it
_EXCHANGE = """
{{
.reg .b32 lane, other;
.reg .pred upper;
mov.u32 lane, %laneid;
and.b32 lane, lane, {far};
setp.ne.u32 upper, lane, 0;
selp.b32 other, $1, $2, upper;
selp.b32 $0, $2, $1, upper;
shfl.sync.bfly.b32 other, other, {far}, 31, 0xffffffff;
add.f32 $0, $0, other;
}}
"""
_WITH_16, _WITH_8 = gl.constexpr(_EXCHANGE.format(far=16)), gl.constexpr(_EXCHANGE.format(far=8))


@gluon.jit
def _halved(b_p, TEXT: gl.constexpr):
    """[4, 8, N] -> [4, 8, N / 2]: a lane's sums and those of the lane so far on, half the columns each."""
    low, high = gl.split(gl.permute(gl.reshape(b_p, (4, 8, 2, b_p.shape[2] // 2)), (0, 1, 3, 2)))
    return gl.inline_asm_elementwise(TEXT, "=&r,r,r", [low, high], gl.float32, is_pure=True, pack=1)


@gluon.jit
def _folded(b_p):
    """[64, N] -> [4, 8, N / 2], or N / 4 if those are whole eights: sums over rows of two lanes or of four."""
    b_l = _halved(gl.sum(gl.reshape(b_p, (4, 2, 8, b_p.shape[1])), 1), _WITH_16)
    if b_p.shape[1] >= 32:
        b_l = _halved(b_l, _WITH_8)
    return b_l


@gluon.jit
def _sums(b_l, N: gl.constexpr):
    """What `_folded` left -> [N]."""
    H: gl.constexpr = b_l.shape[2]
    return gl.reshape(gl.sum(gl.sum(gl.reshape(b_l, (4, N // H, 8 * H // N, H)), 2), 0), (N,))


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
def _parts(x):
    """[N, 16] f16 that `offset` multiplies and adds up to x [N]: to 30 bits, up to 2e9."""
    N: gl.constexpr = x.shape[0]
    B: gl.constexpr = gl.BlockedLayout([1, 16], [32, 1], [4, 1], [1, 0])
    x = gl.convert_layout(x, gl.SliceLayout(1, B))
    high = (x * 2.0**-15).to(gl.float16)
    x -= high.to(gl.float32) * 2.0**15
    middle = (x * 2.0**-4).to(gl.float16)
    x -= middle.to(gl.float32) * 2.0**4
    low = (x * 2.0**6).to(gl.float16)
    o_c = gl.arange(0, 16, gl.SliceLayout(0, B))[None, :]
    return gl.where(
        o_c == 0, high[:, None], gl.where(o_c == 1, middle[:, None], gl.where(o_c == 2, low[:, None], 0.0))
    ).to(gl.float16)


@gluon.jit
def _reference(tops, b_s, above, j):
    """The greatest of a tile's scores and of those before it."""
    L: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    b_m = gl.minimum(gl.maximum(gl.max(gl.max(_peaks(b_s), 1), 0) + above, -MOST_SCORE), MOST_SCORE)
    tops.store(gl.maximum(gl.convert_layout(b_m, L), gl.where(j > 0, tops.load(L), -MOST_SCORE)))


@gluon.jit
def _weigh(b_s, b_l, scale):
    b_p = gl.exp2(b_s * scale)
    return b_p.to(gl.float16), b_l + _folded(b_p)


@gluon.jit
def _zero(j):
    """0, where the compiler cannot know it: it would hold addresses in registers that are quickly made anew."""
    return gl.inline_asm_elementwise("shr.u32 $0, $1, 31;", "=r,r", [j], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _scored(
    q1, q2, less1, less2, asked, codes, high, scales, p1, p2, tops, sums, seen, bits, k_full, k_free, p_full, p_free, again, verdict, summed,
    tiles, scale, part_m, part_l, o_first, first, T, H, rows, G: gl.constexpr, FORMAT: gl.constexpr, KS: gl.constexpr,
    PS: gl.constexpr,
):  # fmt: skip
    L1: gl.constexpr = keys_product(128)
    L2: gl.constexpr = keys_product(16)
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    z1, z2 = gl.zeros((64, 128), gl.float32, L1), gl.zeros((64, 16), gl.float32, L2)
    m1, m2 = tops.slice(0, 128), tops.slice(128, 16)
    done, given, walk = 0, 0, 1
    mbarrier.wait(asked, 0)
    # the first tile's maximum; weights; all of the share's maximum, and weights once more
    for phase in range(4):
        weigh = phase % 2 == 1
        steps = gl.where(phase == 0, gl.minimum(tiles, 1), tiles) * walk
        above = gl.where(phase == 0, ABOVE / scale, 0.0)
        if (phase == 0) & (tiles == 0):
            tops.store(gl.full([256], -MOST_SCORE, gl.float32, B))
        # the maximum is subtracted by the product itself
        less1.index(0).store(_parts(gl.where(weigh, -m1.load(B), 0.0)))
        less2.index(0).store(_parts(gl.where(weigh, -m2.load(B), 0.0)))
        fence_async_shared()
        l1, l2 = _folded(z1), _folded(z2)
        for j in range(steps):
            slot, round = turn(done, KS)
            mbarrier.wait(k_full.index(slot), round)
            k = codes.index(slot)
            words = key_words(k.slice(0, 32, 1) if FORMAT == "q8_0" else k, high.index(slot), FORMAT)
            of_blocks = key_scales(scales.index(slot), FORMAT)
            zero = _zero(j)
            qa, qb = q1.index(zero), q2.index(zero)
            a = offset(128)
            s1 = warpgroup_mma(a, less1.index(zero).permute((1, 0)), z1, use_acc=False, is_async=True)
            a = gl.convert_layout(a, gl.DotOperandLayout(0, L2, 2), assert_trivial=True)
            s2 = warpgroup_mma(a, less2.index(zero).permute((1, 0)), z2, use_acc=False, is_async=True)
            for c in gl.static_range(16):
                if c == 8 and FORMAT == "q8_0":
                    words = key_words(k.slice(32, 32, 1), high.index(slot), FORMAT)
                a = keys(words, of_blocks, c, 128, FORMAT)
                s1 = warpgroup_mma(a, qa.slice(128 * c, 128).permute((1, 0)), s1, is_async=True)
                a = gl.convert_layout(a, gl.DotOperandLayout(0, L2, 2), assert_trivial=True)
                s2 = warpgroup_mma(a, qb.slice(16 * c, 16).permute((1, 0)), s2, is_async=True)
                # all words are in registers; the first tile is needed again
                if c == (8 if FORMAT == "q8_0" else 1):  # noqa: SIM102
                    if phase > 0:
                        mbarrier.arrive(k_free.index(slot), count=1)
                        done += 1
                s1, s2 = warpgroup_mma_wait(0 if c == 15 else 4, deps=[s1, s2])
            if j >= seen:
                s1, s2 = _masked(s1, bits, j - seen, 0, L1), _masked(s2, bits, j - seen, 128, L2)
            if weigh:
                # weights are given away when the next scores are there: so one product runs beside the exponentials
                if j > 0:
                    fence_async_shared()
                    mbarrier.arrive(p_full.index((given - 1) % PS), count=1)
                slot, round = turn(given, PS)
                mbarrier.wait(p_free.index(slot), round ^ 1)
                b_p1, l1 = _weigh(s1, l1, scale)
                p1.index(slot).store(b_p1)
                b_p2, l2 = _weigh(s2, l2, scale)
                p2.index(slot).store(b_p2)
                given += 1
            else:
                _reference(m1, s1, above, j)
                _reference(m2, s2, above, j)
        if weigh & (steps > 0):
            fence_async_shared()
            mbarrier.arrive(p_full.index((given - 1) % PS), count=1)
        if weigh & (walk > 0):
            sums.slice(0, 128).store(_sums(l1, 128))
            sums.slice(128, 16).store(_sums(l2, 16))
        if phase == 1:
            # a weight is at most the sum that it is part of
            most = gl.maximum(gl.max(gl.ravel(l1), 0), gl.max(gl.ravel(l2), 0))
            walk = gl.where(most > MOST, 1, 0)
            again.store(gl.full([1], walk, gl.int32, B))
            mbarrier.arrive(verdict, count=1)
    mbarrier.arrive(summed, count=1)
    o_m = first + gl.arange(0, 256, B)
    o_part = o_first + o_m // G * H + o_m % G
    m = (o_m < rows) & (o_m < first + 144)
    gl.store(part_m + o_part, tops.load(B) * scale, mask=m)
    gl.store(part_l + o_part, sums.load(B), mask=m)


@gluon.jit
def _queries(q, s_q_t, s_q_h, i_kv, first, rows, G: gl.constexpr, N: gl.constexpr, FORMAT: gl.constexpr):
    """[16 N, 16] f16, columns as those of K's operand."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    o_m = first + gl.arange(0, N, gl.SliceLayout(1, B))
    o_q = (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    b_q = gl.load(q + o_q[:, None] + o_d[None, :], mask=(o_m < rows)[:, None], other=0.0).to(gl.float16)
    return queries_for(b_q, FORMAT)


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
def _put(part_o, o_first, held, b_o0, b_o1, o_m, rows, H, G: gl.constexpr, FORMAT: gl.constexpr):
    """Means of N queries, by way of the shared memory of q: there they come into order."""
    N: gl.constexpr = b_o0.shape[1]
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    held = held._reinterpret(gl.float16, [N, 256], gl.NVMMASharedLayout(128, 16, 2))
    held.store(in_order(b_o0.to(gl.float16), b_o1.to(gl.float16), FORMAT))
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    for i in gl.static_range(N // 16):
        o_q = o_m + i * 16 + gl.arange(0, 16, gl.SliceLayout(1, B))
        o_part = (o_first + o_q // G * H + o_q % G).to(gl.int64) * 256
        b_x = held.slice(i * 16, 16).load(B)
        gl.store(part_o + o_part[:, None] + o_d[None, :], b_x, mask=(o_q < rows)[:, None])


@gluon.jit
def _summed(
    q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, q1, q2, bits, asked, codes, high, scales, p1, p2, sums, v_full,
    v_free, p_full, p_free, again, verdict, summed, tiles, part_o, o_first, first, T, H, rows, G: gl.constexpr,
    FORMAT_K: gl.constexpr, FORMAT: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    # while the first rows of the cache come
    q1.store(_queries(q, s_q_t, s_q_h, i_kv, first, rows, G, 128, FORMAT_K))
    q2.store(_queries(q, s_q_t, s_q_h, i_kv, first + 128, rows, G, 16, FORMAT_K))
    if last:
        _ancestry(bits, begin + seen * 64, first, end, T, rows, ancestors, G)
    fence_async_shared()
    mbarrier.arrive(asked, count=1)
    L1: gl.constexpr = values_product(128)
    L2: gl.constexpr = values_product(16)
    A2: gl.constexpr = gl.DotOperandLayout(0, L2, 2)
    # halves of the values, queries 0 .. 127 and the others
    a1, a2 = gl.zeros((128, 128), gl.float32, L1), gl.zeros((128, 16), gl.float32, L2)
    b1, b2 = gl.zeros((128, 128), gl.float32, L1), gl.zeros((128, 16), gl.float32, L2)
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
                    b1, b2 = warpgroup_mma_wait(2, deps=[b1, b2])
                x = values(words, 1, 128, FORMAT)
                b1 = warpgroup_mma(x, pa, b1, use_acc=use, is_async=True)
                b2 = warpgroup_mma(gl.convert_layout(x, A2, assert_trivial=True), pb, b2, use_acc=use, is_async=True)
                a1, a2 = warpgroup_mma_wait(2, deps=[a1, a2])
            b1, b2 = warpgroup_mma_wait(0, deps=[b1, b2])
            mbarrier.arrive(v_free.index(slot), count=1)
            mbarrier.arrive(p_free.index(slot_p), count=1)
            done += 1
    mbarrier.wait(summed, 0)
    l1, l2 = sums.slice(0, 128).load(gl.SliceLayout(0, L1)), sums.slice(128, 16).load(gl.SliceLayout(0, L2))
    l1, l2 = gl.where(l1 > 0.0, 1.0 / l1, l1)[None, :], gl.where(l2 > 0.0, 1.0 / l2, l2)[None, :]
    _put(part_o, o_first, q1, a1 * l1, b1 * l1, first, rows, H, G, FORMAT)
    _put(part_o, o_first, q2, a2 * l2, b2 * l2, first + 128, rows, H, G, FORMAT)


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
    """Programs (share, KV head, 144 queries). The last share ends with the rows that not all queries see: the nodes, and
    what makes no whole tile before them, two tiles at most of 64 nodes."""
    i_split, i_kv, first, rows = gl.program_id(0), gl.program_id(1), gl.program_id(2) * 144, T * G
    end = gl.load(start)
    low = gl.where(window > 0, gl.maximum(end - window, 0), 0)
    whole = (end - low) // 64
    every = whole + (end + T - low - whole * 64 + 63) // 64
    last = i_split == splits
    begin = gl.minimum(i_split * every // (splits + 1), whole)
    tiles = gl.where(last, every, gl.minimum((i_split + 1) * every // (splits + 1), whole)) - begin
    # tiles that all queries see
    seen = gl.where(last, whole - begin, tiles)
    begin = low + begin * 64

    KS: gl.constexpr = STAGES[0]
    VS: gl.constexpr = STAGES[1]
    PS: gl.constexpr = STAGES[2]
    S: gl.constexpr = gl.NVMMASharedLayout(32, 16, 2)
    C: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    C3: gl.constexpr = gl.SwizzledSharedLayout(4, 2, 4, [1, 0])
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    F2: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    M: gl.constexpr = mbarrier.MBarrierLayout()
    q1 = gl.allocate_shared_memory(gl.float16, [1, 16 * 128, 16], S)
    q2 = gl.allocate_shared_memory(gl.float16, [1, 16 * 16, 16], S)
    less1 = gl.allocate_shared_memory(gl.float16, [1, 128, 16], S)
    less2 = gl.allocate_shared_memory(gl.float16, [1, 16, 16], S)
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
    p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
    o_first = i_split * T * H + i_kv * G
    gl.warp_specialize(
        [
            (_summed, (q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, q1.index(0), q2.index(0), bits, asked,
                       v_codes, v_high, v_scales, p1, p2, sums, v_full, v_free, p_full, p_free, again, verdict, summed,
                       tiles, part_o, o_first, first, T, H, rows, G, FORMAT_K, FORMAT_V, VS, PS)),
            (_scored, (q1, q2, less1, less2, asked, k_codes, k_high, k_scales, p1, p2, tops, sums, seen, bits, k_full,
                       k_free, p_full, p_free, again, verdict, summed, tiles, scale, part_m, part_l, o_first, first, T,
                       H, rows, G, FORMAT_K, KS, PS)),
            (fed, (p_k, p_v, begin, tiles, end, T, ancestors, k_codes, k_high, k_scales, v_codes, v_high, v_scales,
                   k_full, k_free, v_full, v_free, again, verdict, s_k_s, s_v_s, FORMAT_K, FORMAT_V, KS, VS)),
        ],
        [4, 4], [REGISTERS[0], REGISTERS[1]],
    )  # fmt: skip
