"""Seeded bugs of ddtree_walk."""

from ..mutation import Mutant

KERNEL, REFERENCE = "kernels/ddtree_walk.py", "reference/ddtree_walk.py"

MUTANTS = (
    Mutant(
        name="ddtree_walk-stale-posterior",
        op="ddtree_walk",
        bug="the posterior is read at the depth instead of the node: right for a chain alone",
        changes=((KERNEL, "posterior + i_b * T + node)", "posterior + i_b * T + tl.minimum(i_d, T - 1))"),),
    ),
    Mutant(
        name="ddtree_walk-padding-is-a-child",
        op="ddtree_walk",
        bug="lanes past the tree are children of the root with token 0",
        changes=((KERNEL, "mask=m_t, other=-2)", "mask=m_t, other=0)"),),
    ),
    Mutant(
        name="ddtree_walk-last-of-several",
        op="ddtree_walk",
        bug="of two children with the wanted token the later one is taken",
        changes=(
            (KERNEL, "found = tl.min(", "found = tl.max("),
            (KERNEL, "o_t, BT))\n", "o_t, -1))\n        found = tl.where(found < 0, BT, found)\n"),
        ),
    ),
    Mutant(
        name="ddtree_walk-root-not-counted",
        op="ddtree_walk",
        bug="the length leaves the root out",
        changes=((KERNEL, "nodes = 1", "nodes = 0"),),
    ),
    Mutant(
        name="ddtree_walk-one-step-too-far",
        op="ddtree_walk",
        bug="a step past depth_max writes into the next row's path, which that row's program may have begun",
        changes=((KERNEL, "range(1, D)", "range(1, D + 1)"),),
    ),
    Mutant(
        name="ddtree_walk-child-predicts-itself",
        op="ddtree_walk",
        bug="reference and kernel both match a child's token with its own posterior: only the descent oracle sees it",
        changes=(
            (REFERENCE, "token[child] == wanted[node])", "token[child] == wanted[child])"),
            (KERNEL, "(b_token == wanted)", "(b_token == tl.load(posterior + i_b * T + o_t, mask=m_t, other=0))"),
        ),
    ),
    Mutant(
        name="ddtree_walk-padding-turned-into-roots",
        op="ddtree_walk",
        bug="padding becomes -1 in the caller's parents, which ends no walk here: only the unchanged oracle sees it",
        changes=((KERNEL, "    path = torch.empty(", "    parents.clamp_(min=-1)\n    path = torch.empty("),),
    ),
)
