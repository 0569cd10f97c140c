"""y = x · Wᵀ for 2 to 64 rows of x in 8-bit integers, over tiles (reference/tiles.py), through a ring of shared memory
(sm90).

    groups of 16 W rows of the weight, each K / 256 records long, end to end, in equal shares a program (`ring_exact`)

    a warp   record of W, of W / 4 tiles ──> | stage 0 | stage 1 | ... |    the first ones before x is quantised
             x, a piece an eight of rows ──> |   "     |    "    |     |
    W warps  codes ──16 bytes a lane──> registers ──masks──> A ─┐
             x ────────16 bytes a lane─────────────────────> B ─┴─ m16n8k32 ──> [16, 8 E] of 32 columns      E: eights
                                          times their scale, summed; one multiply-add a record     of rows of x

A warp has 16 rows of W of its own and meets no other: it waits for a record and gives its slot back by itself. A record
and a piece are contiguous in memory, so each is one copy, and PTX finds all of it by one address.

Every warp reads all of x, 2.5 KiB an eight and record. With R = 2 it has rows of two tiles, and reads x once for both;
with SwiGLU the second is up where the first is gate.

Minimums meet the sums of x in f16, in one m16n8k16 a record: a sum is an even number, exact up to 4096, and a bit.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ...reference.tiles import RECORD
from .addresses import address, begin, bulk, give_back, kept, tell, wait
from .eights import lanes, repeated
from .handed import SHARES, between, over, share

# Gluon cannot call what Triton compiles: the PTX is shared, the functions around it are not
from .imma import _FIELDS
from .newer import barrier, reinterpret
from .ring_exact import FREE, SHARED, TAKEN, eights_of, give, next_record, next_slot
from .tiles import HIGH

_HIGH = gl.constexpr(HIGH)
# bytes of eight rows of x and 256 columns: see `quantise_pieces`
PIECE = {"q4_k": 2336, "q5_k": 2336, "q6_k": 2080, "q8_0": 2304, "q4_0": 2304}
# sums begin at 1.5 * 2^23 there: as floats they are that and the sum
_MAGIC = gl.constexpr(0x4B400000)
# a word's second and fourth byte, minimums, as f16
_MINIMUMS = gl.constexpr(
    "{ .reg .b32 t, o; mov.b32 o, 0x64006400; prmt.b32 t, $1, 0x64646464, 0x4341; sub.f16x2 $0, t, o; }"
)


def stages(format: str, M: int, W: int, resident: int, swiglu: bool, R: int = 1) -> int:
    """Records in flight, of `resident` programs a multiprocessor."""
    # gate and up of two warps pass through shared memory at the end
    room = (SHARED // resident - TAKEN - (1024 * W if swiglu and R == 1 else 0)) // 1024 * 1024
    return min(8, room // (W // 4 * R * RECORD[format] + eights_of(M) * PIECE[format]))


@gluon.constexpr_function
def _load(at, count):
    if not count:
        return f"ld.shared.u16 $0, [$1+{at}];"
    if count == 1:
        return f"ld.shared.b32 $0, [$1+{at}];"
    into = ", ".join(f"${i}" for i in range(count))
    return f"ld.shared.v{count}.b32 {{{into}}}, [${count}+{at}];"


@gluon.constexpr_function
def _product(columns, kind, start):
    """A · B of 8-bit codes, or of f16, and what sums begin with."""
    a, b = ("$4, $5, $6, $7", "$8, $9") if columns == 32 else ("$4, $5", "$6")
    kinds = f"s32.{kind}.s8.s32"
    if kind == "f16":
        # the same minimums for both parts of a sum
        a, b, kinds = "$4, $5, $4, $5", "$6, $7", "f32.f16.f16.f32"
    return (
        f"{{ .reg .b32 z; mov.b32 z, {start:#x}; mma.sync.aligned.m16n8k{columns}.row.col.{kinds} "
        f"{{$0, $1, $2, $3}}, {{{a}}}, {{{b}}}, {{z, z, z, z}}; }}"
    )


@gluon.constexpr_function
def _registers(made, given, kind="r"):
    return ",".join([f"={kind}"] * made + ["r"] * given)


@gluon.jit
def _words(at, OFFSET: gl.constexpr, COUNT: gl.constexpr):
    """A lane's words in shared memory."""
    return gl.inline_asm_elementwise(
        _load(OFFSET, COUNT), _registers(COUNT, 1), (at,), repeated(gl.int32, COUNT), is_pure=False, pack=1
    )


