"""Seeded bugs of tree_gdn."""

from ..mutation import Mutant

KERNEL, WY, GATES = "kernels/tree_gdn.py", "kernels/lib/wy.py", "kernels/lib/gates.py"

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
        bug="wy: every earlier slot counts as an ancestor in the triangular system",
        changes=((KERNEL, "m_above = (m_ii != 0) & (o_t[:, None]", "m_above = (o_t[:, None]"),),
    ),
    Mutant(
        name="tree_gdn-own-row-missing",
        op="tree_gdn",
        bug="wy: a node's own u does not reach its output",
        changes=((KERNEL, "b_p = tl.where(m_ii != 0,", "b_p = tl.where(m_above,"),),
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
        bug="wy: the last doubling of the inverse is left out",
        changes=((WY, "range(1, LEVELS)", "range(1, LEVELS - 1)"),),
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
        changes=((KERNEL, "b_rk = tl.rsqrt(b_rk + 1e-6)", "b_rk = tl.rsqrt(b_rk)"),),
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
)
