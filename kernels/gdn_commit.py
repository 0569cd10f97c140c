"""Move the state to an accepted node; reference/gdn_commit.py says from what.

    program (b, value head; V block):   S [BV, K] in and out

    wy        S = e^G S + [u_0 .. u_d] [BV, BD] x diag(e^(g below)) x [k^_0 .. k^_d] [BD, K]      a dot for BD nodes
    replay    S through the path's tokens, one by one
    store_*   S = saved[last]

Memory-bound: the state once in, once out (6.3 MB for the 27B), and a few rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.device import has_pdl, multiply
from .lib.early import prefetch, wait
from .lib.gates import check_heads, key_head, log_decay, rows, squares
from .lib.wy import product, thirds


@dataclass(frozen=True)
class Config:
    BLOCK_D: int = 32
    BLOCK_V: int = 16
    num_warps: int = 2


@triton.jit
def _gdn_commit_wy(
    k, s_k_b, s_k_t,
    a, s_a_b, s_a_t,
    A,
    dt_bias,
    state,
    u,
    path,
    length,
    T, D, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, ONE: tl.constexpr, TILED: tl.constexpr,
    PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_v, i_h, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k = key_head(i_h, HK, HV, TILED)
    o_d, o_k = tl.arange(0, BD), tl.arange(0, K)
    o_v = i_v * BV + tl.arange(0, BV)
    p_s = state + (i_b * HV + i_h) * V * K
    if EARLY:
        prefetch(p_s + i_v * BV * K, BV * K * (state.dtype.element_ty.primitive_bitwidth // 8))
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    if EARLY:
        wait()
    count = tl.load(length + i_b)
    p_s += o_v[:, None] * K + o_k[None, :]
    b_old = tl.load(p_s)  # [BV, K]
    b_fold = tl.zeros((BV, K), tl.float32)
    # a path of one block does not wait for its length
    blocks = 1 if ONE else tl.cdiv(count, BD)
    # log decay below the block, summed from the leaf up: small decays are not lost behind a large one
    b_below = 0.0
    for back in range(blocks):
        o_p = (blocks - 1 - back) * BD + o_d
        m_p = o_p < count
        b_node = tl.load(path + i_b * D + o_p, mask=o_p < D, other=0)
        b_node = tl.where(m_p, b_node, 0).to(tl.int64)
        p_k = k + i_b * s_k_b + b_node[:, None] * s_k_t + i_k * K + o_k[None, :]
        p_u = u + ((i_b * T + b_node[:, None]) * HV + i_h) * V + o_v[None, :]
        b_k = tl.load(p_k, mask=m_p[:, None], other=0.0)  # [BD, K]
        b_u = tl.load(p_u, mask=m_p[:, None], other=0.0)  # [BD, BV]
        b_g = tl.load(a + i_b * s_a_b + b_node * s_a_t + i_h, mask=m_p, other=0.0).to(tl.float32)
        b_g = tl.where(m_p, log_decay(b_g, b_bias, b_A), 0.0)
        b_after = tl.sum(tl.where(o_d[None, :] > o_d[:, None], b_g[None, :], 0.0), 1) + b_below
        # decay and norm go to u: k stays as it came, a half perhaps
        b_u *= (tl.exp(b_after) * tl.rsqrt(squares(b_k, 1) + 1e-6))[:, None]
        if PRECISION == "bf16" and k.dtype.element_ty == tl.bfloat16:
            u_high, u_mid, u_low = thirds(tl.trans(b_u), INFINITE=True)
            b_fold = tl.dot(u_high, b_k, tl.dot(u_mid, b_k, tl.dot(u_low, b_k, b_fold)))
        else:
            # an infinity times the parts of a key that are zero would be NaN
            b_fold = product(tl.trans(b_u), b_k, b_fold, "ieee")
        b_below += tl.sum(b_g, 0)
    b_new = tl.exp(b_below) * b_old.to(tl.float32) + b_fold
    tl.store(p_s, b_new.to(state.dtype.element_ty))


@triton.jit
def _gdn_commit_replay(
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    state,
    path,
    length,
    D, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    i_b, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    i_k = key_head(i_h, HK, HV, TILED)
    o_k = tl.arange(0, K)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    p_s = state + ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    b_s = tl.load(p_s).to(tl.float32)  # [BV, K]
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    for d in range(tl.load(length + i_b)):
        node = tl.load(path + i_b * D + d).to(tl.int64)
        b_k = tl.load(k + i_b * s_k_b + node * s_k_t + i_k * K + o_k).to(tl.float32)
        b_v = tl.load(v + i_b * s_v_b + node * s_v_t + i_h * V + o_v).to(tl.float32)
        b_a = tl.load(a + i_b * s_a_b + node * s_a_t + i_h).to(tl.float32)
        b_b = tl.load(b + i_b * s_b_b + node * s_b_t + i_h).to(tl.float32)
        b_k *= tl.rsqrt(squares(b_k, 0) + 1e-6)
        b_e = tl.exp(log_decay(b_a, b_bias, b_A))
        b_u = tl.sigmoid(b_b) * (b_v - b_e * tl.sum(b_s * b_k[None, :], 1))  # [BV]
        b_s = b_e * b_s + b_u[:, None] * b_k[None, :]
    tl.store(p_s, b_s.to(state.dtype.element_ty))


@triton.jit
def _gdn_commit_store(
    state,
    saved,
    path,
    length,
    T, D, HV,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    i_b, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    o_s = (tl.program_id(1) * BV + tl.arange(0, BV))[:, None] * K + tl.arange(0, K)[None, :]
    count = tl.load(length + i_b)
    if count > 0:
        node = tl.load(path + i_b * D + count - 1)
        b_s = tl.load(saved + ((i_b * T + node) * HV + i_h) * V * K + o_s)  # [BV, K]
        tl.store(state + (i_b * HV + i_h) * V * K + o_s, b_s.to(state.dtype.element_ty))


def gdn_commit(
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    saved: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    strategy: str = "wy",
    head_map: str = "tiled",
    config: Config | None = None,
) -> None:
    (B, T, Hv, V), (Hk, K), D = v.shape, k.shape[2:], path.shape[1]
    tensors = {"k": k, "v": v, "a": a, "b": b, "A": A, "dt_bias": dt_bias, "state": state}
    check_heads("gdn_commit", tensors, (A, dt_bias, state, saved, path, length), head_map)
    node = (B, T, Hv, V, K)
    shapes = {"wy": node[:4], "store_f32": node, "store_f16": node, "replay": (0,)}
    if saved.shape != shapes.get(strategy) or path.shape != (B, D) or length.shape != (B,):
        got = f"'{strategy}', saved {tuple(saved.shape)}, path {tuple(path.shape)}, length {tuple(length.shape)}"
        raise ValueError(f"gdn_commit takes path [B, D], length [B] and what its strategy saves, {shapes}, not {got}")
    config = config or pick("gdn_commit", Config(), v.device, B=B, T=T, D=D, Hk=Hk, Hv=Hv, K=K, V=V, strategy=strategy)
    BV = min(config.BLOCK_V, V)
    grid = (B * Hv, V // BV)
    options = {"K": K, "V": V, "BV": BV, "num_warps": config.num_warps}
    heads = {"HK": Hk, "HV": Hv, "TILED": head_map == "tiled", **options}
    row = {name: rows("gdn_commit", name, tensors[name]) for name in ("k", "v", "a", "b")}
    match strategy:
        case "wy":
            BD, overlap = max(16, min(config.BLOCK_D, triton.next_power_of_2(D))), has_pdl(v.device)
            blocks = {"BD": BD, "ONE": D <= BD, "PRECISION": multiply("auto", v.device), "EARLY": overlap}
            tensors_wy = (*row["k"], *row["a"], A, dt_bias, state, saved, path, length)
            launch = {"launch_pdl": True} if overlap else {}
            _gdn_commit_wy[(V // BV, Hv, B)](*tensors_wy, T=T, D=D, **blocks, **heads, **launch)
        case "replay":
            tokens = [part for name in ("k", "v", "a", "b") for part in row[name]]
            _gdn_commit_replay[grid](*tokens, A, dt_bias, state, path, length, D=D, **heads)
        case _:
            _gdn_commit_store[grid](state, saved, path, length, T=T, D=D, HV=Hv, **options)
