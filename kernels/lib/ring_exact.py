"""y = x · Wᵀ over tiles (reference/tiles.py), activations as they are, through a ring of shared memory (sm90).

    groups of 16 W rows of the weight, each K / 256 records long, end to end, in equal shares a program:

    |     group 0     |     group 1     |     group 2     | ...
    |  program 0   |  program 1   |  program 2   |  ...            one program a multiprocessor

    record of W ──cp.async──> | stage 0 | stage 1 | ... | ──16 bytes a lane──> codes ──> f16 A ──┐
    x           ──cp.async──> |   "     |    "    |     | ────────────────────────────> B ───────┴─ wgmma ─> [16 W, BM]

`lib/wide_exact.py` in Gluon: Triton's compiler has loads wait behind the last product, here several records are on
their way whatever the program waits for, and the codes of the next 64 columns are unpacked under the product of these.
What limits it: dequantisation's instructions and the bytes, about the same; below them the start and the sum of shares.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .newer import barrier, copy

# Gluon cannot call what Triton compiles: the PTX is shared, the functions around it are not
from .rows_exact import (
    _BIASED,
    _BY_8,
    _BY_16,
    _Q4_00,
    _Q4_01,
    _Q4_K0,
    _Q4_K1,
    _Q5_K0,
    _Q5_K1,
    _Q6_K0,
    _Q6_K1,
    _Q8_00,
    _Q8_01,
    _TO_BF16,
)  # fmt: skip
from .tiles import HIGH

_HIGH = gl.constexpr(HIGH)
# bytes that a program of sm90 may have
SHARED = 232448
# pieces of 2 KiB a 64 rows: codes, and the bits above them
CODES = {"q8_0": 8}
ABOVE = {"q5_k": 1, "q6_k": 2}
_SPLIT = gl.constexpr("mov.b32 {$0, $1}, $2;")


def tiles_of_x(M: int) -> tuple[int, int]:
    """M rows of x, up to 64, in eights, as two powers of two up to 48."""
    eights = -(-M // 8)
    for large, small in ((2, 1), (4, 1), (4, 2)):
        if eights == large + small:
            return 8 * large, 8 * small
    return 8 << (eights - 1).bit_length(), 0


def stages(format: str, M: int, W: int, resident: int, swiglu: bool) -> int:
    """Records in flight, of `resident` programs a multiprocessor."""
    BM = sum(tiles_of_x(M))
    d = {"q4_k": 64, "q5_k": 64, "q6_k": 32}.get(format, 0)
    record = W * (512 * (CODES.get(format, 4) + ABOVE.get(format, 0)) + 256 + d) + BM * 512
    # gate and up pass through shared memory at the end
    return min(8, (SHARED // resident - (64 * W * BM if swiglu else 0)) // record)


@gluon.constexpr_function
def _warps(W, rank):
    return [[1 << i] + [0] * (rank - 1) for i in range(W.bit_length() - 1)]


@gluon.constexpr_function
def _rows_copied(W, G, E):
    """[W, 2, G] or [W, 2, G, 4], a row's piece a lane."""
    more = [0] if E else []
    regs = [[0, 0, 0, 1], [0, 0, 0, 2]] if E else []
    lanes = [[0, 0, 1 << i, *more] for i in range(G.bit_length() - 1)] + [[0, 1, 0, *more]]
    lanes = lanes + [[0, 0, 0, *more]] * (5 - len(lanes))
    shape = [W, 2, G] + ([4] if E else [])
    return gl.DistributedLinearLayout(regs, lanes, _warps(W, len(shape)), [], shape)


