"""Warps that turn tiles of K into weights for those that multiply them with V, half the queries at a time: see
columns.py.

    S^T of 72 queries [64, 72]   16 products, and between them the weights of the 72 before: P = 2^(scale (S - m))
    l = sum P, or max S          pairs of f16 or f32, of nine eights of columns; lanes' by exchange, warps' in the end

Products of a tile are in two halves so that tensor cores have one under way while these warps are at the other's
weights; rows of codes are unpacked for both. m is subtracted by a product before the others, of constants with its
parts: no lane looks it up. Sums of a tile's 16 rows are rounded three times to 2^-12. What is infinite there has left
f16, and the share is walked again.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from .addresses import arrive, came, wait
from .eights import EIGHTS_32, SWIZZLED_32, SWIZZLED_128, begun, lanes, met, multiplied, waited
from .feed import turn
from .fragments import key_registers, key_scales, key_words, offset_registers
from .newer import barrier
from .weights import ABOVE, MOST_SCORE, parts_of, zero_of

# barriers lie behind the maxima to subtract, in the same 8 KiB: rings of up to four tiles, and those passed once
BARRIERS = gl.constexpr(7168)
K_FULL, K_FREE, V_FULL, V_FREE, P_FULL, P_FREE = map(gl.constexpr, range(0, 192, 32))
ASKED, MASKED, VERDICT, SUMMED, LANDED = map(gl.constexpr, range(192, 232, 8))
# and between the two what each warp has of every query, four times 144 numbers
APART = gl.constexpr(4608)
# from a half of the queries to the other: those of q, by 16 bytes, and of what is subtracted
HALF_Q, HALF_LESS = gl.constexpr(9 * 256), gl.constexpr(9 * 16)
# a sum that no finite weights of a share have
MOST = gl.constexpr(2.0e9)

# the weights of eight queries and a lane's two rows, the pairs of rows' sums in $0
_WEIGHTS = """
{{
.reg .b32 a, b;
.reg .f32 x0, x1, x2, x3;
.reg .pred p;
setp.ne.u32 p, $7, 0;
{scaled}
ex2.approx.ftz.f32 x0, x0;
ex2.approx.ftz.f32 x1, x1;
ex2.approx.ftz.f32 x2, x2;
ex2.approx.ftz.f32 x3, x3;
cvt.rn.f16x2.f32 a, x1, x0;
cvt.rn.f16x2.f32 b, x3, x2;
add.rn.f16x2 $0, a, b;
@p stmatrix.sync.aligned.m8n8.x2.shared.b16 [$6], {{a, b}};
}}
"""
_SCALED, _PLAIN = (
    gl.constexpr(_WEIGHTS.format(scaled="\n".join(text.format(i, i + 1) for i in range(4))))
    for text in ("mul.f32 x{0}, ${1}, $5;", "mov.b32 x{0}, ${1};")
)
# no score where a bit says that its query does not see the row: two queries, rows whose bits are $9 and $10
_HIDDEN = gl.constexpr(
    "{\n.reg .b32 a, b, c;\n.reg .pred p;\nld.shared.v2.b32 {a, b}, [$8];\n"
    + "".join(
        f"and.b32 c, {'ab'[i % 2]}, ${9 + i // 2};\nsetp.ne.u32 p, c, 0;\nselp.b32 ${i}, ${4 + i}, 0xFF800000, p;\n"
        for i in range(4)
    )
    + "}"
)
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
_SUM_16, _SUM_8, _SUM_4 = (gl.constexpr(_EXCHANGE.format(far=far, join="add.rn.f16x2")) for far in (16, 8, 4))
_TOP_16, _TOP_8, _TOP_4 = (gl.constexpr(_EXCHANGE.format(far=far, join="max.f32")) for far in (16, 8, 4))
_SPLIT = gl.constexpr("mov.b32 {$0, $1}, $2;")
_PUT = gl.constexpr("st.shared.v2.b32 [$1], {$2, $3};\nmov.b32 $0, 0;")
_TAKEN = gl.constexpr("ld.shared.b32 $0, [$1];")


@gluon.jit
def _exchanged(a, b, TEXT: gl.constexpr):
    return gl.inline_asm_elementwise(TEXT, "=&r,r,r", [a, b], a.dtype, is_pure=True, pack=1)


@gluon.jit
def _gathered(x, T16: gl.constexpr, T8: gl.constexpr, T4: gl.constexpr):
    """Of nine eights of columns: over the rows of all lanes what a lane has of one of the first eight, its row's bits
    being that one's, the lowest last, and of the ninth."""
    y = ()
    for i in gl.static_range(4):
        y = y + (_exchanged(x[2 * i], x[2 * i + 1], T16),)
    first = _exchanged(_exchanged(y[0], y[1], T8), _exchanged(y[2], y[3], T8), T4)
    ninth = _exchanged(x[8], x[8], T16)
    ninth = _exchanged(ninth, ninth, T8)
    return first, _exchanged(ninth, ninth, T4)


