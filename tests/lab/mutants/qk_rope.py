"""Seeded bugs of qk_rope."""

from ..mutation import Mutant

KERNEL = "kernels/qk_rope.py"

MUTANTS = (
    Mutant(
        name="qk_rope-turned-back",
        op="qk_rope",
        bug="the second of a pair turns the other way",
        changes=((KERNEL, "b_b * b_cos + b_a * b_sin", "b_b * b_cos - b_a * b_sin"),),
    ),
    Mutant(
        name="qk_rope-one-weight",
        op="qk_rope",
        bug="keys are normed with the weight of the queries",
        changes=((KERNEL, "_heads(k, s_k_t, s_k_h, k_weight,", "_heads(k, s_k_t, s_k_h, q_weight,"),),
    ),
    Mutant(
        name="qk_rope-mean-of-the-turned",
        op="qk_rope",
        bug="the mean square leaves out the dims that do not turn",
        changes=((KERNEL, " + tl.sum(b_rest * b_rest, 1)", ""),),
    ),
    Mutant(
        name="qk_rope-no-eps",
        op="qk_rope",
        bug="eps is left out: a head of zeros becomes NaN",
        changes=((KERNEL, "b_sum / D + eps", "b_sum / D"),),
    ),
    Mutant(
        name="qk_rope-weight-of-the-first-half",
        op="qk_rope",
        bug="both of a pair take the weight of the first",
        changes=((KERNEL, "weight + HALF + o_r", "weight + o_r"),),
    ),
    Mutant(
        name="qk_rope-head-too-many",
        op="qk_rope",
        bug="heads past the last are turned too, over the next token's first: race and redzone see it",
        changes=((KERNEL, "m_h, m_r, m_d = (o_h < H)[:, None]", "m_h, m_r, m_d = (o_h < H + 1)[:, None]"),),
    ),
    Mutant(
        name="qk_rope-quarter-lost",
        op="qk_rope",
        bug="of four quarters of a turn the last two are not told apart",
        changes=(("kernels/lib/turn.py", "((b_n + 1) & 2) != 0, -b_c, b_c)", "(b_n & 2) != 0, -b_c, b_c)"),),
    ),
    Mutant(
        name="qk_rope-turns-in-f32",
        op="qk_rope",
        bug="turns are counted in f32: right up to a few thousand",
        changes=(("kernels/lib/turn.py", "b_angle.to(tl.float64) *", "b_angle *"),),
    ),
)