@gluon.constexpr_function
def _rows_read(W, G, E):
    """[W, 2, G, 8 / G, 4 lanes t] or [.., 4]: what several lanes share, less the dims that they share."""
    more = ([4], [1], [1]) if E else ([], [], [])
    order = list(range(5 + E - 1, -1, -1))
    P = gl.BlockedLayout([1, 2, 1, 1, 1, *more[0]], [1, 1, G, 8 // G, 4, *more[1]], [W, 1, 1, 1, 1, *more[2]], order)
    return gl.SliceLayout(3, gl.SliceLayout(4, P))


@gluon.constexpr_function
def _plain(rank):
    return gl.SwizzledSharedLayout(1, 1, 1, list(range(rank - 1, -1, -1)))


@gluon.constexpr_function
def _lanes(W):
    return gl.BlockedLayout([1, 1], [1, 32], [W, 1], [1, 0])


@gluon.constexpr_function
def _copied(W):
    return gl.BlockedLayout([1, 1, 1, 4], [1, 1, 32, 1], [1, W, 1, 1], [3, 2, 1, 0])


@gluon.constexpr_function
def _product(W, BM):
    return gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BM, 16])


@gluon.jit
def _four(w, W: gl.constexpr):
    """[W, 32, 4] -> each [W, 32]."""
    even, odd = gl.split(gl.reshape(w, (W, 32, 2, 2)))
    w0, w2 = gl.split(even)
    w1, w3 = gl.split(odd)
    L: gl.constexpr = _lanes(W)
    return (
        gl.convert_layout(w0, L), gl.convert_layout(w1, L), gl.convert_layout(w2, L), gl.convert_layout(w3, L)
    )  # fmt: skip


@gluon.jit
def _words(memory, W: gl.constexpr):
    """[1, W, 32, 4] -> each [W, 32]."""
    return _four(gl.reshape(memory.load(_copied(W)), (W, 32, 4)), W)


@gluon.jit
def _row_words(memory, W: gl.constexpr):
    """[W, 2, 8, 4] -> of a lane's rows g and g + 8 four words [W, 32]."""
    b = gl.expand_dims(gl.expand_dims(memory.load(_rows_read(W, 8, 1)), 3), 4).broadcast_to((W, 2, 8, 1, 4, 4))
    b0, b1 = gl.split(gl.reshape(gl.permute(b, (0, 2, 3, 4, 5, 1)), (W, 32, 4, 2)))
    return _four(b0, W), _four(b1, W)


