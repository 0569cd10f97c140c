"""Seeded bugs of dequant_matmul and of the block unpacking it shares with embed."""

from ..mutation import Mutant

KERNEL, BLOCKS = "kernels/dequant_matmul.py", "kernels/lib/blocks.py"
WIDE, SPLIT, TILES = "kernels/lib/wide_exact.py", "kernels/lib/tiled.py", "kernels/lib/tiles.py"
ROW, ROWS, IMMA = "kernels/lib/row_int8.py", "kernels/lib/rows_int8.py", "kernels/lib/imma.py"

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
        name="dequant_matmul-row-scale-row",
        op="dequant_matmul",
        bug="one row of int8: rows 8 to 15 take the scales of rows 0 to 7",
        changes=((ROW, "tl.load(p_s + 32, ", "tl.load(p_s, "),),
    ),
    Mutant(
        name="dequant_matmul-row-minimum",
        op="dequant_matmul",
        bug="one row of int8: odd groups of 32 take the minimum of the group before",
        changes=((ROW, "_byte(s, 3) * t1", "_byte(s, 1) * t1"),),
    ),
    Mutant(
        name="dequant_matmul-row-sixteen-times",
        op="dequant_matmul",
        bug="one row of int8: of q4_k the even group counts once, the odd one sixteen times",
        changes=((ROW, "((s << 4) & 0xFF0) * y0", "(s & 0xFF) * y0"),),
    ),
    Mutant(
        name="dequant_matmul-row-record-twice",
        op="dequant_matmul",
        bug="one row of int8: a warp with nothing left counts the last record again",
        changes=((ROW, "xd0, xd1 = tl.where(m, xd0, 0.0), tl.where(m, xd1, 0.0)", "xd0, xd1 = xd0, xd1"),),
    ),
    Mutant(
        name="dequant_matmul-row-past-the-last-record",
        op="dequant_matmul",
        bug="one row of int8: a warp with nothing left reads past the last record: only the bounds oracle sees it",
        changes=((ROW, "tl.minimum(i_r + o_kw, records - 1)", "tl.minimum(i_r + o_kw, records)"),),
    ),
    Mutant(
        name="dequant_matmul-row-stale-x",
        op="dequant_matmul",
        bug="one row of int8: of two records in flight the second meets the x of the first",
        changes=((ROW, "x_b = _fetch_x(x, i_r + 2 * W,", "x_b = _fetch_x(x, i_r + W,"),),
    ),
    Mutant(
        name="dequant_matmul-row-up-rows",
        op="dequant_matmul",
        bug="one row of int8: SwiGLU's up rows are the gate's",
        changes=((ROW, "(tile + N // 64) * records", "tile * records"),),
    ),
    Mutant(
        name="dequant_matmul-row-of-two-groups",
        op="dequant_matmul",
        bug="one row of int8: lanes of the last two groups take the sums of the first two",
        changes=((IMMA, "tl.where(t == c, s[0], g[i])", "tl.where(t == c % 3, s[0], g[i])"),),
    ),
    Mutant(
        name="dequant_matmul-row-nan",
        op="dequant_matmul",
        bug="one row of int8: a NaN or infinity in x gives a number: only the nonfinite oracle sees it",
        changes=(
            (
                IMMA,
                'tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, float("nan"))',
                "tl.where(bits < 0x7F800000, b_max * 0.007874015748031496, 0.0)",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-imma-fifth-bit",
        op="dequant_matmul",
        bug="fifth bits of q5_k are those of the next of four words",
        changes=((IMMA, "(h >> i) if P", "(h >> ((i + 1) % 4)) if P"),),
    ),
    Mutant(
        name="dequant_matmul-imma-sixth-sign",
        op="dequant_matmul",
        bug="codes of q6_k are not less 32",
        changes=((IMMA, " ^ (up & -0x3F3F3F40) ^ -0x7F7F7F80", " ^ (up & -0x3F3F3F40)"),),
    ),
    Mutant(
        name="dequant_matmul-imma-plane",
        op="dequant_matmul",
        bug="q8_0's second plane is its first",
        changes=((IMMA, "a = (v, four(more[C]))", "a = (v, v)"),),
    ),
    Mutant(
        name="dequant_matmul-rows-record-twice",
        op="dequant_matmul",
        bug="several rows of int8: a warp with nothing left counts the last record again",
        changes=((ROWS, "d0, d1 = tl.where(m, d0, 0.0), tl.where(m, d1, 0.0)", "d0, d1 = d0, d1"),),
    ),
    Mutant(
        name="dequant_matmul-rows-past-the-last-record",
        op="dequant_matmul",
        bug="several rows of int8: a warp with nothing left reads past the last record: only the bounds oracle sees it",
        changes=((ROWS, "tl.minimum(i_r, records - 1)", "tl.minimum(i_r, records)"),),
    ),
    Mutant(
        name="dequant_matmul-rows-high-part",
        op="dequant_matmul",
        bug="several rows of int8: of x's sums only the lower seven bits meet the minimums",
        changes=(
            (ROWS, "(l0 + 64 * h0)", "l0"),
            (ROWS, "(l1 + 64 * h1)", "l1"),
        ),
    ),
    Mutant(
        name="dequant_matmul-rows-rounding",
        op="dequant_matmul",
        bug="several rows of int8: activations are cut off, not rounded",
        changes=(
            (
                ROWS,
                "b_q = (b_x * inverse[:, None] + 12582912.0) - 12582912.0",
                "b_q = (b_x * inverse[:, None]).to(tl.int32).to(tl.float32)",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-rows-up-rows",
        op="dequant_matmul",
        bug="several rows of int8: SwiGLU's up rows begin where half of the gate's do",
        changes=(
            (
                ROWS,
                "b, b_4 = _rows(first, 1, 0, W, WK, 1) + M * (N // 16), _rows(first, 1, 0, W, WK, 4) + M * (N // 16)",
                "b, b_4 = _rows(first, 1, 0, W, WK, 1) + M * (N // 32), _rows(first, 1, 0, W, WK, 4) + M * (N // 32)",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-rows-block-of-x",
        op="dequant_matmul",
        bug="several rows of int8: every eight rows of x meet the scales of the first eight",
        changes=(
            (ROWS, "            more = _fetch_x(d_x, sums_x, at,", "            more = _fetch_x(d_x, sums_x, at * 0,"),
        ),
    ),
    Mutant(
        name="dequant_matmul-rows-row-past-x",
        op="dequant_matmul",
        bug="several rows of int8: a row past the last of x is read, and not stored: only the bounds oracle sees it",
        changes=((ROWS, "mask=(o_m < M)[:, None], other=0.0).to", "mask=(o_m <= M)[:, None], other=0.0).to"),),
    ),
    Mutant(
        name="dequant_matmul-split-nibbles",
        op="dequant_matmul",
        bug="exact: the low nibbles' second pair and the high nibbles' first change places",
        changes=((TILES, "q = tl.join(tl.join(a, c), tl.join(b, d))", "q = tl.join(tl.join(a, b), tl.join(c, d))"),),
    ),
    Mutant(
        name="dequant_matmul-split-last-partial",
        op="dequant_matmul",
        bug="exact: the last program's partial sum is not added",
        changes=((SPLIT, "for i_p in range(tl.num_programs(1)):", "for i_p in range(tl.num_programs(1) - 1):"),),
    ),
    Mutant(
        name="dequant_matmul-split-counter-stays",
        op="dequant_matmul",
        bug="exact: a counter is not set back to zero: the next launch adds too early",
        changes=((SPLIT, "            tl.store(p_arrived, 0)\n", ""),),
    ),
    Mutant(
        name="dequant_matmul-wide-scale-of-the-neighbour",
        op="dequant_matmul",
        bug="exact, many rows: both groups of a word take the scale of the first",
        changes=(
            (
                WIDE,
                "q2, q3 = _scaled(q2, s0, m0, MINIMUM, L), _scaled(q3, s1, m1, MINIMUM, L)",
                "q2, q3 = _scaled(q2, s0, m0, MINIMUM, L), _scaled(q3, s0, m1, MINIMUM, L)",
            ),
        ),
    ),
    Mutant(
        name="dequant_matmul-wide-row-of-scales",
        op="dequant_matmul",
        bug="exact, many rows: row g + 8 takes the scales of row g",
        changes=((WIDE, "o_w % 4 * 64 + o_r * 32 + o_l // 4 * 4", "o_w % 4 * 64 + o_l // 4 * 4"),),
    ),
    Mutant(
        name="dequant_matmul-wide-counter-stays",
        op="dequant_matmul",
        bug="exact, many rows: a counter is not set back to zero: the next launch adds too early",
        changes=((WIDE, "                tl.store(p_arrived, 0)\n", ""),),
    ),
    Mutant(
        name="dequant_matmul-wide-last-partial",
        op="dequant_matmul",
        bug="exact, many rows: the last program's partial sum is not added",
        changes=((WIDE, "for q in range(first, last + 1):", "for q in range(first, last):"),),
    ),
    Mutant(
        name="dequant_matmul-wide-wrong-slot",
        op="dequant_matmul",
        bug="exact, many rows: what a program has of a group begun before goes where its first own group goes",
        changes=((WIDE, "(2 * i_p + (begin != first)", "(2 * i_p"),),
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
    Mutant(
        name="dequant_matmul-norm-counts-a-record-twice",
        op="dequant_matmul",
        bug="a warp with no record left counts the squares of the last one again",
        changes=((ROW, "more if WHOLE else tl.where(m, more, 0.0)", "more"),),
    ),
    Mutant(
        name="dequant_matmul-norm-of-the-gate-alone",
        op="dequant_matmul",
        bug="up rows are of x that is not normed",
        changes=((ROW, "y_two *= scale", "y_two *= 1.0"),),
    ),
    Mutant(
        name="dequant_matmul-norm-of-the-first-records",
        op="dequant_matmul",
        bug="later records are multiplied with the norm's weights of the first ones",
        changes=((ROW, "n_a = _fetch_x(norm, i_r + STAGES * W,", "n_a = _fetch_x(norm, 0 * i_r,"),),
    ),
    Mutant(
        name="dequant_matmul-norm-without-weights",
        op="dequant_matmul",
        bug="activations over tiles are normed and not weighted",
        changes=((KERNEL, "x, norm = rms_norm(x, norm, eps,", "x, norm = rms_norm(x, torch.ones_like(norm), eps,"),),
    ),
)
