"""context[start + d] = emitted[1 + d] = tokens[path[d]] for d < length; start += length; root = following.

    one program:   path -> tokens -> | behind the context |, | told to the host |       then start, then root

A few integers: one launch instead of a dozen, and the last of a step.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .config import pick
from .lib.early import begin, early


@dataclass(frozen=True)
class Config:
    num_warps: int = 1


@triton.jit
def _advance(
    tokens,
    path,
    length,
    following,
    context,
    emitted,
    start,
    root,
    D, S, told,
    BD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    o_d = tl.arange(0, BD)
    first, count, b_root = tl.load(start), tl.load(length), tl.load(following)
    m_d = (o_d < D) & (o_d < count)
    b_token = tl.load(tokens + tl.load(path + o_d, mask=m_d, other=0), mask=m_d, other=0)
    tl.store(context + first + o_d, b_token, mask=m_d & (first + o_d < S))
    tl.store(emitted + 1 + o_d, b_token, mask=m_d & (o_d < told))
    tl.store(emitted, count)
    # other threads have read the start by then
    tl.debug_barrier()
    tl.store(start, first + count)
    tl.store(root, b_root)


def advance(
    tokens: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    following: torch.Tensor,
    context: torch.Tensor,
    emitted: torch.Tensor,
    start: torch.Tensor,
    root: torch.Tensor,
    config: Config | None = None,
) -> None:
    vectors = (tokens, path, length, following, context, emitted, start, root)
    if not all(x.dtype == torch.int32 and x.dim() == 1 and x.is_contiguous() for x in vectors):
        raise ValueError(f"advance takes dense i32 vectors, not {[(x.dtype, tuple(x.shape)) for x in vectors]}")
    if not length.numel() == following.numel() == start.numel() == root.numel() == 1:
        raise ValueError(f"advance takes one length, start and root, not {[tuple(x.shape) for x in vectors]}")
    D = path.shape[0]
    config = config or pick("advance", Config(), tokens.device, D=D)
    _advance[(1,)](
        *vectors, D, context.shape[0], emitted.shape[0] - 1,
        BD=triton.next_power_of_2(D), num_warps=config.num_warps, **early(tokens.device),
    )  # fmt: skip
