"""Seeded bugs of kv_move."""

from ..mutation import Mutant

MUTANTS = (
    Mutant(
        name="kv_move-source-off-by-one",
        op="kv_move",
        bug="the row before the accepted node moves",
        changes=(("kernels/kv_move.py", "p + (first + b_path).to(tl.int64)", "p + (first + b_path - 1).to(tl.int64)"),),
    ),
    Mutant(
        name="kv_move-no-start",
        op="kv_move",
        bug="rows move to the head of the cache",
        changes=(("kernels/kv_move.py", "p + (first + o_d)", "p + (0 * first + o_d)"),),
    ),
    Mutant(
        name="kv_move-width-of-k",
        op="kv_move",
        bug="rows of V are taken to be as wide as those of K",
        changes=(("kernels/kv_move.py", "length, start, S, columns_v", "length, start, S, columns_k"),),
    ),
    Mutant(
        name="kv_move-wide",
        op="kv_move",
        bug="the last program of a row moves columns of the next row too",
        changes=(("kernels/kv_move.py", "(o_c < COLUMNS)", "(o_c < COLUMNS + BC)"),),
    ),
    Mutant(
        name="kv_move-one-head",
        op="kv_move",
        bug="all programs move the first head",
        changes=(("kernels/kv_move.py", "tl.program_id(0).to(tl.int64) * s_h", "tl.program_id(0).to(tl.int64) * 0"),),
    ),
    Mutant(
        name="kv_move-stride-for-width",
        op="kv_move",
        bug="a row is taken to be as wide as rows lie apart, and what lies between moves too: only redzone sees it",
        changes=(
            (
                "kernels/kv_move.py",
                "(Hkv, S, columns_k), columns_v, depth = cache_k.shape, cache_v.shape[2], path.shape[0]",
                "(Hkv, S), columns_k, columns_v = cache_k.shape[:2], cache_k.stride(1), cache_v.stride(1)\n"
                "    depth = path.shape[0]",
            ),
        ),
    ),
)
