"""cache_k[h, slots[t]] = quantise(k[t, h]), and v alike, each in its own format.

    program (i, K or V):  rows i BR .. of the T * Hkv rows (t, h)     | block | block | .. |     [BR, D/32, 32]
                          amax a block -> scale f16, codes            tq3_0: groups of 128, [BR * D/128, 128]

    cache row   q8_0   | D/32 scales | D int8 |     q4_0   | D/32 scales | nibbles: byte j = x[j] | x[j + 16] << 4 |
                tq3_0  | D/32 norms | D/4 low pairs, 4 codes a byte | D/8 high bits, 8 codes a byte |

Memory-bound at thousands of tokens (goal 7 us for 4096 of 1024 values), launch-bound at a few: K and V share a launch.
Every byte is ggml's. That rests on three things: divisions and roots that round to nearest, sums in one fixed order,
and no fused multiply-add: x * id + 8.5 with one rounding instead of two gives other codes, so the launch turns
contraction off. Slots are distinct. A token without a slot (negative, or past the cache) is skipped.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..reference.cache import FORMATS, NAN_BITS, row_size
from ..reference.formats import find
from ..reference.quantisers import TQ3_BOUNDS, TQ3_CODES
from .config import pick
from .lib.early import begin, early
from .lib.fwht import fwht, pairwise_sum, signed

# bounds and codes are symmetric: those above zero
HIGH = tl.constexpr(TQ3_BOUNDS[4:])
SIZES = tl.constexpr(TQ3_CODES[4:])
NAN_F16 = tl.constexpr(NAN_BITS["f16"])
NAN_BF16 = tl.constexpr(NAN_BITS["bf16"])


@dataclass(frozen=True)
class Config:
    BLOCK_R: int = 8
    num_warps: int = 4


@triton.jit
def _inverse(b_d):
    """1/d, and 0 where that is infinite."""
    b_id = tl.div_rn(tl.full(b_d.shape, 1.0, tl.float32), b_d)
    return tl.where(tl.abs(b_id) < float("inf"), b_id, 0.0)


@triton.jit
def _size(b_x):
    """|x|, infinite where x is not finite."""
    b_size = tl.abs(b_x)
    return tl.where(b_size < float("inf"), b_size, float("inf"))


@triton.jit
def _store_scales(p_row, o_b, b_d, b_lost, m):
    b_bits = tl.where(b_lost, NAN_F16, b_d.to(tl.float16).to(tl.int16, bitcast=True)).to(tl.int16)
    tl.store((p_row + 2 * o_b).to(tl.pointer_type(tl.int16)), b_bits, mask=m)


@triton.jit
def _q8_0(p_x, p_row, m_r, D: tl.constexpr):
    NB: tl.constexpr = D // 32
    o_b = tl.arange(0, NB)[None, :, None]
    o_j = tl.arange(0, 32)[None, None, :]
    m = m_r[:, None, None] & (o_b < NB)
    b_x = tl.load(p_x[:, None, None] + 32 * o_b + o_j, mask=m, other=0.0).to(tl.float32)  # [BR, NB, 32]
    b_amax = tl.max(_size(b_x), axis=2, keep_dims=True)
    b_lost = b_amax == float("inf")
    b_d = tl.div_rn(tl.where(b_lost, 0.0, b_amax), tl.full(b_amax.shape, 127.0, tl.float32))
    b_y = tl.where(b_lost, 0.0, b_x) * _inverse(b_d)
    # halves away from zero; the difference is exact
    b_q = b_y.to(tl.int32)
    b_rest = b_y - b_q.to(tl.float32)
    b_q += tl.where(b_rest >= 0.5, 1, 0) - tl.where(b_rest <= -0.5, 1, 0)
    _store_scales(p_row[:, None, None], o_b, b_d, b_lost, m)
    tl.store(p_row[:, None, None] + 2 * NB + 32 * o_b + o_j, (b_q & 255).to(tl.uint8), mask=m)


@triton.jit
def _q4_0(p_x, p_row, m_r, D: tl.constexpr):
    NB: tl.constexpr = D // 32
    o_b = tl.arange(0, NB)[None, :, None]
    o_j = tl.arange(0, 16)[None, None, :]
    m = m_r[:, None, None] & (o_b < NB)
    p_low = p_x[:, None, None] + 32 * o_b + o_j
    b_low = tl.load(p_low, mask=m, other=0.0).to(tl.float32)  # [BR, NB, 16]
    b_high = tl.load(p_low + 16, mask=m, other=0.0).to(tl.float32)  # [BR, NB, 16]
    b_amax = tl.max(tl.maximum(_size(b_low), _size(b_high)), axis=2, keep_dims=True)
    b_lost = b_amax == float("inf")
    b_low, b_high = tl.where(b_lost, 0.0, b_low), tl.where(b_lost, 0.0, b_high)
    b_amax = tl.where(b_lost, 0.0, b_amax)
    # the first of the largest gives its sign: position and sign in one key
    b_first = tl.where(tl.abs(b_low) == b_amax, 2 * o_j + (b_low < 0).to(tl.int32), 64)
    b_second = tl.where(tl.abs(b_high) == b_amax, 2 * o_j + 32 + (b_high < 0).to(tl.int32), 64)
    b_key = tl.min(tl.minimum(b_first, b_second), axis=2, keep_dims=True)
    b_step = tl.where((b_key & 1) == 1, 0.125, -0.125)
    b_id = _inverse(b_amax * b_step)
    # a block with no inverse is stored as zeros are, and theirs is 0 / -8: minus zero
    b_d = tl.where(b_id == 0.0, 0.0, b_amax) * tl.where(b_id == 0.0, -0.125, b_step)
    b_q = tl.minimum((b_low * b_id + 8.5).to(tl.int32), 15) | tl.minimum((b_high * b_id + 8.5).to(tl.int32), 15) << 4
    _store_scales(p_row[:, None, None], o_b, b_d, b_lost, m)
    tl.store(p_row[:, None, None] + 2 * NB + 16 * o_b + o_j, b_q.to(tl.uint8), mask=m)


@triton.jit
def _tq3_0(p_x, p_row, o_g, m_r, D: tl.constexpr):
    """p_x, p_row: [R] rows, o_g: which group of 128 of its row each program row is."""
    R: tl.constexpr = p_x.shape[0]
    o_i = tl.arange(0, 128)[None, :]
    o_g, p_row, m = o_g[:, None], p_row[:, None], m_r[:, None]
    b_x = tl.load(p_x[:, None] + 128 * o_g + o_i, mask=m, other=0.0).to(tl.float32)  # [R, 128]
    b_lost = tl.max(_size(b_x), axis=1, keep_dims=True) == float("inf")
    b_x = tl.where(b_lost, 0.0, b_x)
    b_norm = tl.sqrt_rn(pairwise_sum(b_x * b_x))
    b_unit = tl.div_rn(b_x, tl.where(b_norm > 1e-10, b_norm, 1e-10).broadcast_to(R, 128))
    b_y = signed(fwht(signed(b_unit, o_i, False)), o_i, True)
    b_y = tl.where(b_norm > 1e-10, b_y, 0.0)
    # three questions halve the eight codes: above the middle bound, above that half's, above that quarter's
    b_2 = b_y >= 0.0
    b_1 = b_y >= tl.where(b_2, HIGH[1], -HIGH[1])
    b_0 = b_y >= tl.where(b_2, tl.where(b_1, HIGH[2], HIGH[0]), tl.where(b_1, -HIGH[0], -HIGH[2]))
    b_same = b_0 == b_2
    b_c = tl.where(b_1 == b_2, tl.where(b_same, SIZES[3], SIZES[2]), tl.where(b_same, SIZES[1], SIZES[0]))
    b_stored = tl.div_rn(b_norm, tl.sqrt_rn(pairwise_sum(b_c * b_c)))
    _store_scales(p_row, 4 * o_g + tl.arange(0, 4)[None, :], b_stored, b_lost, m)
    o_8 = tl.arange(0, 8)[None, None, :]
    b_low = tl.reshape(b_1.to(tl.int32) * 2 + b_0.to(tl.int32), (R, 16, 8))
    b_pairs, b_bits = tl.sum(b_low << 2 * o_8, axis=2), tl.sum(tl.reshape(b_2.to(tl.int32), (R, 16, 8)) << o_8, axis=2)
    o_c = 16 * o_g + tl.arange(0, 16)[None, :]
    tl.store((p_row + D // 16 + 2 * o_c).to(tl.pointer_type(tl.uint16)), b_pairs.to(tl.uint16), mask=m)
    tl.store(p_row + D // 16 + D // 4 + o_c, b_bits.to(tl.uint8), mask=m)


@triton.jit
def _plain(p_x, p_row, m_r, D: tl.constexpr, NAN: tl.constexpr):
    o_d = tl.arange(0, D)[None, :]
    b_x = tl.load(p_x[:, None] + o_d, mask=m_r[:, None], other=0.0).to(tl.float32)  # [BR, D]
    b_bits = b_x.to(p_row.dtype.element_ty).to(tl.int16, bitcast=True)
    b_bits = tl.where(b_x != b_x, NAN, b_bits).to(tl.int16)
    tl.store((p_row[:, None] + o_d).to(tl.pointer_type(tl.int16)), b_bits, mask=m_r[:, None])


@triton.jit
def _store(x, s_t, s_h, cache, s_c_h, s_c_s, slots, T, HKV, S, BR: tl.constexpr, D: tl.constexpr, FORMAT: tl.constexpr):
    # tq3_0 works on groups of 128, several to a row
    NG: tl.constexpr = D // 128 if FORMAT == "tq3_0" else 1
    o_g = tl.arange(0, BR * NG) % NG
    o_r = tl.program_id(0) * BR + tl.arange(0, BR * NG) // NG
    i_t, i_h = (o_r // HKV).to(tl.int64), (o_r % HKV).to(tl.int64)
    b_slot = tl.load(slots + i_t, mask=i_t < T, other=-1).to(tl.int64)
    m_r = (b_slot >= 0) & (b_slot < S)
    p_x = x + i_t * s_t + i_h * s_h
    p_row = cache + i_h * s_c_h + b_slot * s_c_s
    if FORMAT == "q8_0":
        _q8_0(p_x, p_row, m_r, D)
    elif FORMAT == "q4_0":
        _q4_0(p_x, p_row, m_r, D)
    elif FORMAT == "tq3_0":
        _tq3_0(p_x, p_row, o_g, m_r, D)
    else:
        _plain(p_x, p_row, m_r, D, NAN_F16 if FORMAT == "f16" else NAN_BF16)


@triton.jit
def _kv_quant(
    k, s_k_t, s_k_h,
    v, s_v_t, s_v_h,
    cache_k, s_ck_h, s_ck_s,
    cache_v, s_cv_h, s_cv_s,
    slots,
    T, HKV, S,
    BR: tl.constexpr,
    D: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    if tl.program_id(1) == 0:
        _store(k, s_k_t, s_k_h, cache_k, s_ck_h, s_ck_s, slots, T, HKV, S, BR, D, FORMAT_K)
    else:
        _store(v, s_v_t, s_v_h, cache_v, s_cv_h, s_cv_s, slots, T, HKV, S, BR, D, FORMAT_V)


def kv_quant(
    k: torch.Tensor,
    v: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    slots: torch.Tensor,
    format_k: str,
    format_v: str,
    config: Config | None = None,
) -> None:
    (T, Hkv, D), S = k.shape, cache_k.shape[1]
    for x, cache, format in ((k, cache_k, format_k), (v, cache_v, format_v)):
        if format not in FORMATS or D & (D - 1) or D % (128 if format == "tq3_0" else 32):
            raise ValueError(f"kv_quant stores {', '.join(FORMATS)} rows of a power of two values, not {format} of {D}")
        shapes, dense = ((T, Hkv, D), (Hkv, S, row_size(format, D))), x.stride(2) == cache.stride(2) == 1
        if (x.shape, cache.shape) != shapes or not dense or cache.dtype != (find(format).dtype or torch.uint8):
            given = f"{tuple(x.shape)} strides {x.stride()} into {cache.dtype} {tuple(cache.shape)}"
            raise ValueError(f"kv_quant takes [T, Hkv, D] and a {format} cache [Hkv, S, row], rows dense, not {given}")
    config = config or pick("kv_quant", Config(), k.device, T=T, Hkv=Hkv, D=D, format_k=format_k, format_v=format_v)
    grid = (triton.cdiv(T * Hkv, config.BLOCK_R), 2)
    _kv_quant[grid](
        k, k.stride(0), k.stride(1), v, v.stride(0), v.stride(1),
        cache_k, cache_k.stride(0), cache_k.stride(1), cache_v, cache_v.stride(0), cache_v.stride(1),
        slots, T, Hkv, S, BR=config.BLOCK_R, D=D, FORMAT_K=format_k, FORMAT_V=format_v,
        num_warps=config.num_warps, enable_fp_fusion=False, **early(k.device),
    )  # fmt: skip
