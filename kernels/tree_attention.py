"""o = softmax(q k^T / sqrt(D)) v over a cache in any format: all rows before `start`, a tree's own rows by ancestry.

    cache of one KV head   | rows lo .. start-1, whole tiles of BS: seen by all | the rest | start .. start+T-1 |
    programs               |  split 0  |  split 1  |  ..  |  split NS-1  |  split NS (own: NS-1), under the mask

    a program's queries    BM rows i G + g: query i, head g of the G heads that share a KV head

A row of the cache is read and unpacked once for BM queries. Six kernels share the work: `lib/rows_left.py` with
queries on the left of the products, for plain caches and f32, `lib/one_walk.py` the same where registers are few;
`lib/keys_left.py` with keys on the left, where a row of codes is unpacked in the registers that multiply it; for sm90
alone `lib/own_rows.py`, whose warps wait for nobody, with 8 or 16 queries, and with 48, 80 or 144 `lib/one_pass.py`
or, of f16, `lib/plain_pass.py`. What a share says (m, l, acc / l) goes to memory; a last launch, a program for
(t, h, columns), joins the shares, undoes the rotation of V and applies the gate. `start` is read on the device: the
splits share what is there, and one without rows writes l = 0.

Memory-bound for one query: 123 us for f16, 34.5 us for q4_0 at 131072 rows of 4 x 256 (H200); from some twenty on the
tensor cores bind. At 4096 rows the latency of two launches decides. Products are of f16 (bf16 on a bf16 cache, f32 for
f32 queries) and summed in f32. An infinite or NaN value in V's tree rows spoils all queries of a tile that holds it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..reference.cache import QUANTISED
from .config import pick
from .lib import plain_pass
from .lib.cache_rows import require_caches
from .lib.device import compiled_for, has_pdl, has_ptx, is_narrow
from .lib.early import wait
from .lib.fwht import rotate, unrotate
from .lib.keys_left import keys_left
from .lib.one_pass import QUERIES, STAGES, one_pass, roles
from .lib.one_walk import one_walk
from .lib.own_rows import own_rows
from .lib.rows_left import rows_left
from .lib.softmax import LOG2E, LOWEST, product_type, rows_in_tile

LEFT = ("queries", "keys", "own")


@dataclass(frozen=True)
class Config:
    # what stands on the left of the products: "keys" wants a quantised cache, 16-bit queries and D = 256; a BLOCK_M of
    # 48, 80 or 144 is one pass for so many, of f16 caches too, of 64 nodes at most. "own" are warps with rows of their
    # own, for 8 or 16 queries
    left: str = "queries"
    BLOCK_S: int = 32
    BLOCK_M: int = 32
    # the number of splits follows: so many programs in all, and so many tiles to a split
    programs: int = 264
    least_tiles: int = 2
    num_warps: int = 4
    num_stages: int = 1
    # with queries on the left: a maximum that rises by the tile, and not that of a share's first one
    rising: bool = True
    # shares that are joined at a time, and by how many warps
    parts: int = 32
    join_warps: int = 1
    # the join starts under the shares, and the next launch under the join
    early: bool = True


@triton.jit
def _rotated(q, s_q_t, s_q_h, out, rows, H, scale, D: tl.constexpr, EARLY: tl.constexpr):
    """q as tq3_0's keys are, times `scale`, f16: what every program of one pass would do again."""
    if EARLY:
        wait()
    o_m, o_d = tl.program_id(0) * 16 + tl.arange(0, 16), tl.arange(0, D)
    m = (o_m < rows)[:, None]
    p_q = q + (o_m // H).to(tl.int64) * s_q_t + o_m % H * s_q_h
    b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m, other=0.0).to(tl.float16)
    b_q = (rotate(b_q, tl.arange(0, 128), tl.float16) * scale).to(tl.float16)
    tl.store(out + o_m[:, None] * D + o_d[None, :], b_q, mask=m)


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
    EARLY: tl.constexpr,
):  # fmt: skip
    i_t, i_h, T = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    o_d, o_p = tl.program_id(2) * BD + tl.arange(0, BD), tl.arange(0, BP)
    # what does not hang on the sums is under way beside them
    o_j = tl.arange(0, BT)
    b_own = tl.load(ancestors + i_t * T + o_j, mask=o_j < T, other=0).to(tl.int32)
    if GATED:
        b_g = tl.load(gate + i_t * s_g_t + i_h * s_g_h + o_d).to(tl.float32)
    # those before the shares' launch are done when this one starts
    if EARLY:
        wait()
    top, total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    b_o = tl.zeros((BD,), tl.float32)
    for i_p in range(0, parts, BP):
        m_p = i_p + o_p < parts
        o_part = ((i_p + o_p).to(tl.int64) * T + i_t) * H + i_h
        p_o = part_o + o_part[:, None] * D + o_d[None, :]
        b_part = tl.load(p_o, mask=m_p[:, None], other=0.0).to(tl.float32)  # [BP, BD]
        b_l = tl.load(part_l + o_part, mask=m_p, other=0.0)
        b_m = tl.load(part_m + o_part, mask=m_p, other=LOWEST)
        higher = tl.maximum(top, tl.max(b_m))
        b_w = b_l * tl.exp2(b_m - higher)
        old = tl.exp2(top - higher)
        total = total * old + tl.sum(b_w)
        b_o = b_o * old + tl.sum(b_part * b_w[:, None], 0)
        top = higher
    # padding sees the committed rows in its tile; it is nobody, itself not included
    b_o = tl.where((total == 0.0) | (tl.max(b_own) == 0), 0.0, b_o / total)
    if ROTATED:
        b_o = tl.reshape(unrotate(b_o[None, :], tl.arange(0, 128), tl.float32), (BD,))
    if GATED:
        b_o = b_o / (1 + tl.exp(-b_g))
    tl.store(out + (i_t * H + i_h) * D + o_d, b_o.to(out.dtype.element_ty))


