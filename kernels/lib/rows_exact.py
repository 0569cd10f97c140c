"""y = x · Wᵀ for a few rows of x, over tiles (reference/tiles.py): activations as they are.

    program:  RB x 16 rows of W, by W warps        warp kw:  records kw, kw + W, ... of 256 columns

    record of W ──16 bytes a lane, a record ahead──> registers ──codes──> f16 A ┐
    x, as B wants it ──16 bytes a lane, from the L1───────────────────────────> B ┴─ m16n8k16 ─> f32 [RB, NT] x 16 x 8

`arrange` puts x in the order of B once a call. Nothing passes through shared memory until the warps' sums are added at
the end: no barrier, and no sum that two programs share. Without PTX the same numbers come from sums of products.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton
import triton.language as tl

from .imma import bits_above, four, lanes
from .rows_int8 import fetch_all, place, record, store
from .tiles import halves

# f16 pairs of 1024 + n, and of -(64 + n), for what a format takes off its codes. Those of q4_k and q5_k are around 0,
# too: a scale's rounding counts half as often, and the middle is part of the minimum
_LESS = {"q4_0": (0x64086408, 0xD480D480), "q5_k": (0x64106410, 0xD500D500), "q6_k": (0x64206420, 0xD600D600)}
_LESS["q4_k"] = _LESS["q4_0"]


def _weight(format: str, p: int) -> str:
    """A pair of f16 weights from nibbles p of a word $1 (q8_0: bytes), half p of $2 as scale and of $3 as minimum, and
    $4 with the bits above the nibble where the codes want them."""
    back = "fma.rn.f16x2 q, q, k, c;" if p else "sub.f16x2 q, q, c;"
    above = ""
    if format == "q8_0":
        constant, back = 0x64806480, "sub.f16x2 q, q, c;"
        code = "lop3.b32 q, $1, 0x00ff00ff, c, 0x6A;"
    else:
        constant = _LESS[format][p]
        code = f"lop3.b32 q, $1, {hex(0xF000F0 if p else 0xF000F)}, 0x64006400, 0xEA;"
    if format in ("q5_k", "q6_k"):
        mask = (0x100010 if format == "q5_k" else 0x300030) << 4 * p
        above = f"lop3.b32 q, $4, {hex(mask)}, q, 0xEA;"
    side = "{t, v}" if p else "{v, t}"
    minimum = f"mov.b32 {side}, $3;\nmov.b32 m, {{v, v}};\nfma.rn.f16x2 $0, q, s, m;"
    return f"""{{
.reg .b32 q, c, k, s, m;
.reg .b16 v, t;
mov.b32 c, {hex(constant)};
mov.b32 k, 0x2C002C00;
{code}
{above}
{back}
mov.b32 {side}, $2;
mov.b32 s, {{v, v}};
{minimum if format in ("q4_k", "q5_k") else "mul.f16x2 $0, q, s;"}
}}"""


_Q4_K0, _Q4_K1 = (tl.constexpr(_weight("q4_k", p)) for p in (0, 1))
_Q5_K0, _Q5_K1 = (tl.constexpr(_weight("q5_k", p)) for p in (0, 1))
_Q6_K0, _Q6_K1 = (tl.constexpr(_weight("q6_k", p)) for p in (0, 1))
_Q8_00, _Q8_01 = (tl.constexpr(_weight("q8_0", p)) for p in (0, 1))
_Q4_00, _Q4_01 = (tl.constexpr(_weight("q4_0", p)) for p in (0, 1))
# bytes 0 and 2 of a word, less {less}, times $3, and bytes 1 and 3 times $4 {more}
_SCALES = """{{
.reg .b32 t, u, c, e;
mov.b32 c, 0x64006400;
mov.b32 e, {less};
shr.u32 t, $2, 8;
lop3.b32 u, $2, 0x00ff00ff, c, 0xEA;
lop3.b32 t, t, 0x00ff00ff, c, 0xEA;
sub.f16x2 u, u, e;
sub.f16x2 t, t, e;
mul.f16x2 $0, u, $3;
mul.f16x2 t, t, $4;
{more}
}}"""
_BIASED = tl.constexpr(_SCALES.format(less="0x64806480", more="mov.b32 $1, t;"))
# and 8 or 16 times the first product, not rounded before it is added
_MIDDLE = "mov.b32 c, {};\nmul.f16x2 e, $3, c;\nfma.rn.f16x2 $1, u, e, t;"
_BY_8, _BY_16 = (
    tl.constexpr(_SCALES.format(less="0x64006400", more=_MIDDLE.format(n))) for n in ("0x48004800", "0x4C004C00")
)
_MMA = (
    "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, "
    "{{$10, $11, $12, $13}};"
)
_MMA_F16, _MMA_BF16 = tl.constexpr(_MMA.format("f16")), tl.constexpr(_MMA.format("bf16"))
_TO_BF16 = tl.constexpr("""{
.reg .b16 l, h;
.reg .f32 a, b;
mov.b32 {l, h}, $1;
cvt.f32.f16 a, l;
cvt.f32.f16 b, h;
cvt.rn.bf16x2.f32 $0, b, a;
}""")


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def arrange(
    x, s_x_m,
    words,
    M,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A program 256 columns of 8 rows, two bytes each: words [8 groups, 32 lanes, 4], as lanes of `rows_exact` want
    them. x: i16."""
    if EARLY != "no":
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i_k, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * 8 + tl.arange(0, 8)
    at = (i_m * tl.num_programs(0) + i_k).to(tl.int64)
    p_x = x + o_m.to(tl.int64)[:, None] * s_x_m + i_k * 256 + tl.arange(0, 256)[None, :]
    b_x = tl.load(p_x, mask=(o_m < M)[:, None], other=0)
    # n b (r1 s) t h -> b n t (r1 s) h
    b_x = tl.permute(tl.reshape(b_x, (8, 8, 4, 4, 2)), (1, 0, 3, 2, 4))
    tl.store(words + at * 2048 + tl.arange(0, 2048), tl.reshape(b_x, (2048,)))


