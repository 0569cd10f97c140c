"""A share of tree_attention in which every warp walks rows of its own and waits for no other until the end.

    a warp's tile    S^T = K q^T [16 rows, N]   p = 2^(S - m)   O^T += V^T p [256, N]        N = 8 or 16 queries

Products are m16n8k16, one warp's each: they are batched, a warp a batch. Rows of the cache go from memory to the lanes
that multiply them, codes are unpacked there (lane_rows.py), and p becomes an operand by one movmatrix: the walk has no
barrier, and of shared memory nothing but the queries. The tile that comes next is under way in registers.

Instructions bind: a tile of q4_0 takes 800 with 8 queries and 980 with 16, one of tq3_0 970 and 1,290. At the end the
warps' sums meet in shared memory. The last tiles, of rows that not all queries see, are a share's like others.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from .lane_rows import (
    CODEBOOK,
    SMALLER,
    ahead,
    along,
    bits,
    channels,
    in_columns,
    keys,
    read,
    value_lanes,
    values,
    words,
)
from .newer import barrier
from .rotated import NORM, butterflies, signed

LOWEST = gl.constexpr(-3.0e38)


@gluon.constexpr_function
def _query_lanes(W, N):
    """[N, 4, 32]: a lane has a block of a query; eights of queries go to warps."""
    eights = bits(0, 3, 8, N // 8)
    return gl.DistributedLinearLayout(
        reg_bases=bits(2, 3, 1, 32),
        lane_bases=bits(1, 3, 1, 4) + bits(0, 3, 1, 8),
        warp_bases=eights + [[0, 0, 0]] * (W.bit_length() - 1 - len(eights)),
        block_bases=[],
        shape=[N, 4, 32],
    )


@gluon.constexpr_function
def _operand_lanes(W, C):
    """[C, 32, 8]: a lane's neighbours in every chunk, the same in all warps."""
    return gl.DistributedLinearLayout(
        reg_bases=bits(2, 3, 1, 8) + bits(0, 3, 1, C),
        lane_bases=bits(1, 3, 1, 32),
        warp_bases=[[0, 0, 0]] * (W.bit_length() - 1),
        block_bases=[],
        shape=[C, 32, 8],
    )


