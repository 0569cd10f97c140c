"""Seeded bugs of conv_line."""

from ..mutation import Mutant

KERNEL = "kernels/conv_line.py"

MUTANTS = (
    Mutant(
        name="conv_line-taps-reversed",
        op="conv_line",
        bug="tap 0 is the token's own",
        changes=((KERNEL, "o_r = o_t - (W - 1 - tap)", "o_r = o_t - tap"),),
    ),
    Mutant(
        name="conv_line-history-off-by-one",
        op="conv_line",
        bug="the newest row of the state is taken to be the one before",
        changes=((KERNEL, "(W - 1 + o_r)[:, None] * C", "(W - 2 + o_r)[:, None] * C"),),
    ),
    Mutant(
        name="conv_line-blocks-start-anew",
        op="conv_line",
        bug="the first tokens of every block look at the state, not at the rows before them",
        changes=(
            (
                KERNEL,
                "o_r = o_t - (W - 1 - tap)",
                "o_r = tl.where(o_t - i_t * BT < W - 1 - tap, o_t - i_t * BT, o_t) - (W - 1 - tap)",
            ),
        ),
    ),
    Mutant(
        name="conv_line-state-replaced",
        op="conv_line",
        bug="fewer tokens than the state has rows: what stays of it does not move up",
        changes=((KERNEL, "source[:, None] * C, mask=m & m_old", "o_w[:, None] * C, mask=m & m_old"),),
    ),
    Mutant(
        name="conv_line-state-moved-by-all",
        op="conv_line",
        bug="every block of tokens moves the state on, while the first still reads it: only race and order see it",
        changes=((KERNEL, "if i_t == 0:", "if i_t >= 0:"),),
    ),
    Mutant(
        name="conv_line-channels-unmasked",
        op="conv_line",
        bug="the state is written past its last channel",
        changes=((KERNEL, "b_row, mask=m)", "b_row, mask=(o_w < W - 1)[:, None])"),),
    ),
    Mutant(
        name="conv_line-shared-oldest-tap",
        op="conv_line",
        bug="the oldest tap of the first token reads the row after, in the reference too: only the path oracle sees it",
        changes=(
            (
                KERNEL,
                "o_r = o_t - (W - 1 - tap)",
                "o_r = tl.where((o_t == 0) & (tap == 0) & (T > 1), 2 - W, o_t - (W - 1 - tap))",
            ),
            (
                "reference/conv_line.py",
                "    state.copy_(torch.cat([state, u.to",
                "    if T > 1:\n        total[:, 0] += weight[:, 0].to(wide) * (rows[:, 1] - rows[:, 0])\n"
                "    state.copy_(torch.cat([state, u.to",
            ),
        ),
    ),
)