@gluon.jit
def _half_word(at, OFFSET: gl.constexpr):
    return gl.inline_asm_elementwise(_load(OFFSET, 0), "=r,r", (at,), gl.int32, is_pure=False, pack=1)


@gluon.jit
def _multiply(a, b, KIND: gl.constexpr, START: gl.constexpr):
    """Integers of rows g and g + 8, columns 2t and 2t + 1, over 32 columns, or over 16 where a has two registers."""
    return gl.inline_asm_elementwise(
        _product(8 * len(a), KIND, START), _registers(4, len(a) + len(b)), a + b, repeated(gl.int32, 4),
        is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _halves(w):
    """Words -> their two f16."""
    low = (w & 0xFFFF).to(gl.int16).to(gl.float16, bitcast=True)
    return low.to(gl.float32), (w >> 16).to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)


@gluon.jit
def _masked(v, MASK: gl.constexpr, TURN: gl.constexpr):
    return (v[0] & MASK) ^ TURN, (v[1] & MASK) ^ TURN, (v[2] & MASK) ^ TURN, (v[3] & MASK) ^ TURN


@gluon.jit
def _fifth(v, h, P: gl.constexpr):
    """Nibbles P of four words, and bit 2 r1 + r0 above each."""
    a = ()
    for i in gl.static_range(4):
        bits = ((h >> i) if P else (h << (4 - i))) & 0x10101010
        a = a + (((v[i] >> (4 * P)) & 0x0F0F0F0F) | bits,)
    return a


@gluon.jit
def _sixth(v, h0, h1, P: gl.constexpr):
    """Nibbles P of four words and two bits above each, h0 for r1 = 0: codes less 32, times four."""
    a = ()
    for i in gl.static_range(4):
        low, up = (v[i] >> 2) if P else (v[i] << 2), (h1 if i > 1 else h0) << (6 - 4 * P - i % 2 * 2)
        a = a + (gl.inline_asm_elementwise(_FIELDS, "=r,r,r", [low, up], gl.int32, is_pure=True, pack=1),)
    return a


@gluon.jit
def _codes(v, u, high, C: gl.constexpr, FORMAT: gl.constexpr):
    """A of groups 2 C and 2 C + 1. The odd ones of q4_k count sixteen times, so do q4_0's, q6_k's four times."""
    if FORMAT == "q8_0":
        a = (v, u)
    elif FORMAT == "q5_k":
        a = (_fifth(v, high[C], 0), _fifth(v, high[C], 1))
    elif FORMAT == "q6_k":
        a = (_sixth(v, high[2 * C], high[2 * C + 1], 0), _sixth(v, high[2 * C], high[2 * C + 1], 1))
    elif FORMAT == "q4_0":
        # codes less 8
        up = (v[0] << 4, v[1] << 4, v[2] << 4, v[3] << 4)
        a = (_masked(up, -0x0F0F0F10, -0x7F7F7F80), _masked(v, -0x0F0F0F10, -0x7F7F7F80))
    else:
        a = (_masked(v, 0x0F0F0F0F, 0), _masked(v, -0x0F0F0F10, 0))
    return a