@gluon.constexpr_function
def _sum_lanes(W, R):
    """[W, R, 32, 4]: every warp's sums beside each other in a lane, pieces by warps."""
    return gl.DistributedLinearLayout(
        reg_bases=bits(3, 4, 1, 4) + bits(0, 4, 1, W) + bits(1, 4, 16, R // 16) + bits(1, 4, 1, 16 // W),
        lane_bases=bits(2, 4, 1, 32),
        warp_bases=bits(1, 4, 16 // W, W),
        block_bases=[],
        shape=[W, R, 32, 4],
    )


@gluon.jit
def _put(held, b_q, N: gl.constexpr):
    """N queries [2, 128, N], halves of the columns, as lanes want them: by eights of queries and 32 columns."""
    b_q = gl.permute(gl.reshape(b_q.to(gl.float16), (2, 4, 2, 2, 4, 2, N // 8, 8)), (0, 6, 1, 7, 4, 2, 3, 5))
    held.store(gl.reshape(b_q, (N, 32, 8)))


@gluon.jit
def _got(held, W: gl.constexpr, N: gl.constexpr, L: gl.constexpr):
    """What `_put` left as a right operand [W, 128, N]."""
    b_q = gl.reshape(held.load(_operand_lanes(W, N // 2)), (N // 8, 4, 8, 4, 2, 2, 2))
    b_q = gl.reshape(gl.permute(b_q, (1, 4, 5, 3, 6, 0, 2)), (128, N))
    b_q = gl.convert_layout(b_q, gl.SliceLayout(0, gl.DotOperandLayout(1, L, 2)))
    return gl.expand_dims(b_q, 0).broadcast_to((W, 128, N))


# a tile of 8 x 8 f16 of a warp's, rows in the place of columns
_TRANSPOSE = gl.constexpr("movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;")


@gluon.jit
def _weights(b_p, W: gl.constexpr, N: gl.constexpr, L: gl.constexpr):
    """p [W, 16, N] as a product gave it -> as the right operand of the next."""
    b_p = gl.inline_asm_elementwise(_TRANSPOSE, "=r,r", [b_p.to(gl.float16)], gl.float16, is_pure=False, pack=2)
    b_p = gl.reshape(gl.permute(gl.reshape(b_p, (W, 2, 8, N // 8, 8)), (0, 1, 4, 3, 2)), (W, 16, N))
    return gl.convert_layout(b_p, gl.DotOperandLayout(1, L, 2))


@gluon.constexpr_function
def _rotated_lanes(W, N):
    """[N, W, 4, 64 / W]: a warp has a piece of each 64 values of every query."""
    return gl.DistributedLinearLayout(
        reg_bases=bits(3, 4, 1, 64 // W) + bits(0, 4, 8, N // 8),
        lane_bases=bits(2, 4, 1, 4) + bits(0, 4, 1, 8),
        warp_bases=bits(1, 4, 1, W),
        block_bases=[],
        shape=[N, W, 4, 64 // W],
    )


@gluon.jit
def _ones(x):
    """How many of the low three bits are set."""
    return (x & 1) + (x >> 1 & 1) + (x >> 2 & 1)


@gluon.jit
def _rotated(p_q, m, W: gl.constexpr, N: gl.constexpr, L: gl.constexpr):
    """R(q) [N, W, 4, 64 / W] of the group of 128 at p_q: sums over its pieces, signed as lane and warp want them, are
    what butterflies over more than a lane's own values would give."""
    U: gl.constexpr = 64 // W
    o_w, o_l, o_i = along(W, 1, L), along(4, 2, L), along(U, 3, L)
    b_x = gl.zeros((N, W, 4, U), gl.float32, L)
    for i in gl.static_range(2 * W):
        # a sign for every bit that the piece's number and the place of the sum have in common
        odd = (o_l & (i // W)) + _ones(o_w & (i % W))
        b_p = signed(gl.load(p_q + i * U, mask=m, other=0.0).to(gl.float32), i * U + o_i, False)
        b_x += b_p * gl.where(odd % 2 == 1, -1.0, 1.0)
    return signed(butterflies(b_x), o_l % 2 * 64 + o_w * U + o_i, True) * NORM


@gluon.jit
def _queries(held, q, s_q_t, s_q_h, first, i_kv, rows, G: gl.constexpr, W: gl.constexpr, N: gl.constexpr,
             FORMAT: gl.constexpr):  # fmt: skip
    """N queries into shared memory, by halves."""
    if FORMAT == "tq3_0":
        B: gl.constexpr = _rotated_lanes(W, N)
        o_m = first + along(N, 0, B)
        p_q, m = q + (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h, o_m < rows
        b_x = _rotated(p_q + (along(4, 2, B) // 2 * 128 + along(64 // W, 3, B)), m, W, N, B)
        # half, 16 p + j
        b_x = gl.reshape(gl.permute(b_x, (0, 2, 1, 3)), (N, 4, 2, 2, 16))
        b_x = gl.reshape(gl.permute(b_x, (2, 4, 1, 3, 0)), (2, 128, N))
    else:
        C: gl.constexpr = _query_lanes(W, N)
        o_m = first + along(N, 0, C)
        p_q, m = q + (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h, o_m < rows
        p_q += along(4, 1, C) * 32 + along(32, 2, C)
        a, b = gl.load(p_q, mask=m, other=0.0), gl.load(p_q + 128, mask=m, other=0.0)
        b_x = gl.permute(gl.join(in_columns(a, N, FORMAT), in_columns(b, N, FORMAT)), (2, 0, 1))
    _put(held, b_x, N)


@gluon.jit
def _share(end, T, window, i_split, splits, ROWS: gl.constexpr):
    """The first row of a share and that behind its last: whole tiles, but for the last of all."""
    low = gl.where(window > 0, gl.maximum(end - window, 0), 0)
    tiles = (end + T - low + ROWS - 1) // ROWS
    row = low + i_split * tiles // splits * ROWS
    return row, gl.minimum(low + (i_split + 1) * tiles // splits * ROWS, end + T)


@gluon.jit
def _seen(o_row, end, T, ancestors):
    """Whether any query sees these rows: committed, or a node, which is its own ancestor."""
    o_j = gl.maximum(o_row - end, 0)
    b_a = gl.load(ancestors + o_j * (T + 1), mask=o_row - end < T, other=0)
    return (o_row < end) | (b_a != 0)


@gluon.jit
def _masked(b_x, row, end, first, T, rows, ancestors, G: gl.constexpr, W: gl.constexpr, N: gl.constexpr,
            L: gl.constexpr):  # fmt: skip
    """No number where a query does not see a row."""
    o_j = row - end + along(W, 0, L) * 16 + along(16, 1, L)
    o_m = first + along(N, 2, L)
    m = (o_j >= 0) & (o_j < T) & (o_m < rows)
    b_a = gl.load(ancestors + o_m // G * T + o_j, mask=m, other=0)
    return gl.where((o_j < 0) | (b_a != 0), b_x, float("-inf"))


@gluon.jit
def _parts(o_m, i_split, i_kv, T, H, rows, G: gl.constexpr):
    """Where the parts of queries o_m lie, and which queries there are."""
    return (i_split * T + o_m // G).to(gl.int64) * H + i_kv * G + o_m % G, o_m < rows


@gluon.jit
def own_rows(
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
    N: gl.constexpr,
    W: gl.constexpr,
    FORMAT_K: gl.constexpr,
    FORMAT_V: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Programs (N queries, share, KV head)."""
    L: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])
    ROWS: gl.constexpr = 16 * W
    first, i_split, i_kv, rows = gl.program_id(0) * N, gl.program_id(1), gl.program_id(2), T * G
    p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
    if EARLY:
        # before the wait `start` may be that of the step before: good enough to ask the L2 for the first tile
        end = gl.minimum(gl.load(start, volatile=True), S - T)
        row, stop = _share(end, T, window, i_split, splits, ROWS)
        ahead(p_k, row, stop, s_k_s, ROWS)
        ahead(p_v, row, stop, s_v_s, ROWS)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    end = gl.load(start, volatile=True)
    asked = gl.allocate_shared_memory(gl.float16, [N, 32, 8], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    if FORMAT_K != "tq3_0":
        _queries(asked, q, s_q_t, s_q_h, first, i_kv, rows, G, W, N, FORMAT_K)
    row, stop = _share(end, T, window, i_split, splits, ROWS)
    k0w, k0h, k0d = read(p_k, row, stop, s_k_s, 0, W, FORMAT_K)
    k1w, k1h, k1d = read(p_k, row, stop, s_k_s, 1, W, FORMAT_K)
    vw, vh, vd = read(p_v, row, stop, s_v_s, None, W, FORMAT_V)
    if FORMAT_K == "tq3_0":
        # a rotation is long: beside the first rows
        _queries(asked, q, s_q_t, s_q_h, first, i_kv, rows, G, W, N, FORMAT_K)
        scale *= SMALLER

    # here, or the compiler has one in the loop
    barrier()
    V: gl.constexpr = value_lanes(W, words(FORMAT_V), False)
    o_v = along(W, 0, V) * 16 + along(16, 1, V)
    z = gl.zeros((W, 16, N), gl.float32, L)
    b_m = gl.full((W, N), LOWEST, gl.float32, gl.SliceLayout(1, L))
    codebook = gl.inline_asm_elementwise(
        CODEBOOK, "=r,=r,=r,=r,r", [T], (gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1
    )
    b_l, b_o = z, gl.zeros((W, 256, N), gl.float32, L)
    for at in range(row, stop, ROWS):
        b_x = mma_v2(keys(k0w, k0h, k0d, codebook, W, FORMAT_K, L), _got(asked.slice(0, N // 2), W, N, L), z)
        k0w, k0h, k0d = read(p_k, at + ROWS, stop, s_k_s, 0, W, FORMAT_K)
        b_y = mma_v2(keys(k1w, k1h, k1d, codebook, W, FORMAT_K, L), _got(asked.slice(N // 2, N // 2), W, N, L), z)
        k1w, k1h, k1d = read(p_k, at + ROWS, stop, s_k_s, 1, W, FORMAT_K)
        b_x = (b_x + b_y) * scale
        if at + ROWS > end:
            b_x = _masked(b_x, at, end, first, T, rows, ancestors, G, W, N, L)
            vd = gl.where(_seen(at + o_v, end, T, ancestors), vd, 0.0)
        b_top = gl.maximum(b_m, gl.max(b_x, 1))
        b_old, b_m = gl.exp2(b_m - b_top), b_top
        b_p = gl.exp2(b_x - gl.expand_dims(b_top, 1))
        b_l = b_l * gl.expand_dims(b_old, 1) + b_p
        b_v = values(vw, vh, vd, codebook, W, FORMAT_V, L)
        vw, vh, vd = read(p_v, at + ROWS, stop, s_v_s, None, W, FORMAT_V)
        b_o = mma_v2(b_v, _weights(b_p, W, N, L), b_o * gl.expand_dims(b_old, 1))

    # the warps' sums beside each other, and one barrier
    held = gl.allocate_shared_memory(gl.float32, [2, W, N], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    held.index(0).store(b_m)
    held.index(1).store(gl.sum(b_l, 1))
    b_o = gl.permute(gl.reshape(b_o, (W, 16, 2, 8, N // 8, 4, 2)), (0, 4, 1, 3, 5, 2, 6))
    b_o = gl.reshape(b_o, (W, 2 * N, 32, 4))
    sums = gl.allocate_shared_memory(gl.float32, [W, 2 * N, 32, 4], gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0]), b_o)
    b_o = gl.reshape(sums.load(_sum_lanes(W, 2 * N)), (W, N // 8, 16, 8, 4, 2, 2))
    b_o = gl.reshape(gl.permute(b_o, (0, 2, 5, 3, 1, 4, 6)), (W, 256, N))
    M: gl.constexpr = gl.SliceLayout(1, b_o.type.layout)
    b_m, b_l = held.index(0).load(M), held.index(1).load(M)
    b_top = gl.max(b_m, 0)
    b_w = gl.exp2(b_m - gl.expand_dims(b_top, 0))
    b_sum = gl.sum(b_l * b_w, 0)
    b_w *= gl.expand_dims(gl.where(b_sum > 0.0, (SMALLER if FORMAT_V == "tq3_0" else 1.0) / b_sum, b_sum), 0)
    b_o = channels(gl.sum(b_o * gl.expand_dims(b_w, 1), 0), N, FORMAT_V).to(gl.float16)  # [N, 256]

    o_part, m = _parts(first + gl.arange(0, N, b_top.type.layout), i_split, i_kv, T, H, rows, G)
    gl.store(part_m + o_part, b_top, mask=m)
    gl.store(part_l + o_part, b_sum, mask=m)
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [W, 1], [1, 0])
    o_part, m = _parts(first + gl.arange(0, N, gl.SliceLayout(1, B)), i_split, i_kv, T, H, rows, G)
    p_o = part_o + gl.expand_dims(o_part, 1) * 256 + gl.expand_dims(gl.arange(0, 256, gl.SliceLayout(0, B)), 0)
    gl.store(p_o, gl.convert_layout(b_o, B), mask=gl.expand_dims(m, 1))
