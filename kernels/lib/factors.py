"""What a block of BT tokens does to a state, whatever the state: the part of lib/wy.py that no value channel changes.

    program (value head, block, b):   k, q [BT, K], gates  ->  X' = (I + A)^-1 diag(beta), P [BT, BT], rows of gates
    then, with the state:             U = X' (V - c K S^T)     o = e Q S^T + P U     S <- last S + U^T diag(d) K

    gates   c = e^G rk      e = e^G rq      d = e^(G_last - G) rk      last = e^G_last, once a row

k and q stay as they came, halves perhaps: their norms rk and rq lie in the gates. In bf16 a factor is stored as the
terms of its sum, ready for tensor cores: three planes for X', three for P or two where o is a half.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .early import release, since, wait
from .gates import key_head, log_decay, squares
from .loads import marks, together
from .wy import coarse_fine, pair, power, product, thirds, unit_lower_inverse

GATES = tl.constexpr(5)


@dataclass(frozen=True)
class Factors:
    planes: torch.Tensor
    gates: torch.Tensor
    # k and q, where they are multiplied as f16
    halves: torch.Tensor
    count: int


@triton.jit
def _factors(
    q, s_q_b, s_q_t,
    k, s_k_b, s_k_t,
    a, s_a_b, s_a_t,
    b, s_b_b, s_b_t,
    A,
    dt_bias,
    ancestors,
    planes,
    gates,
    halves,
    T, NT, FIRST, HK, HV,
    K: tl.constexpr, BT: tl.constexpr, TREE: tl.constexpr, TILED: tl.constexpr, PLANES: tl.constexpr,
    FORM: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    i_h, i_c, i_b = tl.program_id(0), FIRST + tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k = key_head(i_h, HK, HV, TILED)
    o_t, o_k = tl.arange(0, BT), tl.arange(0, K)
    r_t = (i_c * BT + o_t).to(tl.int64)
    m_t = r_t < T
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    # in larger blocks it takes more in registers than it saves
    PTX: tl.constexpr = EARLY and TREE and BT == 16
    begun = 0
    if EARLY:
        if AHEAD:
            # the launch before this one writes nothing that is read here
            release()
        else:
            wait()
        begun = since()
    p_a, p_b = a + i_b * s_a_b + i_h, b + i_b * s_b_b + i_h
    p_mask = ancestors + i_b * T * T + r_t[:, None] * T if TREE else p_a
    if PTX:
        b_a, b_b, m_node = gate_rows(p_a, s_a_t, p_b, s_b_t, p_mask, r_t, T, begun, TREE, PTX)
    if PRECISION == "ieee":
        p_k, p_q = k + i_b * s_k_b + i_k * K, q + i_b * s_q_b + i_k * K
        # no tensor cores share the rows of a product: whole ones would stand in every lane's registers
        products = sliced(p_q, s_q_t, p_k, s_k_t, r_t, m_t, K, BT)
        b_k, b_q = products[0], products[1]
    else:
        products = None
        b_k = tl.load(k + i_b * s_k_b + i_k * K + r_t[:, None] * s_k_t + o_k[None, :], mask=m_t[:, None], other=0.0)
        b_q = tl.load(q + i_b * s_q_b + i_k * K + r_t[:, None] * s_q_t + o_k[None, :], mask=m_t[:, None], other=0.0)
        b_k, b_q = together(b_k, b_q, PTX)
    if TREE:
        m_self = marks(p_mask + r_t[None, :], m_t[:, None] & m_t[None, :], begun, PTX)  # [BT, BT]
    else:
        m_self = (o_t[:, None] >= o_t[None, :]) & m_t[:, None]
    if FORM == "f16":
        # a key head's first value head brings its rows into the range of f16, where a bf16 is exact
        k_up, k_down = power(tl.max(tl.abs(b_k), 1), 0)
        q_up, q_down = power(tl.max(tl.abs(b_q), 1), 0)
        m_first = m_t & (i_h == (i_k if TILED else i_k * (HV // HK)))
        p_halves = halves + ((i_b * T + r_t[:, None]) * HK + i_k) * K + o_k[None, :]
        b_k16, b_q16 = (
            (b_k.to(tl.float32) * k_up[:, None]).to(tl.float16),
            (b_q.to(tl.float32) * q_up[:, None]).to(tl.float16),
        )
        tl.store(p_halves, b_k16, mask=m_first[:, None])
        tl.store(p_halves + tl.num_programs(2).to(tl.int64) * T * HK * K, b_q16, mask=m_first[:, None])
    if not PTX:
        b_a, b_b, m_node = gate_rows(p_a, s_a_t, p_b, s_b_t, p_mask, r_t, T, begun, TREE, PTX)
    b_g, b_beta = node_gates(b_a, b_b, m_node, b_A, b_bias)
    b_a, b_decay, b_p, b_c, b_e, b_d, b_last = terms(
        b_q, b_k, products, b_g, b_beta, m_self, K, BT, TREE, PRECISION
    )  # fmt: skip
    i_n = (i_b * NT + i_c) * HV + i_h
    p_planes = planes + i_n * PLANES * BT * BT + o_t[:, None] * BT + o_t[None, :]
    # what is done with goes out before the inverse, which needs the registers
    if FORM == "f16":
        tl.store(p_planes + 2 * BT * BT, b_p.to(tl.float16))
        b_c, b_d, b_e = b_c * b_beta * k_down, b_d * k_down, b_e * q_down
    elif FORM == "bf16":
        p_high, p_mid, p_low = thirds(b_p)
        tl.store(p_planes + 3 * BT * BT, p_high)
        tl.store(p_planes + 4 * BT * BT, p_mid)
        if PLANES > 5:
            tl.store(p_planes + 5 * BT * BT, p_low)
    else:
        tl.store(p_planes + BT * BT, b_p)
    p_gates = gates + i_n * GATES * BT + o_t
    tl.store(p_gates, b_c)
    tl.store(p_gates + BT, b_e)
    tl.store(p_gates + 2 * BT, b_d)
    tl.store(p_gates + 3 * BT, tl.zeros((BT,), tl.float32) + b_last)
    tl.store(p_gates + 4 * BT, b_beta)
    b_x = unit_lower_inverse(b_a, BT, PRECISION) * b_decay
    if FORM == "f16":
        # up, so that the lower half is far from subnormal: few f16 are smaller than 2^-14
        x_high, x_low = pair(b_x * 8192.0)
        tl.store(p_planes, x_high)
        tl.store(p_planes + BT * BT, x_low)
    elif FORM == "bf16":
        x_high, x_mid, x_low = thirds(b_x * b_beta[None, :])
        tl.store(p_planes, x_high)
        tl.store(p_planes + BT * BT, x_mid)
        tl.store(p_planes + 2 * BT * BT, x_low)
    else:
        tl.store(p_planes, b_x * b_beta[None, :])
    # whoever waits for this launch waits for all before it
    if EARLY and AHEAD:  # noqa: SIM102
        if (i_h == 0) & (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
            wait()


@triton.jit
def gate_rows(p_a, s_a_t, p_b, s_b_t, p_mask, r_t, T, begun, TREE: tl.constexpr, PTX: tl.constexpr):
    """a, b and which are nodes, [BT, 2]: asked for before anything is waited for. Every row twice, see `node_gates`."""
    r_t = r_t[:, None] + tl.zeros((1, 2), tl.int64)
    m_t = r_t < T
    b_a, b_b = tl.load(p_a + r_t * s_a_t, mask=m_t, other=0.0), tl.load(p_b + r_t * s_b_t, mask=m_t, other=0.0)
    # a padding slot is not even its own ancestor
    return b_a, b_b, marks(p_mask + r_t, m_t, begun, PTX) if TREE else m_t


@triton.jit
def node_gates(b_a, b_b, m_t, b_A, b_bias):
    """g, beta [BT]; 0 where there is no node. Every row twice, and the larger taken: the compiler repeats cheap sums in
    every thread that needs them, these a dozen times, but never a reduction."""
    b_g, b_beta = log_decay(b_a.to(tl.float32), b_bias, b_A), tl.sigmoid(b_b.to(tl.float32))
    return tl.max(tl.where(m_t, b_g, 0.0), 1), tl.max(tl.where(m_t, b_beta, 0.0), 1)


@triton.jit
def sliced(p_q, s_q_t, p_k, s_k_t, r_t, m_t, K: tl.constexpr, BT: tl.constexpr):
    """k k^T and q k^T [BT, BT] and the squares of k's and q's rows, 32 channels at a time."""
    BK: tl.constexpr = 32 if K > 32 else K
    o_k = tl.arange(0, BK)
    b_kk, b_qk = tl.zeros((BT, BT), tl.float32), tl.zeros((BT, BT), tl.float32)
    b_rk, b_rq = tl.zeros((BT,), tl.float32), tl.zeros((BT,), tl.float32)
    for i_c in range(0, K, BK):
        b_k = tl.load(p_k + i_c + r_t[:, None] * s_k_t + o_k[None, :], mask=m_t[:, None], other=0.0)  # [BT, BK]
        b_q = tl.load(p_q + i_c + r_t[:, None] * s_q_t + o_k[None, :], mask=m_t[:, None], other=0.0)
        b_kk = product(b_k, tl.trans(b_k), b_kk, "ieee")
        b_qk = product(b_q, tl.trans(b_k), b_qk, "ieee")
        b_rk += squares(b_k, 1)
        b_rq += squares(b_q, 1)
    return b_kk, b_qk, b_rk, b_rq


@triton.jit
def terms(
    b_q, b_k, products, b_g, b_beta, m_self,
    K: tl.constexpr, BT: tl.constexpr, TREE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For rows i with ancestors j in the mask [BT, BT]: A without decays, the decays, P, c, e, d, last.

    Of q and k, or of their `products` as `sliced` gives them. The decays telescope: the inverse of I + A is that of I +
    A without any, times the decay from j to i.
    """
    o_t = tl.arange(0, BT)
    b_coarse, b_fine = coarse_fine(b_g)
    if products is None:
        b_kk = product(b_k, tl.trans(b_k), tl.zeros((BT, BT), tl.float32), PRECISION)
        b_qk = product(b_q, tl.trans(b_k), tl.zeros((BT, BT), tl.float32), PRECISION)
        b_rk = tl.rsqrt(squares(b_k, 1) + 1e-6)
        b_rq = tl.rsqrt(squares(b_q, 1) + 1e-6) * K**-0.5
    else:
        b_kk, b_qk, b_rk, b_rq = products
        b_rk = tl.rsqrt(b_rk + 1e-6)
        b_rq = tl.rsqrt(b_rq + 1e-6) * K**-0.5
    if TREE:
        b_far = tl.sum(tl.where(m_self, b_coarse[None, :], 0.0), 1)
        b_near = tl.sum(tl.where(m_self, b_fine[None, :], 0.0), 1)
    else:
        b_far, b_near = tl.cumsum(b_coarse, 0), tl.cumsum(b_fine, 0)
    b_span = (b_far[:, None] - b_far[None, :]) + (b_near[:, None] - b_near[None, :])
    b_decay = tl.where(m_self, tl.exp(b_span), 0.0)
    m_above = m_self & (o_t[:, None] > o_t[None, :])
    b_kk = tl.where(m_above, b_kk * (b_beta * b_rk)[:, None] * b_rk[None, :], 0.0)
    b_p = tl.where(m_self, b_qk * b_decay * b_rq[:, None] * b_rk[None, :], 0.0)
    b_e = tl.exp(b_far + b_near)
    b_all, b_rest = tl.sum(b_coarse, 0), tl.sum(b_fine, 0)
    b_d = tl.exp((b_all - b_far) + (b_rest - b_near)) * b_rk
    return b_kk, b_decay, b_p, b_e * b_rk, b_e * b_rq, b_d, tl.exp(b_all + b_rest)