def _suits_keys(q: torch.Tensor, D: int, format_k: str, format_v: str) -> bool:
    return q.dtype != torch.float32 and D == 256 and (format_k in QUANTISED or format_v in QUANTISED)


def _suits_own(q: torch.Tensor, D: int, format_k: str, format_v: str) -> bool:
    quantised = format_k in QUANTISED and format_v in QUANTISED
    return quantised and q.dtype != torch.float32 and D == 256 and compiled_for(q.device) == "sm90"


def _suits_one_pass(
    q: torch.Tensor, cache_k: torch.Tensor, cache_v: torch.Tensor, format_k: str, format_v: str
) -> bool:
    T, _, D = q.shape
    rows = plain_pass.suits(cache_k) and plain_pass.suits(cache_v)
    suits = rows if format_k == format_v == "f16" else {format_k, format_v} <= set(QUANTISED)
    return suits and q.dtype != torch.float32 and D == 256 and T <= 64 and compiled_for(q.device) == "sm90"


def _own(rows: int, S: int, formats: set[str]) -> Config:
    """Warps with rows of their own: four to a multiprocessor where a share is a tile or two, eight from there on."""
    BM, parts, join_warps = 8 if rows <= 8 else 16, 64 if rows <= 16 else 8, 2 if rows <= 16 else 1
    warps = 4 if rows <= 16 and S <= 8192 else 8
    if warps == 8 and "q8_0" in formats:
        return Config("own", 64, BM, 264, 1, 4, parts=parts, join_warps=join_warps)
    return Config("own", 64, BM, 132, 1, warps, parts=parts, join_warps=join_warps)


def _one_pass(rows: int, S: int, formats: tuple[str, str]) -> int:
    """Queries of a program where rows are unpacked once for so many, or none: what begins and ends one of 48 is a third
    of what it is of 144, and of long caches tiles are what counts."""
    plain, short = formats == ("f16", "f16"), S <= 12288
    if rows <= 48 or (short and rows <= (192 if S <= 6144 or not plain else 144)):
        return 48
    if plain:
        # three blocks of 64 are less than two passes
        return 144 if 64 < rows <= 144 else 0
    if rows <= 80 or 144 < rows <= 240:
        return 80
    return 48 if rows <= 96 and formats == ("q4_0", "q4_0") else 144


