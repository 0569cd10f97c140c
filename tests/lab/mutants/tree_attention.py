"""Seeded bugs of tree_attention."""

from ..mutation import Mutant

KERNEL, SOFTMAX, ROWS = "kernels/tree_attention.py", "kernels/lib/softmax.py", "kernels/lib/cache_rows.py"

MUTANTS = (
    Mutant(
        name="tree_attention-older-for-ancestor",
        op="tree_attention",
        bug="a node sees all nodes before it, in the reference too: only path sees it",
        changes=(
            (
                "reference/tree_attention.py",
                "    own = ancestors.bool()\n",
                "    own = ancestors.bool().any(1, keepdim=True) & torch.ones(T, T, device=q.device).tril().bool()\n",
            ),
            (KERNEL, "other=0) != 0  # [BM, BS]", "other=0) < 2\n        m = m & m_j & (o_j[None, :] <= i_t[:, None])"),
        ),
    ),
    Mutant(
        name="tree_attention-tiled-heads",
        op="tree_attention",
        bug="query heads are dealt to the KV heads in turn",
        changes=((KERNEL, "(i_kv * G + o_m % G)", "(o_m % G * tl.num_programs(2) + i_kv)"),),
    ),
    Mutant(
        name="tree_attention-window-short",
        op="tree_attention",
        bug="the window is a row short",
        changes=((KERNEL, "first - window, 0)", "first - window + 1, 0)"),),
    ),
    Mutant(
        name="tree_attention-row-twice",
        op="tree_attention",
        bug="each split reads the first row of the next",
        changes=((KERNEL, "m_s = i_s + o_s < end", "m_s = i_s + o_s <= end"),),
    ),
    Mutant(
        name="tree_attention-sums-kept",
        op="tree_attention",
        bug="the sums are not scaled when a tile raises the maximum",
        changes=((SOFTMAX, "b_acc * b_old[:, None]", "b_acc * 1.0"),),
    ),
    Mutant(
        name="tree_attention-splits-unweighed",
        op="tree_attention",
        bug="the splits are joined as if they had one maximum",
        changes=((KERNEL, "b_w = tl.exp2(b_m - higher)", "b_w = tl.exp2(b_m - b_m)"),),
    ),
    Mutant(
        name="tree_attention-padding-attends",
        op="tree_attention",
        bug="padding gets what the committed rows say",
        changes=((KERNEL, "(total == 0.0) | (own == 0)", "(total == 0.0)"),),
    ),
    Mutant(
        name="tree_attention-unwritten-row",
        op="tree_attention",
        bug="rows of padding are read and weighed with 0: NaN, if nobody ever wrote them",
        changes=((KERNEL, "m_s = tl.max(m.to(tl.int32), 0) > 0", "m_s = o_j < T"),),
    ),
    Mutant(
        name="tree_attention-columns-of-k",
        op="tree_attention",
        bug="the columns of V are put right by the order of K's",
        changes=((KERNEL, "columns(FORMAT_V, D)", "columns(FORMAT_K, D)"),),
    ),
    Mutant(
        name="tree_attention-nibble-offset",
        op="tree_attention",
        bug="q4_0 codes are taken from 7",
        changes=((ROWS, "1032.0", "1031.0"),),
    ),
    Mutant(
        name="tree_attention-nan-to-nothing",
        op="tree_attention",
        bug="a NaN score counts as a hidden row: only the nonfinite oracle sees it",
        changes=((SOFTMAX, "b_s = tl.where(m, b_s,", "b_s = tl.where(m & (b_s == b_s), b_s,"),),
    ),
)