@gluon.jit
def _scales(w, FORMAT: gl.constexpr):
    """Scales of groups 2c and 2c + 1, for q6_k of their four 16s, from word c of a row's."""
    if FORMAT == "q4_k":
        # the odd group counts sixteen times, so the even one must, too
        s = ((w << 4) & 0xFF0, (w >> 16) & 255)
    elif FORMAT == "q5_k":
        s = (w & 255, (w >> 16) & 255)
    elif FORMAT == "q6_k":
        # 128 less, each by its sign
        w = w ^ -0x7F7F7F80
        s = ((w << 24) >> 24, (w << 16) >> 24, (w << 8) >> 24, w >> 24)
    else:
        low, up = _halves(w)
        s = (low, up)
        if FORMAT == "q4_0":
            s = (low * 0.0625, up * 0.0625)
    return s


@gluon.jit
def _add_integers(s, a, y, z, x, FIRST: gl.constexpr, FORMAT: gl.constexpr):
    """s + codes times x times scale of two groups: below 2^30 over a record."""
    for i in gl.static_range(4 if FORMAT == "q6_k" else 2):
        if FORMAT == "q6_k":
            c = _multiply((a[i // 2][i % 2 * 2], a[i // 2][i % 2 * 2 + 1]), (x[i],), "s8", 0)
        else:
            c = _multiply(a[i], (x[2 * i], x[2 * i + 1]), "u8", 0)
        if FIRST and i == 0:
            s = (c[0] * y[i], c[1] * y[i], c[2] * z[i], c[3] * z[i])
        else:
            s = (s[0] + c[0] * y[i], s[1] + c[1] * y[i], s[2] + c[2] * z[i], s[3] + c[3] * z[i])
    return s


@gluon.jit
def _add_floats(acc, a, y, z, x, d):
    """acc + two groups, where every 32 of x have a d of their own."""
    for i in gl.static_range(2):
        c = _multiply(a[i], (x[2 * i], x[2 * i + 1]), "s8", _MAGIC)
        d0, d1 = d[i][0].to(gl.float32, bitcast=True), d[i][1].to(gl.float32, bitcast=True)
        acc = (
            acc[0] + (c[0].to(gl.float32, bitcast=True) - 12582912.0) * (y[i] * d0),
            acc[1] + (c[1].to(gl.float32, bitcast=True) - 12582912.0) * (y[i] * d1),
            acc[2] + (c[2].to(gl.float32, bitcast=True) - 12582912.0) * (z[i] * d0),
            acc[3] + (c[3].to(gl.float32, bitcast=True) - 12582912.0) * (z[i] * d1),
        )
    return acc


@gluon.jit
def _add_record(acc, s, g, h, least, d, sums, FORMAT: gl.constexpr):
    """acc + a record's integers times d, less the minimums times the sums of x; g, h: d and minimums' d of two rows."""
    f = (s[0].to(gl.float32) * g[0], s[1].to(gl.float32) * g[0], s[2].to(gl.float32) * h[0], s[3].to(gl.float32) * h[0])
    if FORMAT != "q6_k":
        m = gl.inline_asm_elementwise(
            _product(16, "f16", 0), _registers(4, 4, "f"), least + sums, repeated(gl.float32, 4), is_pure=True, pack=1
        )
        f = (f[0] - m[0] * g[1], f[1] - m[1] * g[1], f[2] - m[2] * h[1], f[3] - m[3] * h[1])
    d0, d1 = d[0].to(gl.float32, bitcast=True), d[1].to(gl.float32, bitcast=True)
    return acc[0] + f[0] * d0, acc[1] + f[1] * d1, acc[2] + f[2] * d0, acc[3] + f[3] * d1


@gluon.jit
def _eight(s, I: gl.constexpr):
    return s[4 * I : 4 * I + 4]


@gluon.jit
def _record(
    acc, at, at_x, places, at_free,
    FORMAT: gl.constexpr, SCALES: gl.constexpr, D: gl.constexpr, PIECE: gl.constexpr, W: gl.constexpr,
    E: gl.constexpr, R: gl.constexpr, NEXT: gl.constexpr,
):  # fmt: skip
    """acc, sums of eights and tiles, + the records that lie at `at` and NEXT behind it, with x at `at_x`; places: a
    lane's own codes, scales, and d, and t."""
    BY_32: gl.constexpr = FORMAT == "q8_0" or FORMAT == "q4_0"
    ABOVE: gl.constexpr = 4 if FORMAT == "q5_k" else 8 if FORMAT == "q6_k" else 0
    at_codes, at_scales, at_d, lane, t = places
    at_codes, at_scales, at_d, at_d_x = at_codes + at, at_scales + at, at_d + at, at_x + t * 8
    w0, w1, high = (), (), ()
    for i in gl.static_range(R):
        w0, w1 = w0 + _words(at_scales, SCALES + NEXT * i, 4), w1 + _words(at_scales, SCALES + 128 + NEXT * i, 4)
        if ABOVE > 0:
            high = high + _words(at_codes, _HIGH + NEXT * i, 4)
        if ABOVE > 4:
            high = high + _words(at_codes, _HIGH + 2048 + NEXT * i, 4)
    s = acc
    for c in gl.static_range(4):
        a, y, z = (), (), ()
        for i in gl.static_range(R):
            v = _words(at_codes, 2048 * c + NEXT * i, 4)
            u = v
            if FORMAT == "q8_0":
                u = _words(at_codes, 8192 + 2048 * c + NEXT * i, 4)
            a = a + (_codes(v, u, high[ABOVE * i : ABOVE * i + ABOVE], c, FORMAT),)
            y, z = y + (_scales(w0[4 * i + c], FORMAT),), z + (_scales(w1[4 * i + c], FORMAT),)
        total = ()
        for e in gl.static_range(E):
            x = _words(at_x + lane * 16, PIECE * e + 512 * c, 4)
            if BY_32:
                d = (
                    _words(at_d_x, PIECE * e + 2048 + 64 * c, 2), _words(at_d_x, PIECE * e + 2080 + 64 * c, 2)
                )  # fmt: skip
            for i in gl.static_range(R):
                if BY_32:
                    total = total + _add_floats(_eight(s, R * e + i), a[i], y[i], z[i], x, d)
                else:
                    total = total + _add_integers(_eight(s, R * e + i), a[i], y[i], z[i], x, c == 0, FORMAT)
        s = total
    if not BY_32:
        ds, total = (), ()
        for i in gl.static_range(R):
            ds = ds + (_ds(at_scales + t * 4, at_d, FORMAT, SCALES + NEXT * i, D + NEXT * i),)
        for e in gl.static_range(E):
            d, sums = _words(at_d_x, PIECE * e + PIECE - 32, 2), (lane, lane)
            if FORMAT != "q6_k":
                sums = _words(at_x + lane * 8, PIECE * e + 2048, 2)
            for i in gl.static_range(R):
                g, h, least = ds[i]
                total = total + _add_record(_eight(acc, R * e + i), _eight(s, R * e + i), g, h, least, d, sums, FORMAT)
        s = total
    give_back(at_free, True, W)
    return s


@gluon.jit
def _ds(at_minimums, at_d, FORMAT: gl.constexpr, SCALES: gl.constexpr, D: gl.constexpr):
    """d and the minimums' d of rows g and of g + 8, and the minimums themselves as A wants them."""
    if FORMAT == "q6_k":
        g, h = _halves(_half_word(at_d, D)), _halves(_half_word(at_d, D + 16))
        least = (at_minimums, at_minimums)
    else:
        g, h = _halves(_words(at_d, D, 1)[0]), _halves(_words(at_d, D + 32, 1)[0])
        least = (_least(at_minimums, SCALES), _least(at_minimums, SCALES + 128))
    # how often codes count
    MORE: gl.constexpr = 0.0625 if FORMAT == "q4_k" else 0.25 if FORMAT == "q6_k" else 1.0
    return (g[0] * MORE, g[1]), (h[0] * MORE, h[1]), least


@gluon.jit
def _least(at, OFFSET: gl.constexpr):
    """Minimums of groups 2t and 2t + 1, a pair."""
    return gl.inline_asm_elementwise(_MINIMUMS, "=r,r", _words(at, OFFSET, 1), gl.int32, is_pure=True, pack=1)


@gluon.jit
def _fetch_w(
    weight, at, at_barrier, column, tile, records, tiles,
    RECORD: gl.constexpr, SWIGLU: gl.constexpr, SIDE: gl.constexpr,
):  # fmt: skip
    """A record of SIDE tiles, of them half behind `tiles` others where these are gate's and up's."""
    for i in gl.static_range(SIDE):
        first = tile + i
        if SWIGLU and i >= SIDE // 2:
            first = tile + tiles + (i - SIDE // 2)
        p = weight + (first.to(gl.int64) * records + column) * (RECORD // 4)
        bulk(p, at + i * RECORD, RECORD, at_barrier)


@gluon.jit
def _fetched(
    weight, pieces, ring, at, at_barriers, barriers, first, last, records, by_records, tiles,
    RECORD: gl.constexpr, PIECE: gl.constexpr, SWIGLU: gl.constexpr, SIDE: gl.constexpr, E: gl.constexpr,
    S: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One warp: the share's records into the ring."""
    CODES: gl.constexpr = SIDE * RECORD
    BYTES: gl.constexpr = CODES + E * PIECE
    TILES: gl.constexpr = SIDE // 2 if SWIGLU else SIDE
    group = over(first, by_records)
    column, tile = first - group * records, group * TILES
    column_x = column
    # the first records of W do not wait for x
    for e in range(0, gl.minimum(last - first, S)):
        mbarrier.expect(barriers.index(e), BYTES)
        _fetch_w(weight, at + e * BYTES, at_barriers + e * 8, column, tile, records, tiles, RECORD, SWIGLU, SIDE)
        column, tile = next_record(column, tile, records, TILES)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    for e in range(0, gl.minimum(last - first, S)):
        p = pieces + column_x.to(gl.int64) * (E * PIECE // 4)
        bulk(p, at + e * BYTES + CODES, E * PIECE, at_barriers + e * 8)
        column_x = gl.where(column_x + 1 == records, 0, column_x + 1)
    slot, parity = 0, 0
    for _ in range(first + S, last):
        mbarrier.wait(barriers.index(FREE + slot), parity)
        mbarrier.expect(barriers.index(slot), BYTES)
        _fetch_w(weight, at + slot * BYTES, at_barriers + slot * 8, column, tile, records, tiles, RECORD, SWIGLU, SIDE)
        p = pieces + column.to(gl.int64) * (E * PIECE // 4)
        bulk(p, at + slot * BYTES + CODES, E * PIECE, at_barriers + slot * 8)
        column, tile = next_record(column, tile, records, TILES)
        slot, parity = next_slot(slot, parity, S)


@gluon.jit
def _multiplied(
    ring, at, at_barriers, residual, s_residual_m, out, partial, M, N, i_s, first, last, shares, records,
    FORMAT: gl.constexpr, RECORD: gl.constexpr, SCALES: gl.constexpr, D: gl.constexpr, PIECE: gl.constexpr,
    SWIGLU: gl.constexpr, W: gl.constexpr, E: gl.constexpr, R: gl.constexpr, S: gl.constexpr,
    EACH: gl.constexpr, AT: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """W warps: the share's products, and the sums of groups that begin in it."""
    NEXT: gl.constexpr = W // 4 * RECORD
    CODES: gl.constexpr = R * NEXT
    warp = gl.arange(0, W, layout=gl.SliceLayout(1, lanes(W)))[:, None]
    lane = gl.arange(0, 32, layout=gl.SliceLayout(0, lanes(W)))[None, :]
    tile, w = warp // 4 * RECORD, warp % 4
    d: gl.constexpr = 2 if FORMAT == "q6_k" else 4
    places = (
        tile + w * 512 + lane * 16, tile + w * 256 + lane // 4 * 16, tile + w * (16 * d) + lane // 4 * d,
        warp * 0 + lane, warp * 0 + lane % 4,
    )  # fmt: skip
    g0, g1 = over(first, shares[3]), over(last - 1, shares[3])
    a0, b1 = between(i_s, g0, g1, first, shares, records, E, EACH)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    slot, parity = 0, 0
    for i_n in range(g0, g1 + 1):
        begin, end = gl.maximum(first, i_n * records), gl.minimum(last, (i_n + 1) * records)
        acc = ()
        for _ in gl.static_range(4 * E * R):
            acc = acc + (gl.full((W, 32), 0.0, gl.float32, layout=lanes(W)),)
        for _i in range(begin, end):
            wait(at_barriers + slot * 8, parity, W)
            at_w = at + slot * (CODES + E * PIECE)
            at_free = at_barriers + (FREE + slot) * 8
            acc = _record(acc, at_w, at_w + CODES, places, at_free, FORMAT, SCALES, D, PIECE, W, E, R, NEXT)
            slot, parity = next_slot(slot, parity, S)
        a, b = gl.where(i_n == g0, a0, i_s), gl.where(i_n == g1, b1, i_s)
        give(acc, residual, s_residual_m, out, partial, M, N, i_s, i_n, a, b, SWIGLU, W, EACH, AT, R)


# numbers that are compared with and no more: a kernel for each kind of them would be the same
@gluon.jit(do_not_specialize=["M", *SHARES])
def ring_int8(
    pieces, weight,
    residual, s_residual_m,
    out,
    partial,
    M, N, K,
    least, more, alone, by_records, by_least, by_longer, by_rest, by_rest_longer,
    FORMAT: gl.constexpr,
    RECORD: gl.constexpr,
    SCALES: gl.constexpr,
    D: gl.constexpr,
    PIECE: gl.constexpr,
    SWIGLU: gl.constexpr,
    W: gl.constexpr,
    E: gl.constexpr,
    R: gl.constexpr,
    S: gl.constexpr,
    EACH: gl.constexpr,
    AT: gl.constexpr,
    LAST: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Up to 8 E rows of x, pieces of it as `quantise_pieces` makes them. Groups are of R W / 4 tiles; with SWIGLU half
    of them are rows of gate, and half the same rows of up."""
    # a group's tiles side by side; with SWIGLU half of them are gate's
    SIDE: gl.constexpr = W // 4 * R
    TILES: gl.constexpr = SIDE // 2 if SWIGLU else SIDE
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    shares = (least, more, alone, by_records, by_least, by_longer, by_rest, by_rest_longer)
    i_s, first, last = share(shares, N // (TILES * 64), records, LAST)

    KIB: gl.constexpr = (S * (SIDE * RECORD + E * PIECE) + 1023) // 1024
    ring = gl.allocate_shared_memory(gl.int32, [KIB, 8, 32], gl.NVMMASharedLayout(128, 32, rank=2))
    # of a record that is there, and from FREE on of one that may be overwritten
    told = gl.allocate_shared_memory(gl.int32, [8, 32], gl.NVMMASharedLayout(128, 32, rank=2))
    tell(W)
    P: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    at = address(reinterpret(ring.index(0), gl.int32, (256,), P), W)
    at_barriers = address(reinterpret(told, gl.int32, (256,), P), W)
    barriers = reinterpret(told, gl.int64, (128, 1), mbarrier.MBarrierLayout())
    # the first lies on the word that says where: all have read it
    barrier()
    begin(at_barriers, ((0, S, 1), (FREE * 8, S, W)), W)
    # the copies' own way to memory is to find them
    hopper.fence_async_shared()
    gl.warp_specialize(
        [
            (_multiplied, (ring, at, at_barriers, residual, s_residual_m, out, partial, M, N, i_s, first, last,
                           shares, records, FORMAT, RECORD, SCALES, D, PIECE, SWIGLU, W, E, R, S, EACH, AT, EARLY)),
            (_fetched, (weight, pieces, ring, at, at_barriers, barriers, first, last, records, shares[3], N // 64,
                        RECORD, PIECE, SWIGLU, SIDE, E, S, EARLY)),
        ],
        [1], [24],
    )  # fmt: skip
    kept(reinterpret(ring.index(0), gl.int32, (256,), P), W)
