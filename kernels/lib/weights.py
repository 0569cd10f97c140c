"""Warps that turn tiles of K into weights for those that multiply them with V: see one_pass.py.

    [64 rows of K, 16] ──registers──┐
    [144 queries, 16]  ──shared─────┴─ 16 times ─> S^T [64, 128 + 16] ─> P = 2^(scale (S - m)) ──> shared;  l = sum P

m is subtracted by a product before the others, of constants with its parts: no lane looks it up. Of a lane's sums of
weights the rows of eight lanes are added, by exchange, in pairs of f16, so that few of them stay in registers: a tile's
16 rows, each sum rounded three times to 2^-12. What is infinite there passed MOST, and the share is walked again.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .feed import turn
from .fragments import key_scales, key_words, keys, keys_product, offset

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
{join} $0, $0, other;
}}
"""
_SUMS = [gl.constexpr(_EXCHANGE.format(far=far, join="add.rn.f16x2")) for far in (16, 8, 4)]
_TOPS = [gl.constexpr(_EXCHANGE.format(far=far, join="max.f32")) for far in (16, 8, 4)]
_SUM_16, _SUM_8, _SUM_4 = _SUMS
_TOP_16, _TOP_8, _TOP_4 = _TOPS


@gluon.jit
def _halved(x, TEXT: gl.constexpr, PACK: gl.constexpr):
    """[4, 8, N] -> [4, 8, N / 2]: of a lane's and those of the lane so far on, half the columns each."""
    low, high = gl.split(gl.permute(gl.reshape(x, (4, 8, 2, x.shape[2] // 2)), (0, 1, 3, 2)))
    if PACK == 2:
        x = gl.inline_asm_elementwise(TEXT, "=&r,r,r", [low, high], gl.float16, is_pure=True, pack=2)
    else:
        x = gl.inline_asm_elementwise(TEXT, "=&r,r,r", [low, high], gl.float32, is_pure=True, pack=1)
    return x


@gluon.jit
def folded(b_p):
    """[64, N] -> [4, 8, N / 8], or N / 2 of 16 columns: sums over the rows of eight lanes, or of two."""
    b_l = gl.sum(gl.reshape(b_p, (4, 2, 8, b_p.shape[1])), 1).to(gl.float16)
    b_l = _halved(b_l, _SUM_16, 2)
    if b_p.shape[1] >= 64:
        b_l = _halved(_halved(b_l, _SUM_8, 2), _SUM_4, 2)
    return b_l.to(gl.float32)


@gluon.jit
def _of_queries(x, N: gl.constexpr):
    """What was halved -> [4, N / H, lanes that have the same columns, H]."""
    H: gl.constexpr = x.shape[2]
    return gl.reshape(x, (4, N // H, 8 * H // N, H))


@gluon.jit
def sums_of(b_l, N: gl.constexpr):
    """What `folded` left -> [N]."""
    return gl.reshape(gl.sum(gl.sum(_of_queries(b_l, N), 2), 0), (N,))


@gluon.jit
def hidden(b_s, bits, j, first: gl.constexpr, L: gl.constexpr):
    """Scores of tile j, no number where a query of the last share does not see the row."""
    N: gl.constexpr = b_s.shape[1]
    o_s = gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    low = bits.index(2 * j).slice(first, N).load(gl.SliceLayout(0, L))
    high = bits.index(2 * j + 1).slice(first, N).load(gl.SliceLayout(0, L))
    b_b = gl.where(o_s < 32, low[None, :], high[None, :]) >> (o_s & 31) & 1
    return gl.where(b_b == 1, b_s, float("-inf"))


@gluon.jit
def _peaks(b_s):
    """[64, N] -> [N]: the greatest of each column."""
    N: gl.constexpr = b_s.shape[1]
    b_m = _halved(gl.max(gl.reshape(b_s, (4, 2, 8, N)), 1), _TOP_16, 1)
    if N >= 64:
        b_m = _halved(_halved(b_m, _TOP_8, 1), _TOP_4, 1)
    return gl.reshape(gl.max(gl.max(_of_queries(b_m, N), 2), 0), (N,))


@gluon.jit
def parts_of(x):
    """[N, 16] f16 that `offset` multiplies and adds up to x [N]: to 30 bits, up to 2e9."""
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
def reference(tops, b_s, above, j):
    """The greatest of a tile's scores and of those before it."""
    L: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    b_m = gl.minimum(gl.maximum(_peaks(b_s) + above, -MOST_SCORE), MOST_SCORE)
    tops.store(gl.maximum(gl.convert_layout(b_m, L), gl.where(j > 0, tops.load(L), -MOST_SCORE)))


@gluon.jit
def weights_of(b_s, scale, FORMAT: gl.constexpr):
    # queries of tq3_0 are scaled where they are rotated
    return gl.exp2(b_s if FORMAT == "tq3_0" else b_s * scale)


@gluon.jit
def zero_of(j):
    """0, where the compiler cannot know it: it would hold addresses in registers that are quickly made anew."""
    return gl.inline_asm_elementwise("shr.u32 $0, $1, 31;", "=r,r", [j], gl.int32, is_pure=False, pack=1)


@gluon.jit
def weighed(
    q1, q2, less1, less2, asked, masked, codes, high, scales, p1, p2, tops, sums, seen, bits, k_full, k_free, p_full,
    p_free, again, verdict, summed, tiles, scale, part_m, part_l, o_first, first, T, H, rows, G: gl.constexpr,
    FORMAT: gl.constexpr, KS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    # pieces of keys whose words are in registers at a time
    HELD: gl.constexpr = 4 if FORMAT == "q8_0" else 16
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
        less1.index(0).store(parts_of(gl.where(weigh, -m1.load(B), 0.0)))
        less2.index(0).store(parts_of(gl.where(weigh, -m2.load(B), 0.0)))
        fence_async_shared()
        l1, l2 = folded(z1), folded(z2)
        for j in range(steps):
            slot, round = turn(done, KS)
            mbarrier.wait(k_full.index(slot), round)
            k = codes.index(slot)
            words = key_words(k.slice(0, 32, 1) if FORMAT == "q8_0" else k, high.index(slot), FORMAT)
            of_blocks = key_scales(scales.index(slot), FORMAT)
            zero, after = zero_of(j), words
            qa, qb = q1.index(zero), q2.index(zero)
            a = offset(128)
            s1 = warpgroup_mma(a, less1.index(zero).permute((1, 0)), z1, use_acc=False, is_async=True)
            a = gl.convert_layout(a, gl.DotOperandLayout(0, L2, 2), assert_trivial=True)
            s2 = warpgroup_mma(a, less2.index(zero).permute((1, 0)), z2, use_acc=False, is_async=True)
            for c in gl.static_range(16):
                if c > 0 and c % HELD == 0:
                    words = after
                if c < 15 and c % HELD == HELD - 1:
                    # words anew, at an address that the compiler takes for another
                    k = codes.index(slot + zero_of(j)).slice((c + 1) // 8 * 32, 32, 1)
                    after = key_words(k, high.index(slot), FORMAT)
                a = keys(words, of_blocks, c, 128, FORMAT)
                s1 = warpgroup_mma(a, qa.slice(128 * c, 128).permute((1, 0)), s1, is_async=True)
                a = gl.convert_layout(a, gl.DotOperandLayout(0, L2, 2), assert_trivial=True)
                s2 = warpgroup_mma(a, qb.slice(16 * c, 16).permute((1, 0)), s2, is_async=True)
                # all words are in registers; the first tile is needed again
                if c == 16 - HELD:  # noqa: SIM102
                    if phase > 0:
                        mbarrier.arrive(k_free.index(slot), count=1)
                        done += 1
                s1, s2 = warpgroup_mma_wait(0 if c == 15 else 4, deps=[s1, s2])
            if j >= seen:
                mbarrier.wait(masked, 0)
                s1, s2 = hidden(s1, bits, j - seen, 0, L1), hidden(s2, bits, j - seen, 128, L2)
            if weigh:
                slot, round = turn(given, PS)
                mbarrier.wait(p_free.index(slot), round ^ 1)
                b_p1, b_p2 = weights_of(s1, scale, FORMAT), weights_of(s2, scale, FORMAT)
                p1.index(slot).store(b_p1.to(gl.float16))
                p2.index(slot).store(b_p2.to(gl.float16))
                fence_async_shared()
                mbarrier.arrive(p_full.index(slot), count=1)
                l1, l2 = l1 + folded(b_p1), l2 + folded(b_p2)
                given += 1
            else:
                reference(m1, s1, above, j)
                reference(m2, s2, above, j)
        if weigh & (walk > 0):
            sums.slice(0, 128).store(sums_of(l1, 128))
            sums.slice(128, 16).store(sums_of(l2, 16))
        if phase == 1:
            # a weight is at most the sum that it is part of
            most = gl.maximum(gl.max(gl.ravel(l1), 0), gl.max(gl.ravel(l2), 0))
            walk = gl.where(most > MOST, 1, 0)
            again.store(gl.full([1], walk, gl.int32, B))
            mbarrier.arrive(verdict, count=1)
    b_l = sums.load(B)
    sums.store(gl.where(b_l > 0.0, 1.0 / b_l, b_l))
    mbarrier.arrive(summed, count=1)
    o_m = first + gl.arange(0, 256, B)
    o_part = o_first + o_m // G * H + o_m % G
    m = (o_m < rows) & (o_m < first + 144)
    gl.store(part_m + o_part, tops.load(B) * scale, mask=m)
    gl.store(part_l + o_part, b_l, mask=m)
