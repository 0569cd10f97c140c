"""Seeded bugs of rope."""

from ..mutation import Mutant

MUTANTS = (
    Mutant(
        name="rope-turned-back",
        op="rope",
        bug="the second of a pair turns the other way",
        changes=(("kernels/rope.py", "b_b * b_cos + b_a * b_sin", "b_b * b_cos - b_a * b_sin"),),
    ),
    Mutant(
        name="rope-h-ends-with-w",
        op="rope",
        bug="the H axis ends where W does: one frequency of 32 takes the wrong coordinate",
        changes=(("kernels/rope.py", "(o_r < limit_h)", "(o_r < limit_w)"),),
    ),
    Mutant(
        name="rope-one-axis",
        op="rope",
        bug="all frequencies turn by T",
        changes=(("kernels/rope.py", "positions + b_axis * s_pos_a", "positions + b_axis * 0"),),
    ),
    Mutant(
        name="rope-short-positions",
        op="rope",
        bug="positions pass through f16: right up to 2048",
        changes=(("kernels/rope.py", "b_pos.to(tl.float32)", "b_pos.to(tl.float16).to(tl.float32)"),),
    ),
    Mutant(
        name="rope-rest-left",
        op="rope",
        bug="the dims that do not turn are not copied; where the memory held zeros before, only poison tells",
        changes=(("kernels/rope.py", "if 2 * HALF < D:", "if 2 * HALF > D:"),),
    ),
    Mutant(
        name="rope-gap-ignored",
        op="rope",
        bug="heads are taken to lie side by side",
        changes=(("kernels/rope.py", "o_h.to(tl.int64)[:, None] * s_x_h", "o_h.to(tl.int64)[:, None] * D"),),
    ),
)
