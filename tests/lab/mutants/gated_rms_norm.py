"""Seeded bugs of gated_rms_norm."""

from ..mutation import Mutant

KERNEL = "kernels/gated_rms_norm.py"

MUTANTS = (
    Mutant(
        name="gated_rms_norm-gate-before-norm",
        op="gated_rms_norm",
        bug="the gated product is normalised, as in Mamba-2, instead of gating the norm",
        changes=((KERNEL, "tl.sum(b_x * b_x, 1)", "tl.sum(b_x * b_x * b_gate * b_gate, 1)"),),
    ),
    Mutant(
        name="gated_rms_norm-attention-gate",
        op="gated_rms_norm",
        bug="sigmoid, the gate of the attention layers, in place of silu",
        changes=((KERNEL, "(b_gate / (1 + tl.exp(-b_gate)))", "(1 / (1 + tl.exp(-b_gate)))"),),
    ),
    Mutant(
        name="gated_rms_norm-no-eps",
        op="gated_rms_norm",
        bug="eps is left out: an all-zero head becomes NaN",
        changes=((KERNEL, "/ D + eps)", "/ D)"),),
    ),
    Mutant(
        name="gated_rms_norm-one-stride-for-both",
        op="gated_rms_norm",
        bug="gate is read with the head stride of x",
        changes=((KERNEL, "o_h * s_gate_h", "o_h * s_x_h"),),
    ),
    Mutant(
        name="gated_rms_norm-head-too-many",
        op="gated_rms_norm",
        bug="the heads of the last program are not masked: bounds, redzone or numeric see what lies past the tensors",
        changes=((KERNEL, "(o_r < N)[:, None] & (o_d < D)[None, :]", "(o_r < N + 1)[:, None] & (o_d < D)[None, :]"),),
    ),
    Mutant(
        name="gated_rms_norm-mean-over-the-block",
        op="gated_rms_norm",
        bug="the mean divides by the padded head",
        changes=((KERNEL, "tl.sum(b_x * b_x, 1) / D", "tl.sum(b_x * b_x, 1) / BD"),),
    ),
)