@gluon.jit
def _row_word(memory, W: gl.constexpr, G: gl.constexpr):
    """[W, 2, G] -> of a lane's rows g and g + 8 one [W, 32]."""
    b = gl.expand_dims(gl.expand_dims(memory.load(_rows_read(W, G, 0)), 3), 4).broadcast_to((W, 2, G, 8 // G, 4))
    b0, b1 = gl.split(gl.reshape(gl.permute(b, (0, 2, 3, 4, 1)), (W, 32, 2)))
    return gl.convert_layout(b0, _lanes(W)), gl.convert_layout(b1, _lanes(W))


@gluon.jit
def _decoded(w, d, odd, C: gl.constexpr, FORMAT: gl.constexpr):
    """A row's scales of groups 2 C and 2 C + 1 in a pair, and what is added: the codes' middle less the minimum.

    q6_k: scales of the groups' first 16 columns, and of the others. odd: which half of its d is the row's.
    """
    if FORMAT == "q4_0" or FORMAT == "q8_0":
        pairs = (w[C], w[C])
    else:
        low = d & 0xFFFF
        if FORMAT == "q6_k":
            low = (d >> (16 * odd)) & 0xFFFF
            TEXT: gl.constexpr = _BIASED
        else:
            TEXT: gl.constexpr = _BY_16 if FORMAT == "q5_k" else _BY_8
        low = low | (low << 16)
        less = low
        if FORMAT == "q4_k" or FORMAT == "q5_k":
            up = (d >> 16) & 0xFFFF
            less = (up | (up << 16)) ^ -2147450880
        pairs = gl.inline_asm_elementwise(
            TEXT, "=&r,=&r,r,r,r", [w[C], low, less], (gl.int32, gl.int32), is_pure=True, pack=1
        )
    return pairs


@gluon.jit
def _weights(
    w, above, s, m, P: gl.constexpr, S: gl.constexpr, AT: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr
):  # fmt: skip
    """Nibble 2 S + P of a word's two columns -> their weights [W, 32, 2]: code times half P of s, plus that of m."""
    w = w >> (8 * S)
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        above = (above >> (4 + AT)) if S else (above << (4 - AT))
    if FORMAT == "q4_k":
        TEXT: gl.constexpr = _Q4_K1 if P else _Q4_K0
    elif FORMAT == "q5_k":
        TEXT: gl.constexpr = _Q5_K1 if P else _Q5_K0
    elif FORMAT == "q6_k":
        TEXT: gl.constexpr = _Q6_K1 if P else _Q6_K0
    elif FORMAT == "q8_0":
        TEXT: gl.constexpr = _Q8_01 if P else _Q8_00
    else:
        TEXT: gl.constexpr = _Q4_01 if P else _Q4_00
    pair = gl.inline_asm_elementwise(TEXT, "=r,r,r,r,r", [w, s, m, above], gl.int32, is_pure=True, pack=1)
    if BF16:
        pair = gl.inline_asm_elementwise(_TO_BF16, "=r,r", [pair], gl.int32, is_pure=True, pack=1)
        low, high = gl.inline_asm_elementwise(
            _SPLIT, "=h,=h,r", [pair], (gl.bfloat16, gl.bfloat16), is_pure=True, pack=1
        )
    else:
        low, high = gl.inline_asm_elementwise(_SPLIT, "=h,=h,r", [pair], (gl.float16, gl.float16), is_pure=True, pack=1)
    return gl.join(low, high)


@gluon.jit
def _by_columns(
    v, above, s0, s1, P: gl.constexpr, R1: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr
):  # fmt: skip
    """16 columns R1 of nibbles P: [W, 32, h, s, r0]."""
    e0, m0 = s0
    e1, m1 = s1
    if FORMAT == "q6_k" and R1:
        e0, e1 = m0, m1
    AT0: gl.constexpr = 2 * R1 if FORMAT == "q5_k" else 0
    AT1: gl.constexpr = 2 * R1 + 1 if FORMAT == "q5_k" else 2
    a0 = _weights(v[2 * R1], above, e0, m0, P, 0, AT0, FORMAT, BF16)
    a1 = _weights(v[2 * R1 + 1], above, e1, m1, P, 0, AT1, FORMAT, BF16)
    a2 = _weights(v[2 * R1], above, e0, m0, P, 1, AT0, FORMAT, BF16)
    a3 = _weights(v[2 * R1 + 1], above, e1, m1, P, 1, AT1, FORMAT, BF16)
    return gl.join(gl.join(a0, a2), gl.join(a1, a3))


@gluon.jit
def _operand(
    codes, high, words, d, odd, slot,
    C: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr, W: gl.constexpr, BM: gl.constexpr,
):  # fmt: skip
    """A of 64 columns C: [16 W, 64]."""
    s0, s1 = _decoded(words[0], d[0], odd, C, FORMAT), _decoded(words[1], d[1], odd, C, FORMAT)
    v = _words(codes.index(slot).slice(C, 1), W)
    u = v
    if FORMAT == "q8_0":
        u = _words(codes.index(slot).slice(4 + C, 1), W)
    h0, h1 = v[0], v[0]
    if FORMAT == "q5_k":
        h0 = high[C]
        h1 = h0
    if FORMAT == "q6_k":
        h0 = high[2 * C]
        h1 = high[2 * C + 1]
    b0 = gl.join(_by_columns(v, h0, s0, s1, 0, 0, FORMAT, BF16), _by_columns(v, h1, s0, s1, 0, 1, FORMAT, BF16))
    b1 = gl.join(_by_columns(u, h0, s0, s1, 1, 0, FORMAT, BF16), _by_columns(u, h1, s0, s1, 1, 1, FORMAT, BF16))
    # W g t h s r0 r1 p
    a = gl.reshape(gl.join(b0, b1), (W, 8, 4, 2, 2, 2, 2, 2))
    a = gl.reshape(gl.permute(a, (0, 5, 1, 7, 6, 4, 2, 3)), (16 * W, 64))
    return gl.convert_layout(a, gl.DotOperandLayout(0, _product(W, BM), 2), assert_trivial=True)


@gluon.jit
def _record(
    acc, acc_2, codes, bits, scales, ds, xs, xs_2, odd, slot,
    FORMAT: gl.constexpr, BF16: gl.constexpr, W: gl.constexpr, BM: gl.constexpr, BM2: gl.constexpr,
):  # fmt: skip
    """acc, acc_2 + a record of the ring's."""
    words = _row_words(scales.index(slot), W)
    d = (words[0][0], words[1][0])
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        d = _row_word(ds.index(slot), W, 4 if FORMAT == "q6_k" else 8)
    high = ()
    if FORMAT == "q5_k":
        high = _words(bits.index(slot).slice(0, 1), W)
    elif FORMAT == "q6_k":
        high = _words(bits.index(slot).slice(0, 1), W) + _words(bits.index(slot).slice(1, 1), W)
    for c in gl.static_range(4):
        a = _operand(codes, high, words, d, odd, slot, c, FORMAT, BF16, W, BM)
        # the next columns' operand is being made while this product runs
        acc = hopper.warpgroup_mma(a, xs[c].index(slot).permute((1, 0)), acc, is_async=True)
        if BM2:
            a = gl.convert_layout(a, gl.DotOperandLayout(0, _product(W, BM2), 2), assert_trivial=True)
            acc_2 = hopper.warpgroup_mma(a, xs_2[c].index(slot).permute((1, 0)), acc_2, is_async=True)
            acc, acc_2 = hopper.warpgroup_mma_wait(0 if c == 3 else 2, deps=[acc, acc_2])
        else:
            acc = hopper.warpgroup_mma_wait(0 if c == 3 else 1, deps=[acc])
    return acc, acc_2


@gluon.jit
def _owner(i, share, more):
    """The program whose share holds record i."""
    return gl.where(i < more * (share + 1), i // (share + 1), (i - more) // gl.maximum(share, 1))


@gluon.jit
def _finish(
    acc, first, residual, s_residual_m, out, i_n, M, N, SWIGLU: gl.constexpr, W: gl.constexpr, BM: gl.constexpr
):  # fmt: skip
    """acc [16 W rows of W, BM], rows of x from `first` on; with SWIGLU rows of gate, then of up."""
    ROWS: gl.constexpr = 8 * W if SWIGLU else 16 * W
    if SWIGLU:
        P: gl.constexpr = gl.BlockedLayout([1, 4, 2], [32, 1, 1], [W // 2, 2, 1], [2, 1, 0])
        gate, up = gl.split(gl.convert_layout(gl.permute(gl.reshape(acc, (2, ROWS, BM)), (1, 2, 0)), P))
        acc = gate / (1.0 + gl.exp(-gate)) * up
    L: gl.constexpr = acc.type.layout
    o_n = i_n * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L))[:, None]
    o_m = first + gl.arange(0, BM, layout=gl.SliceLayout(0, L))[None, :]
    inside = (o_m < M) & (o_n < N)
    if residual is not None:
        acc += gl.load(residual + o_m.to(gl.int64) * s_residual_m + o_n, mask=inside, other=0.0).to(gl.float32)
    gl.store(out + o_m.to(gl.int64) * N + o_n, acc.to(out.dtype.element_ty), mask=inside)


@gluon.jit
def ring_exact(
    x, s_x_m,
    wide,
    residual, s_residual_m,
    out,
    partial,
    arrived,
    M, N, K,
    FORMAT: gl.constexpr,
    RECORD: gl.constexpr,
    SCALES: gl.constexpr,
    D: gl.constexpr,
    SWIGLU: gl.constexpr,
    W: gl.constexpr,
    BM: gl.constexpr,
    BM2: gl.constexpr,
    S: gl.constexpr,
    CODES: gl.constexpr,
    ABOVE: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """BM + BM2 rows of x a program, each a power of two. With SWIGLU half of a group are rows of gate, and half the
    same rows of up."""
    WORDS: gl.constexpr = RECORD // 4
    ROWS: gl.constexpr = 16 * W
    SLOT: gl.constexpr = ROWS * (BM + BM2)
    BF16: gl.constexpr = x.dtype.element_ty == gl.bfloat16
    # a group's tiles side by side; with SWIGLU of gate, and as many of up
    TILES: gl.constexpr = W // 8 if SWIGLU else W // 4
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    groups = N // (TILES * 64)
    i_p, programs = gl.program_id(0), gl.num_programs(0)
    work = groups * records
    # the first `more` programs take a record more than the others
    share, more = work // programs, work % programs
    first = i_p * share + gl.minimum(i_p, more)
    last = first + share + (i_p < more).to(gl.int32)
    up = (N // 64) * records * WORDS

    codes = gl.allocate_shared_memory(gl.int32, [S, CODES, W, 32, 4], _plain(4))
    bits = codes
    if ABOVE:
        bits = gl.allocate_shared_memory(gl.int32, [S, ABOVE, W, 32, 4], _plain(4))
    scales = gl.allocate_shared_memory(gl.int32, [S, W, 2, 8, 4], _plain(4))
    ds = scales
    G: gl.constexpr = 4 if FORMAT == "q6_k" else 8
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        ds = gl.allocate_shared_memory(gl.int32, [S, W, 2, G], _plain(3))
    TYPE: gl.constexpr = x.dtype.element_ty
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    xs, xs_2 = (), ()
    for _ in gl.static_range(4):
        xs = xs + (gl.allocate_shared_memory(TYPE, [S, BM, 64], SWIZZLED),)
        if BM2:
            xs_2 = xs_2 + (gl.allocate_shared_memory(TYPE, [S, BM2, 64], SWIZZLED),)

    # where a lane's pieces lie in a record of the group's first tile, in words
    at = _pieces(CODES, W, TILES, records * WORDS, up)
    at_h = at
    if ABOVE:
        at_h = _pieces(ABOVE, W, TILES, records * WORDS, up) + _HIGH // 4
    at_s = _spread(W, 8, True, TILES, records * WORDS, up) + SCALES // 4
    at_d = _spread(W, G, False, TILES, records * WORDS, up) + D // 4
    p_x, m_x = _rows_of_x(x, s_x_m, 0, M, W, BM)
    p_x2, m_x2 = p_x, m_x
    if BM2:
        p_x2, m_x2 = _rows_of_x(x, s_x_m, BM, M, W, BM2)

    L: gl.constexpr = _lanes(W)
    odd = gl.arange(0, 32, layout=gl.SliceLayout(0, L))[None, :] // 4 % 2
    A: gl.constexpr = _product(W, BM)
    o_row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, A))[:, None]
    flat = o_row * BM + gl.arange(0, BM, layout=gl.SliceLayout(0, A))[None, :]
    A2: gl.constexpr = _product(W, BM2 if BM2 else BM)
    o_row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, A2))[:, None]
    flat_2 = ROWS * BM + o_row * BM2 + gl.arange(0, BM2 if BM2 else BM, layout=gl.SliceLayout(0, A2))[None, :]

    # the next record to fetch: its column of records, and its first tile's words
    column = first % records
    p_next = wide + ((first // records * TILES).to(gl.int64) * records + column) * WORDS
    over = ((TILES - 1) * records + 1) * WORDS
    # the first records of W do not wait for x
    p_x += column * 256
    p_x2 += column * 256
    ahead_x = column
    for e in gl.static_range(S - 1):
        if first + e < last:
            _fetch_w(codes, bits, scales, ds, p_next, e, at, at_h, at_s, at_d, FORMAT)
        column += 1
        p_next += gl.where(column == records, over, WORDS)
        column = gl.where(column == records, 0, column)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    for e in gl.static_range(S - 1):
        if first + e < last:
            _fetch_x(xs, xs_2, p_x, p_x2, m_x, m_x2, e, BM2)
        async_copy.commit_group()
        ahead_x += 1
        p_x += gl.where(ahead_x == records, 256 - K, 256)
        p_x2 += gl.where(ahead_x == records, 256 - K, 256)
        ahead_x = gl.where(ahead_x == records, 0, ahead_x)
    slot, free = 0, S - 1
    for i_n in range(first // records, (last - 1) // records + 1):
        begin, end = gl.maximum(first, i_n * records), gl.minimum(last, (i_n + 1) * records)
        acc = gl.full((ROWS, BM), 0.0, gl.float32, layout=A)
        acc_2 = acc
        if BM2:
            acc_2 = gl.full((ROWS, BM2), 0.0, gl.float32, layout=A2)
        for i in range(begin, end):
            async_copy.wait_group(S - 2)
            # what cp.async wrote is read by the tensor cores' own way to memory
            hopper.fence_async_shared()
            if i + S - 1 < last:
                _fetch_w(codes, bits, scales, ds, p_next, free, at, at_h, at_s, at_d, FORMAT)
                _fetch_x(xs, xs_2, p_x, p_x2, m_x, m_x2, free, BM2)
            async_copy.commit_group()
            column += 1
            p_next += gl.where(column == records, over, WORDS)
            p_x += gl.where(column == records, 256 - K, 256)
            p_x2 += gl.where(column == records, 256 - K, 256)
            column = gl.where(column == records, 0, column)
            acc, acc_2 = _record(acc, acc_2, codes, bits, scales, ds, xs, xs_2, odd, slot, FORMAT, BF16, W, BM, BM2)
            free = slot
            slot = gl.where(slot == S - 1, 0, slot + 1)
        if end - begin == records:
            _finish(acc, 0, residual, s_residual_m, out, i_n, M, N, SWIGLU, W, BM)
            if BM2:
                _finish(acc_2, BM, residual, s_residual_m, out, i_n, M, N, SWIGLU, W, BM2)
        else:
            p_part = partial + (2 * i_p + (begin != first).to(gl.int32)).to(gl.int64) * SLOT
            gl.store(p_part + flat, acc)
            if BM2:
                gl.store(p_part + flat_2, acc_2)
    # arrivals come last: nothing of this program's stream waits for a fence
    barrier()
    for i_n in range(first // records, (last - 1) // records + 1):
        begin_p, end_p = _owner(i_n * records, share, more), _owner((i_n + 1) * records - 1, share, more)
        if begin_p != end_p:  # noqa: SIM102
            if gl.atomic_add(arrived + i_n, 1, sem="acq_rel") == end_p - begin_p:
                gl.store(arrived + i_n, 0)
                # the first of them may have had the end of another group before
                cut = (begin_p * share + gl.minimum(begin_p, more) < i_n * records).to(gl.int32)
                p_part = partial + (2 * begin_p).to(gl.int64) * SLOT
                acc = _total(p_part + flat, cut, end_p - begin_p, SLOT)
                _finish(acc, 0, residual, s_residual_m, out, i_n, M, N, SWIGLU, W, BM)
                if BM2:
                    acc_2 = _total(p_part + flat_2, cut, end_p - begin_p, SLOT)
                    _finish(acc_2, BM, residual, s_residual_m, out, i_n, M, N, SWIGLU, W, BM2)


@gluon.jit
def _total(p, cut, others, SLOT: gl.constexpr):
    """The sum of the parts of a program and the `others` after it, in order."""
    acc = gl.load(p + cut * SLOT, cache_modifier=".cg")
    # several at a time: a load takes longer than what it brings
    for q in range(0, others, 4):
        p += 2 * SLOT
        y0 = gl.load(p, cache_modifier=".cg")
        y1 = gl.load(p + 2 * SLOT, mask=q + 1 < others, other=0.0, cache_modifier=".cg")
        y2 = gl.load(p + 4 * SLOT, mask=q + 2 < others, other=0.0, cache_modifier=".cg")
        y3 = gl.load(p + 6 * SLOT, mask=q + 3 < others, other=0.0, cache_modifier=".cg")
        acc = acc + y0 + y1 + y2 + y3
        p += 6 * SLOT
    return acc


@gluon.jit
def _rows_of_x(x, s_x_m, first, M, W: gl.constexpr, BM: gl.constexpr):
    """Where rows of x from `first` on begin [BM, 64], and which of them there are."""
    P: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [W, 1], [1, 0])
    o_m = first + gl.arange(0, BM, layout=gl.SliceLayout(1, P))
    p = x + o_m.to(gl.int64)[:, None] * s_x_m + gl.arange(0, 64, layout=gl.SliceLayout(0, P))[None, :]
    return p, (o_m < M)[:, None]


@gluon.jit
def _tile(o_w, TILES: gl.constexpr, tile, up):
    """From a group's first tile to that of warps o_w."""
    return o_w // 4 % TILES * tile + o_w // (4 * TILES) * up


@gluon.jit
def _pieces(B: gl.constexpr, W: gl.constexpr, TILES: gl.constexpr, tile, up):
    """Words from the first of a record to lanes' pieces [B, W, 32, 4]."""
    P: gl.constexpr = _copied(W)
    o_b = gl.arange(0, B, layout=gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, P))))[:, None, None, None]
    o_w = gl.arange(0, W, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, P))))[None, :, None, None]
    o_l = gl.arange(0, 32, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, P))))[None, None, :, None]
    o_e = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, P))))[None, None, None, :]
    return _tile(o_w, TILES, tile, up) + o_b * 512 + o_w % 4 * 128 + o_l * 4 + o_e


