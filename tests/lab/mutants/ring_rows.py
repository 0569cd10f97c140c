"""Seeded bugs of ring_rows."""

from ..mutation import Mutant

KERNEL = "kernels/ring_rows.py"

MUTANTS = (
    Mutant(
        name="ring_rows-not-wrapped",
        op="ring_rows",
        bug="a row past the ring's end is stored behind it, in the block's place",
        changes=((KERNEL, "b_new % N, -1)", "b_new, -1)"),),
    ),
    Mutant(
        name="ring_rows-uncommitted-stored",
        op="ring_rows",
        bug="rows that are not committed go into the ring",
        changes=((KERNEL, "tl.where(b_new < b_start, b_new % N, -1)", "b_new % N"),),
    ),
    Mutant(
        name="ring_rows-root-stored-twice",
        op="ring_rows",
        bug="the root counts as committed",
        changes=((KERNEL, "tl.where(b_new < b_start,", "tl.where(b_new <= b_start,"),),
    ),
    Mutant(
        name="ring_rows-block-always-after-the-ring",
        op="ring_rows",
        bug="the block stands behind the whole ring though it is not full",
        changes=((KERNEL, "tl.where(m_own, b_begin + o_i - B", "tl.where(m_own, N + o_i - B"),),
    ),
    Mutant(
        name="ring_rows-last-unwritten",
        op="ring_rows",
        bug="the last slot is never written: only poison sees it where memory holds what it should",
        changes=(
            (
                KERNEL,
                "tl.store(slots + o_i, b_slot, mask=o_i < 2 * B)",
                "tl.store(slots + o_i, b_slot, mask=o_i < 2 * B - 1)",
            ),
        ),
    ),
)
