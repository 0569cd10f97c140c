"""Loads that triton 3.6 would put in the way of what they are for: in PTX, where that has been tried on a GPU."""

import triton
import triton.language as tl


@triton.jit
def marks(p, m, begun, PTX: tl.constexpr):
    """Whether the byte at p is not 0; no byte is where m is not set. `begun` is what `early.since` gave.

    In PTX, since triton 3.6 gives a dot whose operands depend on a load of bytes an operand layout of four values of K
    a register pair, which no result has: every result that is multiplied again would pass between lanes.
    """
    if PTX:
        b_mark = tl.inline_asm_elementwise(
            """
            {
                .reg .pred there;
                .reg .u16 byte;
                setp.ne.u32 there, $2, 0;
                mov.u16 byte, 0;
                @there ld.global.u8 byte, [$1];
                cvt.u32.u16 $0, byte;
            }
            """,
            "=r,l,r",
            [p.to(tl.int64) + begun, m.to(tl.int32)],
            dtype=tl.int32,
            # so it is read again in every layout that it is needed in, instead of passing between threads
            is_pure=True,
            pack=1,
        )
        return b_mark != 0
    else:
        return tl.load(p, mask=m, other=0) != 0


@triton.jit
def together(b_x, b_y, PTX: tl.constexpr):
    """x and y as they are, of one shape, each of them only when both are there: triton 3.6 puts a block into shared
    memory right where it is loaded, so the load that comes next would start when this one has ended."""
    if PTX and b_x.dtype.primitive_bitwidth == 16:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $2; mov.b32 $1, $3;",
            "=r,=r,r,r",
            [b_x, b_y],
            dtype=(b_x.dtype, b_y.dtype),
            # or it would be repeated in every layout
            is_pure=False,
            pack=2,
        )
    else:
        return b_x, b_y
