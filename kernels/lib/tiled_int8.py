"""y = W · x for one row x in 8-bit integers, over tiles (reference/tiles.py).

    a word of W, byte by byte     (h0 j0) (h0 j2) (h1 j0) (h1 j2)  in the low nibbles, j1 and j3 in the high ones
    the words of r1 = 0 and 1     give four codes of one j, for dp4a with a word of x that holds the same four columns

x is quantised per 32 once a call, in words laid out as a lane reads them. Eight weights cost seven instructions and no
conversion: a sum that starts at 0x4B400000 is, read as a float, 1.5 * 2^23 plus the sum. A program takes ROWS rows; the
warps that leaves over work on other columns of the same rows. SPLIT programs share rows as in `tiled`.
"""

import triton
import triton.language as tl

from .tiles import HIGH, byte_pair, halves

_HIGH = tl.constexpr(HIGH)


@triton.jit
def gather(a, b, ODD: tl.constexpr, ASM: tl.constexpr):
    """i32 words of r1 = 0 and 1 -> bytes 0 and 2 of both in one word, or bytes 1 and 3."""
    if ASM:
        TEXT: tl.constexpr = "prmt.b32 $0, $1, $2, 0x7531;" if ODD else "prmt.b32 $0, $1, $2, 0x6420;"
        return tl.inline_asm_elementwise(TEXT, "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    SHIFT: tl.constexpr = 8 if ODD else 0
    a, b = a >> SHIFT, b >> SHIFT
    return (a & 255) | ((a >> 8) & 0xFF00) | ((b & 255) << 16) | (((b >> 16) & 255) << 24)


@triton.jit
def dp4a(a, b, acc, SIGNED: tl.constexpr, ASM: tl.constexpr):
    """acc + the dot product of four bytes; a's are unsigned unless SIGNED, b's are signed."""
    if ASM:
        TEXT: tl.constexpr = "dp4a.s32.s32 $0, $1, $2, $3;" if SIGNED else "dp4a.u32.s32 $0, $1, $2, $3;"
        acc = tl.inline_asm_elementwise(TEXT, "=r,r,r,r", [a, b, acc], tl.int32, is_pure=True, pack=1)
    else:
        for i in tl.static_range(4):
            byte = (a >> (8 * i)) & 255
            if SIGNED:
                byte = (byte ^ 128) - 128
            acc += byte * ((((b >> (8 * i)) & 255) ^ 128) - 128)
    return acc


@triton.jit
def quantise(
    x,
    words,
    d,
    sums,
    SMALLEST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A program 256 columns: words [2 c/2, 4 llo, 2 c%2, 4 j], d [8] f32 and d * sum(q) [16], a sum for every 16."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_k = tl.program_id(0).to(tl.int64)
    b_x = tl.load(x + i_k * 256 + tl.reshape(tl.arange(0, 256), (8, 32))).to(tl.float32)
    b_max = tl.max(tl.abs(b_x), 1)
    b_inverse = tl.where(b_max >= SMALLEST, tl.div_rn(tl.full((8,), 127.0, tl.float32), b_max), 0.0)
    # adding 1.5 * 2^23 leaves no fraction bits: to the nearest, halves to even
    b_q = (b_x * b_inverse[:, None] + 12582912.0) - 12582912.0
    b_q = tl.where(tl.abs(b_q) <= 127.0, b_q, 0.0)
    # zero, or NaN where the group is not finite
    b_d = tl.div_rn(b_max, tl.full((8,), 127.0, tl.float32)) + tl.sum(b_x * 0.0, 1)
    tl.store(d + i_k * 8 + tl.arange(0, 8), b_d)
    o_16 = tl.reshape(tl.arange(0, 16), (8, 2))
    tl.store(sums + i_k * 16 + o_16, tl.sum(tl.reshape(b_q, (8, 2, 16)), 2) * b_d[:, None])
    # column 64 j + 32 cp + 16 clo + 8 r1 + 2 llo + h: byte 2 r1 + h of its word
    b_q = tl.permute(tl.reshape(b_q.to(tl.int32) & 255, (4, 2, 2, 2, 4, 2)), (0, 1, 2, 4, 3, 5))
    b_q = tl.reshape(b_q, (64, 4)) << (8 * tl.arange(0, 4))[None, :]
    o_w = tl.arange(0, 64)
    j, cp, clo, llo = o_w // 16, o_w // 8 % 2, o_w // 4 % 2, o_w % 4
    tl.store(words + i_k * 64 + ((cp * 4 + llo) * 2 + clo) * 4 + j, tl.sum(b_q, 1))


@triton.jit
def _codes(w, high, FORMAT: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """i32 words of a step -> codes of column groups 0..3, four a word: [wr, r0, lhi, wk, cp, llo, clo].

    q8_0 has two groups a plane: they come first, and again as groups 2 and 3.
    """
    WR: tl.constexpr = ROWS // 16
    w = tl.permute(tl.reshape(w, (2, 2, KW, WR, 8, 4, 2, 2)), (3, 7, 4, 2, 0, 5, 1, 6))
    a, b = tl.split(w)
    if FORMAT == "q8_0":
        j0, j1 = gather(a, b, False, ASM), gather(a, b, True, ASM)
        j2, j3 = j0, j1
    else:
        a_low, a_up = a & 0x0F0F0F0F, (a >> 4) & 0x0F0F0F0F
        b_low, b_up = b & 0x0F0F0F0F, (b >> 4) & 0x0F0F0F0F
        r0 = tl.reshape(tl.arange(0, 2), (1, 2, 1, 1, 1, 1, 1))
        if FORMAT == "q5_k":
            high = tl.permute(tl.reshape(high, (KW, WR, 8, 4, 2, 2)), (1, 2, 0, 4, 3, 5))[:, None]
            a_low, a_up = a_low | ((high << (4 - r0)) & 0x10101010), a_up | ((high >> r0) & 0x10101010)
            b_low, b_up = b_low | ((high << (2 - r0)) & 0x10101010), b_up | ((high >> (2 + r0)) & 0x10101010)
        if FORMAT == "q6_k":
            high = tl.permute(tl.reshape(high, (2, KW, WR, 8, 4, 2, 2)), (2, 3, 1, 0, 4, 5, 6))[:, None]
            high_a, high_b = tl.split(high)
            a_low, a_up = a_low | ((high_a << (4 - 2 * r0)) & 0x30303030), a_up | ((high_a >> (2 * r0)) & 0x30303030)
            b_low, b_up = b_low | ((high_b << (4 - 2 * r0)) & 0x30303030), b_up | ((high_b >> (2 * r0)) & 0x30303030)
        j0, j2 = gather(a_low, b_low, False, ASM), gather(a_low, b_low, True, ASM)
        j1, j3 = gather(a_up, b_up, False, ASM), gather(a_up, b_up, True, ASM)
    return j0, j1, j2, j3


@triton.jit
def _dot(j, b_x, FORMAT: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """Codes of a column group · x's -> f32 [ROWS, KW, 2 cp, 4 llo] of clo = 0 and 1; their sum twice but for q6_k."""
    j0, j1 = tl.split(tl.reshape(j, (ROWS, KW, 2, 4, 2)))
    x0, x1 = tl.split(b_x)
    start = tl.full((ROWS, KW, 2, 4), 0x4B400000, tl.int32)
    first = dp4a(j0, x0, start, FORMAT == "q8_0", ASM)
    second = dp4a(j1, x1, start if FORMAT == "q6_k" else first, FORMAT == "q8_0", ASM)
    if FORMAT != "q6_k":
        first = second
    return first.to(tl.float32, bitcast=True) - 12582912.0, second.to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def tiled_int8(
    x_words,
    x_d,
    x_sums,
    words,
    wide,
    residual,
    out,
    partial,
    arrived,
    N, K,
    FORMAT: tl.constexpr,
    RECORD: tl.constexpr,
    SCALES: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    WR: tl.constexpr = ROWS // 16
    KW: tl.constexpr = 4 // WR
    G: tl.constexpr = 16 if FORMAT == "q6_k" else 8
    i_n, i_s = tl.program_id(0), tl.program_id(1)
    records = K // 256
    steps = tl.cdiv(records, KW)
    first, last = steps * i_s // tl.num_programs(1), steps * (i_s + 1) // tl.num_programs(1)
    # which of the tile's four row blocks of 16, and where its record begins
    block = (i_n % KW) * WR
    row = (i_n // KW).to(tl.int64) * records * RECORD
    o_e = tl.arange(0, 2048)
    o_record = o_e // (128 * WR) % KW
    o_w = o_e // 512 * 512 + (block + o_e // 128 % WR) * 128 + o_e % 128
    o_r = tl.arange(0, ROWS)
    o_s = tl.arange(0, KW * 8)
    acc = tl.zeros((ROWS, KW, 2, 4), tl.float32)
    acc_less = tl.zeros((ROWS, KW), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for i_k in tl.range(first, last, num_stages=STAGES):
        i_r = i_k * KW
        p = row + i_r * RECORD
        m_e = i_r + o_record < records
        b_w = tl.load(wide + (p + o_record * RECORD) // 4 + o_w, mask=m_e, other=0, eviction_policy="evict_first")
        b_more = b_w
        if FORMAT == "q8_0":
            p_w = wide + (p + o_record * RECORD) // 4 + 2048 + o_w
            b_more = tl.load(p_w, mask=m_e, other=0, eviction_policy="evict_first")
        b_high = b_w
        if FORMAT == "q5_k":
            o_h = tl.arange(0, 512)
            o_hr = o_h // (128 * WR)
            p_h = wide + (p + _HIGH + o_hr * RECORD) // 4 + (block + o_h // 128 % WR) * 128 + o_h % 128
            b_high = tl.load(p_h, mask=i_r + o_hr < records, other=0, eviction_policy="evict_first")
        if FORMAT == "q6_k":
            o_h = tl.arange(0, 1024)
            o_hr = o_h // (128 * WR) % KW
            p_h = (
                wide + (p + _HIGH + o_hr * RECORD) // 4 + o_h // 512 * 512 + (block + o_h // 128 % WR) * 128 + o_h % 128
            )
            b_high = tl.load(p_h, mask=i_r + o_hr < records, other=0, eviction_policy="evict_first")
        m_s = (i_r + o_s // 8 < records)[None, :]
        p_s = (
            words
            + (p + (o_s // 8) * RECORD + SCALES)[None, :] // 2
            + (block * 16 + o_r)[:, None] * 8
            + (o_s % 8)[None, :]
        )
        b_scales = tl.load(p_s, mask=m_s, other=0, eviction_policy="evict_first")  # [ROWS, KW 8]
        b_xw = tl.load(
            x_words + i_r * 64 + tl.arange(0, 64 * KW), mask=i_r + tl.arange(0, 64 * KW) // 64 < records, other=0
        )
        b_xd = tl.load(x_d + i_r * 8 + o_s, mask=i_r + o_s // 8 < records, other=0.0)
        o_16 = tl.arange(0, KW * 16)
        b_sum = tl.load(x_sums + i_r * 16 + o_16, mask=i_r + o_16 // 16 < records, other=0.0)
        if FORMAT == "q8_0" or FORMAT == "q4_0":
            b_scale = b_scales.to(tl.float16, bitcast=True).to(tl.float32)
            b_less = b_scale * 8.0
        else:
            o_kw = tl.arange(0, KW)
            m_d = (i_r + o_kw < records)[None, :]
            p_d = p + o_kw[None, :] * RECORD + D
            if FORMAT == "q6_k":
                b_d = tl.load(words + p_d // 2 + (block * 16 + o_r)[:, None], mask=m_d, other=0)
                b_d = b_d.to(tl.float16, bitcast=True).to(tl.float32)  # [ROWS, KW]
                even, odd = byte_pair(b_scales, "biased", ASM)
                b_scale = tl.reshape(tl.join(even, odd).to(tl.float32), (ROWS, KW, 16)) * b_d[:, :, None]
                b_scale = tl.reshape(b_scale, (ROWS, KW * 16))
                b_less = b_scale * 32.0
            else:
                low, up = halves(tl.load(wide + p_d // 4 + (block * 16 + o_r)[:, None], mask=m_d, other=0))
                b_scale, b_less = byte_pair(b_scales, "unsigned", ASM)
                b_scale = tl.reshape(b_scale.to(tl.float32), (ROWS, KW, 8)) * low.to(tl.float32)[:, :, None]
                b_less = tl.reshape(b_less.to(tl.float32), (ROWS, KW, 8)) * up.to(tl.float32)[:, :, None]
                b_scale, b_less = tl.reshape(b_scale, (ROWS, KW * 8)), tl.reshape(b_less, (ROWS, KW * 8))
        if FORMAT == "q6_k":
            b_xd = tl.reshape(tl.join(b_xd, b_xd), (KW * 16,))
        else:
            b_sum = tl.sum(tl.reshape(b_sum, (KW * 8, 2)), 1)
        if FORMAT != "q8_0":
            acc_less += tl.sum(tl.reshape(b_less * b_sum[None, :], (ROWS, KW, G)), 2)
        # a scale for every (cp, clo) of a column group
        b_scale = tl.reshape(b_scale * b_xd[None, :], (ROWS, KW, 2, 2, 2, G // 8))
        s_even, s_odd = tl.split(tl.permute(b_scale, (0, 1, 4, 5, 2, 3)))
        s0, s2 = tl.split(s_even)  # [ROWS, KW, 2, G / 8]
        s1, s3 = tl.split(s_odd)
        b_xw = tl.reshape(b_xw, (1, KW, 2, 4, 2, 2, 2))
        x_even, x_odd = tl.split(b_xw)
        x0, x2 = tl.split(x_even)  # [1, KW, 2 cp, 4 llo, 2 clo]
        x1, x3 = tl.split(x_odd)
        j0, j1, j2, j3 = _codes(b_w, b_high, FORMAT, ROWS, KW, ASM)
        if FORMAT == "q8_0":
            j2, j3, _, _ = _codes(b_more, b_high, FORMAT, ROWS, KW, ASM)
        acc = _add(acc, j0, x0, s0, FORMAT, ROWS, KW, ASM)
        acc = _add(acc, j1, x1, s1, FORMAT, ROWS, KW, ASM)
        acc = _add(acc, j2, x2, s2, FORMAT, ROWS, KW, ASM)
        acc = _add(acc, j3, x3, s3, FORMAT, ROWS, KW, ASM)

    y = tl.sum(tl.sum(tl.sum(acc, 3), 2) - acc_less, 1)
    o_n = i_n * ROWS + o_r
    complete = True
    if SPLIT:
        tl.store(partial + i_s * N + o_n, y)
        tl.debug_barrier()
        complete = tl.atomic_add(arrived + i_n, 1, sem="acq_rel") == tl.num_programs(1) - 1
        if complete:
            tl.store(arrived + i_n, 0)
            y = tl.zeros((ROWS,), tl.float32)
            for i_p in range(tl.num_programs(1)):
                y += tl.load(partial + i_p * N + o_n, cache_modifier=".cg")
    if complete:
        if residual is not None:
            y += tl.load(residual + o_n).to(tl.float32)
        tl.store(out + o_n, y.to(out.dtype.element_ty))


@triton.jit
def _add(acc, j, b_x, b_s, FORMAT: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """acc [ROWS, KW, 2, 4] + one column group's sums times their scales b_s [ROWS, KW, 2, 1 or 2]."""
    first, second = _dot(j, b_x, FORMAT, ROWS, KW, ASM)
    if FORMAT == "q6_k":
        s0, s1 = tl.split(b_s)
        acc += first * s0[:, :, :, None] + second * s1[:, :, :, None]
    else:
        acc += first * b_s
    return acc
