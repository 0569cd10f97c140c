"""Seeded bugs of dequant_matmul and of the block unpacking it shares with embed."""

from ..mutation import Mutant

KERNEL, BLOCKS = "kernels/dequant_matmul.py", "kernels/lib/blocks.py"

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
)
