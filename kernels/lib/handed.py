"""Equal shares of groups' records, a program each, and sums of groups that begin in one share and end in another.

    groups   |     0     |     1     |     2     |     as many records each
    shares   |   0   |   1   |   2   |   3   | 4 ..    of group 0 share 1 hands over to share 0, of group 1 2 to 1
    a word   EMPTY ──> a sum, by who hands it over ──> EMPTY again, by who reads until it is no more and takes it

Memory says by itself whether a sum is there: neither a fence nor a counter, and nothing is waited for but the sum.
EMPTY is all ones, a NaN that no arithmetic makes, and between launches all words are. Four words come and go at once,
so the first of them says whether they are there. Who takes waits, so who hands over is to have begun by then: a program
takes from those before it. Where a multiprocessor has several programs, those that begin first end first: shares that
take come last there, and find sums that are there.

Where it has one program, all that share a group end at about the same time. There as many of them as there are eights
of columns take one each, or some: of all but the group's last share, which has its part at first and other groups to
go on with. They wait for each other, so as many programs as share a group are to find room on the GPU at once.
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: RUF005
import functools

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .eights import lanes, repeated

# what a kernel takes of `shares`, and hands on in this order
SHARES = ("least", "more", "alone", "by_records", "by_least", "by_longer", "by_rest", "by_rest_longer")


def by(d: int) -> int:
    """What `over` divides by d with, 2^30 / d rounded up: exact where i * d < 2^30. A division is twenty instructions,
    each waiting for the one before, at the start of every program."""
    return -(-(1 << 30) // max(d, 1))


def countable(groups: int, records: int, programs: int) -> bool:
    """Whether all records of a weight can be divided so, by those of a group and of a share."""
    return groups * records * max(records, groups * records // programs + 1) < 1 << 30


@functools.cache
def shares(groups: int, records: int, programs: int) -> tuple[int, ...]:
    """What programs are to know of their shares: records of the least, how many have one more, how many of these have
    no group's first record, and by what is divided: records of a group, of a share, of a longer one, and of a group
    beyond a share and beyond a longer one."""
    least, more = divmod(groups * records, programs)
    alone = more - -(-more * (least + 1) // records)
    divisors = records, least, least + 1, records - least, records - least - 1
    if not countable(groups, records, programs):
        raise ValueError(f"{programs} programs do not take {groups} groups of {records} records")
    return least, more, alone, *map(by, divisors)


@functools.cache
def sharers(groups: int, records: int, programs: int) -> int:
    """Shares of a group at most."""
    least, more, *_ = shares(groups, records, programs)

    def whose(i: int) -> int:
        return i // (least + 1) if i < more * (least + 1) else (i - more) // least

    return max(1 + whose((i + 1) * records - 1) - whose(i * records) for i in range(groups))


def each(E: int, least: int, records: int, alone: bool) -> int:
    """Of E eights of columns those that one share takes: all, if its program is not `alone` on a multiprocessor."""
    takers = max(1, -(-records // (least + 1)) - 1) if alone else 1
    return -(-E // min(E, takers))


def at_once(E: int, registers: int, many: int) -> int:
    """Parts of E eights of columns that `take` is to have on their way: as many as a group of `many` shares has, if a
    thread has registers for them beside the sums."""
    # measured
    most = 8 if E == 1 else 6 if E == 2 else 5 if E == 3 else 4 if E == 4 else 1
    return max(1, min(most, (registers - 8) // (4 * E) - 1, many - 1))


@gluon.jit
def over(i, by):
    """i / d, of the `by` of d."""
    return ((i.to(gl.int64) * by) >> 30).to(gl.int32)


@gluon.jit
def owner(i, shares):
    """The share that holds record i of all: those that are a record longer than the least come first."""
    longer = i < shares[1] * (shares[0] + 1)
    return over(gl.where(longer, i, i - shares[1]), gl.where(longer, shares[5], shares[4]))


@gluon.jit
def share(shares, groups, records, LAST: gl.constexpr):
    """The program's, its first record and the one after its last. LAST: those that take come last."""
    least, more, alone = shares[0], shares[1], shares[2]
    programs = gl.num_programs(0)
    i_s = programs - 1 - gl.program_id(0)
    if LAST and programs > groups:
        # no share is longer than a group: as many as there are groups have a group's first record
        behind = i_s - groups + 1
        if behind > 0:
            longer = behind <= alone
            before = behind * least + gl.where(longer, behind, more) - 1
            i_s = behind + over(before, gl.where(longer, shares[7], shares[6]))
        else:
            i_s = owner(i_s * records, shares)
    first = i_s * least + gl.minimum(i_s, more)
    return i_s, first, first + least + (i_s < more).to(gl.int32)


