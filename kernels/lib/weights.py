"""Warps that turn tiles of K into weights for those that multiply them with V: see one_pass.py.

    [64 rows of K, 16] ──registers──┐
    [16 E queries, 16] ──shared─────┴─ 16 times ─> S^T [64, 16 E] ─> P = 2^(scale (S - m)) ──> shared;  l = sum P

Where a program has 80 queries or fewer, SIDES of four warps take tiles in turn: one makes weights while the other's
scores run. Both find what is of all tiles, maxima and sums, from what either has left in shared memory.

m is subtracted by a product before the others, of constants with its parts: no lane looks it up. Of a lane's two rows
weights are added in pairs of f16, and of eight lanes by exchange: a tile's 16 rows, each sum rounded four times to
2^-12. What is infinite there has left f16, and the share is walked again.
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

# barriers lie behind the maxima to subtract, in the same 8 KiB: rings of up to four tiles, and those passed once
BARRIERS = gl.constexpr(7168)
K_FULL, K_FREE, V_FULL, V_FREE, P_FULL, P_FREE = map(gl.constexpr, range(0, 192, 32))
ASKED, MASKED, VERDICT, SUMMED, LANDED, MET = map(gl.constexpr, range(192, 240, 8))
# and between the two what each warp has of every query
APART = gl.constexpr(4608)
# the first tile's maximum is taken for this much more, in units of log 2
ABOVE = gl.constexpr(6.0)
# a score that is greater is taken for this one; a sum that is, has infinite weights
MOST = gl.constexpr(2.0e9)

# the weights of 16 queries and a lane's two rows to shared memory, and the sums of both rows, in pairs of queries
_WEIGHTS = """
{{
.reg .b32 a, b, c, d;
.reg .f32 x0, x1, x2, x3, x4, x5, x6, x7;
{scaled}
cvt.rn.f16x2.f32 a, x1, x0;
cvt.rn.f16x2.f32 b, x3, x2;
cvt.rn.f16x2.f32 c, x5, x4;
cvt.rn.f16x2.f32 d, x7, x6;
stmatrix.sync.aligned.m8n8.x4.shared.b16 [$11], {{a, b, c, d}};
add.rn.f16x2 $0, a, b;
add.rn.f16x2 $1, c, d;
}}
"""
_SCALED, _PLAIN = (
    gl.constexpr(_WEIGHTS.format(scaled="\n".join(text.format(i, i + 2) for i in range(8))))
    for text in (
        "mul.f32 x{0}, ${1}, $10;\nex2.approx.ftz.f32 x{0}, x{0};",
        "ex2.approx.ftz.f32 x{0}, ${1};",
    )
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
_ADD = gl.constexpr("add.rn.f16x2 $0, $1, $2;")
_SPLIT = gl.constexpr("mov.b32 {$0, $1}, $2;")
_PUT = gl.constexpr("st.shared.v2.b32 [$1], {$2, $3};\nmov.b32 $0, 0;")
_TAKEN = gl.constexpr("ld.shared.b32 $0, [$1];")


@gluon.constexpr_function
def _order(eights):
    """Of so many eights of columns: which two, or what was made of which, go how far, and what stays in the end."""
    order, stay = [], []

    def with_(pair, far):
        order.append((pair[0], pair[-1], far))
        return eights + len(order) - 1

    for eight in range(0, eights, 8):
        fours = []
        for four in range(eight, min(eight + 8, eights), 4):
            twos = [with_((two, two + 1), 16) for two in range(four, min(four + 4, eights), 2)]
            fours.append(with_(twos, 8))
        stay.append(with_(fours, 4))
    return order, stay


@gluon.constexpr_function
def _steps(eights):
    return len(_order(eights)[0])


@gluon.constexpr_function
def _stay(eights, i):
    return _order(eights)[1][i]


@gluon.constexpr_function
def _sent(far):
    """$0: the one of $2 and $3 that stands for a lane's half of the columns; $1: what the lane so far on has of it."""
    return f"""
{{
.reg .b32 other;
.reg .pred upper;
setp.ne.u32 upper, $4, 0;
selp.b32 $0, $3, $2, upper;
selp.b32 other, $2, $3, upper;
shfl.sync.bfly.b32 $1, other, {far}, 31, 0xffffffff;
}}
"""