@triton.jit
def through_x(b_r, planes, BT: tl.constexpr, PRECISION: tl.constexpr):
    """[BV, BT] -> r X'^T."""
    o_t = tl.arange(0, BT)
    p_x = planes + o_t[:, None] * BT + o_t[None, :]
    b_u = tl.zeros(b_r.shape, tl.float32)
    if PRECISION == "bf16":
        x_high, x_mid = tl.trans(tl.load(p_x)), tl.trans(tl.load(p_x + BT * BT))
        x_low = tl.trans(tl.load(p_x + 2 * BT * BT))
        r_high, r_mid, r_low = thirds(b_r)
        b_u = tl.dot(r_low, x_high, b_u)
        b_u = tl.dot(r_high, x_low, b_u)
        b_u = tl.dot(r_mid, x_mid, b_u)
        b_u = tl.dot(r_mid, x_high, b_u)
        b_u = tl.dot(r_high, x_mid, b_u)
        return tl.dot(r_high, x_high, b_u)
    else:
        return product(b_r, tl.trans(tl.load(p_x)), b_u, PRECISION)


@triton.jit
def outputs(planes, BT: tl.constexpr, PLANES: tl.constexpr, PRECISION: tl.constexpr):
    """P^T in its parts, for `through_p`: asked for before `through_x`, which would hold the loads back."""
    o_t = tl.arange(0, BT)
    p_p = planes + o_t[:, None] * BT + o_t[None, :]
    if PRECISION == "bf16":
        p_high, p_mid = tl.trans(tl.load(p_p + 3 * BT * BT)), tl.trans(tl.load(p_p + 4 * BT * BT))
        return p_high, p_mid, tl.trans(tl.load(p_p + 5 * BT * BT)) if PLANES > 5 else p_mid
    else:
        b_p = tl.trans(tl.load(p_p + BT * BT))
        return b_p, b_p, b_p


