"""Seeded bugs of advance."""

from ..mutation import Mutant

KERNEL = "kernels/advance.py"

MUTANTS = (
    Mutant(
        name="advance-one-too-many",
        op="advance",
        bug="the first rejected token is committed too",
        changes=((KERNEL, "(o_d < count)", "(o_d <= count)"),),
    ),
    Mutant(
        name="advance-slots-not-path",
        op="advance",
        bug="the first tokens are committed, whatever the path says",
        changes=((KERNEL, "tl.load(path + o_d, mask=m_d, other=0)", "o_d"),),
    ),
    Mutant(
        name="advance-past-the-context",
        op="advance",
        bug="tokens are written past the context's end",
        changes=((KERNEL, "mask=m_d & (first + o_d < S)", "mask=m_d"),),
    ),
    Mutant(
        name="advance-root-not-counted",
        op="advance",
        bug="the context grows by one too few: the root is committed twice",
        changes=((KERNEL, "tl.store(start, first + count)", "tl.store(start, first + count - 1)"),),
    ),
    Mutant(
        name="advance-count-not-told",
        op="advance",
        bug="the host is told how many fit, not how many there are",
        changes=((KERNEL, "tl.store(emitted, count)", "tl.store(emitted, tl.minimum(count, told))"),),
    ),
)
