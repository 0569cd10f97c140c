"""A share of tree_attention for 16 E queries at once, 144, 80 or 48: rows are unpacked for all of them (sm90).

    warps  4: copy     rows of K and V as they are  ──cp.async──>  shared, tiles of 64 rows of each
           4: scores   S^T = K q^T  [64, 16 E],  P = 2^(S - m)  ──> shared, f16;  l = sum P     (twice, of 80 or 48)
           8: values   O^T [256, 16 E] += V^T P   in registers
    q   [E, 256, 16]   of eight queries 16 times their columns of 32 bytes, then of the next eight
    P   [E, 64, 16]    panels of 16 queries, written by stmatrix from the registers that hold sums

K and V^T are left operands, unpacked in the registers that multiply them (fragments.py), the next piece under the
product of this one; only q and P are read from shared memory by the tensor cores. wgmma takes any eights of columns and
Gluon's tensors powers of two: sums are tuples of registers (eights.py), operands are found by address (addresses.py),
and so are the barriers, at which a warp waits for itself alone. plain_pass.py shares all but K and V.

23 nodes of 6 heads are 138 queries, at 131072 rows 77 GFLOP: 78 us of tensor cores on an H200. Scores of a tile are
2,500 cycles beside the values of the one before; then tensor cores stand still for the 1,300 in which P is made. More
registers for the warps of scores would leave the others too few, and ptxas then runs all products one after the other.
With 48 queries a tile is 1,700 cycles, and of a short cache what counts is the code that is passed once, 7 or 8 cycles
an instruction: three programs beside each other pass it in the time of one.

The first tile of a share sets the maximum m of each query, and 2^6 above it: later scores may pass it by 2^21 before a
weight leaves f16. A share where one does is walked again, first for its maximum and then with it.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
from collections.abc import Mapping
from typing import Any

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .addresses import address, begin, came, kept, tell, wait
from .early import ASK_SOME
from .eights import SWIZZLED_32, gathered, lanes, multiplied, waited
from .feed import fed, told, turn
from .fragments import asked_by_eight, in_order, queries_in_eights, value_registers, value_words, values_product
from .lane_rows import along
from .newer import reinterpret
from .rotated import HIGH_1, HIGH_2, LOW_1, LOW_2, NORM, butterflies, sign
from .weights import (
    ASKED,
    BARRIERS,
    K_FREE,
    K_FULL,
    LANDED,
    MASKED,
    MET,
    P_FREE,
    P_FULL,
    SUMMED,
    V_FREE,
    V_FULL,
    VERDICT,
    weighed,
)

# queries of a program: columns of the two products that S^T and O^T are
QUERIES = (48, 80, 144)
# tiles of K, of V and of P in shared memory
STAGES = {48: (4, 4, 4), 80: (3, 3, 4), 144: (3, 3, 2)}
# with so many tiles a share, 48 queries have two sides that make weights; of fewer their code takes longer to come
LONG = 8
# of P's descriptor, that panels of 16 columns are 2048 bytes apart
PANEL = gl.constexpr(128 << 16)
# how far on the barriers lie that copies are told of and tell
RINGS = gl.constexpr((K_FULL.value, K_FREE.value, V_FULL.value, V_FREE.value, VERDICT.value))


def roles(queries: int, tiles: int, stages: Mapping[int, tuple[int, ...]], *formats: str) -> dict[str, Any]:
    """How a program of so many queries and tiles is made up. REGISTERS: a thread's, of the warps of scores and of those
    that copy, of which the eight of values take the rest. 48 queries leave some to the next launch's programs, so that
    those begin beside them."""
    sides = 1 if queries > 80 or (queries < 80 and tiles < LONG) else 2
    made = {"E": queries // 16, "SIDES": sides, "STAGES": stages[queries], "num_warps": 8}
    if queries > 48:
        return {**made, "REGISTERS": (120 if queries > 80 else 96, 24)}
    few = "tq3_0" not in formats and "f16" not in formats
    return {**made, "REGISTERS": (88 if few and sides > 1 else 96, 24), "maxnreg": 80 if few else 96}


def _arrivals(full: int) -> tuple[tuple[int, int, int], ...]:
    """Each ring's, of up to four tiles, and those passed once: where they begin, how many, and who arrives; `full`: at
    tiles that have come."""
    return (
        (K_FULL.value, 4, full), (K_FREE.value, 4, 4), (V_FULL.value, 4, full), (V_FREE.value, 4, 8),
        (P_FULL.value, 4, 4), (P_FREE.value, 4, 8), (ASKED.value, 1, 8), (MASKED.value, 1, 8), (VERDICT.value, 1, 4),
        (SUMMED.value, 1, 4), (LANDED.value, 1, 1), (MET.value, 1, 8),
    )  # fmt: skip


# where every thread of those that copy tells of a tile, or the TMA does
COPIED, FETCHED = gl.constexpr(_arrivals(128)), gl.constexpr(_arrivals(1))


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
def begun_at(at, ARRIVALS: gl.constexpr):
    """All of them, by a program of eight warps: four warps take K and give P, eight take V and P."""
    begin(at, ARRIVALS, 8)
    # and the TMA sees them
    fence_async_shared()


@gluon.jit
def barriers_of(less):
    """What lies where they do, as Gluon's own."""
    return reinterpret(less.index(0), gl.int64, [1024, 1], mbarrier.MBarrierLayout())


