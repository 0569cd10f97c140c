"""Warps that bring rows of a quantised cache into shared memory as they are, and do nothing else: see one_pass.py.

    a tile: 64 rows    | codes of K | high bits | scales |    | codes of V | high bits | scales |

All come by cp.async, which tells a tile's barrier itself when it is there: as many tiles are on their way as there is
room for. What is read beyond the rows that all queries see is masked: rows that none sees have scales of 0 in V.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .addresses import copied, wait
from .newer import copy


@gluon.jit
def turn(done, STAGES: gl.constexpr):
    """Which tile of a ring is next, and the parity of its round."""
    return done % STAGES, done // STAGES & 1


@gluon.jit
def told(again, at, W: gl.constexpr):
    """Whether the share is walked again, once that is known; at: its barrier."""
    wait(at, 0, W)
    return gl.max(again.load(gl.BlockedLayout([1], [32], [W], [0])), 0)


@gluon.constexpr_function
def _copied(N):
    """[64, N] words, four a lane."""
    return gl.BlockedLayout([1, 4], [128 // max(4, N), max(4, N) // 4], [4, 1], [1, 0])


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
def _seen_scales(memory, p, row, end, T, ancestors, s: gl.constexpr):
    """As `_words`, but zeros for a row that no query sees: not committed, and no node, its own ancestor."""
    L: gl.constexpr = _copied(4)
    o_r = gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    o_j = row + o_r - end
    b_a = gl.load(ancestors + gl.maximum(o_j, 0) * (T + 1), mask=(o_j >= 0) & (o_j < T), other=0)
    p = (p + o_r * s).to(gl.pointer_type(gl.int32)) + gl.arange(0, 4, gl.SliceLayout(0, L))[None, :]
    copy(memory, p, mask=(o_j < 0) | (b_a != 0))


@gluon.jit
def fed(
    p_k, p_v, begin, tiles, seen, end, T, ancestors, k_codes, k_high, k_scales, v_codes, v_high, v_scales, at_b, again,
    s_k: gl.constexpr, s_v: gl.constexpr, FORMAT_K: gl.constexpr, FORMAT_V: gl.constexpr, KS: gl.constexpr,
    VS: gl.constexpr, AT: gl.constexpr,
):  # fmt: skip
    """Tiles of K and V; if the share is walked again, all of K once more, and then both. AT: how far on the barriers of
    K full and free, of V and of the verdict lie."""
    done, given, walk, bound = 0, 0, 1, end + T
    p_k, p_v = p_k + begin.to(gl.int64) * s_k, p_v + begin.to(gl.int64) * s_v
    for phase in range(3):
        if phase == 1:
            walk = told(again, at_b + AT[4], 4)
        both, steps = phase != 1, tiles * walk
        for j in range(steps):
            row = begin + j * 64
            slot, round = turn(done + j, KS)
            wait(at_b + AT[1] + 8 * slot, round ^ 1, 4)
            p = p_k + j * (64 * s_k)
            _codes(k_codes.index(slot), k_high.index(slot), p, row, bound, s_k, FORMAT_K)
            _words(k_scales.index(slot), p, row, bound, s_k, 0)
            copied(at_b + AT[0] + 8 * slot, 4)
            if both:
                slot, round = turn(given + j, VS)
                wait(at_b + AT[3] + 8 * slot, round ^ 1, 4)
                p = p_v + j * (64 * s_v)
                _codes(v_codes.index(slot), v_high.index(slot), p, row, bound, s_v, FORMAT_V)
                if j < seen:
                    _words(v_scales.index(slot), p, row, bound, s_v, 0)
                else:
                    _seen_scales(v_scales.index(slot), p, row, end, T, ancestors, s_v)
                copied(at_b + AT[2] + 8 * slot, 4)
        done += steps
        given += gl.where(both, steps, 0)
