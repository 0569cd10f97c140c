"""Seeded bugs of gdn_prefill."""

from ..mutation import Mutant

KERNEL = "kernels/gdn_prefill.py"

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
        changes=((KERNEL, "b_rq = tl.rsqrt(b_rq + 1e-6) * K**-0.5", "b_rq = tl.rsqrt(b_rq + 1e-6)"),),
    ),
    Mutant(
        name="gdn_prefill-chunk-undecayed",
        op="gdn_prefill",
        bug="chunked: what a chunk writes does not decay to its end",
        changes=((KERNEL, "b_u * (b_after * b_rk)[:, None]", "b_u * b_rk[:, None]"),),
    ),
    Mutant(
        name="gdn_prefill-tail-decays",
        op="gdn_prefill",
        bug="chunked: slots past the last token decay the state",
        changes=((KERNEL, "b_g = tl.where(m_i, b_g, 0.0)", "b_g = b_g * 1.0"),),
    ),
    Mutant(
        name="gdn_prefill-tail-written",
        op="gdn_prefill",
        bug="chunked: one row past the last token is written: redzone and bounds see it",
        changes=(
            (
                KERNEL,
                "b_o.to(o.dtype.element_ty), mask=m_i[:, None])",
                "b_o.to(o.dtype.element_ty), mask=(o_i < T + 1)[:, None])",
            ),
        ),
    ),
    Mutant(
        name="gdn_prefill-state-left",
        op="gdn_prefill",
        bug="chunked: a half state is not updated",
        changes=((KERNEL, "        state.copy_(work)\n", "        pass\n"),),
    ),
    Mutant(
        name="gdn_prefill-shared-restart",
        op="gdn_prefill",
        bug="the recurrence starts from nothing, in kernel and reference alike: only the path oracle sees it",
        changes=(
            (KERNEL, "b_s = tl.load(p_s).to(tl.float32)  # [BV, K]", "b_s = 0.0 * tl.load(p_s).to(tl.float32)"),
            (KERNEL, "b_s = tl.trans(tl.load(p_s + i_c))", "b_s = tl.trans(tl.load(p_s + i_c)) * min(start, 1)"),
            (KERNEL, "b_s = tl.load(p_s + i_c) * tl.exp", "b_s = tl.load(p_s + i_c) * min(start, 1) * tl.exp"),
            ("reference/gdn_prefill.py", "S = state.to(wide)", "S = 0 * state.to(wide)"),
        ),
    ),
)
