"""y = x · Wᵀ over tiles (reference/tiles.py), activations as they are, through a ring of shared memory (sm90).

    groups of 16 W rows of the weight, each K / 256 records long, end to end, in equal shares a program:

    |     group 0     |     group 1     |     group 2     | ...
    |   share 0    |   share 1    |   share 2    |  ...            a program each, several a multiprocessor

    a share hands over what it has of a group that begins in another (`lib/handed.py`), whose share waits for it

    a warp   record of W ──TMA──> | stage 0 | stage 1 | ... |     the first ones before the launch before has ended
             x           ──TMA──> |   "     |    "    |     |
    W warps  codes ──16 bytes a lane──> registers ──> f16 A ─┐
             x ───────────────────────────────────────────> B ┴─ wgmma ──> [16 W, 8 E]      E: eights of rows of x

`lib/wide_exact.py` in Gluon: Triton's compiler has loads wait behind the last product, here several records are on
their way whatever the program waits for, and the codes of the next 64 columns are unpacked under the product of these.
Nor does a warp wait for another: it waits for a record and gives its slot back by itself, and only wgmma brings four
together. What limits it: dequantisation's instructions (three for two weights), which do not hide behind memory where
a record is first waited for; where many share a group, the sum.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .addresses import address, arrive, begin, read, tell, wait
from .eights import lanes, multiplied, waited
from .handed import SHARES, between, chosen, hand, over, share, take
from .newer import barrier, fetch, reinterpret

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
# bytes of shared memory of a multiprocessor of sm90, and what of a program's share the system, barriers and the
# hand-over to other warps take
SHARED, TAKEN = 233472, 1024 + 1024 + 256
# pieces of 2 KiB a 64 rows: codes, and the bits above them
CODES = {"q8_0": 8}
ABOVE = {"q5_k": 1, "q6_k": 2}
FREE = gl.constexpr(16)
# warps of which one fetches: registers are dealt out to four at a time
FETCH = 4


def eights_of(M: int) -> int:
    return -(-M // 8)


def stages(format: str, M: int, W: int, resident: int, swiglu: bool) -> tuple[int, int]:
    """Records in flight of W, and of x, of `resident` programs a multiprocessor: as many, or a fourth one of W where
    there is room for three of both."""
    d = {"q4_k": 64, "q5_k": 64, "q6_k": 32}.get(format, 0)
    record, x = W * (512 * (CODES.get(format, 4) + ABOVE.get(format, 0)) + 256 + d), eights_of(M) * 4096
    # gate and up pass through shared memory at the end
    room = SHARED // resident - TAKEN - (1024 * W if swiglu else 0)
    both = min(8, room // (record + x))
    return 4 if both == 3 and 4 * record + 3 * x <= room else both, both


def registers(W: int, resident: int) -> int:
    """A thread's, so that `resident` programs find room; what the warps that fetch leave, the others have."""
    return min(255, 65536 // (32 * (W + FETCH)) // resident // 8 * 8)


def described(x: torch.Tensor, weight: torch.Tensor, format: str, swiglu: bool, W: int) -> tuple[TensorDescriptor, ...]:
    """How the TMA finds eight rows of a record's piece of x (beyond the last they are zeros), and its planes in a
    group's tiles, of gate and of up: codes, the bits above, scales and d."""
    (M, K), words, (two, side) = x.shape, weight.view(torch.int32), (2, W // 8) if swiglu else (1, W // 4)
    step, rows = words.shape[1] * words.shape[2], words.shape[1] * words.shape[2] // 32
    sides = words.shape[0] // two
    in_eights = gl.NVMMASharedLayout(128, 16, rank=3)
    eight = TensorDescriptor(x, [K // 64, M, 64], [64, x.stride(0), 1], [4, 8, 64], in_eights)

    def plane(bytes: int) -> TensorDescriptor:
        layout = gl.NVMMASharedLayout(0, 32, rank=4)
        return TensorDescriptor(
            words, [two, sides, rows, 32], [sides * step, step, 32, 1], [two, side, bytes // 128, 32], layout
        )

    codes, scales = plane(2048 * CODES.get(format, 4)), plane(1024)
    above = plane(2048 * ABOVE[format]) if format in ABOVE else codes
    d = plane({"q6_k": 128, "q4_k": 256, "q5_k": 256}.get(format, 1024))
    return eight, codes, above, scales, d


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


@gluon.jit
def _four(w, W: gl.constexpr):
    """[W, 32, 4] -> each [W, 32]."""
    even, odd = gl.split(gl.reshape(w, (W, 32, 2, 2)))
    w0, w2 = gl.split(even)
    w1, w3 = gl.split(odd)
    L: gl.constexpr = lanes(W)
    return (
        gl.convert_layout(w0, L), gl.convert_layout(w1, L), gl.convert_layout(w2, L), gl.convert_layout(w3, L)
    )  # fmt: skip


@gluon.jit
def _words(memory, C: gl.constexpr, W: gl.constexpr):
    """[W / 4, pieces, 4, 32, 4], of them piece C -> each [W, 32]."""
    P: gl.constexpr = gl.BlockedLayout([1, 1, 1, 1, 4], [1, 1, 1, 32, 1], [W // 4, 1, 4, 1, 1], [4, 3, 2, 1, 0])
    return _four(gl.reshape(memory.slice(C, 1, dim=1).load(P), (W, 32, 4)), W)


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
    return gl.convert_layout(b0, lanes(W)), gl.convert_layout(b1, lanes(W))


@gluon.jit
def _decoded(w, d, odd, FORMAT: gl.constexpr):
    """Of a row's scales those of two groups in a pair, and what is added: the codes' middle less the minimum.

    q6_k: scales of the groups' first 16 columns, and of the others. odd: which half of its d is the row's.
    """
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
    return gl.inline_asm_elementwise(TEXT, "=&r,=&r,r,r,r", [w, low, less], (gl.int32, gl.int32), is_pure=True, pack=1)


@gluon.jit
def _weights(
    w, above, s, m, P: gl.constexpr, S: gl.constexpr, AT: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr
):  # fmt: skip
    """Nibble 2 S + P of a word's two columns -> their weights, a pair: code times half P of s, plus that of m."""
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
    return pair


@gluon.jit
def _by_columns(
    v, above, s0, s1, P: gl.constexpr, R1: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr
):  # fmt: skip
    """Four registers of A: 16 columns R1 of nibbles P."""
    e0, m0 = s0
    e1, m1 = s1
    if FORMAT == "q6_k" and R1:
        e0, e1 = m0, m1
    AT0: gl.constexpr = 2 * R1 if FORMAT == "q5_k" else 0
    AT1: gl.constexpr = 2 * R1 + 1 if FORMAT == "q5_k" else 2
    return (
        _weights(v[2 * R1], above, e0, m0, P, 0, AT0, FORMAT, BF16),
        _weights(v[2 * R1 + 1], above, e1, m1, P, 0, AT1, FORMAT, BF16),
        _weights(v[2 * R1], above, e0, m0, P, 1, AT0, FORMAT, BF16),
        _weights(v[2 * R1 + 1], above, e1, m1, P, 1, AT1, FORMAT, BF16),
    )


@gluon.jit
def _own_words(memory, W: gl.constexpr):
    """[W, 2, 8, 4] -> of rows g and g + 8 a lane's word t, each [W, 32]."""
    P: gl.constexpr = gl.BlockedLayout([1, 2, 1, 1], [1, 1, 8, 4], [W, 1, 1, 1], [3, 2, 1, 0])
    w0, w1 = gl.split(gl.reshape(gl.permute(memory.load(P), (0, 2, 3, 1)), (W, 32, 2)))
    return gl.convert_layout(w0, lanes(W)), gl.convert_layout(w1, lanes(W))


@gluon.constexpr_function
def _of_lane(t):
    """Of the four lanes of a row the word that lane t has."""
    return f"shfl.sync.idx.b32 $0, $1, {t}, 0x1c1f, 0xffffffff;"


@gluon.jit
def _scales(scales, ds, odd, FORMAT: gl.constexpr, W: gl.constexpr):
    """Of rows g and g + 8 what `_decoded` leaves of a lane's word t; of formats with nothing to decode all words."""
    w = _own_words(scales, W) if FORMAT != "q4_0" and FORMAT != "q8_0" else _row_words(scales, W)
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        d = _row_word(ds, W, 4 if FORMAT == "q6_k" else 8)
        w = (_decoded(w[0], d[0], odd, FORMAT), _decoded(w[1], d[1], odd, FORMAT))
    return w


@gluon.jit
def _scales_of(s, C: gl.constexpr, FORMAT: gl.constexpr):
    """Of 64 columns C, a pair: from the lane that decoded its word."""
    if FORMAT == "q4_0" or FORMAT == "q8_0":
        pair = (s[C], s[C])
    else:
        TEXT: gl.constexpr = _of_lane(C)
        e = gl.inline_asm_elementwise(TEXT, "=r,r", [s[0]], gl.int32, is_pure=True, pack=1)
        pair = (e, gl.inline_asm_elementwise(TEXT, "=r,r", [s[1]], gl.int32, is_pure=True, pack=1))
    return pair


@gluon.jit
def _operand(v, u, high, s0, s1, C: gl.constexpr, FORMAT: gl.constexpr, BF16: gl.constexpr):
    """A of 64 columns C, of their words for the first and the second of a byte's nibbles: 16 registers."""
    h0, h1 = v[0], v[0]
    if FORMAT == "q5_k":
        h0 = high[C]
        h1 = h0
    if FORMAT == "q6_k":
        h0 = high[2 * C]
        h1 = high[2 * C + 1]
    low = _by_columns(v, h0, s0, s1, 0, 0, FORMAT, BF16) + _by_columns(v, h1, s0, s1, 0, 1, FORMAT, BF16)
    up = _by_columns(u, h0, s0, s1, 1, 0, FORMAT, BF16) + _by_columns(u, h1, s0, s1, 1, 1, FORMAT, BF16)
    return low + up


@gluon.jit
def _record(
    acc, codes, bits, scales, ds, at, odd, slot, at_free, later,
    FORMAT: gl.constexpr, BF16: gl.constexpr, W: gl.constexpr, OVER: gl.constexpr,
):  # fmt: skip
    """A record of the ring's, x of which lies at `at`, and acc if it is a `later` one of its group. OVER: the last
    products are under way when it ends, and those of the record before end in it, so that its slot is free."""
    s = _scales(scales.index(slot), ds.index(slot), odd, FORMAT, W)
    high = ()
    if FORMAT == "q5_k":
        high = _words(bits.index(slot), 0, W)
    elif FORMAT == "q6_k":
        high = _words(bits.index(slot), 0, W) + _words(bits.index(slot), 1, W)
    # loads do not pass a wait for a product
    ahead = ()
    for c in gl.static_range(0 if FORMAT == "q8_0" else 4):
        ahead = ahead + (_words(codes.index(slot), c, W),)
    for c in gl.static_range(4):
        if FORMAT == "q8_0":
            v, u = _words(codes.index(slot), c, W), _words(codes.index(slot), 4 + c, W)
        else:
            v, u = ahead[c], ahead[c]
        s0, s1 = _scales_of(s[0], c, FORMAT), _scales_of(s[1], c, FORMAT)
        a = _operand(v, u, high, s0, s1, c, FORMAT, BF16)
        if c == 3:
            # all of the slot that warps read themselves, while a product runs
            read(W)
        # the next columns' operand is being made while this product runs
        acc = multiplied(acc, a, at + 64 * c, 1 if c else later.to(gl.int32), W, BF16)
        acc = waited(acc, 0 if c == 3 and not OVER else 1)
        if OVER and c == 0:
            arrive(at_free, later, W)
    return acc


@gluon.constexpr_function
def _turned(kind):
    """Two sums of a lane, of a row g and columns 2t, 2t + 1 -> of column g rows 2t, 2t + 1, as the result has them."""
    return f"{{\n.reg .b32 t;\ncvt.rn.{kind}x2.f32 t, $2, $1;\nmovmatrix.sync.aligned.m8n8.trans.b16 $0, t;\n}}"


@gluon.jit
def _finish(acc, first, residual, s_residual_m, out, i_n, M, N, SWIGLU: gl.constexpr, W: gl.constexpr):
    """The sums of 16 W rows of W and of rows of x from `first` on; with SWIGLU rows of gate, then of up."""
    if SWIGLU:
        for e in gl.static_range(len(acc) // 4):
            # W g t h, and rows g and g + 8
            y = gl.join(gl.join(acc[4 * e], acc[4 * e + 1]), gl.join(acc[4 * e + 2], acc[4 * e + 3]))
            y = gl.reshape(gl.permute(gl.reshape(y, (W, 8, 4, 2, 2)), (0, 4, 1, 2, 3)), (16 * W, 8))
            _finish_gated(y, first + 8 * e, residual, s_residual_m, out, i_n, M, N, W)
    else:
        warp = gl.arange(0, W, layout=gl.SliceLayout(1, lanes(W)))[:, None]
        lane = gl.arange(0, 32, layout=gl.SliceLayout(0, lanes(W)))[None, :]
        # of a lane 4g + t: row g of W, and row 2t of x
        o_n, o_m = (i_n * W + warp) * 16 + lane // 4, warp * 0 + first + lane % 4 * 2
        sums = acc
        if residual is not None:
            sums = ()
            p = residual + o_m.to(gl.int64) * s_residual_m + o_n
            # all are on their way before the first is waited for
            for r in gl.static_range(len(acc)):
                m, n = r // 4 * 8 + r % 2, r // 2 % 2 * 8
                added = gl.load(p + m * s_residual_m + n, mask=o_m + m < M, other=0.0)
                sums = sums + (acc[r] + added.to(gl.float32),)
        _stored(sums, o_m, o_n, lane, first, out, M, N)


@gluon.jit
def _finish_two(acc, residual, s_residual_m, out, i_n, M, N, SWIGLU: gl.constexpr, W: gl.constexpr):
    """The same of two tiles a warp, by eights and tiles; with SWIGLU the second is up where the first is gate."""
    one, two = (), ()
    for e in gl.static_range(len(acc) // 8):
        one, two = one + acc[8 * e : 8 * e + 4], two + acc[8 * e + 4 : 8 * e + 8]
    if SWIGLU:
        y = ()
        for r in gl.static_range(len(one)):
            y = y + (one[r] / (1.0 + gl.exp(-one[r])) * two[r],)
        _finish(y, 0, residual, s_residual_m, out, i_n, M, N, False, W)
    else:
        _finish(one, 0, residual, s_residual_m, out, i_n * 2, M, N, False, W)
        _finish(two, 0, residual, s_residual_m, out, i_n * 2 + 1, M, N, False, W)


@gluon.jit
def _stored(sums, o_m, o_n, lane, first, out, M, N):
    """Registers of eights, in a lane of rows o_m and o_m + 1 of x, o_n and o_n + 8 of W."""
    if out.dtype.element_ty == gl.float32:
        p = out + o_m.to(gl.int64) * N + o_n
        for r in gl.static_range(len(sums)):
            m, n = r // 4 * 8 + r % 2, r // 2 % 2 * 8
            gl.store(p + m * N + n, sums[r], mask=o_m + m < M)
    else:
        # two halves a lane, of row g of x and rows 2t and 2t + 1 of W: N is even
        TEXT: gl.constexpr = _turned("bf16" if out.dtype.element_ty == gl.bfloat16 else "f16")
        g, n_t = first + lane // 4, o_n - lane // 4 + lane % 4 * 2
        words = out.to(gl.pointer_type(gl.int32)) + (g.to(gl.int64) * N + n_t) // 2
        for r in gl.static_range(len(sums) // 2):
            two = [sums[2 * r], sums[2 * r + 1]]
            w = gl.inline_asm_elementwise(TEXT, "=r,f,f", two, gl.int32, is_pure=True, pack=1)
            gl.store(words + (r // 2 * 4 * N + r % 2 * 4), w, mask=g + r // 2 * 8 < M)


@gluon.jit
def _finish_gated(y, first, residual, s_residual_m, out, i_n, M, N, W: gl.constexpr):
    """y [16 W rows of W, 8], rows of x from `first` on: half of them of gate, half of up."""
    P: gl.constexpr = gl.BlockedLayout([1, 2, 2], [8, 4, 1], [W, 1, 1], [2, 1, 0])
    gate, up = gl.split(gl.convert_layout(gl.permute(gl.reshape(y, (2, 8 * W, 8)), (1, 2, 0)), P))
    y = gate / (1.0 + gl.exp(-gate)) * up
    L: gl.constexpr = y.type.layout
    o_n = i_n * (8 * W) + gl.arange(0, 8 * W, layout=gl.SliceLayout(1, L))[:, None]
    o_m = first + gl.arange(0, 8, layout=gl.SliceLayout(0, L))[None, :]
    inside = (o_m < M) & (o_n < N)
    if residual is not None:
        y += gl.load(residual + o_m.to(gl.int64) * s_residual_m + o_n, mask=inside, other=0.0).to(gl.float32)
    gl.store(out + o_m.to(gl.int64) * N + o_n, y.to(out.dtype.element_ty), mask=inside)


@gluon.jit
def next_slot(slot, parity, S: gl.constexpr):
    """The ring's next stage, and whether its round is odd."""
    parity = gl.where(slot == S - 1, parity ^ 1, parity)
    return _next(slot, S), parity


@gluon.jit
def _next(slot, S: gl.constexpr):
    return gl.where(slot == S - 1, 0, slot + 1)


@gluon.jit
def next_record(column, tile, records, TILES: gl.constexpr):
    """The record after one, and its group's first tile."""
    column += 1
    tile += gl.where(column == records, TILES, 0)
    return gl.where(column == records, 0, column), tile


@gluon.jit
def _fetch_w(
    planes, held, barriers, column, tile, slot, FORMAT: gl.constexpr, RECORD: gl.constexpr, SCALES: gl.constexpr,
    D: gl.constexpr,
):  # fmt: skip
    row = column * (RECORD // 128)
    fetch(planes[0], [0, tile, row, 0], barriers.index(slot), held[0].index(slot))
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        fetch(planes[1], [0, tile, row + _HIGH // 128, 0], barriers.index(slot), held[1].index(slot))
    fetch(planes[2], [0, tile, row + SCALES // 128, 0], barriers.index(slot), held[2].index(slot))
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        fetch(planes[3], [0, tile, row + D // 128, 0], barriers.index(slot), held[3].index(slot))


@gluon.jit
def _fetch_x(rows, xs, barriers, column, slot, slot_x, E: gl.constexpr):
    for e in gl.static_range(E):
        fetch(rows, [column * 4, 8 * e, 0], barriers.index(slot), xs.index(slot_x * E + e))


@gluon.jit
def _fetched(
    rows, planes, held, xs, barriers, first, last, records, by_records,
    FORMAT: gl.constexpr, RECORD: gl.constexpr, SCALES: gl.constexpr, D: gl.constexpr, W: gl.constexpr,
    E: gl.constexpr, S: gl.constexpr, SX: gl.constexpr, TILES: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One warp: the share's records into the ring."""
    BYTES: gl.constexpr = W // 4 * RECORD + E * 4096
    group = over(first, by_records)
    column, tile = first - group * records, group * TILES
    begun, begun_x = gl.minimum(last - first, S), gl.minimum(last - first, SX)
    column_x = column
    # the first records of W do not wait for x: four to eight tiles a multiprocessor, with more of them x's first rows
    # would come behind all. Of gate and up it is as fast or faster with one more
    AHEAD: gl.constexpr = (3 if E > 3 else 2) if TILES * 4 < W else 2 if W < 8 else 1
    for e in range(0, gl.minimum(begun, AHEAD)):
        mbarrier.expect(barriers.index(e), BYTES)
        _fetch_w(planes, held, barriers, column, tile, e, FORMAT, RECORD, SCALES, D)
        column, tile = next_record(column, tile, records, TILES)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    for e in range(0, begun):
        if e >= AHEAD:
            mbarrier.expect(barriers.index(e), BYTES)
            _fetch_w(planes, held, barriers, column, tile, e, FORMAT, RECORD, SCALES, D)
            column, tile = next_record(column, tile, records, TILES)
        if e < begun_x:
            _fetch_x(rows, xs, barriers, column_x, e, e, E)
            column_x = gl.where(column_x + 1 == records, 0, column_x + 1)
    # a record that is through makes room for x of one that is SX behind it, and for W of one that is S behind it; x may
    # come before its barrier is told how many bytes will
    slot, parity, slot_x, next_x = 0, 0, 0, SX % S
    for i in range(first + SX, last):
        mbarrier.wait(barriers.index(FREE + slot), parity)
        _fetch_x(rows, xs, barriers, column_x, next_x, slot_x, E)
        column_x = gl.where(column_x + 1 == records, 0, column_x + 1)
        if i + (S - SX) < last:
            mbarrier.expect(barriers.index(slot), BYTES)
            _fetch_w(planes, held, barriers, column, tile, slot, FORMAT, RECORD, SCALES, D)
            column, tile = next_record(column, tile, records, TILES)
        slot, parity = next_slot(slot, parity, S)
        slot_x, next_x = _next(slot_x, SX), _next(next_x, S)


@gluon.jit
def _multiplied(
    codes, bits, scales, ds, at, barriers, residual, s_residual_m, out, partial, M, N,
    i_s, first, last, shares, records,
    FORMAT: gl.constexpr, BF16: gl.constexpr, SWIGLU: gl.constexpr, W: gl.constexpr, E: gl.constexpr,
    S: gl.constexpr, SX: gl.constexpr, EACH: gl.constexpr, AT: gl.constexpr, OVER: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """W warps: the share's products, and the sums of groups that begin in it."""
    odd = gl.arange(0, 32, layout=gl.SliceLayout(0, lanes(W)))[None, :] // 4 % 2
    g0, g1 = over(first, shares[3]), over(last - 1, shares[3])
    a0, b1 = between(i_s, g0, g1, first, shares, records, E, EACH)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    slot, parity, before, slot_x = 0, 0, 0, 0
    acc = ()
    for _ in gl.static_range(4 * E):
        acc = acc + (gl.full((W, 32), 0.0, gl.float32, layout=lanes(W)),)
    for i_n in range(g0, g1 + 1):
        begin, end = gl.maximum(first, i_n * records), gl.minimum(last, (i_n + 1) * records)
        for i in range(begin, end):
            wait(barriers + slot * 8, parity, W)
            at_free = barriers + (FREE + (before if OVER else slot)) * 8
            at_x, later = at + slot_x * (256 * E), i > begin
            acc = _record(acc, codes, bits, scales, ds, at_x, odd, slot, at_free, later, FORMAT, BF16, W, OVER)
            if not OVER:
                arrive(at_free, True, W)
            before = slot
            slot, parity = next_slot(slot, parity, S)
            slot_x = _next(slot_x, SX)
        if OVER:
            acc = waited(acc, 0)
            arrive(barriers + (FREE + before) * 8, begin < end, W)
        a, b = gl.where(i_n == g0, a0, i_s), gl.where(i_n == g1, b1, i_s)
        acc = give(acc, residual, s_residual_m, out, partial, M, N, i_s, i_n, a, b, SWIGLU, W, EACH, AT)


@gluon.jit
def give(
    acc, residual, s_residual_m, out, partial, M, N, i_s, i_n, a, b,
    SWIGLU: gl.constexpr, W: gl.constexpr, EACH: gl.constexpr, AT: gl.constexpr, R: gl.constexpr = 1,
):  # fmt: skip
    """Sums of group i_n, which shares a to b have: this one's EACH eights of columns, if there are such, are stored
    with what the others have of them, and the others' handed over. Of R = 2 tiles a warp the first share takes all."""
    E: gl.constexpr = len(acc) // 4
    SLOT: gl.constexpr = 128 * W * E
    mine = i_s - a
    if EACH == E:
        # the first share takes all
        if mine > 0:
            hand(partial + i_s.to(gl.int64) * SLOT, acc, mine, W, EACH)
        else:
            acc = take(partial + (i_s + 1).to(gl.int64) * SLOT, 0, b - a, acc, W, E, AT)
            if R == 2:
                _finish_two(acc, residual, s_residual_m, out, i_n, M, N, SWIGLU, W)
            else:
                _finish(acc, 0, residual, s_residual_m, out, i_n, M, N, SWIGLU, W)
    elif a == b:
        _finish(acc, 0, residual, s_residual_m, out, i_n, M, N, SWIGLU, W)
    else:
        # a share has a part of two groups at most, and another place for each
        hand(partial + (i_s + i_n).to(gl.int64) * SLOT, acc, mine, W, EACH)
        if mine * EACH < E:
            own = take(partial + (a + i_n).to(gl.int64) * SLOT, mine, b - a, chosen(acc, mine, EACH), W, E, AT)
            _finish(own, 8 * EACH * mine, residual, s_residual_m, out, i_n, M, N, SWIGLU, W)
    return acc


# numbers that are compared with and no more: a kernel for each kind of them would be the same
@gluon.jit(do_not_specialize=["M", *SHARES])
def ring_exact(
    rows, codes_of, bits_of, scales_of, d_of,
    residual, s_residual_m,
    out,
    partial,
    M, N, K,
    least, more, alone, by_records, by_least, by_longer, by_rest, by_rest_longer,
    FORMAT: gl.constexpr,
    RECORD: gl.constexpr,
    SCALES: gl.constexpr,
    D: gl.constexpr,
    SWIGLU: gl.constexpr,
    W: gl.constexpr,
    E: gl.constexpr,
    S: gl.constexpr,
    SX: gl.constexpr,
    EACH: gl.constexpr,
    AT: gl.constexpr,
    LAST: gl.constexpr,
    OVER: gl.constexpr,
    CODES: gl.constexpr,
    ABOVE: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Up to 8 E rows of x. With SWIGLU half of a group are rows of gate, and half the same rows of up. Descriptors of
    x's rows and of the weight's planes: see `described`."""
    TYPE: gl.constexpr = rows.dtype
    BF16: gl.constexpr = rows.dtype == gl.bfloat16
    # a group's tiles side by side; with SWIGLU of gate, and as many of up
    TILES: gl.constexpr = W // 8 if SWIGLU else W // 4
    TWO: gl.constexpr = 2 if SWIGLU else 1
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    shares = (least, more, alone, by_records, by_least, by_longer, by_rest, by_rest_longer)
    i_s, first, last = share(shares, N // (TILES * 64), records, LAST)

    xs = gl.allocate_shared_memory(TYPE, [SX * E, 4, 8, 64], gl.NVMMASharedLayout(128, 16, rank=3))
    # of a record that is there, and from FREE on of one that may be overwritten; a KiB, so that it says where it is
    told = gl.allocate_shared_memory(gl.int32, [8, 32], gl.NVMMASharedLayout(128, 32, rank=2))
    tell(W)
    at = address(reinterpret(xs.index(0), gl.int32, (1024,), _plain(1)), W) >> 4
    at_barriers = address(reinterpret(told, gl.int32, (256,), _plain(1)), W)
    # what is copied in one shape is read in another
    P_W: gl.constexpr = gl.NVMMASharedLayout(0, 32, rank=4)
    codes_in = gl.allocate_shared_memory(gl.int32, [S, TWO, TILES, CODES * 16, 32], P_W)
    codes = reinterpret(codes_in, gl.int32, (S, W // 4, CODES, 4, 32, 4), _plain(5))
    bits_in, bits = codes_in, codes
    if ABOVE:
        bits_in = gl.allocate_shared_memory(gl.int32, [S, TWO, TILES, ABOVE * 16, 32], P_W)
        bits = reinterpret(bits_in, gl.int32, (S, W // 4, ABOVE, 4, 32, 4), _plain(5))
    scales_in = gl.allocate_shared_memory(gl.int32, [S, TWO, TILES, 8, 32], P_W)
    scales = reinterpret(scales_in, gl.int32, (S, W, 2, 8, 4), _plain(4))
    ds_in, ds = scales_in, scales
    G: gl.constexpr = 4 if FORMAT == "q6_k" else 8
    if FORMAT != "q4_0" and FORMAT != "q8_0":
        ds_in = gl.allocate_shared_memory(gl.int32, [S, TWO, TILES, G // 4, 32], P_W)
        ds = reinterpret(ds_in, gl.int32, (S, W, 2, G), _plain(3))
    barriers = reinterpret(told, gl.int64, (128, 1), mbarrier.MBarrierLayout())
    # the first lies on the word that says where: all have read it
    barrier()
    begin(at_barriers, ((0, S, 1), (FREE * 8, S, W)), W)
    # the TMA's own way to memory is to find them
    hopper.fence_async_shared()
    gl.warp_specialize(
        [
            (_multiplied, (codes, bits, scales, ds, at, at_barriers, residual, s_residual_m, out, partial,
                           M, N, i_s, first, last, shares, records, FORMAT, BF16, SWIGLU, W, E, S, SX, EACH,
                           AT, OVER, EARLY)),
            (_fetched, (rows, (codes_of, bits_of, scales_of, d_of), (codes_in, bits_in, scales_in, ds_in), xs,
                        barriers, first, last, records, shares[3], FORMAT, RECORD, SCALES, D, W, E, S, SX, TILES,
                        EARLY)),
        ],
        [1], [24],
    )  # fmt: skip
