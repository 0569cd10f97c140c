"""cache[start + d] = cache[start + path[d]] for d < length, all reads before all writes.

    program (h, K or V, columns):   row start+path[0]  |<- BC ->|           row start+0
                                    row start+path[1]  |<- BC ->|  barrier  row start+1
                                    ..                              ---->   ..          all rows of the path at once

Latency-bound: a path has a few dozen rows of some hundred bytes, so one program holds all of them for its columns.
A row may be the source of one move and the target of another: programs own different columns, and a program is one
warp, which a barrier keeps in order (on AMD a barrier does not wait for the loads of other warps). Rows that stay in
place are not touched.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick


@dataclass(frozen=True)
class Config:
    BLOCK_C: int = 64


@triton.jit
def _move(cache, s_h, s_s, path, length, start, S, COLUMNS, BC: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    o_d = tl.arange(0, BD)
    o_c = tl.program_id(2) * BC + tl.arange(0, BC)
    b_path = tl.load(path + o_d, mask=o_d < D, other=-1)
    first = tl.load(start)
    m_d = (o_d < tl.load(length)) & (b_path > o_d) & (first + b_path < S)
    m = m_d[:, None] & (o_c < COLUMNS)[None, :]
    p = cache + tl.program_id(0).to(tl.int64) * s_h + o_c[None, :]
    b_rows = tl.load(p + (first + b_path).to(tl.int64)[:, None] * s_s, mask=m, other=0)  # [BD, BC]
    tl.debug_barrier()
    tl.store(p + (first + o_d).to(tl.int64)[:, None] * s_s, b_rows, mask=m)


@triton.jit
def _kv_move(
    cache_k, s_k_h, s_k_s,
    cache_v, s_v_h, s_v_s,
    path,
    length,
    start,
    S, columns_k, columns_v,
    BC: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _move(cache_k, s_k_h, s_k_s, path, length, start, S, columns_k, BC, D, BD)
    else:
        _move(cache_v, s_v_h, s_v_s, path, length, start, S, columns_v, BC, D, BD)


def kv_move(
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    start: torch.Tensor,
    config: Config | None = None,
) -> None:
    (Hkv, S, columns_k), columns_v, depth = cache_k.shape, cache_v.shape[2], path.shape[0]
    if cache_v.shape[:2] != (Hkv, S) or cache_k.stride(2) != 1 or cache_v.stride(2) != 1:
        given = [(tuple(t.shape), t.stride()) for t in (cache_k, cache_v)]
        raise ValueError(f"kv_move takes caches [Hkv, S, row] of the same Hkv and S with dense rows, not {given}")
    if not (path.is_contiguous() and length.numel() == start.numel() == 1):
        raise ValueError(f"kv_move takes one path of any depth, one length and one start, not {tuple(path.shape)}")
    config = config or pick("kv_move", Config(), cache_k.device, Hkv=Hkv, depth=depth)
    BC = min(config.BLOCK_C, triton.next_power_of_2(max(columns_k, columns_v)))
    grid = (Hkv, 2, triton.cdiv(max(columns_k, columns_v), BC))
    _kv_move[grid](
        cache_k, cache_k.stride(0), cache_k.stride(1), cache_v, cache_v.stride(0), cache_v.stride(1),
        path, length, start, S, columns_k, columns_v,
        BC=BC, D=depth, BD=triton.next_power_of_2(depth), num_warps=1,
    )  # fmt: skip
