"""Seeded bugs of tree_gdn."""

from ..mutation import Mutant

KERNEL, WY, GATES = "kernels/tree_gdn.py", "kernels/lib/wy.py", "kernels/lib/gates.py"
FACTORS = "kernels/lib/factors.py"

MUTANTS = (
    Mutant(
        name="tree_gdn-state-not-reloaded",
        op="tree_gdn",
        bug="store: a branch continues the slot before it instead of its parent",
        changes=((KERNEL, "if parent != t - 1:", "if parent < 0:"),),
    ),
    Mutant(
        name="tree_gdn-reload-off-by-one",
        op="tree_gdn",
        bug="store: a node reloads the state of the slot before its parent",
        changes=((KERNEL, "parent.to(tl.int64) * HV", "tl.maximum(parent - 1, 0).to(tl.int64) * HV"),),
    ),
    Mutant(
        name="tree_gdn-registers-rounded",
        op="tree_gdn",
        bug="store_f16: every node continues the rounded state, not only those that reload it",
        changes=(
            (
                KERNEL,
                "        if parent != t - 1:",
                "        b_s = b_s.to(saved.dtype.element_ty).to(tl.float32)\n        if parent != t - 1:",
            ),
        ),
    ),
    Mutant(
        name="tree_gdn-causal-not-tree",
        op="tree_gdn",
        bug="wy, several blocks: every earlier slot counts as an ancestor in the triangular system",
        changes=((KERNEL, "m_above = (m_ii != 0) & (o_t[:, None]", "m_above = (o_t[:, None]"),),
    ),
    Mutant(
        name="tree_gdn-own-row-missing",
        op="tree_gdn",
        bug="wy: a node's own u does not reach its output",
        changes=((FACTORS, "b_p = tl.where(m_self,", "b_p = tl.where(m_above,"),),
    ),
    Mutant(
        name="tree_gdn-decay-between-blocks",
        op="tree_gdn",
        bug="wy: the decay inside a block is left out of what earlier blocks contribute",
        changes=((KERNEL, "b_gj, BT, PRECISION) + b_log[:, None])", "b_gj, BT, PRECISION))"),),
    ),
    Mutant(
        name="tree_gdn-inverse-one-level-short",
        op="tree_gdn",
        bug="wy: the last doubling of the inverse of 16 x 16 is left out",
        changes=((WY, "tl.static_range(1, 4)", "tl.static_range(1, 3)"),),
    ),
    Mutant(
        name="tree_gdn-head-maps-swapped",
        op="tree_gdn",
        bug="tiled and grouped are mixed up",
        changes=((GATES, "i_h % HK if TILED else i_h // (HV // HK)", "i_h // (HV // HK) if TILED else i_h % HK"),),
    ),
    Mutant(
        name="tree_gdn-norm-without-eps",
        op="tree_gdn",
        bug="wy: eps is left out of k's norm: a zero key becomes NaN",
        changes=((FACTORS, "tl.rsqrt(squares(b_k, 1) + 1e-6)", "tl.rsqrt(squares(b_k, 1))"),),
    ),
    Mutant(
        name="tree_gdn-dt-bias-left-out",
        op="tree_gdn",
        bug="dt_bias is not added before the softplus",
        changes=((GATES, "b_x = b_a + b_bias", "b_x = b_a + 0.0 * b_bias"),),
    ),
    Mutant(
        name="tree_gdn-padding-unwritten",
        op="tree_gdn",
        bug="store: padding's state is never written: only the poison oracle sees it where memory happens to be zero",
        changes=(
            (
                KERNEL,
                "tl.store(p_new, tl.where(parent != -2, b_s, 0.0).to(saved.dtype.element_ty))",
                "tl.store(p_new, b_s.to(saved.dtype.element_ty), mask=o_s < tl.where(parent != -2, V * K, 0))",
            ),
        ),
    ),
    Mutant(
        name="tree_gdn-shared-scale",
        op="tree_gdn",
        bug="q is scaled by 1/K, in kernel and reference alike (and not in gdn_prefill): only the path oracle sees it",
        changes=(
            (KERNEL, "b_rq = tl.rsqrt(b_rq + 1e-6) * K**-0.5", "b_rq = tl.rsqrt(b_rq + 1e-6) / K"),
            (
                KERNEL,
                "b_qs * b_e[None, :] + through_p(b_u, parts",
                "b_qs * (b_e * K**-0.5)[None, :] + through_p(b_u * K**-0.5, parts",
            ),
            (KERNEL, "(tl.rsqrt(squares(b_q32, 0) + 1e-6) * K**-0.5)", "(tl.rsqrt(squares(b_q32, 0) + 1e-6) / K)"),
            (
                "reference/tree_gdn.py",
                "delta_rule.query(q, heads, wide), delta_rule",
                "delta_rule.query(q, heads, wide) * K**-0.5, delta_rule",
            ),
        ),
    ),
    Mutant(
        name="tree_gdn-shared-halved-branch",
        op="tree_gdn",
        bug="store: a branch continues half its parent's state, in the reference too: path or branches must see it",
        changes=(
            (KERNEL, "* HV * V * K).to(tl.float32)", "* HV * V * K).to(tl.float32) * 0.5"),
            (
                "reference/tree_gdn.py",
                "where(parent != node - 1, S.float().half().to(wide), S)",
                "where(parent != node - 1, S / 2, S)",
            ),
            (
                "reference/tree_gdn.py",
                'if strategy == "store_f16":\n            S',
                'if strategy[:5] == "store":\n            S',
            ),
        ),
    ),
    Mutant(
        name="tree_gdn-shared-unrounded-branch",
        op="tree_gdn",
        bug="store_f16: a branch continues a state that is not rounded yet, in the reference too: only branches "
        "sees it",
        changes=(
            (KERNEL, "saved = torch.empty((B, T, Hv, V, K), dtype=dtype", "saved = torch.empty((B, T, Hv, V, K)"),
            (KERNEL, "        return o, saved\n", "        return o, saved.to(dtype)\n"),
            ("reference/tree_gdn.py", "where(parent != node - 1, S.float().half().to(wide), S)", "S"),
        ),
    ),
    Mutant(
        name="tree_gdn-chain-not-tree",
        op="tree_gdn",
        bug="wy: every earlier slot counts as an ancestor in the factors of a block",
        changes=(
            (
                FACTORS,
                "marks(p_mask + r_t[None, :], m_t[:, None] & m_t[None, :], begun, PTX)",
                "(o_t[:, None] >= o_t[None, :]) & m_t[:, None]",
            ),
        ),
    ),
    Mutant(
        name="tree_gdn-fine-part-dropped",
        op="tree_gdn",
        bug="wy: what a log decay has below 2^-10 is left out of the decay between two nodes",
        changes=((FACTORS, " + (b_near[:, None] - b_near[None, :])", ""),),
    ),
    Mutant(
        name="tree_gdn-inverse-blocks-not-negated",
        op="tree_gdn",
        bug="wy: the block below the diagonal of the inverse has the wrong sign, from 17 nodes on",
        changes=((WY, "-b_10[:, None, :, None, :]", "b_10[:, None, :, None, :]"),),
    ),
    Mutant(
        name="tree_gdn-inverse-undecayed",
        op="tree_gdn",
        bug="wy: the inverse of the system without decays is used as it is",
        changes=(
            (FACTORS, "unit_lower_inverse(b_a, BT, PRECISION) * b_decay", "unit_lower_inverse(b_a, BT, PRECISION)"),
        ),
    ),
    Mutant(
        name="tree_gdn-beta-on-rows",
        op="tree_gdn",
        bug="wy: beta of the row instead of the column goes to the inverse",
        changes=((FACTORS, "thirds(b_x * b_beta[None, :])", "thirds(b_x * b_beta[:, None])"),),
    ),
    Mutant(
        name="tree_gdn-last-third-dropped",
        op="tree_gdn",
        bug="wy: the rest of an f32 beyond two bf16 is dropped: 2^-17 instead of 2^-24",
        changes=((WY, "_upper(b_mid), _upper(b_low)", "_upper(b_mid), _upper(b_low * 0)"),),
    ),
    Mutant(
        name="tree_gdn-key-in-query",
        op="tree_gdn",
        bug="wy: what k reads of the old state is taken from what q reads",
        changes=((KERNEL, "PRECISION, EXACT)\n    b_v", "PRECISION, EXACT) + b_ks - b_ks * 2\n    b_v"),),
    ),
    Mutant(
        name="tree_gdn-planes-of-the-first-head",
        op="tree_gdn",
        bug="wy: every head is given the factors of head 0 of its sequence",
        changes=((KERNEL, "planes + i_n * PLANES * BT * BT", "planes + i_b * HV * PLANES * BT * BT"),),
    ),
    Mutant(
        name="tree_gdn-padding-keeps-its-row",
        op="tree_gdn",
        bug="wy: a padding slot's row of the old state's part is not cleared from its output",
        changes=(
            (KERNEL, "tl.store(o + p_out, tl.where(m_real[None, :], b_o, 0.0)", "tl.store(o + p_out, (b_o * 1.0)"),
        ),
    ),
    Mutant(
        name="tree_gdn-transpose-left-behind",
        op="tree_gdn",
        bug="wy: of one block the inverse grows by a level and its transpose does not",
        changes=((WY, "            if level < 3:\n", "            if level < 1:\n"),),
    ),
    Mutant(
        name="tree_gdn-output-parts-of-x",
        op="tree_gdn",
        bug="wy: the second third of P is taken from where the rest of X lies",
        changes=((FACTORS, "tl.trans(tl.load(p_p + 4 * BT * BT))", "tl.trans(tl.load(p_p + 2 * BT * BT))"),),
    ),
    Mutant(
        name="tree_gdn-low-products-dropped",
        op="tree_gdn",
        bug="wy: the product of a remainder and the rest of X is left out: 2^-16 of the terms",
        changes=((FACTORS, "        b_u = tl.dot(r_mid, x_mid, b_u)\n", ""),),
    ),
)
