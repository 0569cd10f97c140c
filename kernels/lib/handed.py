"""Sums that one program hands over to another: memory says by itself whether they are there.

    a word    EMPTY ──> a sum, by who hands it over ──> EMPTY again, by who reads until it is no more and takes it

Neither a fence nor a counter, and nothing is waited for but the sum. EMPTY is all ones, a NaN that no arithmetic
makes, and between launches all words are. Who takes waits, so who hands over is to have begun by then: a program takes
from those before it.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: RUF005
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .eights import lanes, repeated


def at_once(E: int, registers: int) -> int:
    """Parts of E eights of columns that `take` is to have on their way, for which a thread has registers."""
    few = registers < 104
    return 8 if E <= 2 else 2 if few or E > 4 else 5 if E == 3 else 4


@gluon.constexpr_function
def _given(E, W):
    """$0: nothing; $1: where a lane's first four lie; then the sums."""
    text = "{\n.reg .b32 a, b, c, d;\n"
    for e in range(E):
        for r, name in enumerate("abcd"):
            text += f"min.u32 {name}, ${2 + 4 * e + r}, 0xfffffffe;\n"
        text += f"st.relaxed.gpu.global.v4.b32 [$1+{512 * W * e}], {{a, b, c, d}};\n"
    return text + "mov.b32 $0, 0;\n}"


@gluon.constexpr_function
def _taken(E, W, parts):
    """Of parts as many as the last says; where a lane's first four lie is before it. Those that are none are zeros."""
    n = 4 * E * parts
    text = "{\n.reg .b32 t;\n" + "".join(f".reg .pred p{k};\n" for k in range(parts + 1))
    loads, empties = "", ""
    for k in range(parts):
        text += f"setp.gt.s32 p{k}, ${n + 1}, {k};\n"
        for e in range(E):
            four = "{" + ", ".join(f"${4 * (E * k + e) + r}" for r in range(4)) + "}"
            at = f"[${n}+{512 * W * (E * k + e)}]"
            loads += f"@p{k} ld.relaxed.gpu.global.v4.b32 {four}, {at};\n"
            empties += f"@p{k} st.relaxed.gpu.global.v4.b32 {at}, {{t, t, t, t}};\n"
    text += "".join(f"mov.b32 ${i}, 0;\n" for i in range(n)) + "again:\n" + loads + "mov.b32 t, 0;\n"
    text += "".join(f"max.u32 t, t, ${i};\n" for i in range(n)) + f"setp.eq.u32 p{parts}, t, 0xffffffff;\n"
    return text + f"@p{parts} bra again;\nbar.warp.sync 0xffffffff;\nmov.b32 t, 0xffffffff;\n" + empties + "}"


@gluon.constexpr_function
def _registers(into, values):
    return ",".join(["=&r"] * into + ["l"] + ["r"] * values)


@gluon.jit
def _place(p, W: gl.constexpr):
    """Of a part, where a lane's first four lie."""
    warp = gl.arange(0, W, layout=gl.SliceLayout(1, lanes(W)))[:, None]
    return p + (warp * 32 + gl.arange(0, 32, layout=gl.SliceLayout(0, lanes(W)))[None, :]) * 4


@gluon.jit
def hand(p, acc, W: gl.constexpr):
    """W warps' sums, of registers [W, 32] as `eights` has them, to the part at p."""
    E: gl.constexpr = len(acc) // 4
    words = ()
    for r in gl.static_range(len(acc)):
        words = words + (acc[r].to(gl.int32, bitcast=True),)
    gl.inline_asm_elementwise(
        _given(E, W), _registers(1, 4 * E), (_place(p, W),) + words, gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def take(p, count, acc, W: gl.constexpr, AT: gl.constexpr):
    """acc and the sums of `count` parts from p on, in their order, AT of them on their way at once."""
    E: gl.constexpr = len(acc) // 4
    for q in range(0, count, AT):
        left = gl.full((W, 32), count - q, gl.int32, layout=lanes(W))
        words = gl.inline_asm_elementwise(
            _taken(E, W, AT), _registers(4 * E * AT, 1), (_place(p, W), left), repeated(gl.int32, 4 * E * AT),
            is_pure=False, pack=1,
        )  # fmt: skip
        for k in gl.static_range(AT):
            added = ()
            for r in gl.static_range(4 * E):
                added = added + (acc[r] + words[4 * E * k + r].to(gl.float32, bitcast=True),)
            acc = added
        p += AT * 128 * W * E
    return acc
