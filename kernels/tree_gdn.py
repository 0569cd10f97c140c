"""S_i = e^g S_parent + u k^T, u = beta (v - e^g S_parent k), o_i = S_i q, over a token tree (reference/tree_gdn.py).

wy, replay: no state per node. The tree's mask turns the recurrence into one triangular system (lib/wy.py).

    program (b, value head; V block)            S [BV, K] read once
        for every block I of BT nodes:          k, q [BT, K], v [BT, BV]
            block J before I:   in_I += A_IJ U_J,  o_I += P_IJ U_J          [BT, BT] x [BT, BV], one pass for T <= BT
            block I itself:     U_I = (I + A_II)^-1 (beta (V - e^G K S^T) - in_I),  o_I += e^G Q S^T + P_II U_I

store_f32, store_f16: the recurrence, S in registers, every S_i written; a branch reloads its parent's.

    program (b, value head; V block)   t = 0 -> 1 -> 2 -> ... -> T-1      S [BV, K], saved[t] [BV, K] each step

wy moves the state once and T rows (4.5 MB for 23 nodes of the 27B) and is bound by latency: load, a dozen dots,
store. A NaN in one node reaches all of them. store_* moves a state a node (75 or 39 MB) and is bound by memory.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.device import compiled_for, has_pdl, is_narrow, lacks_dot, multiply
from .lib.early import wait
from .lib.factors import GATES, factors, outputs, through_p, through_x
from .lib.gates import check_heads, key_head, log_decay, rows, squares
from .lib.loads import together
from .lib.wy import outlined, product, span, unit_lower_inverse

STRATEGIES = ("wy", "store_f32", "store_f16", "replay")
ONE_BLOCK = 64


@dataclass(frozen=True)
class Config:
    BLOCK_V: int = 64
    num_warps: int = 4
    factor_warps: int = 4
    # nodes and keys a step of trees larger than ONE_BLOCK
    BLOCK_T: int = 32
    BLOCK_K: int = 32
    # nodes of the largest tree that is one block: its factors are a launch of their own, and take many registers
    one_block: int = ONE_BLOCK
    # how wy multiplies f32, see lib/wy.py
    precision: str = "auto"


@triton.jit
def _tree_gdn_block(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    state,
    ancestors,
    planes,
    gates,
    o,
    u,
    T, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, PLANES: tl.constexpr,
    SAVE: tl.constexpr, TILED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k, i_n = key_head(i_h, HK, HV, TILED), i_b * HV + i_h
    o_t, o_k = tl.arange(0, BT), tl.arange(0, K)
    o_v = tl.program_id(0) * BV + tl.arange(0, BV)
    r_t = o_t.to(tl.int64)
    m_t = o_t < T
    p_s = state + (i_n * V + o_v[:, None]) * K + o_k[None, :]
    # all but the factors is older than the launch before this one, which has waited for it
    if BT > 16:
        # one after the other: together they would lie in shared memory together
        b_s = tl.load(p_s)  # [BV, K]
    b_k = tl.load(k + i_b * s_k_b + i_k * K + r_t[:, None] * s_k_t + o_k[None, :], mask=m_t[:, None], other=0.0)
    b_q = tl.load(q + i_b * s_q_b + i_k * K + r_t[:, None] * s_q_t + o_k[None, :], mask=m_t[:, None], other=0.0)
    b_v = tl.load(v + i_b * s_v_b + i_h * V + r_t[None, :] * s_v_t + o_v[:, None], mask=m_t[None, :], other=0.0)
    # a padding slot is not even its own ancestor, and may hold anything
    m_real = tl.load(ancestors + (i_b * T + r_t) * T + r_t, mask=m_t, other=0) != 0
    if BT == 16:
        b_s = tl.load(p_s)  # [BV, K]
    b_k, b_q = together(b_k, b_q, EARLY and BT == 16)
    b_ks = product(b_s, tl.trans(b_k), tl.zeros((BV, BT), tl.float32), PRECISION)
    b_qs = outlined(b_s, tl.trans(b_q), tl.zeros((BV, BT), tl.float32), PRECISION, EXACT)
    b_v = tl.where(m_real[None, :], b_v.to(tl.float32), 0.0)
    if EARLY:
        wait()
    p_planes, p_gates = planes + i_n * PLANES * BT * BT, gates + i_n * GATES * BT + o_t
    b_c, b_e = tl.load(p_gates), tl.load(p_gates + BT)
    if BT < 64:
        parts = outputs(p_planes, BT, PLANES, PRECISION)
    b_u = through_x(b_v - tl.where(m_real[None, :], b_ks * b_c[None, :], 0.0), p_planes, BT, PRECISION)
    if BT == 64:
        parts = outputs(p_planes, BT, PLANES, PRECISION)
    b_o = b_qs * b_e[None, :] + through_p(b_u, parts, PLANES, PRECISION)
    p_out = ((i_b * T + r_t[None, :]) * HV + i_h) * V + o_v[:, None]
    tl.store(o + p_out, tl.where(m_real[None, :], b_o, 0.0).to(o.dtype.element_ty), mask=m_t[None, :])
    if SAVE:
        tl.store(u + p_out, b_u, mask=m_t[None, :])


@triton.jit
def _tree_gdn_wy(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    state,
    ancestors,
    o,
    u,
    T, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NT: tl.constexpr,
    SAVE: tl.constexpr, TILED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_b, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    i_k = key_head(i_h, HK, HV, TILED)
    o_t, o_k = tl.arange(0, BT), tl.arange(0, BK)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    p_q, p_k = q + i_b * s_q_b + i_k * K + o_k[None, :], k + i_b * s_k_b + i_k * K + o_k[None, :]
    p_v = v + i_b * s_v_b + i_h * V + o_v[None, :]
    p_a, p_b = a + i_b * s_a_b + i_h, b + i_b * s_b_b + i_h
    p_s = state + ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    p_mask = ancestors + i_b * T * T
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    for i_i in range(NT):
        o_i = i_i * BT + o_t
        m_i = o_i < T
        r_i = o_i.to(tl.int64)
        p_row = p_mask + r_i[:, None] * T
        m_ii = tl.load(p_row + o_i[None, :], mask=m_i[:, None] & m_i[None, :], other=0)  # [BT, BT]
        b_v = tl.load(p_v + r_i[:, None] * s_v_t, mask=m_i[:, None], other=0.0).to(tl.float32)  # [BT, BV]
        b_g = log_decay(tl.load(p_a + r_i * s_a_t, mask=m_i, other=0.0).to(tl.float32), b_bias, b_A)  # [BT]
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
        b_decay = tl.where(m_ii != 0, tl.exp(span(m_ii, m_ii, b_g, BT, PRECISION)), 0.0)
        m_above = (m_ii != 0) & (o_t[:, None] > o_t[None, :])
        b_a = tl.where(m_above, b_kk * b_rk[None, :] * (b_beta * b_rk)[:, None], 0.0)
        b_x = unit_lower_inverse(b_a, BT, PRECISION) * b_decay
        b_p = tl.where(m_ii != 0, b_qk * b_decay * b_rk[None, :] * b_rq[:, None], 0.0)
        # log decay from the end of block J down to i; at the end of the walk, from the root
        b_log = tl.sum(tl.where(m_ii != 0, b_g[None, :], 0.0), 1)
        b_in, b_o = tl.zeros((BT, BV), tl.float32), tl.zeros((BT, BV), tl.float32)
        if NT > 1:
            for back in range(i_i):
                o_j = (i_i - 1 - back) * BT + o_t
                r_j = o_j.to(tl.int64)
                m_ij = tl.load(p_row + o_j[None, :], mask=m_i[:, None], other=0)
                m_jj = tl.load(p_mask + r_j[:, None] * T + o_j[None, :])
                b_gj = log_decay(tl.load(p_a + r_j * s_a_t).to(tl.float32), b_bias, b_A)
                b_kk, b_qk = tl.zeros((BT, BT), tl.float32), tl.zeros((BT, BT), tl.float32)
                b_rj = tl.zeros((BT,), tl.float32)
                for i_c in range(0, K, BK):
                    b_q = tl.load(p_q + r_i[:, None] * s_q_t + i_c, mask=m_i[:, None], other=0.0)
                    b_k = tl.load(p_k + r_i[:, None] * s_k_t + i_c, mask=m_i[:, None], other=0.0)
                    b_kj = tl.load(p_k + r_j[:, None] * s_k_t + i_c)
                    b_rj += squares(b_kj, 1)
                    b_kk = product(b_k, tl.trans(b_kj), b_kk, PRECISION)
                    b_qk = product(b_q, tl.trans(b_kj), b_qk, PRECISION)
                b_decay = tl.exp(span(m_ij, m_jj, b_gj, BT, PRECISION) + b_log[:, None])
                b_decay = tl.where(m_ij != 0, b_decay * tl.rsqrt(b_rj + 1e-6)[None, :], 0.0)
                b_uj = tl.load(u + ((i_b * T + r_j[:, None]) * HV + i_h) * V + o_v[None, :])  # [BT, BV]
                b_in = product(b_kk * b_decay * (b_beta * b_rk)[:, None], b_uj, b_in, PRECISION)
                b_o = product(b_qk * b_decay * b_rq[:, None], b_uj, b_o, PRECISION)
                b_log += tl.sum(tl.where(m_ij != 0, b_gj[None, :], 0.0), 1)
        b_e = tl.exp(b_log)
        # a padding slot is not even its own ancestor
        m_real = tl.max(m_ii.to(tl.int32), 1) > 0
        b_u = b_beta[:, None] * (b_v - b_ks * (b_e * b_rk)[:, None]) - b_in
        b_u = product(b_x, tl.where(m_real[:, None], b_u, 0.0), tl.zeros((BT, BV), tl.float32), PRECISION)
        b_o = product(b_p, b_u, b_o + b_qs * (b_e * b_rq)[:, None], PRECISION)
        p_out = ((i_b * T + r_i[:, None]) * HV + i_h) * V + o_v[None, :]
        tl.store(o + p_out, tl.where(m_real[:, None], b_o, 0.0).to(o.dtype.element_ty), mask=m_i[:, None])
        if SAVE:
            tl.store(u + p_out, b_u, mask=m_i[:, None])
        if NT > 1:
            # the next block reads these rows of u with other threads
            tl.debug_barrier()


@triton.jit
def _tree_gdn_store(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    v, s_v_b, s_v_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    state,
    parents,
    o,
    saved,
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
    p_parents = parents + i_b * T
    o_s = o_v[:, None] * K + o_k[None, :]
    p_state = state + (i_b * HV + i_h) * V * K + o_s
    p_saved = saved + (i_b * T * HV + i_h) * V * K + o_s
    p_new = p_saved
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    b_s = tl.load(p_state).to(tl.float32)  # [BV, K]
    b_q, b_k, b_v, b_a, b_b = tl.load(p_q), tl.load(p_k), tl.load(p_v), tl.load(p_a), tl.load(p_b)
    parent = tl.load(p_parents)
    for t in range(T):
        # the next token is on its way while this one is computed; after the last comes the last again
        i_n = tl.minimum(t + 1, T - 1).to(tl.int64)
        n_q, n_k, n_v = tl.load(p_q + i_n * s_q_t), tl.load(p_k + i_n * s_k_t), tl.load(p_v + i_n * s_v_t)
        n_a, n_b, n_parent = tl.load(p_a + i_n * s_a_t), tl.load(p_b + i_n * s_b_t), tl.load(p_parents + i_n)
        if parent != t - 1:
            if parent >= 0:
                # this program stored it, perhaps with other threads
                tl.debug_barrier()
                b_s = tl.load(p_saved + parent.to(tl.int64) * HV * V * K).to(tl.float32)
            else:
                b_s = tl.load(p_state).to(tl.float32)
        b_k32, b_q32 = b_k.to(tl.float32), b_q.to(tl.float32)
        b_kn = b_k32 * tl.rsqrt(squares(b_k32, 0) + 1e-6)
        b_qn = b_q32 * (tl.rsqrt(squares(b_q32, 0) + 1e-6) * K**-0.5)
        b_e = tl.exp(log_decay(b_a.to(tl.float32), b_bias, b_A))
        b_u = tl.sigmoid(b_b.to(tl.float32)) * (b_v.to(tl.float32) - b_e * tl.sum(b_s * b_kn[None, :], 1))  # [BV]
        b_s = b_e * b_s + b_u[:, None] * b_kn[None, :]
        b_o = tl.sum(b_s * b_qn[None, :], 1)
        tl.store(p_o, tl.where(parent != -2, b_o, 0.0).to(o.dtype.element_ty))
        tl.store(p_new, tl.where(parent != -2, b_s, 0.0).to(saved.dtype.element_ty))
        p_o, p_new = p_o + HV * V, p_new + HV * V * K
        b_q, b_k, b_v, b_a, b_b, parent = n_q, n_k, n_v, n_a, n_b, n_parent


def _default(strategy: str, T: int, V: int, K: int, device: torch.device) -> Config:
    """From 33 nodes on the factors wait for their own instructions, and eight warps have a third fewer of them."""
    if is_narrow(device):
        # sm75's compiler gives 8 warps half of the registers there are
        store, warps = strategy.startswith("store"), 4 if lacks_dot(device) else 8
        return Config(BLOCK_V=32) if store else Config(BLOCK_V=16, num_warps=warps, BLOCK_T=16)
    if strategy.startswith("store") or not 16 < T <= ONE_BLOCK:
        return Config()
    if T <= 32 and V == K == 128 and compiled_for(device) == "sm90":
        return Config(BLOCK_V=128, num_warps=8)
    return Config(factor_warps=8)


def tree_gdn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    parents: torch.Tensor,
    ancestors: torch.Tensor,
    strategy: str = "wy",
    head_map: str = "tiled",
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    (B, T, Hv, V), (Hk, K) = v.shape, k.shape[2:]
    tensors = {"q": q, "k": k, "v": v, "a": a, "b": b, "A": A, "dt_bias": dt_bias, "state": state}
    check_heads("tree_gdn", tensors, (A, dt_bias, state, parents, ancestors), head_map)
    if strategy not in STRATEGIES or parents.shape != (B, T) or ancestors.shape != (B, T, T):
        trees = f"parents {tuple(parents.shape)}, ancestors {tuple(ancestors.shape)}"
        raise ValueError(f"tree_gdn knows {', '.join(STRATEGIES)} over trees of [B, T], not '{strategy}', {trees}")
    sizes = {"B": B, "T": T, "Hk": Hk, "Hv": Hv, "K": K}
    default = _default(strategy, T, V, K, v.device)
    config = config or pick("tree_gdn", default, v.device, **sizes, V=V, strategy=strategy)
    row = {name: rows("tree_gdn", name, tensors[name]) for name in ("q", "k", "v", "a", "b")}
    o = torch.empty((B, T, Hv, V), dtype=v.dtype, device=v.device)
    BV, tiled = min(config.BLOCK_V, V), head_map == "tiled"
    if strategy.startswith("store"):
        dtype = torch.float16 if strategy == "store_f16" else torch.float32
        saved = torch.empty((B, T, Hv, V, K), dtype=dtype, device=v.device)
        tokens = [part for name in row for part in row[name]]
        _tree_gdn_store[(B * Hv, V // BV)](
            *tokens, A, dt_bias, state, parents, o, saved, T, Hk, Hv,
            K=K, V=V, BV=BV, TILED=tiled, num_warps=config.num_warps,
        )  # fmt: skip
        return o, saved
    precision = multiply(config.precision, v.device)
    # without tensor cores a block of 64 squared is too much, and so are whole rows of the state
    one_block = min(config.one_block, ONE_BLOCK) >= T and precision != "ieee"
    # blocks after the first read the rows of u before them
    save = strategy == "wy" or not one_block
    u = torch.empty((B, T, Hv, V) if save else 0, dtype=torch.float32, device=v.device)
    if one_block:
        BT, exact, overlap = max(16, triton.next_power_of_2(T)), v.dtype == torch.float32, has_pdl(v.device)
        form = precision if precision == "bf16" else "f32"
        made, make = factors(
            row, A, dt_bias, ancestors, sizes, BT, tiled, form, exact, precision, config.factor_warps, overlap
        )
        make()
        launch = {"launch_pdl": True} if overlap else {}
        _tree_gdn_block[(V // BV, Hv, B)](
            *row["q"], *row["k"], *row["v"], state, ancestors, made.planes, made.gates, o, u, T, Hk, Hv,
            K=K, V=V, BT=BT, BV=BV, PLANES=made.count, SAVE=save, TILED=tiled, EXACT=exact, PRECISION=precision,
            EARLY=overlap, num_warps=config.num_warps, num_stages=1, **launch,
        )  # fmt: skip
    else:
        tokens = [part for name in row for part in row[name]]
        BT = max(16, min(config.BLOCK_T, triton.next_power_of_2(T))) if precision != "ieee" else 16
        _tree_gdn_wy[(B * Hv, V // BV)](
            *tokens, A, dt_bias, state, ancestors, o, u, T, Hk, Hv,
            K=K, V=V, BT=BT, BK=min(config.BLOCK_K, K), BV=BV, NT=triton.cdiv(T, BT), SAVE=save, TILED=tiled,
            PRECISION=precision, num_warps=config.num_warps, num_stages=1,
        )  # fmt: skip
    return o, u if strategy == "wy" else torch.empty(0, dtype=torch.float32, device=v.device)
