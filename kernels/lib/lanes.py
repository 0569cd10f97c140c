"""y = x · Wᵀ over lanes (reference/tiles.py) for up to 64 rows of x, by warps that do not wait for each other.

    program: RB x 16 rows of W, by W warps            warp kw: records kw, kw + W, ... of 256 columns

    record of W ──16 bytes a lane, a record ahead──> registers ──codes──> A ┐
    x           ──16 bytes a lane, from the L1─────> registers ───────────> B ┴─ m16n8k16 ─> f32 [RB, NT] x 16 x 8

Nothing passes through shared memory until the warps' sums are added at the end: no barrier, and no sum that two
programs share. The instructions take element i of a tensor from lane i % 32; `lanes` stops a program where that is not
so. Without PTX the same numbers come from sums of products.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc, no-redef, var-annotated"
# ruff: noqa: RUF005
import triton
import triton.language as tl

from .tiles import HIGH, halves

_HIGH = tl.constexpr(HIGH)
_LANES = tl.constexpr(
    "{ .reg .pred p; .reg .b32 l; mov.u32 l, %laneid; setp.ne.u32 p, l, $1; @p trap; mov.b32 $0, $1; }"
)
# f16 pairs of 1024 + n, and of -(64 + n), for what a format takes off its codes
_LESS = {"q4_k": (0x64006400, 0xD400D400), "q4_0": (0x64086408, 0xD480D480), "q6_k": (0x64206420, 0xD600D600)}
_LESS["q5_k"] = _LESS["q4_k"]


def _weight(format: str, j: int, half: int) -> str:
    """A pair of f16 weights from a word $1, shifted by 8 for j > 1 (q8_0: odd j), half `half` of $2 as scale, of $3 as
    minimum, and $4 with the bits above the nibble where the codes want them."""
    back = "sub.f16x2 q, q, c;" if j % 2 == 0 else "fma.rn.f16x2 q, q, k, c;"
    above = ""
    if format == "q8_0":
        constant, back = 0x64806480, "sub.f16x2 q, q, c;"
        code = "lop3.b32 q, $1, 0x00ff00ff, c, 0x6A;"
    else:
        constant = _LESS[format][j % 2]
        code = f"lop3.b32 q, $1, {hex(0xF000F0 if j % 2 else 0xF000F)}, 0x64006400, 0xEA;"
    if format in ("q5_k", "q6_k"):
        mask = (0x100010 if format == "q5_k" else 0x300030) << 4 * (j % 2)
        above = f"lop3.b32 q, $4, {hex(mask)}, q, 0xEA;"
    side = "{t, v}" if half else "{v, t}"
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


_WEIGHT = {
    format: tuple(tl.constexpr(_weight(format, j, half)) for half in (0, 1) for j in (0, 1))
    for format in ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0")
}
_Q4_K, _Q5_K, _Q6_K, _Q8_0, _Q4_0 = (_WEIGHT[format] for format in ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0"))
_Q4_K0, _Q4_K1, _Q4_K2, _Q4_K3 = _Q4_K
_Q5_K0, _Q5_K1, _Q5_K2, _Q5_K3 = _Q5_K
_Q6_K0, _Q6_K1, _Q6_K2, _Q6_K3 = _Q6_K
_Q8_00, _Q8_01, _Q8_02, _Q8_03 = _Q8_0
_Q4_00, _Q4_01, _Q4_02, _Q4_03 = _Q4_0
# bytes 0 and 2 of a word, less {less}, times $3, and bytes 1 and 3 times $4
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
mul.f16x2 $1, t, $4;
}}"""
_UNSIGNED, _BIASED = tl.constexpr(_SCALES.format(less="0x64006400")), tl.constexpr(_SCALES.format(less="0x64806480"))
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


