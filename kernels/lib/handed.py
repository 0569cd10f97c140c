"""Equal shares of groups' records, a program each, and sums of groups that begin in one share and end in another.

    groups   |     0     |     1     |     2     |     as many records each
    shares   |   0   |   1   |   2   |   3   | 4 ..    of group 0 share 1 hands over to share 0, of group 1 2 to 1
    a word   EMPTY ──> a sum, by who hands it over ──> EMPTY again, by who reads until it is no more and takes it

Memory says by itself whether a sum is there: neither a fence nor a counter, and nothing is waited for but the sum.
EMPTY is all ones, a NaN that no arithmetic makes, and between launches all words are. Who takes waits, so who hands
over is to have begun by then: a program takes from those before it. Where a multiprocessor has several programs, those
that begin first end first: shares that take come last there, and find sums that are there.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: RUF005
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .eights import lanes, repeated


def at_once(E: int, registers: int, least: int, records: int) -> int:
    """Parts of E eights of columns that `take` is to have on their way: as many as there are of a group, of shares of
    at least so many records, and at least two, if a thread has registers for them beside the sums."""
    # measured
    most = 8 if E == 1 else 4 if E <= 4 else 1
    return max(1, min(most, (registers - 20) // (4 * E) - 1, max(2, 1 + (records - 2) // least)))


@gluon.jit
def owner(i, least, more):
    """The share that holds record i of all: `more` are a record longer than the `least`, and come first."""
    return gl.where(i < more * (least + 1), i // (least + 1), (i - more) // least)


@gluon.jit
def share(least, more, groups, records, LAST: gl.constexpr):
    """The program's, its first record and the one after its last. LAST: those that take come last."""
    programs = gl.num_programs(0)
    i_s = programs - 1 - gl.program_id(0)
    if LAST and programs > groups:
        # no share is longer than a group: as many as there are groups have a group's first record
        behind = i_s - groups + 1
        if behind > 0:
            alone = more - (more * (least + 1) + records - 1) // records
            if behind <= alone:
                i_s = behind + (behind * (least + 1) - 1) // (records - least - 1)
            else:
                i_s = behind + (behind * least + more - 1) // (records - least)
        else:
            i_s = owner(i_s * records, least, more)
    first = i_s * least + gl.minimum(i_s, more)
    return i_s, first, first + least + (i_s < more).to(gl.int32)


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
    """To the sums those of parts, as many as the last says, of at least one; where a lane's first four lie is before
    it. Those that are none are zeros."""
    n = 4 * E
    text = "{\n.reg .pred p0;\n.reg .b32 t;\n.reg .b64 e;\n.reg .b128 empty;\n"
    loads, empties = "", ""
    for k in range(parts):
        there = f"@p{k} " if k else ""
        if k:
            text += f".reg .pred p{k};\nsetp.gt.s32 p{k}, ${2 * n + 1}, {k};\n"
        for e in range(E):
            at, four = f"[${2 * n}+{512 * W * (E * k + e)}]", [f"w{n * k + 4 * e + r}" for r in range(4)]
            text += f".reg .b32 {', '.join(four)};\n" + "".join(f"mov.b32 {w}, 0;\n" for w in four if k)
            loads += f"{there}ld.relaxed.gpu.global.v4.b32 {{{', '.join(four)}}}, {at};\n"
            empties += f"{there}st.relaxed.gpu.global.b128 {at}, empty;\n"
    text += "again:\n" + loads + "mov.b32 t, 0;\n" + "".join(f"max.u32 t, t, w{i};\n" for i in range(n * parts))
    text += "setp.eq.u32 p0, t, 0xffffffff;\n@p0 bra again;\nbar.warp.sync 0xffffffff;\n"
    text += "mov.b64 e, 0xffffffffffffffff;\nmov.b128 empty, {e, e};\n" + empties
    return text + "".join(f"add.f32 ${i % n}, ${i % n}, w{i};\n" for i in range(n * parts)) + "}"


@gluon.constexpr_function
def _sums_given(E):
    return "=r,l" + ",r" * (4 * E)


@gluon.constexpr_function
def _sums_taken(E):
    """Those before are those after."""
    return ",".join(["=&r"] * (4 * E) + [str(i) for i in range(4 * E)]) + ",l,r"


@gluon.jit
def _place(p, W: gl.constexpr):
    """Of a part, where a lane's first four lie."""
    warp = gl.arange(0, W, layout=gl.SliceLayout(1, lanes(W)))[:, None]
    return p + (warp * 32 + gl.arange(0, 32, layout=gl.SliceLayout(0, lanes(W)))[None, :]) * 4


@gluon.jit
def _as(values, KIND: gl.constexpr):
    same = ()
    for r in gl.static_range(len(values)):
        same = same + (values[r].to(KIND, bitcast=True),)
    return same


@gluon.jit
def hand(p, acc, W: gl.constexpr):
    """W warps' sums, of registers [W, 32] as `eights` has them, to the part at p."""
    E: gl.constexpr = len(acc) // 4
    gl.inline_asm_elementwise(
        _given(E, W), _sums_given(E), (_place(p, W),) + _as(acc, gl.int32), gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def take(p, count, acc, W: gl.constexpr, AT: gl.constexpr):
    """acc and the sums of `count` parts from p on, in their order, AT of them on their way at once."""
    E: gl.constexpr = len(acc) // 4
    words = _as(acc, gl.int32)
    for q in range(0, count, AT):
        left = gl.full((W, 32), count - q, gl.int32, layout=lanes(W))
        words = gl.inline_asm_elementwise(
            _taken(E, W, AT), _sums_taken(E), words + (_place(p, W), left), repeated(gl.int32, 4 * E),
            is_pure=False, pack=1,
        )  # fmt: skip
        p += AT * 128 * W * E
    return _as(words, gl.float32)
