"""Warps that bring rows of a quantised cache into shared memory as they are, and do nothing else: see one_pass.py.

    a tile: 64 rows    | codes of K | high bits | scales |    | codes of V | high bits | scales of V, by block |

Codes come by cp.async, a tile ahead of the one that is waited for; scales of V in registers, since there two rows are
to lie in one word. What is read beyond the rows that all queries see is masked: rows that none sees have scales of 0.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .newer import copy

_PAIRED = gl.constexpr("prmt.b32 $0, $2, $3, 0x5410;\nprmt.b32 $1, $2, $3, 0x7632;")


@gluon.jit
def turn(done, STAGES: gl.constexpr):
    """Which tile of a ring is next, and the parity of its round."""
    return done % STAGES, done // STAGES & 1


@gluon.jit
def told(again, verdict):
    """Whether the share is walked again, once that is known."""
    mbarrier.wait(verdict, 0)
    return gl.max(again.load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), 0)


@gluon.constexpr_function
def _copied(N):
    """[64, N] words, four a lane."""
    return gl.BlockedLayout([1, 4], [128 // N, N // 4], [4, 1], [1, 0])


@gluon.constexpr_function
def _paired():
    """[64, 4] words of two blocks each: a lane has one of two rows."""
    return gl.DistributedLinearLayout(
        [[1, 0]], [[0, 1], [0, 2], [2, 0], [4, 0], [8, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )  # fmt: skip


@gluon.jit
def _words(memory, p, row, bound, s: gl.constexpr, AT: gl.constexpr):
    """Words from byte AT of 64 rows on, the first of which is `row`, on their way."""
    N: gl.constexpr = memory.shape[1]
    L: gl.constexpr = _copied(N)
    o_r = gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    p = (p + (o_r * s + AT)).to(gl.pointer_type(gl.int32)) + gl.arange(0, N, gl.SliceLayout(0, L))[None, :]
    copy(memory, p, mask=row + o_r < bound)


@gluon.jit
def _codes(codes, high, p, row, bound, s: gl.constexpr, FORMAT: gl.constexpr):
    _words(codes, p, row, bound, s, 16)
    if FORMAT == "tq3_0":
        _words(high, p, row, bound, s, 80)


@gluon.jit
def _scales(p, row, end, T, ancestors, s: gl.constexpr):
    """Words of scales [64, 4]; zeros for a row that no query sees: not committed, and no node, its own ancestor."""
    L: gl.constexpr = _paired()
    o_r = gl.arange(0, 64, gl.SliceLayout(1, L))
    o_j = row + o_r - end
    b_a = gl.load(ancestors + gl.maximum(o_j, 0) * (T + 1), mask=(o_j >= 0) & (o_j < T), other=0)
    p = (p + o_r[:, None] * s).to(gl.pointer_type(gl.int32)) + gl.arange(0, 4, gl.SliceLayout(0, L))[None, :]
    return gl.load(p, mask=((o_j < 0) | (b_a != 0))[:, None], other=0)


@gluon.jit
def _in_pairs(memory, b_s):
    """[64, 4] words -> [8 blocks, 32 pairs of rows]."""
    a, b = gl.split(gl.permute(gl.reshape(b_s, (32, 2, 4)), (0, 2, 1)))
    even, odd = gl.inline_asm_elementwise(_PAIRED, "=&r,=&r,r,r", [a, b], (gl.int32, gl.int32), is_pure=True, pack=1)
    memory.store(gl.reshape(gl.permute(gl.join(even, odd), (1, 2, 0)), (8, 32)))


@gluon.jit
def fed(
    p_k, p_v, begin, tiles, end, T, ancestors, k_codes, k_high, k_scales, v_codes, v_high, v_scales, k_full, k_free,
    v_full, v_free, again, verdict, s_k: gl.constexpr, s_v: gl.constexpr, FORMAT_K: gl.constexpr,
    FORMAT_V: gl.constexpr, KS: gl.constexpr, VS: gl.constexpr, AT: gl.constexpr,
):  # fmt: skip
    """Tiles of K and V; if the share is walked again, all of K once more, and then both. AT: the barriers' first ones,
    of K full and free and of V."""
    done, given, walk, bound = 0, 0, 1, end + T
    p_k, p_v = p_k + begin.to(gl.int64) * s_k, p_v + begin.to(gl.int64) * s_v
    b_s = gl.zeros((64, 4), gl.int32, _paired())
    for phase in range(3):
        if phase == 1:
            walk = told(again, verdict)
        both, steps = phase != 1, tiles * walk
        # a tile is told of when the next is under way
        for j in range(steps + gl.minimum(steps, 1)):
            b_next = b_s
            if j < steps:
                row = begin + j * 64
                slot, round = turn(done + j, KS)
                mbarrier.wait(k_free.index(AT[1] + slot), round ^ 1)
                p = p_k + j * (64 * s_k)
                _codes(k_codes.index(slot), k_high.index(slot), p, row, bound, s_k, FORMAT_K)
                _words(k_scales.index(slot), p, row, bound, s_k, 0)
                if both:
                    slot, round = turn(given + j, VS)
                    mbarrier.wait(v_free.index(AT[3] + slot), round ^ 1)
                    p = p_v + j * (64 * s_v)
                    _codes(v_codes.index(slot), v_high.index(slot), p, row, bound, s_v, FORMAT_V)
                    b_next = _scales(p, row, end, T, ancestors, s_v)
            async_copy.commit_group()
            if j > 0:
                async_copy.wait_group(1)
                slot, round = turn(done + j - 1, KS)
                mbarrier.arrive(k_full.index(AT[0] + slot), count=1)
                if both:
                    slot, round = turn(given + j - 1, VS)
                    _in_pairs(v_scales.index(slot), b_s)
                    mbarrier.arrive(v_full.index(AT[2] + slot), count=1)
            b_s = b_next
        done += steps
        given += gl.where(both, steps, 0)
