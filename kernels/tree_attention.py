"""o = softmax(q k^T / sqrt(D)) v over a cache in any format: all rows before `start`, a tree's own rows by ancestry.

    cache of one KV head   | rows lo .. start-1: all queries see them          | start .. start+T-1 |
    programs               |  split 0  |  split 1  |  ..  |  split NS-1  |        tree: split NS
                           each walks its rows in tiles of BS                     ancestors[i, j]

    a program's tile       BM rows i G + g: query i, head g of the group's G     [BM, D] x [D, BS], [BM, BS] x [BS, D]

The G query heads of a KV head share a tile, so a row of the cache is read and dequantised once for all of them and
for up to BM/G queries. Partial sums (m, l, acc in f32) go to memory; a second kernel, a program for (t, h, columns),
joins them, undoes the rotation of V and applies the gate. `start` is read on the device: the splits share what is
there, and one without rows writes only its l = 0.

Memory-bound: 123 us for f16, 34.5 us for q4_0 at 131072 rows of 4 x 256 (H200). At 4096 rows two launches decide.
q is rotated in the prologue, by a product with a +-1 matrix. Products are of f16 (bf16 on a bf16 cache, f32 for f32
queries) and summed in f32. An infinite or NaN value in V's tree rows spoils all queries of a tile that holds it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.cache_rows import columns, load_rows, require_caches
from .lib.fwht import rotate, unrotate
from .lib.softmax import LOG2E, LOWEST, attend, product_type, rows_in_tile


@dataclass(frozen=True)
class Config:
    BLOCK_S: int = 32
    BLOCK_M: int = 32
    # the number of splits follows: so many programs in all, and so many tiles to a split
    programs: int = 264
    least_tiles: int = 2
    num_warps: int = 4
    num_stages: int = 1


@triton.jit
def _partial(
    q, s_q_t, s_q_h,
    cache_k, s_k_h, s_k_s: tl.constexpr,
    cache_v, s_v_h, s_v_s: tl.constexpr,
    start,
    ancestors,
    part_o,
    part_m,
    part_l,
    T, H, window, scale, splits,
    G: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
    TYPE_K: tl.constexpr,
    TYPE_V: tl.constexpr,
):  # fmt: skip
    i_split, i_kv = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_m, o_s = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BS)
    i_t, i_h = o_m // G, (i_kv * G + o_m % G).to(tl.int64)
    m_t = i_t < T
    p_q = q + i_t.to(tl.int64) * s_q_t + i_h * s_q_h
    # its columns in the order of K's tiles
    b_q = tl.load(p_q[:, None] + columns(FORMAT_K, D)[None, :], mask=m_t[:, None], other=0.0).to(TYPE_K)  # [BM, D]
    if FORMAT_K == "tq3_0":
        b_q = rotate(b_q, columns(FORMAT_K, 128), TYPE_K).to(TYPE_K)

    first = tl.load(start)
    low = tl.where(window > 0, tl.maximum(first - window, 0), 0)
    share = tl.cdiv(tl.cdiv(first - low, BS), splits) * BS
    begin = tl.minimum(low + i_split * share, first)
    end = tl.minimum(begin + share, first)
    p_k, p_v = cache_k + i_kv * s_k_h, cache_v + i_kv * s_v_h

    b_m = tl.full((BM,), LOWEST, tl.float32)
    b_l = tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)
    for i_s in range(begin, end, BS):
        o_row = (i_s + o_s).to(tl.int64)
        m_s = i_s + o_s < end
        b_k = load_rows(p_k + o_row * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row * s_v_s, m_s, FORMAT_V, D, TYPE_V)
        b_m, b_l, b_acc = attend(b_q, b_k, b_v, m_s[None, :], scale, b_m, b_l, b_acc)

    nodes = tl.where(i_split == splits, T, 0)
    for i_s in range(0, nodes, BS):
        o_j = i_s + o_s
        m_j = m_t[:, None] & (o_j < T)[None, :]
        m = tl.load(ancestors + i_t[:, None].to(tl.int64) * T + o_j[None, :], mask=m_j, other=0) != 0  # [BM, BS]
        # rows that nobody sees may never have been written: 0 * NaN is NaN
        m_s = tl.max(m.to(tl.int32), 0) > 0
        o_row = (first + o_j).to(tl.int64)
        b_k = load_rows(p_k + o_row * s_k_s, m_s, FORMAT_K, D, TYPE_K)
        b_v = load_rows(p_v + o_row * s_v_s, m_s, FORMAT_V, D, TYPE_V)
        b_m, b_l, b_acc = attend(b_q, b_k, b_v, m, scale, b_m, b_l, b_acc)

    o_part = (i_split.to(tl.int64) * T + i_t) * H + i_h
    tl.store(part_m + o_part, b_m, mask=m_t)
    tl.store(part_l + o_part, b_l, mask=m_t)
    m_t = i_t < tl.where(end - begin + nodes > 0, T, 0)
    tl.store(part_o + o_part[:, None] * D + columns(FORMAT_V, D)[None, :], b_acc, mask=m_t[:, None])


@triton.jit
def _join(
    part_o,
    part_m,
    part_l,
    ancestors,
    gate, s_g_t, s_g_h,
    out,
    H, parts,
    D: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BP: tl.constexpr,
    GATED: tl.constexpr,
    ROTATED: tl.constexpr,
):  # fmt: skip
    i_t, i_h, T = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    o_d, o_p = tl.program_id(2) * BD + tl.arange(0, BD), tl.arange(0, BP)
    top, total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    b_o = tl.zeros((BD,), tl.float32)
    for i_p in range(0, parts, BP):
        m_p = i_p + o_p < parts
        o_part = ((i_p + o_p).to(tl.int64) * T + i_t) * H + i_h
        b_l = tl.load(part_l + o_part, mask=m_p, other=0.0)
        b_m = tl.load(part_m + o_part, mask=m_p, other=LOWEST)
        b_acc = tl.load(part_o + o_part[:, None] * D + o_d[None, :], mask=(b_l != 0.0)[:, None], other=0.0)  # [BP, BD]
        higher = tl.maximum(top, tl.max(b_m))
        b_w = tl.exp2(b_m - higher)
        old = tl.exp2(top - higher)
        total = total * old + tl.sum(b_l * b_w)
        b_o = b_o * old + tl.sum(b_acc * b_w[:, None], 0)
        top = higher
    # padding sees the committed rows in its tile; it is nobody, itself not included
    o_j = tl.arange(0, BT)
    own = tl.max(tl.load(ancestors + i_t * T + o_j, mask=o_j < T, other=0).to(tl.int32))
    b_o = tl.where((total == 0.0) | (own == 0), 0.0, b_o / total)
    if ROTATED:
        b_o = tl.reshape(unrotate(b_o[None, :], tl.arange(0, 128), tl.float32), (BD,))
    if GATED:
        b_g = tl.load(gate + i_t * s_g_t + i_h * s_g_h + o_d).to(tl.float32)
        b_o = b_o / (1 + tl.exp(-b_g))
    tl.store(out + (i_t * H + i_h) * D + o_d, b_o.to(out.dtype.element_ty))


def tree_attention(
    q: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    start: torch.Tensor,
    ancestors: torch.Tensor,
    format_k: str,
    format_v: str,
    window: int = 0,
    gate: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    (T, H, D), (Hkv, S, _) = q.shape, cache_k.shape
    require_caches("tree_attention", q, gate, cache_k, format_k, cache_v, format_v)
    if ancestors.shape != (T, T) or not ancestors.is_contiguous() or start.numel() != 1:
        raise ValueError(f"tree_attention takes one start and ancestors [{T}, {T}], not {tuple(ancestors.shape)}")
    sizes = {"T": T, "H": H, "Hkv": Hkv, "D": D, "context": S - T}
    config = config or pick("tree_attention", Config(), q.device, **sizes, format_k=format_k, format_v=format_v)
    G = H // Hkv
    BM = min(config.BLOCK_M, max(16, triton.next_power_of_2(T * G)))
    tiles, BS = triton.cdiv(T * G, BM), rows_in_tile(config.BLOCK_S, q.dtype)
    splits = max(1, min(config.programs // (Hkv * tiles), triton.cdiv(S, BS * config.least_tiles)))
    part_o = torch.empty((splits + 1, T, H, D), dtype=torch.float32, device=q.device)
    part_m, part_l = torch.empty((2, splits + 1, T, H), dtype=torch.float32, device=q.device)
    out = torch.empty((T, H, D), dtype=q.dtype, device=q.device)
    _partial[(tiles, splits + 1, Hkv)](
        q, q.stride(0), q.stride(1), cache_k, cache_k.stride(0), cache_k.stride(1),
        cache_v, cache_v.stride(0), cache_v.stride(1), start, ancestors, part_o, part_m, part_l,
        T, H, window, LOG2E / D**0.5, splits, G=G, D=D, BM=BM, BS=BS, FORMAT_K=format_k, FORMAT_V=format_v,
        TYPE_K=product_type(q.dtype, format_k), TYPE_V=product_type(q.dtype, format_v),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    BD = min(D, 128)
    gate_strides = (gate.stride(0), gate.stride(1)) if gate is not None else (0, 0)
    _join[(T, H, D // BD)](
        part_o, part_m, part_l, ancestors, gate, *gate_strides, out, H, splits + 1, D=D, BT=triton.next_power_of_2(T),
        BD=BD, BP=min(16, triton.next_power_of_2(splits + 1)), GATED=gate is not None, ROTATED=format_v == "tq3_0",
        num_warps=4,
    )  # fmt: skip
    return out