@gluon.jit
def _spread(W: gl.constexpr, G: gl.constexpr, E: gl.constexpr, TILES: gl.constexpr, tile, up):
    """Words from the first tile's scales (E) or d to those of rows [W, 2, G], four words each or one."""
    EACH: gl.constexpr = 4 if E else 1
    P: gl.constexpr = _rows_copied(W, G, E)
    if E:
        Q: gl.constexpr = gl.SliceLayout(3, P)
    else:
        Q: gl.constexpr = P
    o_w = gl.arange(0, W, layout=gl.SliceLayout(1, gl.SliceLayout(2, Q)))[:, None, None]
    o_r = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(2, Q)))[None, :, None]
    o_g = gl.arange(0, G, layout=gl.SliceLayout(0, gl.SliceLayout(1, Q)))[None, None, :]
    at = _tile(o_w, TILES, tile, up) + (o_w % 4 * (2 * G) + o_r * G + o_g) * EACH
    if E:
        o_e = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, P))))
        at = gl.expand_dims(at, 3) + o_e[None, None, None, :]
    return at


@gluon.jit
def _fetch_w(codes, bits, scales, ds, base, slot, at, at_h, at_s, at_d, FORMAT: gl.constexpr):
    """A record into a slot of the ring. A copy for each piece of shared memory: between two into one there would be a
    barrier."""
    copy(codes.index(slot), base + at)
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        copy(bits.index(slot), base + at_h)
    copy(scales.index(slot), base + at_s)
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        copy(ds.index(slot), base + at_d)


@gluon.jit
def _fetch_x(xs, xs_2, p_x, p_x2, m_x, m_x2, slot, BM2: gl.constexpr):
    for c in gl.static_range(4):
        copy(xs[c].index(slot), p_x + c * 64, mask=m_x)
        if BM2:
            copy(xs_2[c].index(slot), p_x2 + c * 64, mask=m_x2)
