"""S_t = e^g S_(t-1) + u k^T, u = beta (v - e^g S_(t-1) k), o_t = S_t q, T tokens in a row, in place.

    T < 16    program (V block, value head, b): S [BV, K] in registers, one token after the other; T = 1 is decode
    T >= 16   factors (lib/factors.py), all chunks of BT tokens at once, then
              program (V block, value head, b): S [BV, K] in registers, one chunk after the other

              U = X diag(beta) (V - e^G K S^T)     o = e^G Q S^T + P U     S <- e^G_last S + U^T (e^(G_last - G) K)

    factors     |chunks 0..15|chunks 16..31|chunks 32..|         the next chunks' beside those before
    chunks                   |chunks 0..15 |chunks 16..31|...    (`segment`, programmatic dependent launch)

Where registers are few the state stays in memory (lib/slices.py).
Tokens of f32 are multiplied as lib/wy.py says, K and Q as they came. Tokens of half precision and S are f16 here. k and
q are brought into range by a power of two a row, where a bf16 is exact. S, R = beta (V - ...), X and U are sums of two
f16, with a power of two a value channel and chunk: 22 bits of the largest of a chunk, in seven passes over the tensor
cores instead of twelve. Where a state ends so far below what its last chunk held that this is too coarse, its V block
keeps the old state and runs again token by token: every row of S carries a bound.

Decode is memory-bound: the state once in and once out. Prefill is bound by a chunk's dots, which follow each other.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .config import pick
from .lib.device import has_pdl, is_narrow, multiply, shared_memory
from .lib.early import prefetch, wait
from .lib.factors import GATES, factors
from .lib.gates import check_heads, key_head, log_decay, rows, squares
from .lib.slices import slices
from .lib.wy import pair, power, product

CHUNKED_FROM = 16


@dataclass(frozen=True)
class Config:
    BLOCK_T: int = 64
    BLOCK_V: int = 64
    num_warps: int = 4
    factor_warps: int = 4
    num_stages: int = 1
    # chunks a launch; the factors of the next are made meanwhile. 0: all in one
    segment: int = 0
    # how chunks multiply f32, see lib/wy.py
    precision: str = "auto"


SLOW = Config(BLOCK_V=8, num_warps=1)


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
    coarse,
    T, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, TILED: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_v, i_h, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k = key_head(i_h, HK, HV, TILED)
    o_k = tl.arange(0, K)
    o_v = i_v * BV + tl.arange(0, BV)
    if EARLY:
        wait()
    count = T
    if WIDTH:
        # only where chunks were too coarse
        count = tl.where(tl.load(coarse + (i_b * HV + i_h) * (V // WIDTH) + i_v * BV // WIDTH) != 0, T, 0)
    p_q, p_k = q + i_b * s_q_b + i_k * K + o_k, k + i_b * s_k_b + i_k * K + o_k
    p_v, p_o = v + i_b * s_v_b + i_h * V + o_v, o + (i_b * T * HV + i_h) * V + o_v
    p_a, p_b = a + i_b * s_a_b + i_h, b + i_b * s_b_b + i_h
    p_s = state + ((i_b * HV + i_h) * V + o_v[:, None]) * K + o_k[None, :]
    b_s = tl.load(p_s, mask=count > 0, other=0.0).to(tl.float32)  # [BV, K]
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    for _ in range(count):
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
    tl.store(p_s, b_s.to(state.dtype.element_ty), mask=count > 0)


@triton.jit
def _gdn_step(
    q, s_q_b,
    k, s_k_b,
    v, s_v_b,
    a, s_a_b,
    b, s_b_b,
    A,
    dt_bias,
    state,
    o,
    HK, HV,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, TILED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_v, i_h, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_k = key_head(i_h, HK, HV, TILED)
    o_k = tl.arange(0, K)
    o_v = i_v * BV + tl.arange(0, BV)
    p_s = state + (i_b * HV + i_h) * V * K
    if EARLY:
        prefetch(p_s + i_v * BV * K, BV * K * (state.dtype.element_ty.primitive_bitwidth // 8))
    b_A, b_bias = tl.load(A + i_h), tl.load(dt_bias + i_h)
    if EARLY:
        wait()
    p_s += o_v[:, None] * K + o_k[None, :]
    b_s = tl.load(p_s).to(tl.float32)  # [BV, K]
    b_k = tl.load(k + i_b * s_k_b + i_k * K + o_k).to(tl.float32)
    b_q = tl.load(q + i_b * s_q_b + i_k * K + o_k).to(tl.float32)
    b_a, b_b = tl.load(a + i_b * s_a_b + i_h).to(tl.float32), tl.load(b + i_b * s_b_b + i_h).to(tl.float32)
    b_v = tl.load(v + i_b * s_v_b + i_h * V + o_v).to(tl.float32)
    b_rk = tl.rsqrt(squares(b_k, 0) + 1e-6)
    b_rq = tl.rsqrt(squares(b_q, 0) + 1e-6) * K**-0.5
    b_e = tl.exp(log_decay(b_a, b_bias, b_A))
    # the sums over K wait for nothing but the loads: S q = e^g S_old q + u k.q
    b_ks, b_qs = tl.sum(b_s * b_k[None, :], 1), tl.sum(b_s * b_q[None, :], 1)
    b_u = tl.sigmoid(b_b) * (b_v - (b_e * b_rk) * b_ks) * b_rk  # [BV]
    tl.store(p_s, (b_e * b_s + b_u[:, None] * b_k[None, :]).to(state.dtype.element_ty))
    b_o = (b_e * b_qs + b_u * tl.sum(b_k * b_q, 0)) * b_rq
    tl.store(o + (i_b * HV + i_h) * V + o_v, b_o.to(o.dtype.element_ty))


@triton.jit
def _gdn_chunks(
    q, k, v, planes, o,
    gates,
    state,
    carry,
    NT, START, END, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr,
    PRECISION: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_v, i_h, i_b = tl.program_id(0) * BV, tl.program_id(1), tl.program_id(2)
    i_k = key_head(i_h, HK, HV, TILED) * K
    o_t, o_v = tl.arange(0, BT), i_v + tl.arange(0, BV)
    p_s = ((i_b.to(tl.int64) * HV + i_h) * V + o_v[:, None]) * K + tl.arange(0, K)[None, :]
    if EARLY:
        wait()
    if FIRST:
        b_s = tl.load(state + p_s).to(tl.float32)  # [BV, K]
    else:
        b_s = tl.load(carry + p_s)
    for i_c in tl.range(START, END, num_stages=STAGES):
        b_k = k.load([i_b, i_c * BT, i_k]).reshape(BT, K)
        b_q = q.load([i_b, i_c * BT, i_k]).reshape(BT, K)
        b_v = tl.trans(v.load([i_b, i_c * BT, i_h * V + i_v]).reshape(BT, BV)).to(tl.float32)
        i_n = (i_b * NT + i_c) * HV + i_h
        b_x = tl.trans(planes.load([i_n, 0, 0]).reshape(BT, BT))
        b_p = tl.trans(planes.load([i_n, BT, 0]).reshape(BT, BT))
        p_gates = gates + i_n.to(tl.int64) * GATES * BT
        b_c, b_e = tl.load(p_gates + o_t), tl.load(p_gates + BT + o_t)
        b_d, b_last = tl.load(p_gates + 2 * BT + o_t), tl.load(p_gates + 3 * BT)
        b_ks = product(b_s, tl.trans(b_k), tl.zeros((BV, BT), tl.float32), PRECISION)
        b_qs = product(b_s, tl.trans(b_q), tl.zeros((BV, BT), tl.float32), PRECISION)
        b_u = product(b_v - b_ks * b_c[None, :], b_x, tl.zeros((BV, BT), tl.float32), PRECISION)
        # sums apart: tensor cores cut the low bits of what they add to
        b_o = b_qs * b_e[None, :] + product(b_u, b_p, tl.zeros((BV, BT), tl.float32), PRECISION)
        o.store([i_b, i_c * BT, i_h * V + i_v], tl.trans(b_o).to(o.dtype).reshape(1, BT, BV))
        b_s = b_last * b_s + product(b_u * b_d[None, :], b_k, tl.zeros((BV, K), tl.float32), PRECISION)
    if LAST:
        tl.store(state + p_s, b_s.to(state.dtype.element_ty))
    else:
        tl.store(carry + p_s, b_s)


@triton.jit
def _gdn_pairs(
    q, k, v, planes, o,
    gates,
    state,
    carry,
    coarse,
    NT, START, END, HK, HV,
    K: tl.constexpr, V: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    i_v, i_h, i_b = tl.program_id(0) * BV, tl.program_id(1), tl.program_id(2)
    i_k, r_b = key_head(i_h, HK, HV, TILED) * K, i_b.to(tl.int64)
    o_t = tl.arange(0, BT)
    r_v = (r_b * HV + i_h) * V + i_v + tl.arange(0, BV)
    p_s = r_v[:, None] * K + tl.arange(0, HALF)[None, :]
    # what a row of the state may be off, carried behind the states
    p_off = carry + tl.num_programs(2).to(tl.int64) * HV * V * K + r_v
    if EARLY:
        wait()
    # in halves of K: their parts in f16 need not be alive together
    if FIRST:
        b_s, b_t = tl.load(state + p_s).to(tl.float32), tl.load(state + p_s + HALF).to(tl.float32)  # [BV, HALF]
        b_off = tl.zeros((BV,), tl.float32)
    else:
        b_s, b_t, b_off = tl.load(carry + p_s), tl.load(carry + p_s + HALF), tl.load(p_off)
    for i_c in tl.range(START, END, num_stages=STAGES):
        b_v = tl.trans(v.load([i_b, i_c * BT, i_h * V + i_v]).reshape(BT, BV))
        # a row of S and its r <= |v| + |S| sqrt(K) share a power of two: u, at most BT times r, stays below 2^15
        b_most = tl.maximum(tl.max(tl.abs(b_s), 1), tl.max(tl.abs(b_t), 1))
        b_most = tl.maximum(4.0 * b_most, tl.max(tl.abs(b_v), 1).to(tl.float32))
        b_up, b_down = power(b_most, 6)
        b_k = k.load([i_b, i_c * BT, i_k]).reshape(BT, HALF)
        b_q = q.load([i_b, i_c * BT, i_k]).reshape(BT, HALF)
        s_high, s_low = pair(b_s * b_up[:, None])
        b_ks = tl.dot(s_low, tl.trans(b_k))
        b_ks = tl.dot(s_high, tl.trans(b_k), b_ks)
        b_qs = tl.dot(s_high, tl.trans(b_q))
        if o.dtype == tl.float16:
            # as many bits as the output
            b_qs = tl.dot(s_low, tl.trans(b_q), b_qs)
        b_l = k.load([i_b, i_c * BT, i_k + HALF]).reshape(BT, HALF)
        b_q = q.load([i_b, i_c * BT, i_k + HALF]).reshape(BT, HALF)
        s_high, s_low = pair(b_t * b_up[:, None])
        b_ks = tl.dot(s_low, tl.trans(b_l), b_ks)
        b_ks = tl.dot(s_high, tl.trans(b_l), b_ks)
        b_qs = tl.dot(s_high, tl.trans(b_q), b_qs)
        if o.dtype == tl.float16:
            b_qs = tl.dot(s_low, tl.trans(b_q), b_qs)
        i_n = (i_b * NT + i_c) * HV + i_h
        p_gates = gates + i_n.to(tl.int64) * GATES * BT
        b_c, b_beta = tl.load(p_gates + o_t), tl.load(p_gates + 4 * BT + o_t)
        b_e, b_d = tl.load(p_gates + BT + o_t), tl.load(p_gates + 2 * BT + o_t)
        b_last = tl.load(p_gates + 3 * BT)
        r_high, r_low = pair(b_v.to(tl.float32) * b_up[:, None] * b_beta[None, :] - b_ks * b_c[None, :])
        x_high = tl.trans(planes.load([i_n, 0, 0]).reshape(BT, BT))
        x_low = tl.trans(planes.load([i_n, BT, 0]).reshape(BT, BT))
        b_u = tl.dot(r_low, x_high)
        b_u = tl.dot(r_high, x_low, b_u)
        b_u = tl.dot(r_high, x_high, b_u) * (1.0 / 8192)
        b_p = tl.trans(planes.load([i_n, 2 * BT, 0]).reshape(BT, BT))
        u_high, u_low = pair(b_u)
        b_o = b_qs * b_e[None, :]
        if o.dtype == tl.float16:
            b_o = tl.dot(u_low, b_p, b_o)
        b_o = tl.dot(u_high, b_p, b_o) * b_down[:, None]
        o.store([i_b, i_c * BT, i_h * V + i_v], tl.trans(b_o).to(o.dtype).reshape(1, BT, BV))
        d_high, d_low = pair(b_u * b_d[None, :])
        # sums apart: tensor cores cut the low bits of what they add to
        b_fold = tl.dot(d_low, b_k)
        b_s = b_last * b_s + tl.dot(d_high, b_k, b_fold) * b_down[:, None]
        b_fold = tl.dot(d_low, b_l)
        b_t = b_last * b_t + tl.dot(d_high, b_l, b_fold) * b_down[:, None]
        b_off = b_last * b_off + tl.where(b_most > 0, b_down, 0.0)
    if LAST:
        good = tl.max(b_off, 0) <= 2.0 * tl.max(tl.maximum(tl.max(tl.abs(b_s), 1), tl.max(tl.abs(b_t), 1)), 0)
        tl.store(coarse + (r_b * HV + i_h) * tl.num_programs(0) + tl.program_id(0), tl.where(good, 0, 1))
        tl.store(state + p_s, b_s.to(state.dtype.element_ty), mask=good)
        tl.store(state + p_s + HALF, b_t.to(state.dtype.element_ty), mask=good)
    else:
        tl.store(carry + p_s, b_s)
        tl.store(carry + p_s + HALF, b_t)
        tl.store(p_off, b_off)


def described(x: torch.Tensor, BT: int, width: int) -> TensorDescriptor:
    """[BT, width] tiles of the rows of x [B, T, heads, channels]; what lies past the last is 0 and is not written."""
    (B, T, H, C), (step, row) = x.shape, x.stride()[:2]
    return TensorDescriptor(x, [B, T, H * C], [step, row, 1], [1, BT, width])


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
    sizes = {"B": B, "T": T, "Hk": Hk, "Hv": Hv, "K": K}
    overlap = has_pdl(v.device)
    # a stage of a chunk's tiles is 64 KiB, of f32 more
    stages = min(3, max(1, shared_memory(v.device) // (66 << 10))) if v.dtype != torch.float32 else 1
    chunks = Config(16, 16, 8, 8) if is_narrow(v.device) else Config(num_stages=stages, segment=32 * overlap)
    default = chunks if T >= CHUNKED_FROM else SLOW
    config = config or pick("gdn_prefill", default, v.device, **sizes, V=V)
    row = {name: rows("gdn_prefill", name, tensors[name]) for name in ("q", "k", "v", "a", "b")}
    o = torch.empty((B, T, Hv, V), dtype=v.dtype, device=v.device)
    BV, tiled = min(config.BLOCK_V, V), head_map == "tiled"
    heads = {"K": K, "V": V, "TILED": tiled, "EARLY": overlap, **({"launch_pdl": True} if overlap else {})}
    if T == 1:
        tokens = [part for name in row for part in row[name][:2]]
        _gdn_step[(V // BV, Hv, B)](
            *tokens, A, dt_bias, state, o, Hk, Hv, BV=BV, num_warps=config.num_warps, **heads
        )  # fmt: skip
        return o
    tokens = [*(part for name in row for part in row[name]), A, dt_bias, state, o]
    if T < CHUNKED_FROM:
        _gdn_recurrent[(V // BV, Hv, B)](
            *tokens, o, T, Hk, Hv, BV=BV, WIDTH=0, num_warps=config.num_warps, **heads
        )  # fmt: skip
        return o
    precision = multiply(config.precision, v.device)
    # without tensor cores a block of 64 squared is too much
    BT = max(16, min(config.BLOCK_T, triton.next_power_of_2(T))) if precision != "ieee" else 16
    pairs = config.precision == "auto" and precision == "bf16" and v.dtype != torch.float32 and K > 16
    form = "f16" if pairs else "f32"
    made, make = factors(row, A, dt_bias, None, sizes, BT, tiled, form, True, precision, config.factor_warps, overlap)
    NT, width = triton.cdiv(T, BT), K
    if precision == "ieee":
        make()
        carry = torch.empty((2, B, Hv, V, K), dtype=torch.float32, device=v.device)
        slices[(V // BV, Hv, B)](
            *row["q"], *row["k"], *row["v"], made.planes, made.gates, state, carry, o, T, NT, Hk, Hv,
            K=K, V=V, BT=BT, BK=min(K, 32), BV=BV, TILED=tiled, PRECISION=precision, num_warps=config.num_warps,
        )  # fmt: skip
        return o
    if pairs:
        (k, q), width = made.halves, K // 2
    tiles = [described(x, BT, size) for x, size in ((q, width), (k, width), (v, BV))]
    tiles += [
        TensorDescriptor(made.planes, [B * NT * Hv, made.count * BT, BT], [made.count * BT * BT, BT, 1], [1, BT, BT])
    ]
    coarse = torch.empty((B, Hv, V // BV), dtype=torch.int32, device=v.device)
    span = config.segment or NT
    carry = torch.empty((B * Hv * V, K + 1) if span < NT else 0, dtype=torch.float32, device=v.device)
    heads |= {"num_warps": config.num_warps}
    blocks = {"BT": BT, "BV": BV, "STAGES": config.num_stages}
    for first in range(0, NT, span):
        end = min(first + span, NT)
        make(first, end - first, ahead=first > 0)
        ends = {"FIRST": first == 0, "LAST": end == NT}
        moved = (*tiles, described(o, BT, BV), made.gates, state, carry)
        where = (NT, first, end, Hk, Hv)
        if pairs:
            _gdn_pairs[(V // BV, Hv, B)](*moved, coarse, *where, **blocks, **ends, **heads)
        else:
            _gdn_chunks[(V // BV, Hv, B)](*moved, *where, PRECISION=precision, **blocks, **ends, **heads)
    if pairs:
        rows_each = min(SLOW.BLOCK_V, BV)
        heads |= {"num_warps": SLOW.num_warps}
        _gdn_recurrent[(V // rows_each, Hv, B)](*tokens, coarse, T, Hk, Hv, BV=rows_each, WIDTH=BV, **heads)
    return o
