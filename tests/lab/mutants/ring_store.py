"""Seeded bugs of ring_store."""

from ..mutation import Mutant

KERNEL = "kernels/ring_store.py"

MUTANTS = (
    Mutant(
        name="ring_store-slots-not-path",
        op="ring_store",
        bug="the first rows are taken, whatever the path says",
        changes=((KERNEL, "row, slot = tl.load(path + i_d).to(tl.int64)", "row, slot = i_d.to(tl.int64)"),),
    ),
    Mutant(
        name="ring_store-not-wrapped",
        op="ring_store",
        bug="the ring does not wrap: rows go past its end",
        changes=((KERNEL, "+ i_d) % R", "% R + i_d)"),),
    ),
    Mutant(
        name="ring_store-one-too-many",
        op="ring_store",
        bug="the first rejected row joins too",
        changes=((KERNEL, "(i_d < tl.load(length))", "(i_d <= tl.load(length))"),),
    ),
    Mutant(
        name="ring_store-stride-for-width",
        op="ring_store",
        bug="rows are taken to lie side by side: gaps are written",
        changes=((KERNEL, "ring + slot * s_ring_r", "ring + slot * E"),),
    ),
    Mutant(
        name="ring_store-nan-to-zero",
        op="ring_store",
        bug="NaN becomes zero: only the nonfinite oracle sees it",
        changes=(
            (KERNEL, "b_x.to(ring.dtype.element_ty)", "tl.where(b_x == b_x, b_x, 0.0).to(ring.dtype.element_ty)"),
        ),
    ),
)
