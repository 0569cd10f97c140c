"""Seeded bugs of gdn_commit."""

from ..mutation import Mutant

KERNEL = "kernels/gdn_commit.py"

MUTANTS = (
    Mutant(
        name="gdn_commit-decay-with-own",
        op="gdn_commit",
        bug="wy: a row decays by its own g too",
        changes=((KERNEL, "o_d[None, :] > o_d[:, None]", "o_d[None, :] >= o_d[:, None]"),),
    ),
    Mutant(
        name="gdn_commit-old-state-kept-whole",
        op="gdn_commit",
        bug="wy: the old state does not decay",
        changes=((KERNEL, "b_new = tl.exp(b_below) * b_old", "b_new = b_old"),),
    ),
    Mutant(
        name="gdn_commit-block-order",
        op="gdn_commit",
        bug="wy: blocks of a long path are summed from the root down, with the decays above instead of below",
        changes=((KERNEL, "(blocks - 1 - back) * BD + o_d", "back * BD + o_d"),),
    ),
    Mutant(
        name="gdn_commit-slots-not-path",
        op="gdn_commit",
        bug="replay: tokens are taken by depth, not by the path",
        changes=((KERNEL, "node = tl.load(path + i_b * D + d).to(tl.int64)", "node = i_b * 0 + d"),),
    ),
    Mutant(
        name="gdn_commit-one-short",
        op="gdn_commit",
        bug="store: the state of the last accepted node's parent is installed",
        changes=((KERNEL, "path + i_b * D + count - 1)", "path + i_b * D + tl.maximum(count - 2, 0))"),),
    ),
    Mutant(
        name="gdn_commit-nothing-accepted",
        op="gdn_commit",
        bug="store: with nothing accepted slot 0 is installed",
        changes=(
            (
                KERNEL,
                "    if count > 0:\n        node = tl.load(path + i_b * D + count - 1)",
                "    if count >= 0:\n        node = tl.maximum(tl.load(path + i_b * D), 0)",
            ),
        ),
    ),
    Mutant(
        name="gdn_commit-length-ignored",
        op="gdn_commit",
        bug="wy: slots of the path behind its length count as node 0, unless they are masked",
        changes=((KERNEL, "m_p = o_p < count", "m_p = o_p < D"),),
    ),
    Mutant(
        name="gdn_commit-infinity-split",
        op="gdn_commit",
        bug="wy: an infinity is split like a number, and its rest is NaN: only the nonfinite oracle sees it",
        changes=((KERNEL, "INFINITE=True", "INFINITE=False"),),
    ),
    Mutant(
        name="gdn_commit-nan-to-zero",
        op="gdn_commit",
        bug="wy: a NaN in the state is swallowed: only the nonfinite oracle sees it",
        changes=(
            (
                KERNEL,
                "    tl.store(p_s, b_new",
                "    b_new = tl.where(b_new == b_new, b_new, 0.0)\n    tl.store(p_s, b_new",
            ),
        ),
    ),
    Mutant(
        name="gdn_commit-shared-last-u",
        op="gdn_commit",
        bug="wy: the leaf's own row is left out, in kernel and reference alike: only the path oracle sees it",
        changes=(
            (
                KERNEL,
                "b_u = tl.load(p_u, mask=m_p[:, None], other=0.0)",
                "b_u = tl.load(p_u, mask=(o_p < count - 1)[:, None], other=0.0)",
            ),
            ("reference/gdn_commit.py", "for d, node in enumerate(nodes):", "for d, node in enumerate(nodes[:-1]):"),
        ),
    ),
)