@gluon.jit
def between(i_s, g0, g1, first, shares, records, E: gl.constexpr, EACH: gl.constexpr):
    """Of a share's first group the first share, or if only that one takes, whether it is another one; of its last
    group the last share."""
    a = owner(g0 * records, shares) if EACH < E else i_s - (first > g0 * records).to(gl.int32)
    return a, owner((g1 + 1) * records - 1, shares)


@gluon.constexpr_function
def _given(E, W, each):
    """$0: nothing; $1: where a lane's first four lie; then the sums, and which `each` eights of them are not given."""
    text = "{\n.reg .b32 a;\n.reg .b64 l, h;\n.reg .b128 four;\n"
    if each < E:
        text += "".join(f".reg .pred p{i};\nsetp.ne.s32 p{i}, ${2 + 4 * E}, {i};\n" for i in range(-(-E // each)))
    for e in range(E):
        words, given = [f"${2 + 4 * e + r}" for r in range(4)], f"@p{e // each} " if each < E else ""
        text += f"min.u32 a, {words[0]}, 0xfffffffe;\nmov.b64 l, {{a, {words[1]}}};\n"
        text += f"mov.b64 h, {{{words[2]}, {words[3]}}};\nmov.b128 four, {{l, h}};\n"
        text += f"{given}st.relaxed.gpu.global.b128 [$1+{512 * W * e}], four;\n"
    return text + "mov.b32 $0, 0;\n}"


@gluon.constexpr_function
def _taken(each, E, W, parts):
    """To the sums of `each` eights those of parts, E eights apart, in $: the sums, where a lane's first four lie, and
    how many parts there are, of at least one. If each < E, how many of these are before a part that is not to be
    taken, where the first four would lie if it were before all, and how many eights there are."""
    n = 4 * each
    text = "{\n.reg .pred more;\n.reg .b32 t;\n.reg .b64 e, any;\n.reg .b128 empty;\n"
    loads, empties, adds, found = "", "", "", "mov.b32 t, 0;\n"
    for k in range(parts):
        base, part = f"${2 * n}", f"@p{k} " if k else ""
        if k:
            text += f".reg .pred p{k};\nsetp.gt.s32 p{k}, ${2 * n + 1}, {k};\n"
        if each < E:
            base = f"at{k}"
            text += f".reg .pred o{k};\n.reg .b64 at{k};\nsetp.gt.s32 o{k}, ${2 * n + 2}, {k};\n"
            text += f"selp.b64 at{k}, ${2 * n}, ${2 * n + 3}, o{k};\n"
        for e in range(each):
            at, four, there = f"[{base}+{512 * W * (E * k + e)}]", [f"w{n * k + 4 * e + r}" for r in range(4)], part
            if e and E % each:
                there = f"@p{k}e{e} "
                text += f".reg .pred p{k}e{e};\nsetp.gt.s32 p{k}e{e}, ${2 * n + 4}, {e};\n"
                text += f"and.pred p{k}e{e}, p{k}e{e}, p{k};\n" if k else ""
            low, high, q = (f"{name}{n // 4 * k + e}" for name in "lhq")
            text += f".reg .b32 {', '.join(four)};\n.reg .b64 {low}, {high};\n.reg .b128 {q};\n"
            # of none only the first word is looked at, and nothing is added
            text += f"mov.b64 e, 0;\nmov.b128 {q}, {{e, any}};\n" if there else ""
            loads += f"{there}ld.relaxed.gpu.global.b128 {q}, {at};\n"
            found += f"mov.b128 {{{low}, {high}}}, {q};\nmov.b64 {{{four[0]}, {four[1]}}}, {low};\n"
            found += f"mov.b64 {{{four[2]}, {four[3]}}}, {high};\nmax.u32 t, t, {four[0]};\n"
            empties += f"{there}st.relaxed.gpu.global.b128 {at}, empty;\n"
            adds += "".join(f"{there}add.f32 ${4 * e + r}, ${4 * e + r}, {four[r]};\n" for r in range(4))
    text += "again:\n" + loads + found
    text += "setp.eq.u32 more, t, 0xffffffff;\n@more bra again;\nbar.warp.sync 0xffffffff;\n"
    return text + "mov.b64 e, 0xffffffffffffffff;\nmov.b128 empty, {e, e};\n" + empties + adds + "}"


@gluon.constexpr_function
def _sums_given(E, each):
    return "=r,l" + ",r" * (4 * E + (each < E))


@gluon.constexpr_function
def _sums_taken(each, E):
    """Those before are those after."""
    return ",".join(["=&r"] * (4 * each) + [str(i) for i in range(4 * each)]) + (",l,r,r,l,r" if each < E else ",l,r")


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
def _everywhere(x, W: gl.constexpr):
    return gl.full((W, 32), x, gl.int32, layout=lanes(W))


@gluon.jit
def hand(p, acc, mine, W: gl.constexpr, EACH: gl.constexpr):
    """W warps' sums, of registers [W, 32] as `eights` has them, to the part at p, but for EACH eights that are mine."""
    E: gl.constexpr = len(acc) // 4
    given = (_place(p, W),) + _as(acc, gl.int32)
    if EACH < E:
        given = given + (_everywhere(mine, W),)
    gl.inline_asm_elementwise(_given(E, W, EACH), _sums_given(E, EACH), given, gl.int32, is_pure=False, pack=1)


@gluon.jit
def take(p, mine, count, own, W: gl.constexpr, E: gl.constexpr, AT: gl.constexpr):
    """`own`, eights of E, and the same of `count` parts from p on, in their order, AT of them on their way at once. If
    they are some of E, those that are `mine`, the part that is mine lies among the others, and is passed over."""
    EACH: gl.constexpr = len(own) // 4
    words = _as(own, gl.int32)
    if EACH < E:
        p += mine * (128 * W * EACH)
    for q in range(0, count, AT):
        given = words + (_place(p, W), _everywhere(count - q, W))
        if EACH < E:
            given = given + (
                _everywhere(mine - q, W), _place(p + 128 * W * E, W), _everywhere(E - mine * EACH, W)
            )  # fmt: skip
        words = gl.inline_asm_elementwise(
            _taken(EACH, E, W, AT), _sums_taken(EACH, E), given, repeated(gl.int32, 4 * EACH), is_pure=False, pack=1
        )
        p += AT * 128 * W * E
    return _as(words, gl.float32)


@gluon.constexpr_function
def _within(i, many):
    return min(i, many - 1)


@gluon.jit
def chosen(acc, mine, EACH: gl.constexpr):
    """Of sums EACH eights, those that are mine: behind the last one, that one again."""
    own = ()
    for r in gl.static_range(4 * EACH):
        x = acc[r]
        for i in gl.static_range(1, (len(acc) + 4 * EACH - 1) // (4 * EACH)):
            x = gl.where(mine == i, acc[_within(4 * EACH * i + r, len(acc))], x)
        own = own + (x,)
    return own