@triton.jit
def through_p(b_u, parts, PLANES: tl.constexpr, PRECISION: tl.constexpr):
    """[BV, BT] -> u P^T, to be added elsewhere: tensor cores cut the low bits of what they add to."""
    b_o = tl.zeros(b_u.shape, tl.float32)
    p_high, p_mid, p_low = parts
    if PRECISION == "bf16":
        u_high, u_mid, u_low = thirds(b_u)
        if PLANES > 5:
            b_o = tl.dot(u_low, p_high, b_o)
            b_o = tl.dot(u_high, p_low, b_o)
            b_o = tl.dot(u_mid, p_mid, b_o)
        b_o = tl.dot(u_mid, p_high, b_o)
        b_o = tl.dot(u_high, p_mid, b_o)
        return tl.dot(u_high, p_high, b_o)
    else:
        return product(b_u, p_high, b_o, PRECISION)


def factors(
    tokens: dict[str, tuple[torch.Tensor, int, int]],
    A: torch.Tensor,
    dt_bias: torch.Tensor,
    ancestors: torch.Tensor | None,
    sizes: dict[str, int],
    BT: int,
    tiled: bool,
    form: str,
    exact: bool,
    precision: str,
    num_warps: int,
    overlap: bool,
) -> tuple[Factors, Callable[..., None]]:
    """Room for them, and the launch that makes those of `count` blocks from `first` on; `tokens` are q, k, a, b as
    `gates.rows` gives them. With `ahead` it does not wait for the launch before it, which must not write its inputs."""
    B, T, Hk, Hv, K = (sizes[name] for name in ("B", "T", "Hk", "Hv", "K"))
    NT = triton.cdiv(T, BT)
    match form:
        case "f16":
            planes, dtype = 3, torch.float16
        case "bf16":
            planes, dtype = 6 if exact else 5, torch.bfloat16
        case _:
            planes, dtype = 2, torch.float32
    made = Factors(
        torch.empty((B, NT, Hv, planes, BT, BT), dtype=dtype, device=A.device),
        torch.empty((B, NT, Hv, GATES.value, BT), dtype=torch.float32, device=A.device),
        torch.empty((2, B, T, Hk, K) if form == "f16" else 0, dtype=torch.float16, device=A.device),
        planes,
    )

    def launch(first: int = 0, count: int = NT, ahead: bool = False) -> None:
        _factors[(Hv, count, B)](
            *tokens["q"], *tokens["k"], *tokens["a"], *tokens["b"], A, dt_bias, ancestors,
            made.planes, made.gates, made.halves, T, NT, first, Hk, Hv,
            K=K, BT=BT, TREE=ancestors is not None, TILED=tiled, PLANES=planes, FORM=form, PRECISION=precision,
            EARLY=overlap, AHEAD=ahead, num_warps=num_warps, num_stages=1, **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip

    return made, launch
