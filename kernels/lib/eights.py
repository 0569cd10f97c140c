"""Products of 16 W rows with any number of eights of columns: wgmma takes N = 24, Gluon's tensors powers of two.

    A    16 registers a lane, 64 columns: of rows g, g + 8 the pairs at 2t, 2t + 8 of 16, four times
    B    [eights, 4, 8, 64] of shared memory in the 128-byte swizzle: 4 KiB an eight, a KiB 64 columns of it
    sums four registers a lane and eight: rows g, g + 8, columns 2t, 2t + 1

Registers are tensors [W, 32] of one number a lane each (lane 4g + t), in `lanes`. wgmma finds B by its address.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

@gluon.constexpr_function
def lanes(W):
    return gl.BlockedLayout([1, 1], [1, 32], [W, 1], [1, 0])


@gluon.constexpr_function
def _each(kind, count):
    return (kind,) * count


@gluon.constexpr_function
def _product(eights, kind):
    """Four products of 16 columns, in one group. $: sums, sums before (the same registers), A, B's address / 16."""
    n = 4 * eights
    sums = ", ".join(f"${i}" for i in range(n))
    # rows eight apart are 4096 bytes apart; what the upper word says of the swizzle
    text = "{\n.reg .b64 d;\n.reg .b32 l, h;\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nmov.b32 h, 0x40000100;\nwgmma.fence.sync.aligned;\n"
    for k in range(4):
        a = ", ".join(f"${2 * n + 4 * k + i}" for i in range(4))
        text += f"add.u32 l, ${2 * n + 16}, {2 * k};\nmov.b64 d, {{l, h}};\n"
        text += f"wgmma.mma_async.sync.aligned.m64n{8 * eights}k16.f32.{kind}.{kind} {{{sums}}}, {{{a}}}, d, p, 1, 1, 0;\n"
    return text + "wgmma.commit_group.sync.aligned;\n}"


@gluon.constexpr_function
def _registers(eights, a):
    n = 4 * eights
    return ",".join(["=f"] * n + [str(i) for i in range(n)] + ["r"] * a)


@gluon.constexpr_function
def _waited(left):
    return f"wgmma.wait_group.sync.aligned {left};"


@gluon.jit
def multiplied(acc, a, at, W: gl.constexpr, BF16: gl.constexpr):
    """acc + A · Bᵀ of 64 columns, under way; at: where B's columns lie, by 16 bytes."""
    E: gl.constexpr = len(acc) // 4
    at = gl.full((W, 32), at, gl.int32, layout=lanes(W))
    return gl.inline_asm_elementwise(
        _product(E, "bf16" if BF16 else "f16"), _registers(E, 17), acc + a + (at,), _each(gl.float32, 4 * E),
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def waited(acc, left: gl.constexpr):
    """The sums when no more than `left` products are under way."""
    E: gl.constexpr = len(acc) // 4
    return gl.inline_asm_elementwise(
        _waited(left), _registers(E, 0), acc, _each(gl.float32, 4 * E), is_pure=False, pack=1
    )
