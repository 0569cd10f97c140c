"""Seeded bugs of gdn_prefill."""

from ..mutation import Mutant

KERNEL, FACTORS = "kernels/gdn_prefill.py", "kernels/lib/factors.py"

MUTANTS = (
    Mutant(
        name="gdn_prefill-beta-linear",
        op="gdn_prefill",
        bug="recurrent: beta is not put through the sigmoid",
        changes=((KERNEL, "b_u = tl.sigmoid(tl.load(p_b).to(tl.float32))", "b_u = tl.load(p_b).to(tl.float32)"),),
    ),
    Mutant(
        name="gdn_prefill-output-of-old-state",
        op="gdn_prefill",
        bug="recurrent: the output is read before the write",
        changes=(
            (
                KERNEL,
                "tl.store(p_o, tl.sum(b_s * b_q[None, :], 1)",
                "tl.store(p_o, tl.sum((b_s - b_u[:, None] * b_k[None, :]) * b_q[None, :], 1)",
            ),
        ),
    ),
    Mutant(
        name="gdn_prefill-no-scale",
        op="gdn_prefill",
        bug="chunked: q is not scaled by 1/sqrt(K)",
        changes=((FACTORS, "tl.rsqrt(squares(b_q, 1) + 1e-6) * K**-0.5", "tl.rsqrt(squares(b_q, 1) + 1e-6)"),),
    ),
    Mutant(
        name="gdn_prefill-chunk-undecayed",
        op="gdn_prefill",
        bug="chunked: what a chunk writes does not decay to its end",
        changes=((FACTORS, "b_d = tl.exp((b_all - b_far) + (b_rest - b_near)) * b_rk", "b_d = b_rk"),),
    ),
    Mutant(
        name="gdn_prefill-tail-decays",
        op="gdn_prefill",
        bug="chunked: slots past the last token decay the state",
        changes=((FACTORS, "tl.max(tl.where(m_t, b_g, 0.0), 1)", "tl.max(b_g, 1)"),),
    ),
    Mutant(
        name="gdn_prefill-tail-written",
        op="gdn_prefill",
        bug="chunked: o is said to have one row more than it has: redzone and bounds see it",
        changes=(
            (KERNEL, "(*tiles, described(o, BT, BV)", "(*tiles, described(o, BT, BV, 1)"),
            (KERNEL, "width: int)", "width: int, more: int = 0)"),
            (KERNEL, "[B, T, H * C]", "[B, T + more, H * C]"),
        ),
    ),
    Mutant(
        name="gdn_prefill-state-left",
        op="gdn_prefill",
        bug="chunked: the state is not written back",
        changes=(
            (
                KERNEL,
                "tl.store(state + p_s, b_s.to(state.dtype.element_ty), mask=good)",
                "tl.store(state + p_s, b_s.to(state.dtype.element_ty), mask=o_k[None, :] < 0)",
            ),
        ),
    ),
    Mutant(
        name="gdn_prefill-old-state-kept-whole",
        op="gdn_prefill",
        bug="chunked: the state does not decay from chunk to chunk",
        changes=(
            (KERNEL, "b_s = b_last * b_s + product", "b_s = b_s + product"),
            (KERNEL, "b_s = b_last * b_s + tl.dot", "b_s = b_s + tl.dot"),
        ),
    ),
    Mutant(
        name="gdn_prefill-first-factors",
        op="gdn_prefill",
        bug="chunked: every chunk is given the factors of the first",
        changes=(
            (
                KERNEL,
                "i_n = (i_b * NT + i_c) * HV + i_h\n        b_x",
                "i_n = i_b * NT * HV + i_h\n        b_x",
            ),
        ),
    ),
    Mutant(
        name="gdn_prefill-decay-of-the-query",
        op="gdn_prefill",
        bug="chunked: what a chunk writes decays as what it reads does",
        changes=((KERNEL, "product(b_u * b_d[None, :]", "product(b_u * b_c[None, :]"),),
    ),
    Mutant(
        name="gdn_prefill-too-coarse-kept",
        op="gdn_prefill",
        bug="chunked, halves: a state below what f16 pairs resolve is kept as it is",
        changes=((KERNEL, "good = tl.max(b_off, 0) <= 2.0", "good = tl.max(b_off, 0) * 0.0 <= 2.0"),),
    ),
    Mutant(
        name="gdn_prefill-second-half-unread",
        op="gdn_prefill",
        bug="chunked, halves: of the state q reads the first half of K alone",
        changes=(
            (KERNEL, "b_qs = tl.dot(s_high, tl.trans(b_q), b_qs)", "b_qs = tl.dot(s_high * 0, tl.trans(b_q), b_qs)"),
        ),
    ),
    Mutant(
        name="gdn_prefill-half-inverse",
        op="gdn_prefill",
        bug="chunked, halves: the inverse is rounded to f16, 11 bits instead of 22",
        changes=((FACTORS, "tl.store(p_planes + BT * BT, x_low)", "tl.store(p_planes + BT * BT, x_low * 0)"),),
    ),
    Mutant(
        name="gdn_prefill-half-state",
        op="gdn_prefill",
        bug="chunked, halves: keys read the state rounded to f16",
        changes=((KERNEL, "b_ks = tl.dot(s_low, tl.trans(b_k))", "b_ks = tl.dot(s_low * 0, tl.trans(b_k))"),),
    ),
    Mutant(
        name="gdn_prefill-beta-before-scale",
        op="gdn_prefill",
        bug="chunked, halves: beta weighs the value but not what the state already says",
        changes=((FACTORS, "b_c * b_beta * k_down", "b_c * k_down"),),
    ),
    Mutant(
        name="gdn_prefill-query-scale-of-key",
        op="gdn_prefill",
        bug="chunked, halves: the power of two that q went up by is taken back by that of k",
        changes=((FACTORS, "b_e * q_down", "b_e * k_down"),),
    ),
    Mutant(
        name="gdn_prefill-step-without-own",
        op="gdn_prefill",
        bug="one token: its own write is left out of its output",
        changes=((KERNEL, "b_o = (b_e * b_qs + b_u * tl.sum(b_k * b_q, 0)) * b_rq", "b_o = b_e * b_qs * b_rq"),),
    ),
    Mutant(
        name="gdn_prefill-step-undecayed",
        op="gdn_prefill",
        bug="one token: the old state is read before it decays",
        changes=((KERNEL, "b_v - (b_e * b_rk) * b_ks", "b_v - b_rk * b_ks"),),
    ),
    Mutant(
        name="gdn_prefill-shared-restart",
        op="gdn_prefill",
        bug="the recurrence starts from nothing, in kernel and reference alike: only the path oracle sees it",
        changes=(
            (
                KERNEL,
                "b_s = tl.load(p_s, mask=count > 0, other=0.0).to(tl.float32)",
                "b_s = 0.0 * tl.load(p_s, mask=count > 0, other=0.0).to(tl.float32)",
            ),
            (
                KERNEL,
                "b_s = tl.load(p_s).to(tl.float32)  # [BV, K]\n    b_k =",
                "b_s = 0.0 * tl.load(p_s).to(tl.float32)\n    b_k =",
            ),
            (KERNEL, "b_s = tl.load(state + p_s).to(tl.float32)", "b_s = 0.0 * tl.load(state + p_s).to(tl.float32)"),
            ("reference/gdn_prefill.py", "S = state.to(wide)", "S = 0 * state.to(wide)"),
        ),
    ),
    Mutant(
        name="gdn_prefill-decay-past-the-end",
        op="gdn_prefill",
        bug="rows past the last token of a chunk decay its state",
        changes=((FACTORS, "tl.max(tl.where(m_t, b_g, 0.0), 1), tl.max", "tl.max(b_g, 1), tl.max"),),
    ),
)
