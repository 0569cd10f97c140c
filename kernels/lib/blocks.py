"""GGUF blocks in registers: 256 weights of a row at a time, as integers with their scales, or as f32.

    row:  |<- chunk 0: 256 weights ->|<- chunk 1 ->| ...      a chunk is one K-quant block, or 8 blocks of 32

`unpack` gives signed or unsigned codes q [R, G, 256/G] with scale and minimum [R, G], one for each of G groups:

    weight = scale * q - minimum       G = 16 for q6_k, 8 for all others; the minimum is zero but for q4_k and q5_k

`dequantise` gives that in f32; bit for bit ggml's where no multiply is fused with an add (enable_fp_fusion=False).
Bytes are read where they lie: q6_k and the formats of 32 are aligned to two bytes only, q4_k and q5_k to sixteen.
"""

import triton
import triton.language as tl

# bytes from a chunk to the next; of a plain tensor, elements
CHUNK = {"q4_k": 144, "q5_k": 176, "q6_k": 210, "q8_0": 8 * 34, "q4_0": 8 * 18, "bf16": 256, "f16": 256, "f32": 256}


@triton.jit
def half(p, m_p):
    """The f16 at a byte pointer, in f32."""
    return tl.load(p.to(tl.pointer_type(tl.float16)), mask=m_p, other=0.0).to(tl.float32)


@triton.jit
def six_bits(p, m_p):
    """Scales and minimums [R, 8] of the K-quant blocks at p [R], from the 12 bytes x0..3 y0..3 z0..3 at 4.

    Groups 0..3: x & 63 and y & 63. Groups 4..7: four bits in z, the scale's the low nibble; their two high bits atop x
    and y.
    """
    o_g = tl.arange(0, 8)
    p_x = p[:, None] + 4 + (o_g % 4)[None, :]
    b_x = tl.load(p_x, mask=m_p[:, None], other=0).to(tl.int32)  # [R, 8]
    b_y = tl.load(p_x + 4, mask=m_p[:, None], other=0).to(tl.int32)
    b_z = tl.load(p_x + 8, mask=m_p[:, None], other=0).to(tl.int32)
    m_low = (o_g < 4)[None, :]
    b_scale = tl.where(m_low, b_x & 63, (b_z & 15) | ((b_x >> 6) << 4))
    b_min = tl.where(m_low, b_y & 63, (b_z >> 4) | ((b_y >> 6) << 4))
    return b_scale.to(tl.float32), b_min.to(tl.float32)


@triton.jit
def unpack(p, m_p, left, FORMAT: tl.constexpr):
    """p: [R] byte pointers to chunks; m_p: [R]; left: how many weights the row still has, [R] or one for all.

    -> q i32 [R, G, 256/G], scale f32 [R, G], minimum f32 [R, G]; scale and minimum are zero where masked.
    """
    G: tl.constexpr = 16 if FORMAT == "q6_k" else 8
    o_g = tl.arange(0, G)[None, :, None]
    o_l = tl.arange(0, 256 // G)[None, None, :]
    p_b = p[:, None, None]
    m_b = m_p[:, None, None]
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        # 32 bytes hold two groups: the even one in the low nibbles, the odd one in the high
        QS: tl.constexpr = 16 if FORMAT == "q4_k" else 48
        b_q = tl.load(p_b + QS + (o_g // 2) * 32 + o_l, mask=m_b, other=0).to(tl.int32)  # [R, 8, 32]
        b_q = (b_q >> ((o_g % 2) * 4)) & 15
        if FORMAT == "q5_k":
            b_fifth = tl.load(p_b + 16 + o_l, mask=m_b, other=0).to(tl.int32)  # [R, 1, 32]
            b_q = b_q | (((b_fifth >> o_g) & 1) << 4)
        b_scale, b_min = six_bits(p, m_p)
        b_scale = half(p, m_p)[:, None] * b_scale
        b_min = half(p + 2, m_p)[:, None] * b_min
    elif FORMAT == "q6_k":
        # weight 128 h + 32 s + l: nibble s // 2 of byte 64 h + 32 (s % 2) + l, bits 2 s of high byte 32 h + l
        o_h = o_g // 8
        o_s = (o_g // 2) % 4
        o_b = (o_g % 2) * 16 + o_l
        b_low = tl.load(p_b + 64 * o_h + 32 * (o_s % 2) + o_b, mask=m_b, other=0).to(tl.int32)  # [R, 16, 16]
        b_high = tl.load(p_b + 128 + 32 * o_h + o_b, mask=m_b, other=0).to(tl.int32)
        b_q = (((b_low >> ((o_s // 2) * 4)) & 15) | (((b_high >> (o_s * 2)) & 3) << 4)) - 32
        p_scale = (p[:, None] + 192 + tl.arange(0, G)[None, :]).to(tl.pointer_type(tl.int8))
        b_scale = tl.load(p_scale, mask=m_p[:, None], other=0).to(tl.float32)  # [R, 16]
        b_scale = half(p + 208, m_p)[:, None] * b_scale
        b_min = tl.zeros_like(b_scale)
    else:
        SIZE: tl.constexpr = 34 if FORMAT == "q8_0" else 18
        m_g = m_p[:, None] & (tl.arange(0, G)[None, :] * 32 < tl.zeros_like(m_p.to(tl.int32))[:, None] + left)
        p_g = p[:, None] + tl.arange(0, G)[None, :] * SIZE
        if FORMAT == "q8_0":
            p_q = (p_g[:, :, None] + 2 + o_l).to(tl.pointer_type(tl.int8))
            b_q = tl.load(p_q, mask=m_g[:, :, None], other=0).to(tl.int32)  # [R, 8, 32]
        else:
            b_q = tl.load(p_g[:, :, None] + 2 + o_l % 16, mask=m_g[:, :, None], other=0).to(tl.int32)
            b_q = ((b_q >> ((o_l // 16) * 4)) & 15) - 8
        b_scale = half(p_g, m_g)
        b_min = tl.zeros_like(b_scale)
    return b_q, b_scale, b_min


@triton.jit
def dequantise(p, m_p, left, FORMAT: tl.constexpr):
    """f32 [R, 256] of the chunks at p [R]: byte pointers to blocks, or element pointers into plain rows."""
    if FORMAT == "bf16" or FORMAT == "f16" or FORMAT == "f32":
        o_k = tl.arange(0, 256)[None, :]
        m_w = m_p[:, None] & (o_k < tl.zeros_like(m_p.to(tl.int32))[:, None] + left)
        b_w = tl.load(p[:, None] + o_k, mask=m_w, other=0.0).to(tl.float32)
    else:
        b_q, b_scale, b_min = unpack(p, m_p, left, FORMAT)
        b_w = b_scale[:, :, None] * b_q.to(tl.float32)
        if FORMAT == "q4_k" or FORMAT == "q5_k":
            b_w = b_w - b_min[:, :, None]
        b_w = tl.reshape(b_w, (p.shape[0], 256))
    return b_w
