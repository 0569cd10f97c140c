"""Seeded bugs of embed."""

from ..mutation import Mutant

KERNEL, BLOCKS = "kernels/embed.py", "kernels/lib/blocks.py"

MUTANTS = (
    Mutant(
        name="embed-row-past-the-table",
        op="embed",
        bug="the id one past the last row is looked up",
        changes=((KERNEL, "(i_id < rows)", "(i_id <= rows)"),),
    ),
    Mutant(
        name="embed-negative-id",
        op="embed",
        bug="a negative id reads before the table",
        changes=((KERNEL, "(i_id >= 0) & (i_id < rows)", "i_id < rows"),),
    ),
    Mutant(
        name="embed-chunk-past-the-row",
        op="embed",
        bug="whole tiles of chunks are read, past the row's last; they are not stored: only the bounds oracle sees it",
        changes=((KERNEL, "E - o_c * 256, 0)", "E - o_c * 256 + 768, 0)"),),
    ),
    Mutant(
        name="embed-tail",
        op="embed",
        bug="the tile's padding is stored into the next token's row",
        changes=((KERNEL, "mask=o_e < E)", "mask=o_e < E + 32)"),),
    ),
    Mutant(
        name="embed-scale-index",
        op="embed",
        bug="every group of q6_k takes the scale of its pair's first",
        changes=(
            (
                BLOCKS,
                "p[:, None] + 192 + tl.arange(0, G)[None, :]",
                "p[:, None] + 192 + tl.arange(0, G)[None, :] // 2 * 2",
            ),
        ),
    ),
    Mutant(
        name="embed-minimum-added",
        op="embed",
        bug="the minimum is added, not subtracted",
        changes=((BLOCKS, "b_w = b_w - b_min", "b_w = b_w + b_min"),),
    ),
    Mutant(
        name="embed-no-row-unwritten",
        op="embed",
        bug="zeros for an id that names no row are left to the memory: where that held zeros, only poison tells",
        changes=((KERNEL, "mask=o_e < E)", "mask=m_c[:, None] & (o_e < E))"),),
    ),
)
