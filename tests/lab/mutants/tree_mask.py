"""Seeded bugs of tree_mask."""

from ..mutation import Mutant

KERNEL = "kernels/tree_mask.py"

MUTANTS = (
    Mutant(
        name="tree_mask-no-self",
        op="tree_mask",
        bug="a node is not among its own ancestors",
        changes=(
            (
                KERNEL,
                "o_j[None, :] == b_node[:, None], 1,",
                "(o_j[None, :] == b_node[:, None]) & (o_j[None, :] < o_i[:, None]), 1,",
            ),
        ),
    ),
    Mutant(
        name="tree_mask-parents-only",
        op="tree_mask",
        bug="the walk ends at the parent",
        changes=((KERNEL, "while tl.max(b_node, 0) >= 0:", "for _ in range(2):"),),
    ),
    Mutant(
        name="tree_mask-padding-is-a-node",
        op="tree_mask",
        bug="a padding slot counts as a root",
        changes=((KERNEL, "tl.where(b_parent == -2, -1, o_i)", "tl.where(m_i, o_i, -1)"),),
    ),
    Mutant(
        name="tree_mask-batch-stride",
        op="tree_mask",
        bug="every tree of a batch is the first",
        changes=((KERNEL, "p_parents = parents + i_b * T", "p_parents = parents"),),
    ),
    Mutant(
        name="tree_mask-columns-unmasked",
        op="tree_mask",
        bug="a row is written to the end of its block, over the rows behind it: bounds, race or order must see it",
        changes=((KERNEL, "mask=m_i[:, None] & (o_j[None, :] < T))", "mask=m_i[:, None])"),),
    ),
    Mutant(
        name="tree_mask-shared-depth",
        op="tree_mask",
        bug="depth counts the node itself, in kernel and reference alike: only the path oracle sees it",
        changes=(
            (KERNEL, "b_depth = tl.full((BI,), -1, tl.int32)", "b_depth = tl.full((BI,), 0, tl.int32)"),
            (
                "reference/tree_mask.py",
                "dtype=torch.int32) - 1\n    return ancestors, depth",
                "dtype=torch.int32)\n    return ancestors, depth",
            ),
        ),
    ),
)
