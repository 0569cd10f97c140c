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
    Mutant(
        name="rms_norm-output-kept",
        op="rms_norm",
        bug="the output is made once a shape, so a second call writes over the first one's result: only repeat sees it",
        changes=(
            ("kernels/rms_norm.py", "\n\ndef rms_norm(", "\n\n_made: dict = {}\n\n\ndef rms_norm("),
            ("kernels/rms_norm.py", "out = torch.empty(", "out = _made.setdefault((M, D, x.dtype), torch.empty("),
            ("kernels/rms_norm.py", "device=x.device)\n    BD =", "device=x.device))\n    BD ="),
        ),
    ),
    Mutant(
        name="rms_norm-rounded-before",
        op="rms_norm",
        bug="x is rounded to the output's dtype before it is normed, not after: rows beyond f16 become infinite",
        changes=(
            ("kernels/rms_norm.py", "other=0.0).to(tl.float32)", "other=0.0).to(out.dtype.element_ty).to(tl.float32)"),
        ),
    ),
)