def _default(
    q: torch.Tensor, rows: int, cache_k: torch.Tensor, cache_v: torch.Tensor, formats: tuple[str, str]
) -> Config:
    """By shape where a tensor core takes 64 keys at least; the interpreter follows that too, with longer shares."""
    here, S, D = compiled_for(q.device), cache_k.shape[1], q.shape[2]
    if is_narrow(q.device):
        return Config("queries", 16, 16, num_warps=8)
    if tl.float32 in [product_type(q.dtype, format) for format in formats] or here not in ("", "sm90"):
        return Config()
    least, short, quantised = 1 if here else 2, S <= 16384, bool(set(formats) & set(QUANTISED))
    plain = D == 256 and set(formats) == {"f16"}
    # tq3_0 with keys on the left has not been right on a GPU yet
    keys = _suits_keys(q, D, *formats) and set(formats) <= {"q4_0", "q8_0"}
    one = _suits_one_pass(q, cache_k, cache_v, *formats)
    # rows are unpacked again for every 16 queries, and soon as fast once for all of them
    if rows <= (32 if S <= 16384 else 16) and _suits_own(q, D, *formats):
        return _own(rows, S, set(formats))
    if rows <= 16:
        if keys:
            return Config("keys", 64, 16, 132 if short else 264, least, num_stages=3)
        programs = 132 if here and plain and S <= 8192 else 264
        return Config("queries", 64 if quantised else 32, 16, programs, least, num_stages=2 if quantised else 3)
    if one and rows > (32 if plain else 16) and (at_once := _one_pass(rows, S, formats)):
        if at_once < 144:
            return Config("keys", 64, at_once, 132, least, num_stages=2, parts=16 if at_once == 48 else 32)
        # 33 parts in one round of a join that has nothing to turn back
        parts, warps = (64, 2) if rows <= 144 and formats[1] != "tq3_0" else (32, 1)
        return Config("keys", 64, 144, 132, least, num_stages=2, parts=parts, join_warps=warps)
    if keys and (short or "q8_0" not in formats):
        return Config("keys", 64, 32, 132 if short else 264, least, num_stages=2 if short else 3)
    if quantised and here:
        return Config() if short else Config("queries", 64, 128, 132, least, 8, 2)
    if here and plain and rows > 32:
        # 132 programs that start early share a multiprocessor by twos where its memory has room for two: four stages
        programs, stages = (132, 4) if S <= 8192 and rows <= 192 else (264, 3)
        return Config("queries", 32, 64, programs, least, num_stages=stages, rising=False)
    return Config("queries", 32, 64, 264, least, num_stages=2, rising=bool(here))


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
    sizes, G = {"T": T, "H": H, "Hkv": Hkv, "D": D, "context": S - T}, H // Hkv
    default = _default(q, T * G, cache_k, cache_v, (format_k, format_v))
    config = config or pick("tree_attention", default, q.device, **sizes, format_k=format_k, format_v=format_v)
    if config.left not in LEFT:
        raise ValueError(f"tree_attention has {', '.join(LEFT)} on the left of its products, not {config.left!r}")
    keys, own = (config.left == left for left in ("keys", "own"))
    whole = config.BLOCK_M in QUERIES and keys
    if own:
        suits = config.BLOCK_M in (8, 16) and config.num_warps in (4, 8) and _suits_own(q, D, format_k, format_v)
    elif whole:
        suits = _suits_one_pass(q, cache_k, cache_v, format_k, format_v)
    else:
        fits = config.BLOCK_S % 64 == 0 and config.num_warps == 4
        suits = not keys or (fits and _suits_keys(q, D, format_k, format_v))
    if not suits:
        raise ValueError(f"{config} does not suit {q.dtype} queries of {D} on a cache of {format_k} and {format_v}")
    BM = config.BLOCK_M if own or whole else min(config.BLOCK_M, max(16, triton.next_power_of_2(T * G)))
    if BM & (BM - 1) and not whole:
        raise ValueError(
            f"tree_attention takes a power of two of queries at a time, in one pass one of {QUERIES}: {BM}"
        )
    tiles, BS = triton.cdiv(T * G, BM), 64 if whole else rows_in_tile(config.BLOCK_S, q.dtype)
    BS = 16 * config.num_warps if own else BS
    # all kernels but one have a share more, of the nodes
    more = 0 if own else 1
    splits = max(1, min(config.programs // (Hkv * tiles) - more, triton.cdiv(S, BS * config.least_tiles)))
    parts = splits + more
    # means over a share's rows: f16 holds them as well as the products' operands
    kind = torch.float16 if product_type(q.dtype, format_v) == tl.float16 else torch.float32
    part_o = torch.empty((parts, T, H, D), dtype=kind, device=q.device)
    part_m, part_l = torch.empty((2, parts, T, H), dtype=torch.float32, device=q.device)
    out = torch.empty((T, H, D), dtype=q.dtype, device=q.device)
    shape = {"G": G, "FORMAT_K": format_k, "FORMAT_V": format_v}
    types = {"D": D, "TYPE_K": product_type(q.dtype, format_k), "TYPE_V": product_type(q.dtype, format_v)}
    ahead = has_pdl(q.device) and config.early
    early = {"EARLY": ahead, "launch_pdl": ahead} if has_pdl(q.device) else {"EARLY": False}
    scale = LOG2E / D**0.5
    if whole and format_k == "tq3_0" and BM > 48:
        # queries are rounded behind the rotation: the scale goes before it, and not behind every score
        turned = torch.empty((T, H, D), dtype=torch.float16, device=q.device)
        _rotated[(triton.cdiv(T * H, 16),)](q, q.stride(0), q.stride(1), turned, T * H, H, scale, D=D, **early)
        q, scale = turned, 1.0
    operands = (
        q, q.stride(0), q.stride(1), cache_k, cache_k.stride(0), cache_k.stride(1),
        cache_v, cache_v.stride(0), cache_v.stride(1), start, ancestors, part_o, part_m, part_l,
        T, H, window, scale, splits,
    )  # fmt: skip
    blocks = {"BM": BM, "BS": BS, "STAGES": config.num_stages, "num_warps": config.num_warps}
    if own:
        own_rows[tiles, splits, Hkv](
            *operands, S, **shape, N=BM, W=config.num_warps, num_warps=config.num_warps, **early
        )
    elif whole:
        plain = format_k == "f16"
        made = roles(BM, S // (BS * parts), plain_pass.STAGES if plain else STAGES, format_k, format_v)
        grid = parts, Hkv, tiles
        if plain:
            boxes = plain_pass.described(cache_k, 64), plain_pass.described(cache_v, 32)
            plain_pass.plain_pass[grid](*operands, S, *boxes, G=G, **made, **early)
        else:
            one_pass[grid](*operands, S, **shape, **made, **early)
    elif keys:
        keys_left[tiles, splits + 1, Hkv](*operands, **shape, **types, **blocks, **early, ASM=has_ptx(q.device))
    elif is_narrow(q.device):
        one_walk[tiles, splits + 1, Hkv](*operands, **shape, **types, **blocks)
    else:
        rising = config.rising or BM < 64 or tl.float32 in (types["TYPE_K"], types["TYPE_V"])
        rows_left[tiles, splits + 1, Hkv](*operands, **shape, **types, **blocks, **early, RISING=rising)
    # few parts of a whole head are a warp's registers
    BD = D if whole and parts <= 16 else min(D, 128)
    gate_strides = (gate.stride(0), gate.stride(1)) if gate is not None else (0, 0)
    _join[(T, H, D // BD)](
        part_o, part_m, part_l, ancestors, gate, *gate_strides, out, H, parts, D=D, BT=triton.next_power_of_2(T),
        BD=BD, BP=min(config.parts, triton.next_power_of_2(parts)), GATED=gate is not None,
        ROTATED=format_v == "tq3_0", num_warps=config.join_warps, **early,
    )  # fmt: skip
    return out
