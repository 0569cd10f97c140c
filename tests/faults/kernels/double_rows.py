"""out[m, n] = 2 x[m, n], one program a row; and the same with a fault, as Config says."""

import itertools
import os
import signal
from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    fault: str = "none"
    num_warps: int = 4


_calls = itertools.count()


@triton.jit
def _double_rows(x, out, N, odd, FAULT: tl.constexpr, BN: tl.constexpr):
    i_m = tl.program_id(0)
    o_n = tl.arange(0, BN)
    b_out = 2 * tl.load(x + i_m * N + o_n, mask=o_n < N, other=0.0)
    if FAULT == "wrong":
        b_out += 0.01
    if FAULT == "non_deterministic":
        # the last bit of a call in two: far inside every tolerance
        b_out *= 1 + odd * 1.2e-7
    if FAULT == "hanging":
        while odd < 2:
            odd = odd * 1
    width = N + 1 if FAULT == "out_of_bounds" else N
    tl.store(out + i_m * N + o_n, b_out, mask=o_n < width)
    if FAULT == "racy":
        # every program writes the first row too, and it is right whoever is last
        tl.store(out + o_n, 2 * tl.load(x + o_n, mask=o_n < N, other=0.0), mask=o_n < N)
    if FAULT == "wrong_on_odd_rows":
        # right on the case that is timed, wrong on an edge case
        tl.store(out + i_m * N + o_n, 0.0 * b_out, mask=(o_n < N) & (N % 2 == 1))


def double_rows(x: torch.Tensor, config: Config | None = None) -> torch.Tensor:
    config = config or Config()
    M, N = x.shape
    if config.fault == "crashing":
        os.kill(os.getpid(), signal.SIGSEGV)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(N + 1)
    _double_rows[(M,)](x, out, N, next(_calls) % 2, FAULT=config.fault, BN=block, num_warps=config.num_warps)
    return out
