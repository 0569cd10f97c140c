"""Seeded bugs of ddtree."""

from ..mutation import Mutant

KERNEL, REFERENCE = "kernels/ddtree.py", "reference/ddtree.py"

MUTANTS = (
    Mutant(
        name="ddtree-hangs-below-its-sibling",
        op="ddtree",
        bug="a node's parent is the node before it, right for a chain alone",
        changes=((KERNEL, "tl.where(live, i_p, -2)", "tl.where(live, i_n - 1, -2)"),),
    ),
    Mutant(
        name="ddtree-ties-to-the-older-node",
        op="ddtree",
        bug="equal weights go by slot, as in a heap without the tuple of ranks",
        changes=((KERNEL, "b_ranks += b_rank * (unit >> (4 * b_depth).to(tl.int64))", "b_ranks = o_n.to(tl.int64)"),),
    ),
    Mutant(
        name="ddtree-rank-zero-has-no-nibble",
        op="ddtree",
        bug="ranks are packed without the + 1: a prefix and its first child have one key",
        changes=((KERNEL, "b_rank = ((b_fields >> 14) & 15) + 1", "b_rank = (b_fields >> 14) & 15"),),
    ),
    Mutant(
        name="ddtree-spine-keeps-its-sibling",
        op="ddtree",
        bug="after the seed chain the best-first part offers rank 0 of the spine again",
        changes=((KERNEL, "(b_depth << 10) | (1 << 14) | (1 << 18)", "(b_depth << 10) | (1 << 18)"),),
    ),
    Mutant(
        name="ddtree-nan-is-heaviest",
        op="ddtree",
        bug="a NaN log-prob outweighs everything: only the nonfinite oracle sees it",
        changes=(("kernels/lib/order.py", 'tl.where(b_x == b_x, b_x, float("-inf"))', "b_x"),),
    ),
    Mutant(
        name="ddtree-tail-unwritten",
        op="ddtree",
        bug="where the candidates run out the parent is left as it was in memory",
        changes=((KERNEL, "tl.where(live, i_p, -2))", "i_p, mask=live)"),),
    ),
    Mutant(
        name="ddtree-weighs-the-last-token-alone",
        op="ddtree",
        bug="reference and kernel both forget the path above a node: only the optimal oracle sees it",
        changes=(
            (REFERENCE, "torch.tensor(above) + logprobs[", "logprobs["),
            (KERNEL, "order(b_above + b_lp)", "order(b_lp)"),
            (KERNEL, "order(above + lp_sibling)", "order(lp_sibling)"),
            (KERNEL, "order(weight + lp_child)", "order(lp_child)"),
        ),
    ),
    Mutant(
        name="ddtree-tail-token-unwritten",
        op="ddtree",
        bug="where the candidates run out the token is left to the memory: where that held zeros, only poison tells",
        changes=(
            (KERNEL, "tl.load(p_id + i_d * K + i_r, mask=live, other=0))", "tl.load(p_id + i_d * K + i_r), mask=live)"),
        ),
    ),
)
