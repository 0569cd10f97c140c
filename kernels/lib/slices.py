"""Chunks of gdn_prefill with the state in memory, BK of its columns at a time: where a lane has few registers.

    program (V block, value head, b), a chunk:      S [BV, K] f32, two of them that take turns: old -> new
        for every slice:   K S^T += k_c S_c^T,  Q S^T += q_c S_c^T
        U = X' (V - c K S^T)     o = e Q S^T + P U     (lib/factors.py)
        for every slice:   S_c  = last S_c + U^T diag(d) k_c

A program's states are 16 KB or less and stay in its multiprocessor's cache. Bound by a chunk's chain of small products.
"""

import triton
import triton.language as tl

from .factors import GATES
from .gates import key_head
from .wy import product


@triton.jit
def slices(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    planes,
    gates,
    state,
    carry,
    o,
    T, NT, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TILED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k, o_t, o_k = key_head(i_h, HK, HV, TILED), tl.arange(0, BT), tl.arange(0, BK)
    o_v = tl.program_id(0) * BV + tl.arange(0, BV)
    p_q, p_k = q + i_b * s_q_b + i_k * K + o_k[None, :], k + i_b * s_k_b + i_k * K + o_k[None, :]
    o_s = ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    o_square = o_t[:, None] * BT + o_t[None, :]
    turn = tl.num_programs(2).to(tl.int64) * HV * V * K
    for i_s in range(0, K, BK):
        tl.store(carry + o_s + i_s, tl.load(state + o_s + i_s).to(tl.float32))  # [BV, BK]
    for i_c in range(NT):
        # what was stored is read with other threads
        tl.debug_barrier()
        p_old, p_new = carry + o_s + i_c % 2 * turn, carry + o_s + (i_c + 1) % 2 * turn
        r_t = (i_c * BT + o_t).to(tl.int64)
        m_t = r_t < T
        b_ks, b_qs = tl.zeros((BV, BT), tl.float32), tl.zeros((BV, BT), tl.float32)
        for i_s in range(0, K, BK):
            b_k = tl.load(p_k + r_t[:, None] * s_k_t + i_s, mask=m_t[:, None], other=0.0)  # [BT, BK]
            b_q = tl.load(p_q + r_t[:, None] * s_q_t + i_s, mask=m_t[:, None], other=0.0)
            b_s = tl.load(p_old + i_s)  # [BV, BK]
            b_ks = product(b_s, tl.trans(b_k), b_ks, PRECISION)
            b_qs = product(b_s, tl.trans(b_q), b_qs, PRECISION)
        i_n = (i_b * NT + i_c) * HV + i_h
        p_gates, p_planes = gates + i_n * GATES * BT, planes + i_n * 2 * BT * BT + o_square
        b_c, b_e = tl.load(p_gates + o_t), tl.load(p_gates + BT + o_t)
        b_d, b_last = tl.load(p_gates + 2 * BT + o_t), tl.load(p_gates + 3 * BT)
        b_v = tl.load(v + i_b * s_v_b + i_h * V + r_t[None, :] * s_v_t + o_v[:, None], mask=m_t[None, :], other=0.0)
        b_u = b_v.to(tl.float32) - b_ks * b_c[None, :]  # [BV, BT]
        b_u = product(b_u, tl.trans(tl.load(p_planes)), tl.zeros((BV, BT), tl.float32), PRECISION)
        b_o = product(b_u, tl.trans(tl.load(p_planes + BT * BT)), b_qs * b_e[None, :], PRECISION)
        p_o = o + ((i_b * T + r_t[None, :]) * HV + i_h) * V + o_v[:, None]
        tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_t[None, :])
        b_u *= b_d[None, :]
        for i_s in range(0, K, BK):
            b_k = tl.load(p_k + r_t[:, None] * s_k_t + i_s, mask=m_t[:, None], other=0.0)
            b_s = product(b_u, b_k, tl.load(p_old + i_s) * b_last, PRECISION)
            tl.store(p_new + i_s, b_s)
    tl.debug_barrier()
    for i_s in range(0, K, BK):
        b_s = tl.load(carry + o_s + i_s + NT % 2 * turn)
        tl.store(state + o_s + i_s, b_s.to(state.dtype.element_ty))
