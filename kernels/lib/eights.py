"""Products of 16 W rows with any number of eights of columns: wgmma takes N = 24, Gluon's tensors powers of two.

    A    four registers a lane and 16 columns: of rows g, g + 8 the pairs at 2t, 2t + 8
    B    [eights, 4, 8, 64] of shared memory in the 128-byte swizzle: 4 KiB an eight, a KiB 64 columns of it
    sums four registers a lane and eight: rows g, g + 8, columns 2t, 2t + 1

Registers are tensors [W, 32] of one number a lane each (lane 4g + t), in `lanes`. wgmma finds B by its address, and A
where it lies in shared memory too. How rows lie there is the upper half of its descriptor: swizzle and what eights of
rows are apart, or of columns where these lie side by side (`turned`; the lower half then says what panels are apart).
"""

# tuples of tensors grow by what is added to them, which Triton reads and mypy does not
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: RUF005
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def lanes(W):
    return gl.BlockedLayout([1, 1], [1, 32], [W, 1], [1, 0])


@gluon.constexpr_function
def repeated(kind, count):
    return (kind,) * count


# rows of 128 bytes, eights of them 1024 or 4096 bytes apart; rows of 32 bytes, 256 or 4096
SWIZZLED_128, SWIZZLED_32 = gl.constexpr(0x40000040), gl.constexpr(0xC0000010)
EIGHTS_128, EIGHTS_32 = gl.constexpr(0x40000100), gl.constexpr(0xC0000100)


@gluon.constexpr_function
def _product(eights, kind, steps, high, turned, before=True, high_a=0):
    """Products of 16 columns, in one group. $: sums, sums before (the same registers), A or, where `high_a` says how A
    lies, its address / 16, B's address / 16, and 0 where nothing was before; or no sums before, and nothing that says
    so. Turned are B, or both where both are in shared memory."""
    n, shared = 4 * eights, bool(high_a)
    sums, left = ", ".join(f"${i}" for i in range(n)), 2 * n if before else n
    at = left + (1 if shared else 4 * steps)
    # the first adds or not, the others do
    text = (
        "{\n.reg .b64 d, e;\n.reg .b32 l, h, k;\n.reg .pred p0, p1;\n"
        f"setp.ne.u32 p0, {f'${at + 1}' if before else 0}, 0;\nsetp.eq.u32 p1, 0, 0;\n"
        f"mov.b32 h, {high:#x};\nmov.b32 k, {high_a:#x};\nwgmma.fence.sync.aligned;\n"
    )
    # of A, and of B, from 16 columns to the next, by 16 bytes
    next_a, next_b = 128 if turned else 2, 32 if turned else 16 if shared else 2
    for i in range(steps):
        a = "{" + ", ".join(f"${left + 4 * i + r}" for r in range(4)) + "}"
        if shared:
            a, text = "e", text + f"add.u32 l, ${left}, {next_a * i};\nmov.b64 e, {{l, k}};\n"
        text += f"add.u32 l, ${at}, {next_b * i};\nmov.b64 d, {{l, h}};\n"
        text += f"wgmma.mma_async.sync.aligned.m64n{8 * eights}k16.f32.{kind}.{kind} {{{sums}}}, {a}, d, "
        text += f"{'p1' if i else 'p0'}, 1, 1, {f'{turned}, ' if shared else ''}{turned};\n"
    return text + "wgmma.commit_group.sync.aligned;\n}"


@gluon.constexpr_function
def _registers(eights, a, before=True):
    n = 4 * eights
    return ",".join(["=f"] * n + [str(i) for i in range(n if before else 0)] + ["r"] * a)


@gluon.constexpr_function
def _waited(left):
    return f"wgmma.wait_group.sync.aligned {left};"


@gluon.jit
def multiplied(
    acc, a, at, more, W: gl.constexpr, BF16: gl.constexpr, HIGH: gl.constexpr = EIGHTS_128, TURNED: gl.constexpr = 0
):  # fmt: skip
    """A · Bᵀ of a's columns, under way, and acc if there is `more`; at: where B's columns lie, by 16 bytes."""
    E: gl.constexpr = len(acc) // 4
    at = gl.full((W, 32), at, gl.int32, layout=lanes(W))
    more = gl.full((W, 32), more, gl.int32, layout=lanes(W))
    return gl.inline_asm_elementwise(
        _product(E, "bf16" if BF16 else "f16", len(a) // 4, HIGH, TURNED), _registers(E, len(a) + 2),
        acc + a + (at, more), repeated(gl.float32, 4 * E), is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def begun(a, at, E: gl.constexpr, HIGH: gl.constexpr):
    """A · Bᵀ of 16 columns of f16 and 8 E rows of B, under way, in four warps; nothing was before."""
    at = gl.full((4, 32), at, gl.int32, layout=lanes(4))
    return gl.inline_asm_elementwise(
        _product(E, "f16", 1, HIGH, 0, False), _registers(E, 5, False), a + (at,), repeated(gl.float32, 4 * E),
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def met(
    acc, at_a, at, more, W: gl.constexpr, STEPS: gl.constexpr, HIGH_A: gl.constexpr, HIGH: gl.constexpr,
    TURNED: gl.constexpr = 0,
):  # fmt: skip
    """A · Bᵀ of 16 STEPS columns of f16, both in shared memory; at_a: [W, 32], a warp group's own."""
    E: gl.constexpr = len(acc) // 4
    at = gl.full((W, 32), at, gl.int32, layout=lanes(W))
    more = gl.full((W, 32), more, gl.int32, layout=lanes(W))
    return gl.inline_asm_elementwise(
        _product(E, "f16", STEPS, HIGH, TURNED, True, HIGH_A), _registers(E, 3), acc + (at_a, at, more),
        repeated(gl.float32, 4 * E), is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def waited(acc, left: gl.constexpr):
    """The sums when no more than `left` products are under way."""
    E: gl.constexpr = len(acc) // 4
    return gl.inline_asm_elementwise(
        _waited(left), _registers(E, 0), acc, repeated(gl.float32, 4 * E), is_pure=False, pack=1
    )


@gluon.jit
def _joined(x):
    y = ()
    for i in gl.static_range(len(x) // 2):
        y = y + (gl.join(x[2 * i], x[2 * i + 1]),)
    return y


@gluon.jit
def gathered(acc, first: gl.constexpr, W: gl.constexpr):
    """Sums of 16 columns from the first on, as a tensor [16 W, 16]."""
    x = ()
    for i in gl.static_range(8):
        x = x + (acc[first // 2 + i],)
    for _i in gl.static_range(3):
        x = _joined(x)
    # W g t h r e
    y = gl.permute(gl.reshape(x[0], (W, 8, 4, 2, 2, 2)), (0, 4, 1, 5, 2, 3))
    return gl.reshape(y, (16 * W, 16))
