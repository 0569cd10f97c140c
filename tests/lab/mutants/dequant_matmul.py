"""Seeded bugs of dequant_matmul and of the block unpacking it shares with embed."""

from ..mutation import Mutant

KERNEL, BLOCKS = "kernels/dequant_matmul.py", "kernels/lib/blocks.py"
LANES, WIDE = "kernels/lib/lanes.py", "kernels/lib/lanes_wide.py"
TILED, IMMA = "kernels/lib/tiled_int8.py", "kernels/lib/imma.py"

MUTANTS = (
    Mutant(
        name="dequant_matmul-swapped-nibbles",
        op="dequant_matmul",
        bug="even groups of 32 come from the high nibbles",
        changes=((BLOCKS, "b_q >> ((o_g % 2) * 4)", "b_q >> ((1 - o_g % 2) * 4)"),),
    ),
    Mutant(
        name="dequant_matmul-high-bits-of-the-minimum",
        op="dequant_matmul",
        bug="scales of groups 4..7 take their two high bits from the minimums' bytes",
        changes=((BLOCKS, "(b_z & 15) | ((b_x >> 6) << 4)", "(b_z & 15) | ((b_y >> 6) << 4)"),),
    ),
    Mutant(
        name="dequant_matmul-fifth-bit",
        op="dequant_matmul",
        bug="the fifth bits of q5_k are taken from the next group's",
        changes=((BLOCKS, "(b_fifth >> o_g) & 1", "(b_fifth >> ((o_g + 1) % 8)) & 1"),),
    ),
    Mutant(
        name="dequant_matmul-q6-half",
        op="dequant_matmul",
        bug="the second half of a q6_k block reads its high bits from the first half's bytes",
        changes=((BLOCKS, "p_b + 128 + 32 * o_h + o_b", "p_b + 128 + o_b"),),
    ),
    Mutant(
        name="dequant_matmul-minimum-left-out",
        op="dequant_matmul",
        bug="several int8 rows forget the minimums of q4_k and q5_k",
        changes=((KERNEL, "b_part - tl.trans(b_min)[:, None, :] * b_sum[:, :, None]", "b_part"),),
    ),
    Mutant(
        name="dequant_matmul-block-past-the-row",
        op="dequant_matmul",
        bug="formats of 32 read a block past a row's last; x is masked, so only the bounds oracle sees it",
        changes=(
            (
                BLOCKS,
                "tl.arange(0, G)[None, :] * 32 < tl.zeros_like",
                "tl.arange(0, G)[None, :] * 32 - 32 < tl.zeros_like",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-row-past-the-weight",
        op="dequant_matmul",
        bug="a row past the weight's last is read and never stored: only the bounds oracle sees it",
        changes=(
            (KERNEL, "m_m, m_n = o_m < M, o_n < N\n", "m_m, m_n = o_m < M, o_n <= N\n"),
            (KERNEL, "& m_n[None, :]\n", "& (o_n < N)[None, :]\n"),
        ),
    ),
    Mutant(
        name="dequant_matmul-column-past-the-output",
        op="dequant_matmul",
        bug="the column past the last is stored too: into the next row, past the end of the output",
        changes=((KERNEL, "& m_n[None, :]\n", "& (o_n <= N)[None, :]\n"),),
    ),
    Mutant(
        name="dequant_matmul-last-column",
        op="dequant_matmul",
        bug="the last column is never stored",
        changes=((KERNEL, "& m_n[None, :]\n", "& (o_n < N - 1)[None, :]\n"),),
    ),
    Mutant(
        name="dequant_matmul-up-row",
        op="dequant_matmul",
        bug="SwiGLU's up rows begin one too early",
        changes=((KERNEL, "(o_n + N) * s_weight_n", "(o_n + N - 1) * s_weight_n"),),
    ),
    Mutant(
        name="dequant_matmul-rounding",
        op="dequant_matmul",
        bug="int8 activations are cut off, not rounded",
        changes=(
            (
                KERNEL,
                "b_q = (b_x * b_inverse[:, None] + 12582912.0) - 12582912.0",
                "b_q = tl.floor(b_x * b_inverse[:, None])",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-infinity-to-zero",
        op="dequant_matmul",
        bug="a group of int8 activations with a NaN or infinity counts as zero: only the nonfinite oracle sees it",
        changes=((KERNEL, "+ tl.sum(b_x * 0.0, 1)\n", "\n    b_d = tl.where(b_d < 3e38, b_d, 0.0)\n"),),
    ),
    Mutant(
        name="dequant_matmul-activations-per-32",
        op="dequant_matmul",
        bug="int8 activations have a scale for every 32 against K-quants too",
        changes=((KERNEL, "group_of(format) // GROUP, BG", "1, BG"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-scale-row",
        op="dequant_matmul",
        bug="one row of int8 over tiles: rows 8 to 15 take the scales of rows 0 to 7",
        changes=((TILED, "tl.load(p_s + 32, ", "tl.load(p_s, "),),
    ),
    Mutant(
        name="dequant_matmul-tiles-minimum",
        op="dequant_matmul",
        bug="one row of int8 over tiles: odd groups of 32 take the minimum of the group before",
        changes=((TILED, "_byte(s, 3) * t1", "_byte(s, 1) * t1"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-record-twice",
        op="dequant_matmul",
        bug="one row of int8 over tiles: a warp with nothing left counts the last record again",
        changes=((TILED, "xd0, xd1 = tl.where(m, xd0, 0.0), tl.where(m, xd1, 0.0)", "xd0, xd1 = xd0, xd1"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-past-the-last-record",
        op="dequant_matmul",
        bug="one row of int8 over tiles: a warp with nothing left reads past the last record and counts it zero times: "
        "only the bounds oracle sees it",
        changes=((TILED, "tl.minimum(i_r + o_kw, records - 1)", "tl.minimum(i_r + o_kw, records)"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-stale-x",
        op="dequant_matmul",
        bug="one row of int8 over tiles: of two records in flight the second meets the x of the first",
        changes=(
            (
                TILED,
                "x_b = _fetch_x(x, s_x_m, x_words, x_d, M, i_r + 2 * W,",
                "x_b = _fetch_x(x, s_x_m, x_words, x_d, M, i_r + W,",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-tiles-up-rows",
        op="dequant_matmul",
        bug="one row of int8 over tiles: SwiGLU's up rows are the gate's",
        changes=((TILED, "(tile + N // 64) * records", "tile * records"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-fifth-bit",
        op="dequant_matmul",
        bug="one row of int8 over tiles: rows 8 to 15 take the fifth bits of rows 0 to 7",
        changes=((IMMA, "place + 2 * r1 + r0", "place + 2 * r1"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-nan",
        op="dequant_matmul",
        bug="one row of int8 over tiles: a NaN or infinity in x gives a number: only the nonfinite oracle sees it",
        changes=(
            (
                IMMA,
                'tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, float("nan"))',
                "tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, 0.0)",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-lanes-nibble-order",
        op="dequant_matmul",
        bug="the second and third nibble of a word change places",
        changes=((LANES, "q = (w >> (16 * k + 8 * j1 + 4 * j0)) & 15", "q = (w >> (16 * k + 4 * j1 + 8 * j0)) & 15"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-scale-index",
        op="dequant_matmul",
        bug="both halves of a column group take the scale of the first",
        changes=((LANES, "((b_s >> (16 * h)) & 255).to(tl.float16) * low)", "(b_s & 255).to(tl.float16) * low)"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-row-of-scales",
        op="dequant_matmul",
        bug="row g + 8 takes the scales of row g",
        changes=((LANES, "s = (_load(p), _load(p + 32))", "s = (_load(p), _load(p))"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-record-twice",
        op="dequant_matmul",
        bug="warps without a record in the last step count the last record again",
        changes=(
            (LANES, "x = (tl.load(p) if WHOLE else tl.load(p, mask=m_x, other=0),)", "x = (tl.load(p),)"),
            (LANES, "tl.load(p + 8) if WHOLE else tl.load(p + 8, mask=m_x, other=0)", "tl.load(p + 8)"),
            (LANES, "// (32 * EACH) * 128 + o_x % (4 * EACH)", "% (4 * EACH)"),
        ),
    ),
    Mutant(
        name="dequant_matmul-lanes-odd-step",
        op="dequant_matmul",
        bug="with two records in flight an odd last step is left out",
        changes=((LANES, "for _ in range(0, steps % 2):", "for _ in range(0, 0):"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-up-rows",
        op="dequant_matmul",
        bug="SwiGLU takes gate rows for up rows",
        changes=((LANES, "(m * (N // 64) if SWIGLU else 0)", "(m * (N // 128) if SWIGLU else 0)"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-row-past-x",
        op="dequant_matmul",
        bug="rows past the last of x are read, and not stored: only the bounds oracle sees it",
        changes=((LANES, "row = tl.minimum(o_m + 8 * n, M - 1).to(tl.int64)", "row = (o_m + 8 * n).to(tl.int64)"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-warp-left-out",
        op="dequant_matmul",
        bug="only the first warp's sums are stored",
        changes=(
            (LANES, "y = tl.sum(tl.reshape(y, (W, 8, 4, 2, 2)), 0)", "y = tl.min(tl.reshape(y, (W, 8, 4, 2, 2)), 0)"),
        ),
    ),
    Mutant(
        name="dequant_matmul-lanes-counter-stays",
        op="dequant_matmul",
        bug="a counter is not set back to zero: the next launch adds too early",
        changes=((WIDE, "                tl.store(p_arrived, 0)\n", ""),),
    ),
    Mutant(
        name="dequant_matmul-lanes-last-partial",
        op="dequant_matmul",
        bug="the last program's partial sum is not added",
        changes=((WIDE, "for q in range(first, last + 1):", "for q in range(first, last):"),),
    ),
    Mutant(
        name="dequant_matmul-lanes-wrong-slot",
        op="dequant_matmul",
        bug="a program that began before a group leaves its sums where those of its own first group are",
        changes=((WIDE, "(2 * i_p + (begin != first)", "(2 * i_p"),),
    ),
    Mutant(
        name="dequant_matmul-tiles-row-of-x",
        op="dequant_matmul",
        bug="int8 over tiles: an odd last row of x takes the activations of the row before",
        changes=((TILED, "p + tl.minimum(M - 1, 3) * s_m", "p + s_m"), (TILED, "p + 2 * s_m", "p + s_m")),
    ),
    Mutant(
        name="dequant_matmul-plain-last-share-lost",
        op="dequant_matmul",
        bug="of the programs that share a tile's columns the last one's sums are left out",
        changes=(("kernels/lib/plain_rows.py", "for i_p in range(splits):", "for i_p in range(splits - 1):"),),
    ),
    Mutant(
        name="dequant_matmul-plain-own-share-only",
        op="dequant_matmul",
        bug="the first program to end stores the tile, before the others have added to it: a matter of order",
        changes=(("kernels/lib/plain_rows.py", '"acq_rel") == splits - 1', '"acq_rel") == 0'),),
    ),
    Mutant(
        name="dequant_matmul-plain-up-beside-gate",
        op="dequant_matmul",
        bug="the up rows are taken right after a program's gate rows, not after all gate rows",
        changes=(("kernels/lib/plain_rows.py", "p_w + tl.cast(N, tl.int64) * s_weight_n", "p_w + BN * s_weight_n"),),
    ),
    Mutant(
        name="dequant_matmul-plain-tail-of-k",
        op="dequant_matmul",
        bug="columns past the row's end are multiplied too",
        changes=(("kernels/lib/plain_rows.py", "WHOLE=K % BK == 0", "WHOLE=True"),),
    ),
)
