"""Seeded bugs of kv_quant."""

from ..mutation import Mutant

FILE = "kernels/kv_quant.py"

MUTANTS = (
    Mutant(
        name="kv_quant-halves-down",
        op="kv_quant",
        bug="q8_0 rounds halves above zero towards it",
        changes=((FILE, "b_rest >= 0.5", "b_rest > 0.5"),),
    ),
    Mutant(
        name="kv_quant-last-of-equals",
        op="kv_quant",
        bug="q4_0 loses the order of equals between the halves of a block",
        changes=((FILE, "2 * o_j + 32 + (b_high", "2 * o_j + (b_high"),),
    ),
    Mutant(
        name="kv_quant-swapped-nibbles",
        op="kv_quant",
        bug="q4_0 puts the second half of a block into the low nibbles",
        changes=(
            (FILE, "b_low = tl.load(p_low, mask", "b_low = tl.load(p_low + 16, mask"),
            (FILE, "b_high = tl.load(p_low + 16, mask", "b_high = tl.load(p_low, mask"),
        ),
    ),
    Mutant(
        name="kv_quant-wrong-signs",
        op="kv_quant",
        bug="tq3_0 uses the second sign vector twice",
        changes=((FILE, "signed(b_unit, o_i, False)", "signed(b_unit, o_i, True)"),),
    ),
    Mutant(
        name="kv_quant-plain-norm",
        op="kv_quant",
        bug="tq3_0 stores the norm without making up for that of the codes",
        changes=((FILE, "tl.div_rn(b_norm, tl.sqrt_rn(pairwise_sum(b_c * b_c)))", "b_norm"),),
    ),
    Mutant(
        name="kv_quant-sum-in-any-order",
        op="kv_quant",
        bug="tq3_0 sums the squares in an order of its own: a last bit of a norm, now and then",
        changes=((FILE, "pairwise_sum(b_x * b_x)", "tl.sum(b_x * b_x * 1.0000001, axis=1, keep_dims=True)"),),
    ),
    Mutant(
        name="kv_quant-slot-past-the-cache",
        op="kv_quant",
        bug="a slot past the end is written: only bounds and redzone see it",
        changes=((FILE, "(b_slot >= 0) & (b_slot < S)", "(b_slot >= 0) & (b_slot <= S)"),),
    ),
    Mutant(
        name="kv_quant-infinity-kept",
        op="kv_quant",
        bug="a block with an infinite value keeps an infinite scale and undefined codes",
        changes=((FILE, "tl.where(b_lost, NAN_F16, b_d", "tl.where(b_d != b_d, NAN_F16, b_d"),),
    ),
)