@gluon.jit
def panels(N: gl.constexpr, rows: gl.constexpr):
    """f16 [N, rows, 16] in shared memory, in the 32-byte swizzle, from a KiB on."""
    held = gl.allocate_shared_memory(gl.float16, [N, rows // 4, 64], gl.NVMMASharedLayout(128, 16, 2))
    return reinterpret(held, gl.float16, [N, rows, 16], gl.NVMMASharedLayout(32, 16, 2))


@gluon.jit
def bits_of():
    """i32 [4, 256] in shared memory, from a KiB on, and where that lies once it was told."""
    held = gl.allocate_shared_memory(gl.float16, [1, 32, 64], gl.NVMMASharedLayout(128, 16, 2))
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    return held, reinterpret(held.index(0), gl.int32, [4, 256], F)


@gluon.jit
def words_of(memory, BYTES: gl.constexpr):
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    return reinterpret(memory.index(0), gl.int32, [BYTES // 4], F)


@gluon.jit
def place(memory, BYTES: gl.constexpr):
    """Where that lies, by 16 bytes, once it was told."""
    return address(words_of(memory, BYTES), 8) >> 4


@gluon.jit
def queries(q, s_q_t, s_q_h, i_kv, first, rows, G: gl.constexpr, FORMAT: gl.constexpr, E: gl.constexpr):
    """16 E queries on their way to registers: E times [16, 256]."""
    B: gl.constexpr = asked_by_eight(FORMAT)
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    b_q = ()
    for i in gl.static_range(E):
        o_m = first + 16 * i + gl.arange(0, 16, gl.SliceLayout(1, B))
        o_q = (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
        b_q = b_q + (gl.load(q + o_q[:, None] + o_d[None, :], mask=(o_m < rows)[:, None], other=0.0),)
    return b_q


@gluon.jit
def asked_for(memory, b_q, FORMAT: gl.constexpr):
    """Queries in eights: [E, 256, 16] f16, columns as those of K's operand."""
    for i in gl.static_range(len(b_q)):
        memory.index(i).store(queries_in_eights(b_q[i].to(gl.float16), FORMAT))
    fence_async_shared()


@gluon.constexpr_function
def _turning():
    """[64, 2 groups, 2 halves, 64 values] in eight warps: half a group of a query a lane."""
    dims = [(3, 1 << i) for i in range(6)] + [(0, 1), (0, 2), (0, 4), (0, 8), (2, 1), (0, 16), (0, 32), (1, 1)]
    bases = [[by if d == dim else 0 for d in range(4)] for dim, by in dims]
    return gl.DistributedLinearLayout(bases[:6], bases[6:11], bases[11:], [], [64, 2, 2, 64])


@gluon.jit
def halves(q, s_q_t, s_q_h, i_kv, first, rows, G: gl.constexpr):
    """48 queries on their way to registers, nothing for 16 more: both halves of every group, to both of its lanes."""
    L: gl.constexpr = _turning()
    o_m = first + along(64, 0, L)
    m = (o_m < rows) & (o_m < first + 48)
    p_q = q + (o_m // G).to(gl.int64) * s_q_t + (i_kv * G + o_m % G) * s_q_h
    p_q += along(2, 1, L) * 128 + along(2, 2, L) * 0 + along(64, 3, L)
    return gl.load(p_q, mask=m, other=0.0), gl.load(p_q + 64, mask=m, other=0.0)


@gluon.jit
def asked_turned(memory, b_q, scale):
    """As `asked_for` of tq3_0, from `halves`: R(q) times scale. Sums and differences of a group's halves come first."""
    L: gl.constexpr = _turning()
    first, o_i, scale = along(2, 2, L) == 0, along(64, 3, L), NORM * scale
    a, b = b_q[0].to(gl.float32) * sign(o_i, LOW_1), b_q[1].to(gl.float32) * sign(o_i, HIGH_1)
    b_x = butterflies(a + b * gl.where(first, 1.0, -1.0))
    b_x *= gl.where(first, sign(o_i, LOW_2), sign(o_i, HIGH_2)) * scale
    b_x = gl.reshape(b_x.to(gl.float16), (64, 256))
    memory = reinterpret(memory, gl.float16, [1024, 16], gl.NVMMASharedLayout(32, 16, 2))
    memory.store(queries_in_eights(b_x, "tq3_0"))
    fence_async_shared()


@gluon.jit
def nothing(E: gl.constexpr):
    """Sums of 16 E columns, zeros."""
    acc = ()
    for _i in gl.static_range(8 * E):
        acc = acc + (gl.zeros((8, 32), gl.float32, lanes(8)),)
    return acc


@gluon.jit
def put(part_o, o_first, held, sums, a, b, first, rows, H, G: gl.constexpr, FORMAT: gl.constexpr):
    """Means of 16 E queries, from halves of their values, by way of the memory of q: there they come into order."""
    E: gl.constexpr = len(a) // 8
    L: gl.constexpr = values_product(16)
    B: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0])
    held = reinterpret(held, gl.float16, [held.shape[0], 16, 256], gl.NVMMASharedLayout(128, 16, 2))
    for i in gl.static_range(E):
        b_l = sums.slice(16 * i, 16).load(gl.SliceLayout(0, L))[None, :]
        x = gl.convert_layout(gathered(a, 16 * i, 8), L, assert_trivial=True) * b_l
        y = gl.convert_layout(gathered(b, 16 * i, 8), L, assert_trivial=True) * b_l
        held.index(i).store(in_order(x.to(gl.float16), y.to(gl.float16), FORMAT))
    o_d = gl.arange(0, 256, gl.SliceLayout(0, B))
    for i in range(E):
        o_q = first + i * 16 + gl.arange(0, 16, gl.SliceLayout(1, B))
        o_part = (o_first + o_q // G * H + o_q % G).to(gl.int64) * 256
        gl.store(part_o + o_part[:, None] + o_d[None, :], held.index(i).load(B), mask=(o_q < rows)[:, None])


@gluon.jit
def _pieces(codes, high, scales, first: gl.constexpr, PIECES: gl.constexpr, FORMAT: gl.constexpr):
    """Operands of 16 rows each, of both halves of the values: so many times eight registers a lane."""
    x = ()
    for i in gl.static_range(PIECES):
        words = value_words(codes, high, scales, first + i, FORMAT)
        x = x + value_registers(words, 0, FORMAT) + value_registers(words, 1, FORMAT)
    return x


@gluon.jit
def _ahead(
    a, b, codes, high, scales, at_p, at_b, done, steps,
    FORMAT: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr, E: gl.constexpr, PIECES: gl.constexpr,
):  # fmt: skip
    """Products of a walk's tiles, of few queries: they take less time than unpacking, which is so many pieces of 16
    rows ahead of them. The first turn is of nothing, while weights are made: its code is there when they come."""
    x = _pieces(codes.index(0), high.index(0), scales.index(0), 0, PIECES, FORMAT)
    for j in range(gl.where(steps > 0, -1, 0), steps):
        slot, _ = turn(done + gl.maximum(j, 0), VS)
        slot_p, round_p = turn(done + gl.maximum(j, 0), PS)
        after, round = turn(done + j + 1, VS)
        if j >= 0:
            wait(at_b + P_FULL + 8 * slot_p, round_p, 8)
        for c in gl.static_range(0, 4, PIECES):
            for i in gl.static_range(PIECES):
                use, at = gl.where(j > 0, 1, 0) if c + i == 0 else 1, at_p + slot_p * (128 * E) + 32 * (c + i)
                left = (x[8 * i], x[8 * i + 1], x[8 * i + 2], x[8 * i + 3])
                a = multiplied(a, left, at, use, 8, False, SWIZZLED_32, 1)
                left = (x[8 * i + 4], x[8 * i + 5], x[8 * i + 6], x[8 * i + 7])
                b = multiplied(b, left, at, use, 8, False, SWIZZLED_32, 1)
            if c + PIECES < 4:
                x = _pieces(codes.index(slot), high.index(slot), scales.index(slot), c + PIECES, PIECES, FORMAT)
                if c + 2 * PIECES == 4:
                    came(at_b + V_FREE + 8 * slot, 8, j >= 0)
            else:
                # behind the last tile nobody uses what is unpacked
                if j + 1 < steps:
                    wait(at_b + V_FULL + 8 * after, round, 8)
                x = _pieces(codes.index(after), high.index(after), scales.index(after), 0, PIECES, FORMAT)
            a, b = waited(a, 0), waited(b, 0)
        came(at_b + P_FREE + 8 * slot_p, 8, j >= 0)
    return a, b


@gluon.jit
def _beside(
    a, b, codes, high, scales, at_p, at_b, done, steps,
    FORMAT: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr, E: gl.constexpr,
):  # fmt: skip
    """Products of a walk's tiles; of what is next, an operand is unpacked beside each of them."""
    for j in range(steps):
        slot, round = turn(done + j, VS)
        slot_p, round_p = turn(done + j, PS)
        wait(at_b + V_FULL + 8 * slot, round, 8)
        for c in gl.static_range(4):
            words = value_words(codes.index(slot), high.index(slot), scales.index(slot), c, FORMAT)
            x = value_registers(words, 0, FORMAT)
            if c == 0:
                wait(at_b + P_FULL + 8 * slot_p, round_p, 8)
            use = gl.where(j > 0, 1, 0) if c == 0 else 1
            at = at_p + slot_p * (128 * E) + 32 * c
            a = multiplied(a, x, at, use, 8, False, SWIZZLED_32, 1)
            if c > 0:
                b = waited(b, 1)
            b = multiplied(b, value_registers(words, 1, FORMAT), at, use, 8, False, SWIZZLED_32, 1)
            a = waited(a, 1)
        b = waited(b, 0)
        came(at_b + V_FREE + 8 * slot, 8)
        came(at_b + P_FREE + 8 * slot_p, 8)
    return a, b


@gluon.jit
def _summed(
    b_q, q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, asked_of, bits, codes, high, scales, at_p, at_b,
    sums, again, tiles, part_o, o_first, first, T, H, rows, scale,
    G: gl.constexpr, FORMAT_K: gl.constexpr, FORMAT: gl.constexpr, VS: gl.constexpr, PS: gl.constexpr,
    E: gl.constexpr,
):  # fmt: skip
    # two operands of tq3_0 ahead and the sums of 80 queries are more than there is room for
    PIECES: gl.constexpr = 1 if E > 3 and FORMAT == "tq3_0" else 2
    # while the first rows of the cache come
    if FORMAT_K == "tq3_0" and E == 3:
        asked_turned(asked_of, b_q, scale)
    elif E > 5:
        asked_for(asked_of, queries(q, s_q_t, s_q_h, i_kv, first, rows, G, FORMAT_K, E), FORMAT_K)
    else:
        asked_for(asked_of, b_q, FORMAT_K)
    came(at_b + ASKED, 8)
    # long before the last of its tiles
    if last:
        ancestry(bits, begin + seen * 64, (tiles - seen) * 2, first, end, T, rows, ancestors, G)
        came(at_b + MASKED, 8)
    # halves of the values
    a, b = nothing(E), nothing(E)
    done, walk = 0, 1
    for i_walk in range(2):
        if i_walk == 1:
            walk = told(again, at_b + VERDICT, 8)
        steps = tiles * walk
        if E > 5:
            a, b = _beside(a, b, codes, high, scales, at_p, at_b, done, steps, FORMAT, VS, PS, E)
        else:
            a, b = _ahead(a, b, codes, high, scales, at_p, at_b, done, steps, FORMAT, VS, PS, E, PIECES)
        done += steps
    wait(at_b + SUMMED, 0, 8)
    put(part_o, o_first, asked_of, sums, a, b, first, rows, H, G, FORMAT)


@gluon.jit
def early(start, p_k, p_v, T, S, window, i_split, splits, s_k_s: gl.constexpr, s_v_s: gl.constexpr):
    """The L2 is asked for the first tile; then until what comes before this launch is done, and the next may start."""
    # before the wait `start` may be that of the step before: good enough to ask
    end = gl.minimum(gl.load(start, volatile=True), S - T)
    begin, tiles, _seen, _last = share(end, T, window, i_split, splits)
    coming = gl.where((tiles > 0) & (begin + 64 <= S), 64, 0)
    ahead(p_k, begin, coming, s_k_s)
    ahead(p_v, begin, coming, s_v_s)
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


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
    E: gl.constexpr,
    SIDES: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Programs (share, KV head, 16 E queries). The last share ends with rows that not all queries see: nodes, and what
    makes no whole tile before them, two tiles at most of 64 nodes."""
    i_split, i_kv, first, rows = gl.program_id(0), gl.program_id(1), gl.program_id(2) * (16 * E), T * G
    p_k, p_v = cache_k + i_kv.to(gl.int64) * s_k_h, cache_v + i_kv.to(gl.int64) * s_v_h
    KS: gl.constexpr = STAGES[0]
    VS: gl.constexpr = STAGES[1]
    PS: gl.constexpr = STAGES[2]
    C: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    C3: gl.constexpr = gl.SwizzledSharedLayout(4, 2, 4, [1, 0])
    F: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    F2: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    asked_of, p, less = panels(4 if E == 3 and FORMAT_K == "tq3_0" else E, 256), panels(E * PS, 64), panels(SIDES, 256)
    held_bits, bits = bits_of()
    tell(8)
    at_q, at_p, at_less = place(asked_of, 8192), place(p, 2048) + PANEL, place(less, 8192)
    at_bits = place(held_bits, 4096) * 16
    at_b = at_less * 16 + BARRIERS
    begun_at(at_b, COPIED)
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
    v_scales = gl.allocate_shared_memory(gl.int32, [VS, 64, 4], F2)
    tops = gl.allocate_shared_memory(gl.float32, [256 * SIDES], F)
    sums = gl.allocate_shared_memory(gl.float32, [256], F)
    again = gl.allocate_shared_memory(gl.int32, [1], F)
    if EARLY:
        early(start, p_k, p_v, T, S, window, i_split, splits, s_k_s, s_v_s)
    end = gl.load(start)
    if FORMAT_K == "tq3_0" and E == 3:
        b_q, times = halves(q, s_q_t, s_q_h, i_kv, first, rows, G), scale
        scale = scale * 0.0 + 1.0
    else:
        # beside the roles' beginning, if there are registers for them
        b_q, times = queries(q, s_q_t, s_q_h, i_kv, first, rows, G, FORMAT_K, E if E < 9 else 0), scale
    begin, tiles, seen, last = share(end, T, window, i_split, splits)
    o_first = i_split * T * H + i_kv * G
    gl.warp_specialize(
        (
            (_summed, (b_q, q, s_q_t, s_q_h, i_kv, begin, end, last, seen, ancestors, asked_of, bits, v_codes, v_high,
                       v_scales, at_p, at_b, sums, again, tiles, part_o, o_first, first, T, H, rows, times, G, FORMAT_K,
                       FORMAT_V, VS, PS, E)),
            (weighed, (at_q, at_less, 0, at_p, at_bits, at_b, less, k_codes, k_high, k_scales, tops, sums, seen, again,
                       tiles, scale, part_m, part_l, o_first, first, T, H, rows, G, FORMAT_K, KS, PS, E, 0, SIDES)),
            (fed, (p_k, p_v, begin, tiles, seen, end, T, ancestors, k_codes, k_high, k_scales, v_codes, v_high,
                   v_scales, at_b, again, s_k_s, s_v_s, FORMAT_K, FORMAT_V, KS, VS, RINGS)),
            (weighed, (at_q, at_less, 0, at_p, at_bits, at_b, less, k_codes, k_high, k_scales, tops, sums, seen, again,
                       tiles, scale, part_m, part_l, o_first, first, T, H, rows, G, FORMAT_K, KS, PS, E, 1, SIDES)),
        )[: 2 + SIDES],
        (4, 4, 4)[: 1 + SIDES],
        (REGISTERS[0], REGISTERS[1], REGISTERS[0])[: 1 + SIDES],
    )  # fmt: skip
    kept(words_of(p, 2048), 8)