@gluon.jit
def _pair(x):
    low, high = gl.inline_asm_elementwise(_SPLIT, "=h,=h,r", [x], (gl.float16, gl.float16), is_pure=True, pack=1)
    return low.to(gl.float32), high.to(gl.float32)


@gluon.jit
def _weighed(x, k: gl.constexpr, at, scale, when, FORMAT: gl.constexpr):
    """Weights of eight k of a half to shared memory, if so: the sums of a lane's two rows, in pairs."""
    L: gl.constexpr = lanes(4)
    # queries of tq3_0 are scaled where they are rotated
    TEXT: gl.constexpr = _PLAIN if FORMAT == "tq3_0" else _SCALED
    scale, when = gl.full((4, 32), scale, gl.float32, layout=L), gl.full((4, 32), when, gl.int32, layout=L)
    return gl.inline_asm_elementwise(
        TEXT, "=&r,f,f,f,f,f,r,r",
        [x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3], scale, at + k // 2 * 2048, when], gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _hidden(x, at):
    """Scores of a half of which some are no numbers; at: the bits of a lane's rows and first queries."""
    L: gl.constexpr = lanes(4)
    row = gl.arange(0, 4, gl.SliceLayout(1, L))[:, None] % 2 * 16 + gl.arange(0, 32, gl.SliceLayout(0, L))[None, :] // 4
    bit = 1 << row
    y = ()
    for k in gl.static_range(9):
        y = y + gl.inline_asm_elementwise(
            _HIDDEN, "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r",
            [x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3], at + 32 * k, bit, bit << 8],
            (gl.float32, gl.float32, gl.float32, gl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    return y


@gluon.jit
def _highest(x):
    """The greatest of a half's scores, as `_gathered` has them: of a lane's eight two, and of the ninth."""
    a, b = (), ()
    for k in gl.static_range(9):
        a = a + (gl.maximum(x[4 * k], x[4 * k + 2]),)
        b = b + (gl.maximum(x[4 * k + 1], x[4 * k + 3]),)
    a0, a1 = _gathered(a, _TOP_16, _TOP_8, _TOP_4)
    b0, b1 = _gathered(b, _TOP_16, _TOP_8, _TOP_4)
    return a0, b0, a1, b1


@gluon.jit
def _put(at, a, b):
    gl.inline_asm_elementwise(_PUT, "=r,r,r,r", [at, a, b], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _taken(at):
    return gl.inline_asm_elementwise(_TAKEN, "=r,r", [at], gl.float32, is_pure=False, pack=1)


@gluon.jit
def _of_all(at_less, x, y, weigh):
    """What four warps have of two halves, as `_gathered`, together: [256] of which 144 are queries."""
    L: gl.constexpr = lanes(4)
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    o_l = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :]
    at = at_less * 16 + APART + gl.arange(0, 4, gl.SliceLayout(1, L))[:, None] * 576 + o_l % 4 * 8
    eight = o_l // 16 + o_l // 8 % 2 * 2 + o_l // 4 % 2 * 4
    _put(at + eight * 32, x[0], x[1])
    _put(at + 256, x[2], x[3])
    _put(at + 288 + eight * 32, y[0], y[1])
    _put(at + 544, y[2], y[3])
    barrier()
    at = at_less * 16 + APART + gl.minimum(gl.arange(0, 256, B), 143) * 4
    a, b, c, d = _taken(at), _taken(at + 576), _taken(at + 1152), _taken(at + 1728)
    return gl.where(weigh, (a + b) + (c + d), gl.maximum(gl.maximum(a, b), gl.maximum(c, d)))


@gluon.jit
def _product(
    x, at_q, at_less, at_k, at_b, codes, high, scales, slot, j, even, odd, scale, when, free, FORMAT: gl.constexpr
):  # fmt: skip
    """Scores of a half, the last of their products under way, and beside them the weights of x: sums of two rows."""
    # pieces of keys whose words are in registers at a time
    HELD: gl.constexpr = 4 if FORMAT == "q8_0" else 16
    sums = ()
    y = begun(offset_registers(), at_less, 9, SWIZZLED_32)
    if FORMAT == "f16":
        at = gl.full((4, 32), at_k + slot * 2048, gl.int32, layout=lanes(4))
        for c in gl.static_range(4):
            y = met(y, at + 512 * c, at_q + 64 * c, 1, 4, 4, SWIZZLED_128, EIGHTS_32)
        for k in gl.static_range(9):
            sums = sums + (_weighed(x, k, odd if k % 2 else even, scale, when, FORMAT),)
    else:
        of_tile = codes.index(slot)
        words = key_words(of_tile.slice(0, 32, 1) if FORMAT == "q8_0" else of_tile, high.index(slot), FORMAT)
        of_blocks = key_scales(scales.index(slot), FORMAT)
        after = words
        for c in gl.static_range(16):
            if c > 0 and c % HELD == 0:
                words = after
            if c < 15 and c % HELD == HELD - 1:
                # words anew, at an address that the compiler takes for another
                of_tile = codes.index(slot + zero_of(j)).slice((c + 1) // 8 * 32, 32, 1)
                after = key_words(of_tile, high.index(slot), FORMAT)
            y = multiplied(y, key_registers(words, of_blocks, c, FORMAT), at_q + 16 * c, 1, 4, False, EIGHTS_32)
            # all words are in registers
            if c == 16 - HELD:
                arrive(at_b + K_FREE + 8 * slot, free, 4)
            # weights of an eight beside most of them
            if c * 9 // 16 < (c + 1) * 9 // 16:
                sums = sums + (_weighed(x, len(sums), odd if len(sums) % 2 else even, scale, when, FORMAT),)
            if c < 15:
                y = waited(y, 2)
    return y, sums


@gluon.jit
def weighed(
    at_q, at_less, at_k, at_p, at_bits, at_b, less, codes, high, scales, tops, sums, seen, again, tiles, scale, part_m,
    part_l, o_first, first, T, H, rows, G: gl.constexpr, FORMAT: gl.constexpr, KS: gl.constexpr, PS: gl.constexpr,
):  # fmt: skip
    L: gl.constexpr = lanes(4)
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    m1, m2 = tops.slice(0, 128), tops.slice(128, 16)
    o_w = gl.arange(0, 4, gl.SliceLayout(1, L))[:, None]
    o_l = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :]
    # a lane's row of a panel of weights, its first 16 bytes, and where the bits of its rows and queries begin
    at_lane = (at_p & 0x3FFF) * 16 + (o_w * 16 + o_l % 16) * 32 + (o_l // 4 & 1) * 16
    at_bits = at_bits + o_w // 2 * 1024 + o_l % 4 * 8
    nothing = gl.zeros((4, 32), gl.float32, L)
    done, given, phase, last = 0, 0, 0, 2
    b_l = gl.zeros([256], gl.float32, B)
    # the first tile's maximum; weights; all of the share's maximum, and weights once more
    while phase < last:
        weigh = phase % 2 == 1
        steps = gl.where(phase == 0, gl.minimum(tiles, 1), tiles)
        # the maximum is subtracted by the product itself, which all warps have to have left, and then to have written
        barrier()
        less.slice(0, 128).store(parts_of(gl.where(weigh, -m1.load(B), 0.0)))
        less.slice(128, 16).store(parts_of(gl.where(weigh, -m2.load(B), 0.0)))
        fence_async_shared()
        barrier()
        wait(at_b + ASKED, 0, 4)
        x = ()
        for _k in gl.static_range(36):
            x = x + (nothing,)
        # what was gathered of the half that is next, and of the other
        l0 = gl.where(weigh, nothing, gl.full((4, 32), float("-inf"), gl.float32, L))
        l1, l2, l3, r0, r1, r2, r3 = l0, l0, l0, l0, l0, l0, l0
        # the last weights come behind all products, and those beside them are of no use
        for i in range(2 * steps + gl.where(weigh, gl.minimum(steps, 1), 0)):
            j, half = i // 2, i % 2
            real = i < 2 * steps
            slot, round = turn(done, KS)
            if real:
                wait(at_b + K_FULL + 8 * slot, round, 4)
            slot_p, round_p = turn(given, PS)
            if weigh & (half == 1):
                wait(at_b + P_FREE + 8 * slot_p, round_p ^ 1, 4)
            # weights from eight 0 or 9 on: those of the first 16 bytes of rows, and the others
            other = 1 - half
            at = at_lane + slot_p * 18432 + other * 8192
            even, odd = at ^ other * 16, at + other * 2048 ^ half * 16
            beside = weigh & (i > 0)
            ends = real & (phase > 0) & (half == 1)
            y, sums_of = _product(
                x, at_q + HALF_Q * half, at_less + HALF_LESS * half, at_k, at_b, codes, high, scales, slot, j, even,
                odd, scale, gl.where(beside, 1, 0), ends, FORMAT,
            )  # fmt: skip
            fence_async_shared()
            gives = gl.where(beside & (half == 0), 1, 0)
            came(at_b + P_FULL + 8 * slot_p, 4, 1 - gives)
            given += gives
            y = waited(y, 0)
            if FORMAT == "f16":
                arrive(at_b + K_FREE + 8 * slot, ends, 4)
            done += gl.where(ends, 1, 0)
            if real & (j >= seen):
                wait(at_b + MASKED, 0, 4)
                y = _hidden(y, at_bits + ((j - seen) * 2048 + half * 288))
            if weigh:
                a, b = _gathered(sums_of, _SUM_16, _SUM_8, _SUM_4)
                a0, a1 = _pair(gl.where(i > 0, a, 0))
                a2, a3 = _pair(gl.where(i > 0, b, 0))
                a0, a1, a2, a3 = l0 + a0, l1 + a1, l2 + a2, l3 + a3
            else:
                a0, a1, a2, a3 = _highest(y)
                a0, a1, a2, a3 = gl.maximum(l0, a0), gl.maximum(l1, a1), gl.maximum(l2, a2), gl.maximum(l3, a3)
            l0, l1, l2, l3, r0, r1, r2, r3 = r0, r1, r2, r3, a0, a1, a2, a3
            x = y
        b_x = _of_all(at_less, (l0, l1, l2, l3), (r0, r1, r2, r3), weigh)
        if weigh:
            b_l = b_x
        else:
            above = gl.where(phase == 0, ABOVE / scale, 0.0)
            tops.store(gl.minimum(gl.maximum(b_x + above, -MOST_SCORE), MOST_SCORE))
        phase += 1
        if phase == 2:
            walk = gl.where(gl.max(b_l, 0) > MOST, 1, 0)
            last += 2 * walk
            again.store(gl.full([1], walk, gl.int32, B))
            came(at_b + VERDICT, 4)
    sums.store(gl.where(b_l > 0.0, 1.0 / b_l, b_l))
    came(at_b + SUMMED, 4)
    o_m = first + gl.arange(0, 256, B)
    o_part = o_first + o_m // G * H + o_m % G
    m = (o_m < rows) & (o_m < first + 144)
    gl.store(part_m + o_part, tops.load(B) * scale, mask=m)
    gl.store(part_l + o_part, b_l, mask=m)
