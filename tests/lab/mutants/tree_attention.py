"""Seeded bugs of tree_attention."""

from ..mutation import Mutant

KERNEL, SOFTMAX, ROWS = "kernels/tree_attention.py", "kernels/lib/softmax.py", "kernels/lib/cache_rows.py"
KEYS, QUERIES, OPERANDS = "kernels/lib/keys_left.py", "kernels/lib/rows_left.py", "kernels/lib/operands.py"
SHARE = "kernels/lib/share.py"

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
            (SHARE, "T + o_j, mask=m, other=0) != 0)", "T + o_j, mask=m, other=0) < 2) & m & (o_j <= i_t)"),
        ),
    ),
    Mutant(
        name="tree_attention-tiled-heads",
        op="tree_attention",
        bug="query heads are dealt to the KV heads in turn",
        changes=((QUERIES, "i_kv * G + o_m % G", "o_m % G * tl.num_programs(2) + i_kv"),),
    ),
    Mutant(
        name="tree_attention-window-short",
        op="tree_attention",
        bug="the window is a row short",
        changes=((SHARE, "first - window, 0)", "first - window + 1, 0)"),),
    ),
    Mutant(
        name="tree_attention-row-twice",
        op="tree_attention",
        bug="each split reads the first tile of the next",
        changes=((SHARE, "(i_split + 1) * whole // splits * BS", "((i_split + 1) * whole // splits + 1) * BS"),),
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
        changes=((KERNEL, "b_w = b_l * tl.exp2(b_m - higher)", "b_w = b_l"),),
    ),
    Mutant(
        name="tree_attention-padding-attends",
        op="tree_attention",
        bug="padding gets what the committed rows say",
        changes=((KERNEL, "(total == 0.0) | (tl.max(b_own) == 0)", "(total == 0.0)"),),
    ),
    Mutant(
        name="tree_attention-unwritten-row",
        op="tree_attention",
        bug="rows of padding are read and weighed with 0: NaN, if nobody ever wrote them",
        changes=((SHARE, "return (o_row < first) | (b_a != 0)", "return o_row - first < T"),),
    ),
    Mutant(
        name="tree_attention-columns-of-k",
        op="tree_attention",
        bug="the columns of V are put right by the order of K's",
        changes=((QUERIES, "columns(FORMAT_V, D)", "columns(FORMAT_K, D)"),),
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
    Mutant(
        name="tree_attention-rest-skipped",
        op="tree_attention",
        bug="committed rows behind the last whole tile are left out",
        changes=((SHARE, "return first, begin, end, low + whole * BS", "return first, begin, end, first"),),
    ),
    Mutant(
        name="tree_attention-unit-nibbles",
        op="tree_attention",
        bug="keys left: the second nibble of a unit is read as its third",
        changes=((OPERANDS, "o1 = ((b_w >> 4 & 15) - 8)", "o1 = ((b_w >> 8 & 15) - 8)"),),
    ),
    Mutant(
        name="tree_attention-unit-unsigned",
        op="tree_attention",
        bug="keys left: the last byte of a q8_0 word is taken as unsigned",
        changes=((OPERANDS, "o3 = ((b_w >> 24 & 255 ^ 128) - 128)", "o3 = (b_w >> 24 & 255)"),),
    ),
    Mutant(
        name="tree_attention-values-out-of-order",
        op="tree_attention",
        bug="keys left: neighbours among the values of a q4_0 row change places",
        changes=((OPERANDS, "(6, 2, 4, 3, 5, 0, 1)", "(6, 2, 4, 3, 5, 1, 0)"),),
    ),
    Mutant(
        name="tree_attention-keys-out-of-order",
        op="tree_attention",
        bug="keys left: q has the columns of q4_0 in order of bytes",
        changes=((OPERANDS, "o = 32 * (u >> 2) + 4 * (u & 3) + (j >> 1) + 16 * (j & 1)", "o = 8 * u + j"),),
    ),
    Mutant(
        name="tree_attention-code-mirrored",
        op="tree_attention",
        bug="keys left: codes of tq3_0 below zero are counted outwards",
        changes=((OPERANDS, "tl.where(b_sign == 1, b_low, 3 - b_low)", "b_low"),),
    ),
    Mutant(
        name="tree_attention-never-again",
        op="tree_attention",
        bug="a share whose scores make weights that f16 does not hold is kept as it is",
        changes=((QUERIES, "again = passed(b_peak)", "again = passed(b_peak) & (i_split > splits)"),),
    ),
    Mutant(
        name="tree_attention-queries-sums-kept",
        op="tree_attention",
        bug="queries left: a share that is walked again adds to the sums of the first walk",
        changes=((QUERIES, "tl.where(again, 0.0, b_lanes), tl.where(again, 0.0, b_acc)", "b_lanes, b_acc"),),
    ),
    Mutant(
        name="tree_attention-second-walk-of-old",
        op="tree_attention",
        bug="queries left: the second walk has the maximum of the first",
        changes=((QUERIES, "tl.where(again, b_m + tl.max(b_peak, 1), b_m)", "b_m"),),
    ),
    Mutant(
        name="tree_attention-second-walk-short",
        op="tree_attention",
        bug="queries left: the second walk leaves out the first tile",
        changes=((QUERIES, "tl.where(again, begin, end), end, p_k", "tl.where(again, begin + BS, end), end, p_k"),),
    ),
    Mutant(
        name="tree_attention-second-walk-of-least",
        op="tree_attention",
        bug="queries left: the second walk starts from the least of what a query's lanes found",
        changes=((QUERIES, "b_m + tl.max(b_peak, 1)", "b_m + tl.min(b_peak, 1)"),),
    ),
    Mutant(
        name="tree_attention-peak-of-the-last-tile",
        op="tree_attention",
        bug="queries left: the highest score is that of the last tile",
        changes=(
            (
                QUERIES,
                "b_peak = tl.maximum(b_peak, tl.max(tl.max(_lanes(b_x), 3), 1))",
                "b_peak = tl.max(tl.max(_lanes(b_x), 3), 1)",
            ),
        ),
    ),
    Mutant(
        name="tree_attention-passed-late",
        op="tree_attention",
        bug="a share is walked again when f16 has lost its weights long ago",
        changes=((SHARE, "MOST = tl.constexpr(15.0)", "MOST = tl.constexpr(60.0)"),),
    ),
    Mutant(
        name="tree_attention-lanes-half-summed",
        op="tree_attention",
        bug="queries left: half the weights of a tile are missing from their sum",
        changes=((QUERIES, "tl.sum(tl.sum(_lanes(b_p), 3), 1)", "tl.sum(tl.max(_lanes(b_p), 3), 1)"),),
    ),
    Mutant(
        name="tree_attention-nodes-under-nothing",
        op="tree_attention",
        bug="queries left: the nodes' share starts from the maximum of rows that it does not have",
        changes=(
            (
                QUERIES,
                "tl.where(i_split == splits, LOWEST, b_m), tl.sum",
                "b_m + 100.0 * (i_split == splits), tl.sum",
            ),
        ),
    ),
    Mutant(
        name="tree_attention-parts-unweighed",
        op="tree_attention",
        bug="the means of the shares are joined without regard to how much they weigh",
        changes=(
            (KERNEL, "b_w = b_l * tl.exp2(b_m - higher)", "b_w = tl.where(b_l > 0, 1.0, b_l) * tl.exp2(b_m - higher)"),
        ),
    ),
    Mutant(
        name="tree_attention-keys-lowered",
        op="tree_attention",
        bug="keys left: a tile below the maximum lowers it, and the sums stay as they were",
        changes=((KEYS, "tl.where(b_set, tl.maximum(b_top, 0.0), ", "tl.where(b_set, b_top, "),),
    ),
    Mutant(
        name="tree_attention-keys-sums-kept",
        op="tree_attention",
        bug="keys left: the sums of weights are not scaled when the maximum rises",
        changes=((KEYS, "b_m, b_l * b_old[None, :]", "b_m, b_l * 1.0"),),
    ),
    Mutant(
        name="tree_attention-keys-never-set",
        op="tree_attention",
        bug="keys left: the first tile does not set the maximum: scores far below zero weigh nothing",
        changes=((KEYS, "if (tl.min(b_m) <= LOWEST) | (tl.max(b_x) > SLACK):", "if tl.max(b_x) > SLACK:"),),
    ),
    Mutant(
        name="tree_attention-keys-half-folded",
        op="tree_attention",
        bug="keys left: half the weights of a tile are missing from their sum",
        changes=(
            (
                KEYS,
                "tl.sum(tl.reshape(b_p, (BS // 64, 4, 2, 8, N)), 0), 1)",
                "tl.max(tl.reshape(b_p, (BS // 64, 4, 2, 8, N)), 0), 1)",
            ),
            (KEYS, "tl.reshape(tl.sum(tl.max", "tl.reshape(tl.max(tl.max"),
        ),
    ),
    Mutant(
        name="tree_attention-keys-second-group",
        op="tree_attention",
        bug="keys left: q's first 128 values are rotated twice, its last never",
        changes=((KEYS, "(HALF * 128 + o_d)", "o_d"),),
    ),
    Mutant(
        name="tree_attention-keys-of-one-half",
        op="tree_attention",
        bug="keys left: both halves of a tq3_0 row's high bits are its first",
        changes=((OPERANDS, "p_h + (SKIP * (NB // 2) + ", "p_h + ("),),
    ),
    Mutant(
        name="tree_attention-scale-of-another-block",
        op="tree_attention",
        bug="keys left: units take the scales of a row in turn, not by blocks",
        changes=(
            (
                OPERANDS,
                "tl.broadcast_to(b_d[:, :, None], (BS, NB, U // NB))",
                "tl.broadcast_to(b_d[:, None, :], (BS, U // NB, NB))",
            ),
        ),
    ),
)
