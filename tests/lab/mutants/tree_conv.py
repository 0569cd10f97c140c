"""Seeded bugs of tree_conv."""

from ..mutation import Mutant

KERNEL = "kernels/tree_conv.py"

MUTANTS = (
    Mutant(
        name="tree_conv-slot-before",
        op="tree_conv",
        bug="the row above a node is the slot before it, as in a chain",
        changes=((KERNEL, "b_slot = tl.where(b_slot >= 0, b_up, b_slot - 1)", "b_slot = b_slot - 1"),),
    ),
    Mutant(
        name="tree_conv-taps-reversed",
        op="tree_conv",
        bug="tap 0 is the node's own",
        changes=((KERNEL, "o_w[None, :] == W - 1 - back", "o_w[None, :] == back"),),
    ),
    Mutant(
        name="tree_conv-history-off-by-one",
        op="tree_conv",
        bug="the newest row of the state is taken to be the one before",
        changes=((KERNEL, "(W - 1 + b_slot)[:, None]) * C", "(W - 2 + b_slot)[:, None]) * C"),),
    ),
    Mutant(
        name="tree_conv-history-stuck",
        op="tree_conv",
        bug="above the newest row of the state comes the newest again",
        changes=((KERNEL, "b_up, b_slot - 1)", "b_up, -1)"),),
    ),
    Mutant(
        name="tree_conv-no-silu",
        op="tree_conv",
        bug="silu is left out",
        changes=((KERNEL, "b_sum * tl.sigmoid(b_sum), 0.0)", "b_sum, 0.0)"),),
    ),
    Mutant(
        name="tree_conv-weights-past-the-end",
        op="tree_conv",
        bug="taps are loaded up to a power of two, past the last channel's: only bounds sees it",
        changes=((KERNEL, "(o_w < W)[None, :]", "(o_w < BW)[None, :]"),),
    ),
    Mutant(
        name="tree_conv-padding-unwritten",
        op="tree_conv",
        bug="padding rows are never written: only the poison oracle sees it where memory happens to be zero",
        changes=(
            (KERNEL, "mask=m_t[:, None] & m_c[None, :])\n\n", "mask=(m_t & b_real)[:, None] & m_c[None, :])\n\n"),
        ),
    ),
    Mutant(
        name="tree_conv-rows-unmasked",
        op="tree_conv",
        bug="rows past the last slot are written: only redzone and bounds see it",
        changes=((KERNEL, "mask=m_t[:, None] & m_c[None, :])\n\n", "mask=(o_t < T + 1)[:, None] & m_c[None, :])\n\n"),),
    ),
    Mutant(
        name="tree_conv-shared-cousin",
        op="tree_conv",
        bug="the second row up is the slot before the parent, in the reference too: only the path oracle sees it",
        changes=(
            (KERNEL, "for _ in tl.static_range(1, W):", "for back in tl.static_range(1, W):"),
            (
                KERNEL,
                "mask=b_real & (b_slot >= 0), other=0)\n",
                "mask=b_real & (b_slot >= 0), other=0) if back == 1 else b_slot - 1\n",
            ),
            (
                "reference/tree_conv.py",
                "torch.where(slot >= 0, parents[batch, slot.clamp_min(0)], slot - 1)",
                "torch.where((slot >= 0) & (tap == W - 1), parents[batch, slot.clamp_min(0)], slot - 1)",
            ),
        ),
    ),
)
