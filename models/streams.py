"""Two things that do not need each other, at once: small launches fill the gaps that large ones leave."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


@functools.cache
def _other(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def side_by_side(device: torch.device, one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
    """What both give; on a GPU `other` runs on a stream of its own, in a captured graph on a branch of its own.

    What follows waits for both, and the next `other` for all that came before it: so memory of either may be used and
    given back as if there were one stream.
    """
    if device.type != "cuda":
        return one(), other()
    usual, branch = torch.cuda.current_stream(device), _other(device)
    branch.wait_stream(usual)
    with torch.cuda.stream(branch):
        second = other()
    first = one()
    usual.wait_stream(branch)
    return first, second
