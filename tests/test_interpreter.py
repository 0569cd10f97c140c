"""The interpreter tells the truth here: each of its known lies, mended or watched. A new Triton that brings one back
fails a test.

What each lie was, unmended: bf16 dot multiplies bit patterns, bf16 arithmetic is garbage, f32 -> bf16 truncates,
device_assert never fires, an address out of bounds is read.
"""

import pytest
import torch
import triton
import triton.language as tl
from draftwood.lab import interpreter

pytestmark = pytest.mark.skipif(
    not interpreter.active(), reason="about Triton's interpreter; kernels are compiled here"
)


@triton.jit
def _dot(a, b, out, K: tl.constexpr):
    o = tl.arange(0, 16)
    o_k = tl.arange(0, K)
    b_a = tl.load(a + o[:, None] * K + o_k[None, :])
    b_b = tl.load(b + o_k[:, None] * 16 + o[None, :])
    tl.store(out + o[:, None] * 16 + o[None, :], tl.dot(b_a, b_b))


def test_bf16_dot_equals_torch():
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(32, 16).bfloat16()
    out = torch.empty(16, 16)
    _dot[(1,)](a, b, out, K=32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-6, atol=1e-6)


@triton.jit
def _arithmetic(x, y, out, N: tl.constexpr):
    o = tl.arange(0, N)
    b_x, b_y = tl.load(x + o), tl.load(y + o)
    tl.store(out + o, b_x + b_y)
    tl.store(out + N + o, b_x * b_y)
    tl.store(out + 2 * N + o, tl.maximum(b_x, b_y))
    tl.store(out + 3 * N + o, tl.where(b_x > b_y, b_x, -b_y))
    tl.store(out + 4 * N + o, tl.zeros((N,), tl.bfloat16) + tl.sum(b_x.to(tl.float32)).to(tl.bfloat16))


def test_bf16_arithmetic_equals_torch_bit_for_bit():
    x, y = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    out = torch.empty(5, 64, dtype=torch.bfloat16)
    _arithmetic[(1,)](x, y, out, N=64)
    assert torch.equal(out[0], x + y)
    assert torch.equal(out[1], x * y)
    assert torch.equal(out[2], torch.maximum(x, y))
    assert torch.equal(out[3], torch.where(x > y, x, -y))
    torch.testing.assert_close(out[4, 0], x.float().sum().bfloat16())


@triton.jit
def _narrow(x, out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(out + o, tl.load(x + o).to(tl.bfloat16))


def test_f32_to_bf16_rounds_to_nearest_even():
    x = torch.cat(
        [
            torch.randn(4088) * 100,
            torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, 3.4e38, float("inf"), -float("inf"), 0.0, -0.0]),
        ]
    )
    out = torch.empty(4096, dtype=torch.bfloat16)
    _narrow[(1,)](x, out, N=4096)
    assert torch.equal(out.view(torch.int16), x.bfloat16().view(torch.int16))


@triton.jit
def _asserts(x, out):
    value = tl.load(x)
    tl.device_assert(value > 0, "value must be positive")
    tl.store(out, value)


def test_device_assert_fires():
    out = torch.empty(1)
    _asserts[(1,)](torch.ones(1), out)
    with pytest.raises(Exception, match="value must be positive"):
        _asserts[(1,)](-torch.ones(1), out)


@triton.jit
def _joined(x, y, OP: tl.constexpr):
    if OP == "add":
        return x + y
    elif OP == "sub":
        return x - y
    else:
        return x * y


@triton.jit
def _integers(x, y, out, OP: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(out + o, _joined(tl.load(x + o), tl.load(y + o), OP))


@pytest.mark.parametrize(
    ("op", "x", "y", "most"),
    [("add", 2**31 - 2, 1, 2**31 - 1), ("sub", -(2**31) + 1, 1, -(2**31)), ("mul", 2**30, -2, -(2**31))],
)
def test_an_integer_that_overflows_is_refused_and_one_that_just_fits_is_not(op, x, y, most):
    pair = [torch.tensor([v, 1], dtype=torch.int32) for v in (x, y)]
    out = torch.zeros(2, dtype=torch.int32)
    # a launch that ends halfway leaves no trace in the next one
    with pytest.raises(Exception, match=f"int32 overflow detected for operation {op}"):
        _integers[(1,)](pair[0], 2 * pair[1], out, OP=op, N=2)
    _integers[(1,)](*pair, out, OP=op, N=2)
    assert out[0] == most


@triton.jit
def _copy(x, out, N, B: tl.constexpr):
    o = tl.arange(0, B)
    tl.store(out + o, tl.load(x + o), mask=o < N)


def test_a_read_out_of_bounds_is_seen_and_not_performed():
    x, out = torch.ones(8), torch.zeros(8)
    with interpreter.watching() as watch:
        _copy[(1,)](x, out, 8, B=64)
    (stray,) = watch.strays
    assert stray.kind == "bounds" and "past the end" in str(stray) and "test_interpreter.py" in str(stray)


def test_a_crooked_pointer_is_seen():
    @triton.jit
    def crooked(x, out):
        tl.store(out, tl.load((x + 1).to(tl.pointer_type(tl.float16))))

    x, out = torch.zeros(8, dtype=torch.uint8), torch.zeros(1, dtype=torch.float16)
    with interpreter.watching() as watch:
        crooked[(1,)](x, out)
    assert any("past a multiple of 2" in str(stray) for stray in watch.strays)


@triton.jit
def _who(out):
    tl.store(out + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.program_id(0) * 10 + tl.program_id(1))


@pytest.mark.parametrize("order", [None, "reverse", 3])
def test_every_program_runs_once_in_any_order(order):
    out = torch.full((12,), -1, dtype=torch.int32)
    with interpreter.watching(order=order):
        _who[(4, 3)](out)
    assert out.tolist() == [i * 10 + j for i in range(4) for j in range(3)]
