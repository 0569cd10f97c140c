"""Seeded bugs of swiglu."""

from ..mutation import Mutant

KERNEL = "kernels/swiglu.py"

MUTANTS = (
    Mutant(
        name="swiglu-roles-swapped",
        op="swiglu",
        bug="the up half goes through silu and the gate multiplies",
        changes=((KERNEL, "b_gate / (1 + tl.exp(-b_gate)) * b_up", "b_up / (1 + tl.exp(-b_up)) * b_gate"),),
    ),
    Mutant(
        name="swiglu-sigmoid",
        op="swiglu",
        bug="a gate of sigmoid instead of silu",
        changes=((KERNEL, "b_gate / (1 +", "1 / (1 +"),),
    ),
    Mutant(
        name="swiglu-one-stride-for-both",
        op="swiglu",
        bug="up is read with gate's row stride",
        changes=((KERNEL, "up + i_m * s_up_m", "up + i_m * s_gate_m"),),
    ),
    Mutant(
        name="swiglu-tail-spills",
        op="swiglu",
        bug="the last block of a row is stored whole: the next row repairs it or not, as the order of programs has it",
        changes=((KERNEL, "b_y.to(out.dtype.element_ty), mask=m_f)", "b_y.to(out.dtype.element_ty))"),),
    ),
    Mutant(
        name="swiglu-half-a-block",
        op="swiglu",
        bug="blocks of a row are counted rounding down: the tail is never written, which the poison oracle names",
        changes=((KERNEL, "triton.cdiv(F, config.BLOCK_F)", "max(1, F // config.BLOCK_F)"),),
    ),
    Mutant(
        name="swiglu-over-its-gate",
        op="swiglu",
        bug="the output is written over a gate without gaps, which nobody offered: only the unchanged oracle sees it",
        changes=(
            (
                KERNEL,
                "out = torch.empty((M, F), dtype=gate.dtype, device=gate.device)",
                "out = gate if gate.is_contiguous() else torch.empty((M, F), dtype=gate.dtype, device=gate.device)",
            ),
        ),
    ),
    Mutant(
        name="swiglu-last-block-moved-back",
        op="swiglu",
        bug="the last block of a row moves back to be whole, so two programs store the same bits: only race sees it",
        changes=(
            (
                KERNEL,
                "(tl.program_id(0) % NF).to(tl.int64) * BF + tl.arange(0, BF)",
                "tl.maximum(tl.minimum((tl.program_id(0) % NF) * BF, F - BF), 0) + tl.arange(0, BF)",
            ),
        ),
    ),
)
