"""Seeded bugs of rms_norm."""

from ..mutation import Mutant

MUTANTS = (
    Mutant(
        name="rms_norm-no-eps",
        op="rms_norm",
        bug="eps is left out: an all-zero row becomes NaN",
        changes=(("kernels/rms_norm.py", "/ D + eps)", "/ D)"),),
    ),
    Mutant(
        name="rms_norm-tail",
        op="rms_norm",
        bug="the row's last element is never written",
        changes=(
            (
                "kernels/rms_norm.py",
                "b_y.to(out.dtype.element_ty), mask=m_d)",
                "b_y.to(out.dtype.element_ty), mask=o_d < D - 1)",
            ),
        ),
    ),
    Mutant(
        name="rms_norm-nan-to-zero",
        op="rms_norm",
        bug="a NaN in the row is swallowed: only the nonfinite oracle sees it",
        changes=(("kernels/rms_norm.py", "b_y = b_x *", "b_x = tl.where(b_x == b_x, b_x, 0.0)\n    b_y = b_x *"),),
    ),
    Mutant(
        name="rms_norm-padded-mean",
        op="rms_norm",
        bug="the mean divides by the block, not the row",
        changes=(("kernels/rms_norm.py", "tl.sum(b_x * b_x) / D", "tl.sum(b_x * b_x) / BD"),),
    ),
)
