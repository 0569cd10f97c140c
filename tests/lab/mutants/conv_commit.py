"""Seeded bugs of conv_commit."""

from ..mutation import Mutant

KERNEL = "kernels/conv_commit.py"

MUTANTS = (
    Mutant(
        name="conv_commit-slots-not-path",
        op="conv_commit",
        bug="rows of u are taken by depth, not by the path",
        changes=(
            (
                KERNEL,
                "node = tl.load(path + i_b * D + source - (W - 1), mask=(source >= W - 1) & (o_w < W - 1), other=0)",
                "node = tl.maximum(source - (W - 1), 0)",
            ),
        ),
    ),
    Mutant(
        name="conv_commit-one-short",
        op="conv_commit",
        bug="the last accepted node is left out",
        changes=((KERNEL, "tl.load(length + i_b) + o_w", "tl.maximum(tl.load(length + i_b) - 1, 0) + o_w"),),
    ),
    Mutant(
        name="conv_commit-no-history",
        op="conv_commit",
        bug="with fewer accepted than W-1 the old rows stay where they were",
        changes=((KERNEL, "p_state + source[:, None] * C", "p_state + o_w[:, None] * C"),),
    ),
    Mutant(
        name="conv_commit-newest-first",
        op="conv_commit",
        bug="rows are stored newest first",
        changes=((KERNEL, "tl.store(p_state + o_w[:, None] * C", "tl.store(p_state + (W - 2 - o_w)[:, None] * C"),),
    ),
    Mutant(
        name="conv_commit-one-length",
        op="conv_commit",
        bug="every sequence takes the first one's length",
        changes=((KERNEL, "tl.load(length + i_b)", "tl.load(length)"),),
    ),
    Mutant(
        name="conv_commit-channels-unmasked",
        op="conv_commit",
        bug="channels past the last are written: bounds, race or order must see it",
        changes=((KERNEL, "b_row, mask=m)", "b_row, mask=(o_w < W - 1)[:, None])"),),
    ),
)