@triton.jit
def _pair(low, high):
    """Two f16 -> i32."""
    low, high = low.to(tl.int16, bitcast=True).to(tl.int32), high.to(tl.int16, bitcast=True).to(tl.int32)
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def _wide(w, BF16: tl.constexpr):
    """Pairs -> two f32."""
    if BF16:
        low, high = (w << 16).to(tl.float32, bitcast=True), ((w >> 16) << 16).to(tl.float32, bitcast=True)
    else:
        low, high = halves(w)
        low, high = low.to(tl.float32), high.to(tl.float32)
    return low, high


@triton.jit
def _weights(
    w, above, s, m, P: tl.constexpr, S: tl.constexpr, AT: tl.constexpr, FORMAT: tl.constexpr, BF16: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Nibble 2 S + P of a word's two columns -> a pair of weights: code times half P of s, plus that of m."""
    # one shift puts the bits where the masks are
    w = w >> (8 * S)
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        above = (above >> (4 + AT)) if S else (above << (4 - AT))
    if ASM:
        if FORMAT == "q4_k":
            TEXT: tl.constexpr = _Q4_K1 if P else _Q4_K0
        elif FORMAT == "q5_k":
            TEXT: tl.constexpr = _Q5_K1 if P else _Q5_K0
        elif FORMAT == "q6_k":
            TEXT: tl.constexpr = _Q6_K1 if P else _Q6_K0
        elif FORMAT == "q8_0":
            TEXT: tl.constexpr = _Q8_01 if P else _Q8_00
        else:
            TEXT: tl.constexpr = _Q4_01 if P else _Q4_00
        pair = tl.inline_asm_elementwise(TEXT, "=r,r,r,r,r", [w, s, m, above], tl.int32, is_pure=True, pack=1)
        if BF16:
            pair = tl.inline_asm_elementwise(_TO_BF16, "=r,r", [pair], tl.int32, is_pure=True, pack=1)
    else:
        low = _plain_weight(w, above, s, m, P, FORMAT)
        high = _plain_weight(w >> 16, above >> 16, s, m, P, FORMAT)
        pair = _pair(low, high)
        if BF16:
            low, high = low.to(tl.float32).to(tl.bfloat16), high.to(tl.float32).to(tl.bfloat16)
            pair = _pair(low, high)
    return pair


@triton.jit
def _plain_weight(w, above, s, m, P: tl.constexpr, FORMAT: tl.constexpr):
    if FORMAT == "q8_0":
        q = ((w & 255) ^ 128) - 128
    else:
        q = (w >> (4 * P)) & 15
        if FORMAT == "q5_k":
            q += ((above >> (4 * P)) & 16) - 16
        if FORMAT == "q6_k":
            q += ((above >> (4 * P)) & 48) - 32
        if FORMAT == "q4_k" or FORMAT == "q4_0":
            q -= 8
    y = q.to(tl.float32) * halves(s)[P].to(tl.float32)
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        y += halves(m)[P].to(tl.float32)
    return y.to(tl.float16)


@triton.jit
def _scales(w, d, less, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Bytes of w in f16: 0 and 2 times d, 1 and 3 times `less`, with the middle of codes that begin at 0."""
    if ASM:
        TEXT: tl.constexpr = _BIASED if FORMAT == "q6_k" else (_BY_16 if FORMAT == "q5_k" else _BY_8)
        s, m = tl.inline_asm_elementwise(
            TEXT, "=&r,=&r,r,r,r", [w, d, less], (tl.int32, tl.int32), is_pure=True, pack=1
        )
    else:
        OFF: tl.constexpr = 128 if FORMAT == "q6_k" else 0
        d, less = halves(d)[0], halves(less)[0]
        s0, s1 = ((w & 255) - OFF).to(tl.float16), (((w >> 16) & 255) - OFF).to(tl.float16)
        m0, m1 = (((w >> 8) & 255) - OFF).to(tl.float16) * less, (((w >> 24) & 255) - OFF).to(tl.float16) * less
        if FORMAT != "q6_k":
            middle = (16.0 if FORMAT == "q5_k" else 8.0) * d.to(tl.float32)
            m0 = (s0.to(tl.float32) * middle + m0.to(tl.float32)).to(tl.float16)
            m1 = (s1.to(tl.float32) * middle + m1.to(tl.float32)).to(tl.float16)
        s, m = _pair(s0 * d, s1 * d), _pair(m0, m1)
    return s, m


@triton.jit
def _decoded(loaded, R0: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Of a lane's row g + 8 R0, for c = 0..3: scales of groups 2c and 2c + 1 in a pair, and what else is added.

    For q6_k scales of their first 16 columns, and of the others.
    """
    w = four(loaded[R0])
    s = ()
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        low, up = halves(loaded[2 + R0])
        d, less = _pair(low, low), _pair(-up, -up)
        for c in tl.static_range(4):
            s = s + (_scales(w[c], d, less, FORMAT, ASM),)
    elif FORMAT == "q6_k":
        low, _ = halves(loaded[2 + R0])
        d = _pair(low, low)
        for c in tl.static_range(4):
            s = s + (_scales(w[c], d, d, FORMAT, ASM),)
    else:
        for c in tl.static_range(4):
            s = s + ((w[c], w[c]),)
    return s


@triton.jit
def _operand(
    v, above, s0, s1, P: tl.constexpr, R1: tl.constexpr, FORMAT: tl.constexpr, BF16: tl.constexpr, ASM: tl.constexpr
):
    """Four registers of A: 16 columns R1 of nibbles P; v: the words of (r1, r0); s0, s1: scales of rows g and g + 8."""
    e0, m0 = s0
    e1, m1 = s1
    if FORMAT == "q6_k" and R1:
        e0, e1 = m0, m1
    AT0: tl.constexpr = 2 * R1 if FORMAT == "q5_k" else 0
    AT1: tl.constexpr = 2 * R1 + 1 if FORMAT == "q5_k" else 2
    a0 = _weights(v[2 * R1], above, e0, m0, P, 0, AT0, FORMAT, BF16, ASM)
    a1 = _weights(v[2 * R1 + 1], above, e1, m1, P, 0, AT1, FORMAT, BF16, ASM)
    a2 = _weights(v[2 * R1], above, e0, m0, P, 1, AT0, FORMAT, BF16, ASM)
    a3 = _weights(v[2 * R1 + 1], above, e1, m1, P, 1, AT1, FORMAT, BF16, ASM)
    return a0, a1, a2, a3


@triton.jit
def _mma(c, a, b0, b1, BF16: tl.constexpr, ASM: tl.constexpr):
    c0, c1, c2, c3 = c
    a0, a1, a2, a3 = a
    if ASM:
        TEXT: tl.constexpr = _MMA_BF16 if BF16 else _MMA_F16
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            TEXT, "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3", [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
            (tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        W: tl.constexpr = a0.shape[0] // 32
        low, high = _wide(tl.join(tl.join(a0, a2), tl.join(a1, a3)), BF16)
        u = tl.reshape(tl.join(low, high), (W, 8, 4, 2, 2, 2))  # g t s r0 h
        u = tl.reshape(tl.permute(u, (0, 4, 1, 3, 2, 5)), (W, 16, 1, 16))
        low, high = _wide(tl.join(b0, b1), BF16)
        v = tl.reshape(tl.join(low, high), (W, 8, 4, 2, 2))  # n t s h
        v = tl.reshape(tl.permute(v, (0, 1, 3, 2, 4)), (W, 1, 8, 16))
        y = tl.reshape(tl.sum(u * v, 3), (W, 2, 8, 4, 2))  # r0 g t and a pair of n
        even, odd = tl.split(tl.reshape(tl.permute(y, (0, 2, 3, 1, 4)), (W * 32, 2, 2)))
        y0, y2 = tl.split(even)
        y1, y3 = tl.split(odd)
        c0, c1, c2, c3 = c0 + y0, c1 + y1, c2 + y2, c3 + y3
    return c0, c1, c2, c3


@triton.jit
def _step(
    acc, held, words_x, i_m, i_r, records,
    FORMAT: tl.constexpr, BF16: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, WK: tl.constexpr,
    WHOLE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """acc + a record a warp."""
    RB: tl.constexpr = len(held)
    r_4, o_4 = record(i_r, records, W, WK, 4), tl.arange(0, W * 128)
    m_x = i_r + o_4 // 128 % WK < records
    scales, bits, p_x = (), (), ()
    for n in tl.static_range(NT):
        p_x = p_x + (words_x + ((i_m * NT + n) * records + r_4) * 1024 + o_4 % 128,)
    for m in tl.static_range(RB):
        scales = scales + ((_decoded(held[m][2], 0, FORMAT, ASM), _decoded(held[m][2], 1, FORMAT, ASM)),)
        bits = bits + (bits_above(held[m][1], FORMAT),)
    for b in tl.static_range(8):
        xs = ()
        for n in tl.static_range(NT):
            xs = xs + (four(tl.load(p_x[n] + b * 128) if WHOLE else tl.load(p_x[n] + b * 128, mask=m_x, other=0)),)
        for r in tl.static_range(2):
            sums = ()
            for m in tl.static_range(RB):
                w, more, _ = held[m]
                v = four(more[b // 2] if FORMAT == "q8_0" and b % 2 == 1 else w[b // 2])
                above = v[0]
                if FORMAT == "q5_k":
                    above = bits[m][b // 2]
                if FORMAT == "q6_k":
                    above = bits[m][b // 2 * 2 + r]
                s0, s1 = scales[m][0][b // 2], scales[m][1][b // 2]
                a = _operand(v, above, s0, s1, b % 2, r, FORMAT, BF16, ASM)
                for n in tl.static_range(NT):
                    sums = sums + (_mma(acc[m * NT + n], a, xs[n][2 * r], xs[n][2 * r + 1], BF16, ASM),)
            acc = sums
    return acc


# M is compared with and no more: a kernel for each kind of number would be the same
@triton.jit(do_not_specialize=["M"])
def rows_exact(
    words_x,
    words,
    wide,
    residual, s_residual_m,
    out,
    M, N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SWIGLU: tl.constexpr,
    BF16: tl.constexpr,
    RB: tl.constexpr,
    NT: tl.constexpr,
    W: tl.constexpr,
    WK: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """With SWIGLU a program has 16 rows of gate and 16 of up, RB = 2. WHOLE: W divides the records."""
    L: tl.constexpr = W * 32
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    if EARLY == "start":
        tl.extra.cuda.gdc_launch_dependents()
    records = K // 256
    lanes(W, ASM)
    acc, held, places = (), (), ()
    for m in tl.static_range(RB):
        first = i_n * ((1 if SWIGLU else RB) * (W // WK))
        places = places + (place(words, wide, first, records, N, SWIGLU, RB, m, W, WK, FORMAT, RECORD, SCALES, D),)
        for _ in tl.static_range(NT):
            z = tl.zeros((L,), tl.float32)
            acc = acc + ((z, z, z, z),)
    for e in tl.static_range(STAGES):
        held = held + (fetch_all(places, e * WK, records, FORMAT, RECORD, W, WK),)
    if EARLY != "no":
        tl.extra.cuda.gdc_wait()
    steps = tl.cdiv(records, WK)
    for i in range(0, steps // STAGES):
        ahead = ()
        for e in tl.static_range(STAGES):
            i_r = (i * STAGES + e) * WK
            acc = _step(acc, held[e], words_x, i_m, i_r, records, FORMAT, BF16, NT, W, WK, WHOLE, ASM)
            ahead = ahead + (fetch_all(places, i_r + STAGES * WK, records, FORMAT, RECORD, W, WK),)
        held = ahead
    if STAGES == 2:
        for _ in range(0, steps % 2):
            acc = _step(acc, held[0], words_x, i_m, (steps - 1) * WK, records, FORMAT, BF16, NT, W, WK, WHOLE, ASM)
    if EARLY == "end":
        tl.extra.cuda.gdc_launch_dependents()
    store(acc, residual, s_residual_m, out, i_n, i_m, M, N, SWIGLU, RB, NT, W, WK)