@gluon.constexpr_function
def _apart(eights):
    """Bytes of what a warp has of so many eights of queries: six or seven are followed by what nobody wants."""
    return 32 * (eights if eights % 8 <= 2 else -(-eights // 8) * 8)


@gluon.constexpr_function
def _of_step(eights, i, part):
    return _order(eights)[0][i][part]


@gluon.jit
def _exchanged(x, lane, i: gl.constexpr):
    """Step i of the exchanges of x, which has grown by one in each before: what stays and what came."""
    N: gl.constexpr = len(x) - i
    FAR: gl.constexpr = _of_step(N, i, 2)
    a, b = x[_of_step(N, i, 0)], x[_of_step(N, i, 1)]
    return gl.inline_asm_elementwise(
        _sent(FAR), "=&r,=&r,r,r,r", [a, b, lane & FAR], (a.dtype, a.dtype), is_pure=False, pack=1
    )  # fmt: skip


@gluon.jit
def _joined(a, b):
    return gl.inline_asm_elementwise(_ADD, "=r,r,r", [a, b], gl.int32, is_pure=True, pack=1)


@gluon.jit
def _pair(x):
    low, high = gl.inline_asm_elementwise(_SPLIT, "=h,=h,r", [x], (gl.float16, gl.float16), is_pure=True, pack=1)
    return low.to(gl.float32), high.to(gl.float32)


@gluon.jit
def _weights(x, at, scale, FORMAT: gl.constexpr):
    """A tile's weights to shared memory, at: a lane's row of a panel. The sums of a lane's two rows."""
    L: gl.constexpr = lanes(4)
    # queries of tq3_0 are scaled where they are rotated
    TEXT: gl.constexpr = _PLAIN if FORMAT == "tq3_0" else _SCALED
    scale = gl.full((4, 32), scale, gl.float32, layout=L)
    sums = ()
    for i in gl.static_range(len(x) // 8):
        sums = sums + gl.inline_asm_elementwise(
            TEXT, "=&r,=&r,f,f,f,f,f,f,f,f,f,r",
            [x[8 * i], x[8 * i + 1], x[8 * i + 2], x[8 * i + 3], x[8 * i + 4], x[8 * i + 5], x[8 * i + 6], x[8 * i + 7],
             scale, at + 2048 * i], (gl.int32, gl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    return sums


@gluon.jit
def _hidden(x, at):
    """Scores of which some are no numbers; at: the bits of a lane's rows and first queries."""
    L: gl.constexpr = lanes(4)
    row = gl.arange(0, 4, gl.SliceLayout(1, L))[:, None] % 2 * 16 + gl.arange(0, 32, gl.SliceLayout(0, L))[None, :] // 4
    bit = 1 << row
    y = ()
    for k in gl.static_range(len(x) // 4):
        y = y + gl.inline_asm_elementwise(
            _HIDDEN, "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r",
            [x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3], at + 32 * k, bit, bit << 8],
            (gl.float32, gl.float32, gl.float32, gl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    return y


@gluon.jit
def _highest(x, lane, c: gl.constexpr):
    """Of columns c of all pairs the greatest, where exchanges leave it."""
    y = ()
    for k in gl.static_range(len(x) // 4):
        y = y + (gl.maximum(x[4 * k + c], x[4 * k + c + 2]),)
    for i in gl.static_range(_steps(len(x) // 4)):
        a, b = _exchanged(y, lane, i)
        y = y + (gl.maximum(a, b),)
    return y


@gluon.jit
def _put(at, a, b):
    gl.inline_asm_elementwise(_PUT, "=r,r,r,r", [at, a, b], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _taken(at):
    return gl.inline_asm_elementwise(_TAKEN, "=r,r", [at], gl.float32, is_pure=False, pack=1)


@gluon.jit
def _of_all(at, at_b, x, weigh, phase, E: gl.constexpr, SIDE: gl.constexpr, SIDES: gl.constexpr):
    """What the warps of all sides have, together: [256] of which 16 E are queries; at: the first side's room for it."""
    EACH: gl.constexpr = _apart(2 * E)
    # two sides do not read at a time: what comes next lies beside it
    at += 4 * EACH * (phase % 2) if SIDES > 1 else 0
    L: gl.constexpr = lanes(4)
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    o_l = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :]
    lane = at + 8192 * SIDE + gl.arange(0, 4, gl.SliceLayout(1, L))[:, None] * EACH + o_l // 16 * 32 + o_l % 4 * 8
    panel = (o_l // 8 % 2 + o_l // 4 % 2 * 2) * 64
    # of the last eights some lanes have what others have, too, and where six are, put it behind them
    for i in gl.static_range(len(x) // 2):
        _put(lane + 256 * i + (panel if 8 * i + 2 < 2 * E else panel * 0), x[2 * i], x[2 * i + 1])
    if SIDES > 1:
        came(at_b + MET, 4)
        wait(at_b + MET, phase % 2, 4)
    else:
        barrier()
    at += gl.minimum(gl.arange(0, 256, B), 16 * E - 1) * 4
    y = gl.where(weigh, gl.zeros([256], gl.float32, B), gl.full([256], float("-inf"), gl.float32, B))
    for i in gl.static_range(SIDES):
        o = at + 8192 * i
        a, b, c, d = _taken(o), _taken(o + EACH), _taken(o + 2 * EACH), _taken(o + 3 * EACH)
        y = gl.where(weigh, y + ((a + b) + (c + d)), gl.maximum(y, gl.maximum(gl.maximum(a, b), gl.maximum(c, d))))
    return y


@gluon.jit
def _added(x, p, E: gl.constexpr):
    """x and the sums that exchanges leave of pairs."""
    y = ()
    for i in gl.static_range(len(x) // 2):
        a, b = _pair(p[_stay(2 * E, i)])
        y = y + (x[2 * i] + a, x[2 * i + 1] + b)
    return y


@gluon.jit
def _summed(p, lane):
    """p and all that exchanges make of it."""
    for i in gl.static_range(_steps(len(p))):
        a, b = _exchanged(p, lane, i)
        p = p + (_joined(a, b),)
    return p


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
def zero_of(j):
    """0, where the compiler cannot know it: it would hold addresses in registers that are quickly made anew."""
    return gl.inline_asm_elementwise("shr.u32 $0, $1, 31;", "=r,r", [j], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _scores(
    at_q, at_less, at_k, at_b, codes, high, scales, slot, j, free, FORMAT: gl.constexpr, E: gl.constexpr
):  # fmt: skip
    """Scores of a tile."""
    # pieces of keys whose words are in registers at a time
    HELD: gl.constexpr = 4 if FORMAT == "q8_0" else 16
    s = begun(offset_registers(), at_less, 2 * E, SWIZZLED_32)
    if FORMAT == "f16":
        at = gl.full((4, 32), at_k + slot * 2048, gl.int32, layout=lanes(4))
        for c in gl.static_range(4):
            s = met(s, at + 512 * c, at_q + 64 * c, 1, 4, 4, SWIZZLED_128, EIGHTS_32)
        s = waited(s, 0)
        arrive(at_b + K_FREE + 8 * slot, free, 4)
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
            s = multiplied(s, key_registers(words, of_blocks, c, FORMAT), at_q + 16 * c, 1, 4, False, EIGHTS_32)
            # all words are in registers
            if c == 16 - HELD:
                arrive(at_b + K_FREE + 8 * slot, free, 4)
            s = waited(s, 0 if c == 15 else 2)
    return s


@gluon.jit
def weighed(
    at_q, at_less, at_k, at_p, at_bits, at_b, less, codes, high, scales, tops, sums, seen, again, tiles, scale, part_m,
    part_l, o_first, first, T, H, rows, G: gl.constexpr, FORMAT: gl.constexpr, KS: gl.constexpr, PS: gl.constexpr,
    E: gl.constexpr, SIDE: gl.constexpr, SIDES: gl.constexpr,
):  # fmt: skip
    L: gl.constexpr = lanes(4)
    B: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    less, tops, at_minus = less.index(SIDE), tops.slice(256 * SIDE, 256), at_less + 512 * SIDE
    m1, m2 = tops.slice(0, 128), tops.slice(128, 16)
    o_w = gl.arange(0, 4, gl.SliceLayout(1, L))[:, None]
    o_l = gl.arange(0, 32, gl.SliceLayout(0, L))[None, :]
    # a lane's row of a panel of weights, and where the bits of its rows and queries begin
    at_lane = (at_p & 0x3FFF) * 16 + (o_w * 16 + o_l % 16) * 32 + (o_l // 16 ^ o_l // 4 & 1) * 16
    at_bits = at_bits + o_w // 2 * 1024 + o_l % 4 * 8
    nothing, lane = gl.zeros((4, 32), gl.float32, L), o_l + o_w * 0
    done, given, phase, last = 0, 0, 0, 2
    b_l = gl.zeros([256], gl.float32, B)
    # each side's first tile's maximum; weights; all of the share's maximum, and weights once more
    while phase < last:
        weigh = phase % 2 == 1
        steps = gl.where(phase == 0, gl.minimum(tiles, SIDES), tiles)
        # the maximum is subtracted by the product itself, which all warps have to have left, and then to have written
        barrier()
        less.slice(0, 128).store(parts_of(gl.where(weigh, -m1.load(B), 0.0)))
        if E > 8:
            less.slice(128, 16).store(parts_of(gl.where(weigh, -m2.load(B), 0.0)))
        fence_async_shared()
        barrier()
        wait(at_b + ASKED, 0, 4)
        # a lane's sums of weights or greatest scores, of two queries an exchange that stays
        x0 = gl.where(weigh, nothing, gl.full((4, 32), float("-inf"), gl.float32, L))
        x = ()
        for _i in gl.static_range((2 * E + 7) // 8):
            x = x + (x0, x0)
        for j in range(SIDE, steps, SIDES):
            slot, round = turn(done + j, KS)
            wait(at_b + K_FULL + 8 * slot, round, 4)
            # the first tile is needed again
            s = _scores(at_q, at_minus, at_k, at_b, codes, high, scales, slot, j, phase > 0, FORMAT, E)
            if j >= seen:
                wait(at_b + MASKED, 0, 4)
                s = _hidden(s, at_bits + (j - seen) * 2048)
            if weigh:
                slot, round = turn(given + j, PS)
                wait(at_b + P_FREE + 8 * slot, round ^ 1, 4)
                p = _weights(s, at_lane + slot * (2048 * E), scale, FORMAT)
                fence_async_shared()
                came(at_b + P_FULL + 8 * slot, 4)
                x = _added(x, _summed(p, lane), E)
            else:
                a, b, y = _highest(s, lane, 0), _highest(s, lane, 1), ()
                for i in gl.static_range(len(x) // 2):
                    y = y + (
                        gl.maximum(x[2 * i], a[_stay(2 * E, i)]), gl.maximum(x[2 * i + 1], b[_stay(2 * E, i)])
                    )  # fmt: skip
                x = y
        done += gl.where(phase > 0, steps, 0)
        given += gl.where(weigh, steps, 0)
        b_x = _of_all(at_less * 16 + APART, at_b, x, weigh, phase, E, SIDE, SIDES)
        if weigh:
            b_l = b_x
        else:
            above = gl.where(phase == 0, ABOVE / scale, 0.0)
            tops.store(gl.minimum(gl.maximum(b_x + above, -MOST), MOST))
        phase += 1
        if phase == 2:
            # a weight is at most the sum that it is part of
            walk = gl.where(gl.max(b_l, 0) > MOST, 1, 0)
            last += 2 * walk
            if SIDE == 0:
                again.store(gl.full([1], walk, gl.int32, B))
                came(at_b + VERDICT, 4)
    if SIDE == 0:
        sums.store(gl.where(b_l > 0.0, 1.0 / b_l, b_l))
        came(at_b + SUMMED, 4)
        o_m = first + gl.arange(0, 256, B)
        o_part = o_first + o_m // G * H + o_m % G
        m = (o_m < rows) & (o_m < first + 16 * E)
        gl.store(part_m + o_part, tops.load(B) * scale, mask=m)
        gl.store(part_l + o_part, b_l, mask=m)
