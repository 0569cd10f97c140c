"""Things that do not need each other, at once: small launches fill the gaps that large ones leave."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


@functools.cache
def _branch(device: torch.device, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def at_once(device: torch.device, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What each job gives. On a GPU all but the first run on streams of their own, in a captured graph on branches.

    What follows waits for all of them, and a branch for all that came before it: so memory of any may be used and given
    back as if there were one stream.
    """
    if device.type != "cuda" or len(jobs) == 1:
        return [job() for job in jobs]
    usual, found = torch.cuda.current_stream(device), list[T]()
    branches = [_branch(device, number) for number in range(1, len(jobs))]
    for branch in branches:
        branch.wait_stream(usual)
    for branch, job in zip(branches, jobs[1:], strict=True):
        with torch.cuda.stream(branch):
            found.append(job())
    found.insert(0, jobs[0]())
    for branch in branches:
        usual.wait_stream(branch)
    return found
