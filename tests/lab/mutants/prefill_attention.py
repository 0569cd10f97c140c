"""Seeded bugs of prefill_attention."""

from ..mutation import Mutant

KERNEL = "kernels/prefill_attention.py"

MUTANTS = (
    Mutant(
        name="prefill_attention-blind-to-itself",
        op="prefill_attention",
        bug="a query does not see its own row",
        changes=((KERNEL, "o_row[None, :] <= b_own", "o_row[None, :] < b_own"),),
    ),
    Mutant(
        name="prefill_attention-window-long",
        op="prefill_attention",
        bug="the window is a row long",
        changes=((KERNEL, "b_own - window + 1", "b_own - window"),),
    ),
    Mutant(
        name="prefill_attention-window-starts-late",
        op="prefill_attention",
        bug="a tile starts at the window of its last query",
        changes=((KERNEL, "first + i_m * BM - window + 1", "first + (i_m + 1) * BM - window"),),
    ),
    Mutant(
        name="prefill_attention-heads-in-turn",
        op="prefill_attention",
        bug="KV heads are dealt to the query heads in turn",
        changes=(
            (KERNEL, "cache_k + i_h // G * s_k_h", "cache_k + i_h % (H // G) * s_k_h"),
            (KERNEL, "cache_v + i_h // G * s_v_h", "cache_v + i_h % (H // G) * s_v_h"),
        ),
    ),
    Mutant(
        name="prefill_attention-row-past-the-last",
        op="prefill_attention",
        bug="the row after the last query's is read; no query sees it, but 0 * NaN is NaN, and bounds tells",
        changes=((KERNEL, "m_s = o_row < end", "m_s = o_row <= end"),),
    ),
    Mutant(
        name="prefill_attention-left-rotated",
        op="prefill_attention",
        bug="the output of a tq3_0 cache is left rotated",
        changes=(
            (KERNEL, "b_o = unrotate(b_o, columns(FORMAT_V, 128), tl.float32 if FEW else TYPE_V)", "b_o = b_o * 1.0"),
        ),
    ),
    Mutant(
        name="prefill_attention-diagonal-unmasked",
        op="prefill_attention",
        bug="the tile with a program's first own row counts as seen by all its queries",
        changes=((KERNEL, "(first + i_m * BM + 1 - begin) // BS", "(first + i_m * BM + BS - begin) // BS"),),
    ),
    Mutant(
        name="prefill_attention-window-unmasked",
        op="prefill_attention",
        bug="tiles at the window's edge count as seen by all queries",
        changes=((KERNEL, "if WINDOWED:", "if False:"),),
    ),
)