@triton.jit
def lanes(W: tl.constexpr, ASM: tl.constexpr):
    """[32 W]: the lane that holds an element."""
    lane = tl.arange(0, W * 32) % 32
    if ASM:
        lane = tl.inline_asm_elementwise(_LANES, "=r,r", [lane], tl.int32, is_pure=False, pack=1)
    return lane


@triton.jit
def four(w):
    """[4 L] words, four a lane -> each [L]."""
    even, odd = tl.split(tl.reshape(w, (w.shape[0] // 4, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _pair(low, high):
    """Two f16 -> i32."""
    low, high = low.to(tl.int16, bitcast=True).to(tl.int32), high.to(tl.int16, bitcast=True).to(tl.int32)
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def _weights(
    w, above, s, m, J: tl.constexpr, HALF: tl.constexpr, AT: tl.constexpr, FORMAT: tl.constexpr, BF16: tl.constexpr
):
    """Column group J of a word's two columns -> a pair of weights: code times half HALF of s, plus that of m."""
    SHIFT: tl.constexpr = (8 * (J % 2)) if FORMAT == "q8_0" else (8 * (J // 2))
    I: tl.constexpr = 2 * HALF + J % 2
    if FORMAT == "q4_k":
        TEXT: tl.constexpr = (_Q4_K0 if I == 0 else _Q4_K1) if I < 2 else (_Q4_K2 if I == 2 else _Q4_K3)
    elif FORMAT == "q5_k":
        TEXT: tl.constexpr = (_Q5_K0 if I == 0 else _Q5_K1) if I < 2 else (_Q5_K2 if I == 2 else _Q5_K3)
    elif FORMAT == "q6_k":
        TEXT: tl.constexpr = (_Q6_K0 if I == 0 else _Q6_K1) if I < 2 else (_Q6_K2 if I == 2 else _Q6_K3)
    elif FORMAT == "q8_0":
        TEXT: tl.constexpr = (_Q8_00 if I == 0 else _Q8_01) if I < 2 else (_Q8_02 if I == 2 else _Q8_03)
    else:
        TEXT: tl.constexpr = (_Q4_00 if I == 0 else _Q4_01) if I < 2 else (_Q4_02 if I == 2 else _Q4_03)
    # one shift puts the bits of J and J + 1 where their masks are
    if FORMAT == "q5_k" or FORMAT == "q6_k":
        above = (above >> (4 + AT)) if J > 1 else (above << (4 - AT))
    pair = tl.inline_asm_elementwise(TEXT, "=r,r,r,r,r", [w >> SHIFT, s, m, above], tl.int32, is_pure=True, pack=1)
    if BF16:
        pair = tl.inline_asm_elementwise(_TO_BF16, "=r,r", [pair], tl.int32, is_pure=True, pack=1)
    return pair


@triton.jit
def _scales(w, d, less, BIASED: tl.constexpr):
    """Bytes of w in f16: 0 and 2 times d, 1 and 3 times `less`."""
    TEXT: tl.constexpr = _BIASED if BIASED else _UNSIGNED
    s, m = tl.inline_asm_elementwise(TEXT, "=&r,=&r,r,r,r", [w, d, less], (tl.int32, tl.int32), is_pure=True, pack=1)
    return s, m


@triton.jit
def _mma(c, a0, a1, a2, a3, b0, b1, BF16: tl.constexpr):
    c0, c1, c2, c3 = c
    TEXT: tl.constexpr = _MMA_BF16 if BF16 else _MMA_F16
    c0, c1, c2, c3 = tl.inline_asm_elementwise(
        TEXT, "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3", [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
        (tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip
    return c0, c1, c2, c3


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
def _load(p):
    return tl.load(p, eviction_policy="evict_first")


@triton.jit
def _record(i_r, records, W: tl.constexpr, EACH: tl.constexpr):
    """A warp's record of a step, for EACH elements a lane; past the last one the last again, where x counts as zero."""
    i_r += tl.arange(0, W * 32 * EACH) // (32 * EACH)
    return tl.minimum(i_r, records - 1)


@triton.jit
def _fetch_words(p, i_r, records, H: tl.constexpr, FORMAT: tl.constexpr, WORDS: tl.constexpr, W: tl.constexpr):
    """Words c = 2 H and 2 H + 1 of 16 rows from p, then q8_0's second plane or the bits above the nibble."""
    o_4 = tl.arange(0, W * 128)
    p += _record(i_r, records, W, 4) * WORDS + o_4 % 128
    p_w = p + H * 1024
    w = (_load(p_w), _load(p_w + 512))
    if FORMAT == "q8_0":
        w = w + (_load(p_w + 2048), _load(p_w + 2560))
    if FORMAT == "q6_k":
        w = w + (_load(p + _HIGH // 4 + H * 512),)
    return w


@triton.jit
def _fetch_fifth(p, i_r, records, w, FORMAT: tl.constexpr, WORDS: tl.constexpr, W: tl.constexpr):
    """q5_k's fifth bits; w where there are none."""
    if FORMAT == "q5_k":
        w = _load(p + _HIGH // 4 + _record(i_r, records, W, 4) * WORDS + tl.arange(0, W * 128) % 128)
    return w


@triton.jit
def _fetch_scales(
    p, p_d, i_r, records, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Scales of rows g and g + 8, 16 bytes each, and d."""
    o, o_4 = tl.arange(0, W * 32), tl.arange(0, W * 128)
    p += _record(i_r, records, W, 4) * (RECORD // 4) + o_4 // 16 % 8 * 4 + o_4 % 4
    s = (_load(p), _load(p + 32))
    if FORMAT == "q6_k":
        p_d += _record(i_r, records, W, 1) * (RECORD // 2) + o // 4 % 8
        s = s + (_load(p_d).to(tl.int32), _load(p_d + 8).to(tl.int32))
    elif FORMAT == "q4_k" or FORMAT == "q5_k":
        p_d += _record(i_r, records, W, 1) * (RECORD // 4) + o // 4 % 8
        s = s + (_load(p_d), _load(p_d + 8))
    return s


@triton.jit
def _fetch_x(p, m_x, FORMAT: tl.constexpr, WHOLE: tl.constexpr):
    """A lane's columns of a half block of 64: 16 bytes, or 8 and 8."""
    x = (tl.load(p) if WHOLE else tl.load(p, mask=m_x, other=0),)
    if FORMAT == "q6_k":
        x = x + (tl.load(p + 8) if WHOLE else tl.load(p + 8, mask=m_x, other=0),)
    return x


@triton.jit
def _columns(x, FORMAT: tl.constexpr):
    """What words of c = 2 H meet, then those of 2 H + 1."""
    if FORMAT == "q6_k":
        x0, x1 = tl.split(tl.reshape(x[0], (x[0].shape[0] // 2, 2)))
        x2, x3 = tl.split(tl.reshape(x[1], (x[1].shape[0] // 2, 2)))
    else:
        x0, x1, x2, x3 = four(x[0])
    return x0, x1, x2, x3


@triton.jit
def _decoded(loaded, R0: tl.constexpr, FORMAT: tl.constexpr):
    """Scales of column groups 0..3 of a lane's row g + 8 R0: pairs (half 0, half 1) with minimums (q6_k: of even c and
    of odd c)."""
    w0, w1, w2, w3 = four(loaded[R0])
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        low, up = halves(loaded[2 + R0])
        d, less = _pair(low, low), _pair(-up, -up)
        s = (_scales(w0, d, less, False), _scales(w1, d, less, False))
        s = s + (_scales(w2, d, less, False), _scales(w3, d, less, False))
    elif FORMAT == "q6_k":
        low, _ = halves(loaded[2 + R0])
        d = _pair(low, low)
        s = (_scales(w0, d, d, True), _scales(w1, d, d, True))
        s = s + (_scales(w2, d, d, True), _scales(w3, d, d, True))
    else:
        s = ((w0, w0), (w1, w1), (w2, w2), (w3, w3))
    return s


@triton.jit
def _operand(
    words, above, s0, s1, J: tl.constexpr, H: tl.constexpr, E: tl.constexpr, FORMAT: tl.constexpr, BF16: tl.constexpr
):
    """Four registers of A: words of c = 2 H + E for (r1, r0) = 00, 01, 10, 11; s0, s1: scales of rows g and g + 8."""
    v0, v1, v2, v3 = words
    e0, m0 = s0
    e1, m1 = s1
    u0, u1, u2, u3 = v0, v1, v2, v3
    A0: tl.constexpr = 0
    A1: tl.constexpr = 1 if FORMAT == "q5_k" else 2
    A2: tl.constexpr = 2 if FORMAT == "q5_k" else 0
    A3: tl.constexpr = 3 if FORMAT == "q5_k" else 2
    if FORMAT == "q5_k":
        u0, u1, u2, u3 = above[2 * H + E], above[2 * H + E], above[2 * H + E], above[2 * H + E]
    if FORMAT == "q6_k":
        u0, u1, u2, u3 = above[2 * E], above[2 * E], above[2 * E + 1], above[2 * E + 1]
        if E:
            e0, e1 = m0, m1
    a0 = _weights(v0, u0, e0, m0, J, H, A0, FORMAT, BF16)
    a1 = _weights(v1, u1, e1, m1, J, H, A1, FORMAT, BF16)
    a2 = _weights(v2, u2, e0, m0, J, H, A2, FORMAT, BF16)
    a3 = _weights(v3, u3, e1, m1, J, H, A3, FORMAT, BF16)
    return a0, a1, a2, a3


@triton.jit
def _fetch(p_w, p_s, p_d, i_r, records, FORMAT: tl.constexpr, RECORD: tl.constexpr, W: tl.constexpr):
    """Of each 16 rows: words c = 0 and 1, words 2 and 3, scales, and q5_k's fifth bits."""
    w0, w1, s, above = (), (), (), ()
    for m in tl.static_range(len(p_w)):
        w0 = w0 + (_fetch_words(p_w[m], i_r, records, 0, FORMAT, RECORD // 4, W),)
        w1 = w1 + (_fetch_words(p_w[m], i_r, records, 1, FORMAT, RECORD // 4, W),)
        s = s + (_fetch_scales(p_s[m], p_d[m], i_r, records, FORMAT, RECORD, W),)
        above = above + (_fetch_fifth(p_w[m], i_r, records, w0[m][0], FORMAT, RECORD // 4, W),)
    return w0, w1, s, above


@triton.jit
def _step(
    acc, held, p_x, i_r, records,
    FORMAT: tl.constexpr, BF16: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """acc + a record a warp."""
    C: tl.constexpr = 4 if FORMAT == "q8_0" else 2
    EACH: tl.constexpr = 2 if FORMAT == "q6_k" else 4
    RB: tl.constexpr = len(held[0])
    m_x = i_r + tl.arange(0, W * 32 * EACH) // (32 * EACH) < records
    scales, bits = (), ()
    for m in tl.static_range(RB):
        scales = scales + (_decoded(held[2][m], 0, FORMAT), _decoded(held[2][m], 1, FORMAT))
        bits = bits + (four(held[3][m]),)
    for h in tl.static_range(2):
        codes = ()
        if FORMAT == "q6_k":
            bits = ()
        for m in tl.static_range(RB):
            for c in tl.static_range(C):
                codes = codes + (four(held[h][m][c]),)
            if FORMAT == "q6_k":
                bits = bits + (four(held[h][m][2]),)
        for j in tl.static_range(4):
            xs = ()
            for n in tl.static_range(NT):
                xs = xs + (_columns(_fetch_x(p_x[n] + i_r * 128 + (32 * j + 16 * h), m_x, FORMAT, WHOLE), FORMAT),)
            sums = ()
            for m in tl.static_range(RB):
                s0, s1 = scales[2 * m][j], scales[2 * m + 1][j]
                v = codes[C * m + (j // 2 * (C - 2))]
                a0, a1, a2, a3 = _operand(v, bits[m], s0, s1, j, h, 0, FORMAT, BF16)
                v = codes[C * m + (j // 2 * (C - 2)) + 1]
                e0, e1, e2, e3 = _operand(v, bits[m], s0, s1, j, h, 1, FORMAT, BF16)
                for n in tl.static_range(NT):
                    b0, b1, b2, b3 = xs[n]
                    y = _mma(acc[m * NT + n], a0, a1, a2, a3, b0, b1, BF16)
                    sums = sums + (_mma(y, e0, e1, e2, e3, b2, b3, BF16),)
            acc = sums
    return acc


@triton.jit
def _plain_step(
    acc, held, p_x, i_r, records,
    FORMAT: tl.constexpr, BF16: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """`_step` from the same loads, without the instructions."""
    EACH: tl.constexpr = 2 if FORMAT == "q6_k" else 4
    RB: tl.constexpr = len(held[0])
    m_x = i_r + tl.arange(0, W * 32 * EACH) // (32 * EACH) < records
    xs = ()
    for n in tl.static_range(NT):
        halves_ = ()
        for h in tl.static_range(2):
            js = ()
            for j in tl.static_range(4):
                js = js + (_fetch_x(p_x[n] + i_r * 128 + (32 * j + 16 * h), m_x, FORMAT, WHOLE),)
            halves_ = halves_ + (_all_four(js, FORMAT),)
        # w n t e r1 j/2 j%2 h
        words = tl.reshape(tl.join(halves_[0], halves_[1]), (W, 8, 4, 2, 2, 2, 2, 2))
        low, high = _wide(words, BF16)
        xs = xs + (tl.reshape(tl.join(low, high), (W, 1, 8, 256)),)
    sums = ()
    for m in tl.static_range(RB):
        a = _plain_weights(held[0][m], held[1][m], held[2][m], held[3][m], FORMAT, W)
        if BF16:
            a = a.to(tl.float32).to(tl.bfloat16)
        a = tl.reshape(a.to(tl.float32), (W, 16, 1, 256))
        for n in tl.static_range(NT):
            y = tl.reshape(tl.sum(a * xs[n], 3), (W, 2, 8, 4, 2))  # w r0 g t and a pair of n
            y = tl.reshape(tl.permute(y, (0, 2, 3, 1, 4)), (W * 32, 2, 2))
            even, odd = tl.split(y)
            y0, y2 = tl.split(even)
            y1, y3 = tl.split(odd)
            c0, c1, c2, c3 = acc[m * NT + n]
            sums = sums + ((c0 + y0, c1 + y1, c2 + y2, c3 + y3),)
    return sums


@triton.jit
def _all_four(js, FORMAT: tl.constexpr):
    """x of column groups 0..3 -> i32 [lane e r1, j/2, j%2]."""
    if FORMAT == "q6_k":
        x0, x1 = tl.join(js[0][0], js[0][1]), tl.join(js[1][0], js[1][1])  # lane r1, e
        x2, x3 = tl.join(js[2][0], js[2][1]), tl.join(js[3][0], js[3][1])
        x = tl.join(tl.join(x0, x2), tl.join(x1, x3))
        x = tl.permute(tl.reshape(x, (x.shape[0] // 2, 2, 2, 2, 2)), (0, 2, 1, 3, 4))
    else:
        x = tl.join(tl.join(js[0][0], js[2][0]), tl.join(js[1][0], js[3][0]))
    return x


@triton.jit
def _plain_weights(w0, w1, s, above, FORMAT: tl.constexpr, W: tl.constexpr):
    """16 rows of a record -> f16 [W, r0 g, t e r1 j/2 j%2 h k], k the columns of a word."""
    # w g t r1 r0, e, h
    w = tl.join(tl.join(w0[0], w0[1]), tl.join(w1[0], w1[1]))
    w = tl.reshape(w, (W, 8, 4, 2, 2, 2, 1, 1, 2, 1))
    j1 = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 1, 2, 1, 1, 1))
    j0 = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 1, 1, 2, 1, 1))
    k = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    r0 = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 2, 1, 1, 1, 1, 1))
    if FORMAT == "q8_0":
        more = tl.reshape(tl.join(tl.join(w0[2], w0[3]), tl.join(w1[2], w1[3])), w.shape)
        q = ((((tl.where(j1 == 1, more, w)) >> (16 * k + 8 * j0)) & 255) ^ 128) - 128
    else:
        q = (w >> (16 * k + 8 * j1 + 4 * j0)) & 15
        if FORMAT == "q5_k":
            # w g t, h e: a word for the four of (r1, r0)
            u = tl.permute(tl.reshape(above, (W, 8, 4, 2, 2)), (0, 1, 2, 4, 3))
            u = tl.reshape(u, (W, 8, 4, 1, 1, 2, 1, 1, 2, 1))
            r1 = tl.reshape(tl.arange(0, 2), (1, 1, 1, 2, 1, 1, 1, 1, 1, 1))
            q += ((u >> (16 * k + 8 * j1 + 4 * j0 + 2 * r1 + r0)) & 1) * 16
        if FORMAT == "q6_k":
            # w g t, e r1, h: a word for both rows
            u = tl.permute(tl.reshape(tl.join(w0[2], w1[2]), (W, 8, 4, 2, 2, 2)), (0, 1, 2, 4, 3, 5))
            u = tl.reshape(u, (W, 8, 4, 2, 1, 2, 1, 1, 2, 1))
            q += ((u >> (16 * k + 8 * j1 + 4 * j0 + 2 * r0)) & 3) * 16 - 32
        if FORMAT == "q4_0":
            q -= 8
    # w g t j/2 j%2 r0
    b_s = tl.reshape(tl.join(s[0], s[1]), (W, 8, 4, 1, 2, 2, 2, 1, 1))
    b_s = tl.permute(b_s, (0, 1, 2, 3, 6, 7, 4, 5, 8))[:, :, :, :, :, :, :, :, :, None]  # w g t r1 r0 e j/2 j%2 h k
    h = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 1, 1, 1, 2, 1))
    if FORMAT == "q4_k" or FORMAT == "q5_k" or FORMAT == "q6_k":
        b_d = tl.reshape(tl.join(s[2], s[3]), (W, 8, 4, 1, 2, 1, 1, 1, 1, 1))
        low, up = halves(b_d)
        if FORMAT == "q6_k":
            e = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 2, 1, 1, 1, 1))
            a = q.to(tl.float16) * ((((b_s >> (16 * h + 8 * e)) & 255) - 128).to(tl.float16) * low)
        else:
            b_m = ((b_s >> (16 * h + 8)) & 255).to(tl.float16) * up
            a = q.to(tl.float16) * (((b_s >> (16 * h)) & 255).to(tl.float16) * low) - b_m
    else:
        low, up = halves(b_s)
        a = q.to(tl.float16) * tl.where(h == 1, up, low)
    # w g t r1 r0 e j/2 j%2 h k -> w r0 g, t e r1 j/2 j%2 h k
    return tl.reshape(tl.permute(a, (0, 4, 1, 2, 5, 3, 6, 7, 8, 9)), (W, 16, 256))


@triton.jit
def few_rows(
    x, s_x_m,
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
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """x: pairs of columns as i32, s_x_m in pairs. With SWIGLU a program has 16 rows of gate and 16 of up, RB = 2.

    WHOLE: W divides the records.
    """
    L: tl.constexpr = W * 32
    EACH: tl.constexpr = 2 if FORMAT == "q6_k" else 4
    WORDS: tl.constexpr = RECORD // 4
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    records = K // 256
    lanes(W, ASM)
    o_x = tl.arange(0, L * EACH)
    o_m = i_m * (NT * 8) + o_x // (4 * EACH) % 8
    p_x = ()
    for n in tl.static_range(NT):
        # past the last row the last again: what it gives is not stored
        row = tl.minimum(o_m + 8 * n, M - 1).to(tl.int64)
        p_x = p_x + (x + row * s_x_m + o_x // (32 * EACH) * 128 + o_x % (4 * EACH),)
    # where 16 rows begin: their words, scales and d
    p_w, p_s, p_d = (), (), ()
    acc = ()
    for m in tl.static_range(RB):
        i_b = i_n if SWIGLU else i_n * RB + m
        tile = (i_b // 4 + (m * (N // 64) if SWIGLU else 0)).to(tl.int64) * records
        p_w = p_w + (wide + tile * WORDS + i_b % 4 * 128,)
        p_s = p_s + (wide + tile * WORDS + SCALES // 4 + i_b % 4 * 64,)
        if FORMAT == "q6_k":
            p_d = p_d + (words + tile * (2 * WORDS) + D // 2 + i_b % 4 * 16,)
        else:
            p_d = p_d + (wide + tile * WORDS + D // 4 + i_b % 4 * 16,)
        for _ in tl.static_range(NT):
            z = tl.zeros((L,), tl.float32)
            acc = acc + ((z, z, z, z),)
    steps = tl.cdiv(records, W)
    held = ()
    for e in tl.static_range(STAGES):
        held = held + (_fetch(p_w, p_s, p_d, e * W, records, FORMAT, RECORD, W),)
    for i in range(0, steps // STAGES):
        ahead = ()
        for e in tl.static_range(STAGES):
            i_r = (i * STAGES + e) * W
            if ASM:
                acc = _step(acc, held[e], p_x, i_r, records, FORMAT, BF16, NT, W, WHOLE)
            else:
                acc = _plain_step(acc, held[e], p_x, i_r, records, FORMAT, BF16, NT, W, WHOLE)
            ahead = ahead + (_fetch(p_w, p_s, p_d, i_r + STAGES * W, records, FORMAT, RECORD, W),)
        held = ahead
    if STAGES == 2:
        for _ in range(0, steps % 2):
            if ASM:
                acc = _step(acc, held[0], p_x, (steps - 1) * W, records, FORMAT, BF16, NT, W, WHOLE)
            else:
                acc = _plain_step(acc, held[0], p_x, (steps - 1) * W, records, FORMAT, BF16, NT, W, WHOLE)
    for m in tl.static_range(1 if SWIGLU else RB):
        o_n = (i_n if SWIGLU else i_n * RB + m) * 16 + tl.arange(0, 16)
        for n in tl.static_range(NT):
            total = _block(acc[m * NT + n], W)
            if SWIGLU:
                total = total * tl.sigmoid(total) * _block(acc[NT + n], W)
            o_y = (i_m * NT + n) * 8 + tl.arange(0, 8)
            m_out = (o_y < M)[None, :] & (o_n < N)[:, None]
            if residual is not None:
                p_r = residual + o_y.to(tl.int64)[None, :] * s_residual_m + o_n[:, None]
                total += tl.load(p_r, mask=m_out, other=0.0).to(tl.float32)
            p_out = out + o_y.to(tl.int64)[None, :] * N + o_n[:, None]
            tl.store(p_out, total.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _block(c, W: tl.constexpr):
    """Sums of all warps, lanes (g, t) -> [16, 8]."""
    c0, c1, c2, c3 = c
    y = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # lane, r0, h
    y = tl.sum(tl.reshape(y, (W, 8, 4, 2, 2)), 0)
    return tl.reshape(tl.permute(y, (2, 0, 1, 3)), (16, 8))
