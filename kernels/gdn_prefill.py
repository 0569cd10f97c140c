"""S_t = e^g S_(t-1) + u k^T, u = beta (v - e^g S_(t-1) k), o_t = S_t q, T tokens in a row, in place.

    T < 16    program (b, value head; V block): S [BV, K] in registers, one token after the other; T = 1 is decode
    T >= 16   program (b, value head; V block): one chunk of BT tokens after the other, S [BV, K] in place, in L2

              U = (I + A)^-1 beta (V - e^G K S^T)     o = e^G Q S^T + P U     S <- e^G_last S + U^T (e^(G_last - G) K)

A and P are those of lib/wy.py. Decode is memory-bound: the state once in and once out. Prefill is bound by the dots
of a chunk, which follow each other.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.gates import check_heads, key_head, log_decay, rows, squares
from .lib.wy import product, span, unit_lower_inverse

CHUNKED_FROM = 16


@dataclass(frozen=True)
class Config:
    BLOCK_T: int = 32
    BLOCK_K: int = 32
    BLOCK_V: int = 32
    num_warps: int = 4
    num_stages: int = 2
    # how chunks multiply f32, see lib/wy.py
    precision: str = "ieee"


@triton.jit
def _gdn_recurrent(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    state,
    o,
    T, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    i_b, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    i_k = key_head(i_h, HK, HV, TILED)
    o_k = tl.arange(0, K)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    p_q, p_k = q + i_b * s_q_b + i_k * K + o_k, k + i_b * s_k_b + i_k * K + o_k
    p_v, p_o = v + i_b * s_v_b + i_h * V + o_v, o + (i_b * T * HV + i_h) * V + o_v
    p_a, p_b = a + i_b * s_a_b + i_h, b + i_b * s_b_b + i_h
    p_s = state + ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    b_s = tl.load(p_s).to(tl.float32)  # [BV, K]
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    for _ in range(T):
        b_q, b_k = tl.load(p_q).to(tl.float32), tl.load(p_k).to(tl.float32)
        b_v = tl.load(p_v).to(tl.float32)
        b_k *= tl.rsqrt(squares(b_k, 0) + 1e-6)
        b_q *= tl.rsqrt(squares(b_q, 0) + 1e-6) * K**-0.5
        b_e = tl.exp(log_decay(tl.load(p_a).to(tl.float32), b_bias, b_A))
        b_u = tl.sigmoid(tl.load(p_b).to(tl.float32)) * (b_v - b_e * tl.sum(b_s * b_k[None, :], 1))  # [BV]
        b_s = b_e * b_s + b_u[:, None] * b_k[None, :]
        tl.store(p_o, tl.sum(b_s * b_q[None, :], 1).to(o.dtype.element_ty))
        p_q, p_k, p_v, p_a, p_b = p_q + s_q_t, p_k + s_k_t, p_v + s_v_t, p_a + s_a_t, p_b + s_b_t
        p_o += HV * V
    tl.store(p_s, b_s.to(state.dtype.element_ty))


@triton.jit
def _gdn_chunked(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    state,
    o,
    T, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    LEVELS: tl.constexpr, TILED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_b, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    i_k = key_head(i_h, HK, HV, TILED)
    o_t, o_k = tl.arange(0, BT), tl.arange(0, BK)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    p_q, p_k = q + i_b * s_q_b + i_k * K + o_k[None, :], k + i_b * s_k_b + i_k * K + o_k[None, :]
    p_v, p_o = v + i_b * s_v_b + i_h * V + o_v[None, :], o + (i_b * T * HV + i_h) * V + o_v[None, :]
    p_a, p_b = a + i_b * s_a_b + i_h, b + i_b * s_b_b + i_h
    p_s = state + ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    # a chain: everything before a token is above it
    m_above = (o_t[:, None] >= o_t[None, :]).to(tl.int32)
    for start in range(0, T, BT):
        o_i = start + o_t
        m_i = o_i < T
        r_i = o_i.to(tl.int64)
        b_v = tl.load(p_v + r_i[:, None] * s_v_t, mask=m_i[:, None], other=0.0).to(tl.float32)  # [BT, BV]
        b_g = log_decay(tl.load(p_a + r_i * s_a_t, mask=m_i, other=0.0).to(tl.float32), b_bias, b_A)  # [BT]
        # past the end nothing decays and nothing is written
        b_g = tl.where(m_i, b_g, 0.0)
        b_beta = tl.sigmoid(tl.load(p_b + r_i * s_b_t, mask=m_i, other=0.0).to(tl.float32))
        b_kk, b_qk = tl.zeros((BT, BT), tl.float32), tl.zeros((BT, BT), tl.float32)
        b_ks, b_qs = tl.zeros((BT, BV), tl.float32), tl.zeros((BT, BV), tl.float32)
        b_rk, b_rq = tl.zeros((BT,), tl.float32), tl.zeros((BT,), tl.float32)
        for i_c in range(0, K, BK):
            b_q = tl.load(p_q + r_i[:, None] * s_q_t + i_c, mask=m_i[:, None], other=0.0)  # [BT, BK]
            b_k = tl.load(p_k + r_i[:, None] * s_k_t + i_c, mask=m_i[:, None], other=0.0)
            b_s = tl.trans(tl.load(p_s + i_c))  # [BK, BV]
            b_rk += squares(b_k, 1)
            b_rq += squares(b_q, 1)
            b_kk = product(b_k, tl.trans(b_k), b_kk, PRECISION)
            b_qk = product(b_q, tl.trans(b_k), b_qk, PRECISION)
            b_ks = product(b_k, b_s, b_ks, PRECISION)
            b_qs = product(b_q, b_s, b_qs, PRECISION)
        # norms come after the dots, which so stay exact on halves
        b_rk = tl.rsqrt(b_rk + 1e-6)
        b_rq = tl.rsqrt(b_rq + 1e-6) * K**-0.5
        b_decay = tl.exp(span(m_above, m_above, b_g, BT, PRECISION)) * b_rk[None, :]
        b_a = tl.where(o_t[:, None] > o_t[None, :], b_kk * b_decay * (b_beta * b_rk)[:, None], 0.0)
        b_p = tl.where(m_above != 0, b_qk * b_decay * b_rq[:, None], 0.0)
        b_e = tl.exp(tl.sum(tl.where(m_above != 0, b_g[None, :], 0.0), 1))
        b_u = b_beta[:, None] * (b_v - b_ks * (b_e * b_rk)[:, None])
        b_x = unit_lower_inverse(b_a, BT, LEVELS, PRECISION)
        b_u = product(b_x, b_u, tl.zeros((BT, BV), tl.float32), PRECISION)
        b_o = product(b_p, b_u, b_qs * (b_e * b_rq)[:, None], PRECISION)
        tl.store(p_o + r_i[:, None] * HV * V, b_o.to(o.dtype.element_ty), mask=m_i[:, None])
        b_after = tl.exp(tl.sum(tl.where(m_above != 0, 0.0, b_g[None, :]), 1))
        b_u = tl.trans(b_u * (b_after * b_rk)[:, None])  # [BV, BT]
        # S lies in memory, in L2 that is: other threads than those that read it write it, and again
        tl.debug_barrier()
        for i_c in range(0, K, BK):
            b_k = tl.load(p_k + r_i[:, None] * s_k_t + i_c, mask=m_i[:, None], other=0.0)
            b_s = tl.load(p_s + i_c) * tl.exp(tl.sum(b_g, 0))  # [BV, BK]
            tl.store(p_s + i_c, product(b_u, b_k, b_s, PRECISION))
        tl.debug_barrier()


def gdn_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    head_map: str = "tiled",
    config: Config | None = None,
) -> torch.Tensor:
    (B, T, Hv, V), (Hk, K) = v.shape, k.shape[2:]
    tensors = {"q": q, "k": k, "v": v, "a": a, "b": b, "A": A, "dt_bias": dt_bias, "state": state}
    check_heads("gdn_prefill", tensors, (A, dt_bias, state), head_map)
    config = config or pick("gdn_prefill", Config(), v.device, B=B, T=T, Hk=Hk, Hv=Hv, K=K, V=V)
    tokens = [part for name in ("q", "k", "v", "a", "b") for part in rows("gdn_prefill", name, tensors[name])]
    o = torch.empty((B, T, Hv, V), dtype=v.dtype, device=v.device)
    BV = min(config.BLOCK_V, V)
    grid = (B * Hv, V // BV)
    heads = {"K": K, "V": V, "BV": BV, "TILED": head_map == "tiled", "num_warps": config.num_warps}
    if T < CHUNKED_FROM:
        _gdn_recurrent[grid](*tokens, A, dt_bias, state, o, T, Hk, Hv, **heads)
        return o
    BT = max(16, min(config.BLOCK_T, triton.next_power_of_2(T)))
    blocks = {"BT": BT, "BK": min(config.BLOCK_K, K), "LEVELS": BT.bit_length() - 1}
    # between chunks the state stays in f32
    work = state if state.dtype == torch.float32 else state.float()
    _gdn_chunked[grid](
        *tokens, A, dt_bias, work, o, T, Hk, Hv,
        PRECISION=config.precision, num_stages=config.num_stages, **blocks, **heads,
    )  # fmt: skip
    if work is not state:
        state.copy_(work)
    return o
