"""Warps that bring tiles of a cache into shared memory for the tensor cores, and do nothing else: see one_pass.py.

    a tile [64, 256]    | rows 0..31, blocks 0..3 | blocks 4..7 |        one of K and one of V by turns, f16, swizzled
                        | rows 32..63             |             |

A quantised tile comes in four pieces of 32 rows and 4 blocks of 32 values. A lane has a block of a piece in registers;
when it has unpacked it, the registers take a later piece: half a tile of loads is under way. Rows of f16 are copied by
cp.async, a tile ahead. What is read beyond the rows that all queries see is masked: rows that none sees are zeros.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, mbarrier

from .newer import copy
from .operands import Q4_0, Q8_0, TQ3_0


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
def _lanes(FORMAT):
    """Units of 32 rows and 4 blocks of 32 values: eight lanes lie on eight rows, so that no two meet in a bank."""
    units = 8 if FORMAT == "q8_0" else 4
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1 << i] for i in range(units.bit_length() - 1)],
        lane_bases=[[1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 1, 0], [0, 2, 0]],
        warp_bases=[[8, 0, 0], [16, 0, 0]],
        block_bases=[],
        shape=[32, 4, units],
    )


@gluon.jit
def _pointers(p, row, s: gl.constexpr, FORMAT: gl.constexpr):
    """To a lane's scales, units and high bits of the first of a tile's four pieces."""
    L: gl.constexpr = _lanes(FORMAT)
    L2: gl.constexpr = gl.SliceLayout(2, L)
    U: gl.constexpr = 8 if FORMAT == "q8_0" else 4
    base = p + row.to(gl.int64) * s
    o_r = gl.arange(0, 32, gl.SliceLayout(1, L2))[:, None] * s
    o_b = gl.arange(0, 4, gl.SliceLayout(0, L2))[None, :]
    o_u = gl.arange(0, U, gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    p_d = (base + o_r).to(gl.pointer_type(gl.float16)) + o_b
    p_h = (base + 80 + o_r)[:, :, None] + (o_b * 4)[:, :, None] + o_u
    if FORMAT == "tq3_0":
        p_w = (base + 16 + o_r)[:, :, None].to(gl.pointer_type(gl.int16)) + ((o_b * 4)[:, :, None] + o_u)
    else:
        p_w = (base + 16 + o_r)[:, :, None].to(gl.pointer_type(gl.int32)) + ((o_b * U)[:, :, None] + o_u)
    return p_w, p_d, p_h


@gluon.jit
def _read(p_w, p_d, p_h, i: gl.constexpr, m, s: gl.constexpr, FORMAT: gl.constexpr):
    """Piece i of a tile: rows 0..31 or 32..63, blocks 0..3 or 4..7; zeros where m [32] is off, if there is one."""
    UNIT: gl.constexpr = 2 if FORMAT == "tq3_0" else 4
    U: gl.constexpr = 8 if FORMAT == "q8_0" else 4
    p_w += i // 2 * 32 * s // UNIT + i % 2 * 4 * U
    p_d += i // 2 * 16 * s + i % 2 * 4
    p_h += i // 2 * 32 * s + i % 2 * 16
    if m is None:
        b_w, b_d = gl.load(p_w), gl.load(p_d)
        b_h = gl.load(p_h) if FORMAT == "tq3_0" else b_w
    else:
        b_w, b_d = gl.load(p_w, mask=m[:, None, None], other=0), gl.load(p_d, mask=m[:, None], other=0.0)
        b_h = gl.load(p_h, mask=m[:, None, None], other=0) if FORMAT == "tq3_0" else b_w
    return b_w, b_d, b_h


@gluon.jit
def _on(p_w, p_d, p_h, tiles, s: gl.constexpr, FORMAT: gl.constexpr):
    UNIT: gl.constexpr = 2 if FORMAT == "tq3_0" else 4
    far = tiles * (64 * s)
    return p_w + far // UNIT, p_d + far // 2, p_h + far


@gluon.jit
def _seen(o_row, end, T, ancestors):
    """Whether any query sees these rows: committed, or a node, which is its own ancestor."""
    o_j = gl.maximum(o_row - end, 0)
    b_a = gl.load(ancestors + o_j * (T + 1), mask=o_row - end < T, other=0)
    return (o_row < end) | (b_a != 0)


@gluon.jit
def _unpack(b_w, b_d, b_h, FORMAT: gl.constexpr):
    """-> [32, 128] f16: four blocks of 32 rows."""
    b_d, b_w = gl.broadcast(b_d[:, :, None], b_w)
    if FORMAT == "q8_0":
        a, b, c, d = gl.inline_asm_elementwise(
            Q8_0, "=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d], (gl.float16, gl.float16, gl.float16, gl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
        b_x = gl.reshape(gl.join(gl.join(a, b), gl.join(c, d)), (32, 16, 2, 2, 2))
        b_x = gl.permute(b_x, (0, 1, 4, 3, 2))
    else:
        if FORMAT == "q4_0":
            o0, o1, o2, o3, o4, o5, o6, o7 = gl.inline_asm_elementwise(
                Q4_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_d],
                (gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16),
                is_pure=True, pack=2,
            )  # fmt: skip
        else:
            o0, o1, o2, o3, o4, o5, o6, o7 = gl.inline_asm_elementwise(
                TQ3_0, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [b_w, b_h.to(gl.int16), b_d],
                (gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16, gl.float16),
                is_pure=True, pack=2,
            )  # fmt: skip
        b_x = gl.join(gl.join(gl.join(o0, o1), gl.join(o2, o3)), gl.join(gl.join(o4, o5), gl.join(o6, o7)))
        b_x = gl.permute(gl.reshape(b_x, (32, 8, 2, 2, 2, 2)), (0, 1, 5, 4, 3, 2))
    return gl.reshape(b_x, (32, 128))


@gluon.jit
def _write(tile, piece, i: gl.constexpr, FORMAT: gl.constexpr):
    b_w, b_d, b_h = piece
    tile.slice(i // 2 * 32, 32).slice(i % 2 * 128, 128, 1).store(_unpack(b_w, b_d, b_h, FORMAT))


@gluon.jit
def _tile(
    tile, full, free, done, p_w, p_d, p_h, begin, j, end, T, ancestors, s: gl.constexpr, FORMAT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """One tile of the rows that not all queries see."""
    slot, round = turn(done, STAGES)
    L: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, _lanes(FORMAT)))
    p_w, p_d, p_h = _on(p_w, p_d, p_h, j, s, FORMAT)
    mbarrier.wait(free.index(slot), round ^ 1)
    for i in gl.static_range(4):
        m = _seen(begin + j * 64 + i // 2 * 32 + gl.arange(0, 32, L), end, T, ancestors)
        _write(tile.index(slot), _read(p_w, p_d, p_h, i, m, s, FORMAT), i, FORMAT)
    fence_async_shared()
    mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
def unpacked(
    p_k, p_v, begin, tiles, last, end, T, ancestors, k_tiles, v_tiles, k_full, k_free, v_full, v_free, again, verdict,
    s_k: gl.constexpr, s_v: gl.constexpr, FORMAT_K: gl.constexpr, FORMAT_V: gl.constexpr, KS: gl.constexpr,
    VS: gl.constexpr,
):  # fmt: skip
    p_kw, p_kd, p_kh = _pointers(p_k, begin, s_k, FORMAT_K)
    p_vw, p_vd, p_vh = _pointers(p_v, begin, s_v, FORMAT_V)
    done, given, walk = 0, 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, verdict)
        if walk > 0:
            for j in range(gl.where(i_walk == 0, gl.minimum(1, tiles), tiles)):
                _tile(k_tiles, k_full, k_free, done, p_kw, p_kd, p_kh, begin, j, end, T, ancestors, s_k, FORMAT_K, KS)
                done += 1
            if last:
                for j in range(tiles):
                    _tile(
                        k_tiles, k_full, k_free, done, p_kw, p_kd, p_kh, begin, j, end, T, ancestors, s_k, FORMAT_K,
                        KS,
                    )  # fmt: skip
                    _tile(
                        v_tiles, v_full, v_free, given, p_vw, p_vd, p_vh, begin, j, end, T, ancestors, s_v, FORMAT_V,
                        VS,
                    )  # fmt: skip
                    done += 1
                    given += 1
            elif tiles > 0:
                # a piece's registers take another piece as soon as it is written, half a tile ahead or three pieces
                FOUR: gl.constexpr = FORMAT_K != "q8_0" and FORMAT_V != "q8_0"
                kw, kd, kh = p_kw, p_kd, p_kh
                k0 = _read(kw, kd, kh, 0, None, s_k, FORMAT_K)
                k1 = _read(kw, kd, kh, 1, None, s_k, FORMAT_K)
                k2 = _read(kw, kd, kh, 2, None, s_k, FORMAT_K)
                if FOUR:
                    k3 = _read(kw, kd, kh, 3, None, s_k, FORMAT_K)
                for j in range(tiles):
                    kw, kd, kh = _on(p_kw, p_kd, p_kh, j, s_k, FORMAT_K)
                    vw, vd, vh = _on(p_vw, p_vd, p_vh, j, s_v, FORMAT_V)
                    slot, round = turn(done, KS)
                    mbarrier.wait(k_free.index(slot), round ^ 1)
                    tile = k_tiles.index(slot)
                    _write(tile, k0, 0, FORMAT_K)
                    if FOUR:
                        v0 = _read(vw, vd, vh, 0, None, s_v, FORMAT_V)
                    else:
                        k3 = _read(kw, kd, kh, 3, None, s_k, FORMAT_K)
                    _write(tile, k1, 1, FORMAT_K)
                    if FOUR:
                        v1 = _read(vw, vd, vh, 1, None, s_v, FORMAT_V)
                    else:
                        v0 = _read(vw, vd, vh, 0, None, s_v, FORMAT_V)
                    _write(tile, k2, 2, FORMAT_K)
                    if FOUR:
                        v2 = _read(vw, vd, vh, 2, None, s_v, FORMAT_V)
                    else:
                        v1 = _read(vw, vd, vh, 1, None, s_v, FORMAT_V)
                    _write(tile, k3, 3, FORMAT_K)
                    if FOUR:
                        v3 = _read(vw, vd, vh, 3, None, s_v, FORMAT_V)
                    else:
                        v2 = _read(vw, vd, vh, 2, None, s_v, FORMAT_V)
                    fence_async_shared()
                    mbarrier.arrive(k_full.index(slot), count=1)
                    done += 1
                    slot, round = turn(given, VS)
                    kw, kd, kh = _on(p_kw, p_kd, p_kh, gl.minimum(j + 1, tiles - 1), s_k, FORMAT_K)
                    mbarrier.wait(v_free.index(slot), round ^ 1)
                    tile = v_tiles.index(slot)
                    _write(tile, v0, 0, FORMAT_V)
                    if FOUR:
                        k0 = _read(kw, kd, kh, 0, None, s_k, FORMAT_K)
                    else:
                        v3 = _read(vw, vd, vh, 3, None, s_v, FORMAT_V)
                    _write(tile, v1, 1, FORMAT_V)
                    if FOUR:
                        k1 = _read(kw, kd, kh, 1, None, s_k, FORMAT_K)
                    else:
                        k0 = _read(kw, kd, kh, 0, None, s_k, FORMAT_K)
                    _write(tile, v2, 2, FORMAT_V)
                    if FOUR:
                        k2 = _read(kw, kd, kh, 2, None, s_k, FORMAT_K)
                    else:
                        k1 = _read(kw, kd, kh, 1, None, s_k, FORMAT_K)
                    _write(tile, v3, 3, FORMAT_V)
                    if FOUR:
                        k3 = _read(kw, kd, kh, 3, None, s_k, FORMAT_K)
                    else:
                        k2 = _read(kw, kd, kh, 2, None, s_k, FORMAT_K)
                    fence_async_shared()
                    mbarrier.arrive(v_full.index(slot), count=1)
                    given += 1


@gluon.jit
def _copy(tile, p, j, row, last, end, T, ancestors, s: gl.constexpr):
    """Tile j of a plain cache on its way to shared memory; p: to its first eight rows, the first of which is `row`."""
    p = p + j * (64 * s)
    if last:
        for i in gl.static_range(8):
            m = _seen(row + j * 64 + i * 8, end, T, ancestors)
            copy(tile.slice(i * 8, 8), p + i * 8 * s, mask=m)
    else:
        for i in gl.static_range(8):
            copy(tile.slice(i * 8, 8), p + i * 8 * s)
    async_copy.commit_group()


@gluon.jit
def copied(
    p_k, p_v, begin, tiles, last, end, T, ancestors, k_tiles, v_tiles, k_full, k_free, v_full, v_free, again, verdict,
    s_k: gl.constexpr, s_v: gl.constexpr, KS: gl.constexpr, VS: gl.constexpr,
):  # fmt: skip
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    o_r = gl.arange(0, 8, gl.SliceLayout(1, B))[:, None]
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))[None, :]
    row = begin + o_r
    p_k = p_k + begin.to(gl.int64) * s_k + (o_r * s_k + o_d)
    p_v = p_v + begin.to(gl.int64) * s_v + (o_r * s_v + o_d)
    done, given, walk = 0, 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, verdict)
        if walk > 0:
            for j in range(gl.where(i_walk == 0, gl.minimum(1, tiles), tiles)):
                slot, round = turn(done, KS)
                mbarrier.wait(k_free.index(slot), round ^ 1)
                _copy(k_tiles.index(slot), p_k, j, row, last, end, T, ancestors, s_k)
                async_copy.wait_group(0)
                fence_async_shared()
                mbarrier.arrive(k_full.index(slot), count=1)
                done += 1
            if tiles > 0:
                slot, round = turn(done, KS)
                mbarrier.wait(k_free.index(slot), round ^ 1)
                _copy(k_tiles.index(slot), p_k, 0, row, last, end, T, ancestors, s_k)
                for j in range(tiles):
                    slot_v, round = turn(given, VS)
                    mbarrier.wait(v_free.index(slot_v), round ^ 1)
                    _copy(v_tiles.index(slot_v), p_v, j, row, last, end, T, ancestors, s_v)
                    async_copy.wait_group(1)
                    fence_async_shared()
                    mbarrier.arrive(k_full.index(slot), count=1)
                    done += 1
                    given += 1
                    if j + 1 < tiles:
                        slot, round = turn(done, KS)
                        mbarrier.wait(k_free.index(slot), round ^ 1)
                        _copy(k_tiles.index(slot), p_k, j + 1, row, last, end, T, ancestors, s_k)
                        async_copy.wait_group(1)
                    else:
                        async_copy.wait_group(0)
                    fence_async_shared()
                    mbarrier.arrive(v_full.index(slot_v), count=1)
