"""Memory that outlives a call and is between launches what it was at first: a launch needs no memset before it.

    counters   zeros: what a kernel counts up it counts down again
    parts      EMPTY words (`lib/handed.py`): what one program hands over another takes

One set a device and stream, since launches on one stream follow each other. The first call on a stream makes it: make
it on the stream of a graph before that is captured. Graphs of one stream, or of streams without such a call, share a
set: two of them are not to run at the same time.
"""

import torch

COUNTERS = 1 << 16
# of 132 multiprocessors: warps of their programs times eights of rows of x are at most 192, for more there is no room;
# and half as many again where shares have a place for each of two groups
PARTS = 132 * 288 * 128
_held: dict[tuple[torch.device, int, int], torch.Tensor] = {}


def counters(device: torch.device, wanted: int) -> torch.Tensor:
    """At least `wanted` i32 zeros."""
    return _words(device, wanted, COUNTERS, 0)


def parts(device: torch.device, wanted: int) -> torch.Tensor:
    """At least `wanted` i32 words that are EMPTY."""
    return _words(device, wanted, PARTS, -1)


def _words(device: torch.device, wanted: int, most: int, value: int) -> torch.Tensor:
    if wanted > most:
        raise ValueError(f"a launch has {most} words that outlive it, not {wanted}")
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream, value)
    if key not in _held:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # torch captures on a side stream: any stream's words do, since a graph's launches follow each other
            for (other, _, its), held in _held.items():
                if (other, its) == (device, value):
                    return held
            raise ValueError("call the kernel once before capturing it in a graph: its counters must exist")
        _held[key] = torch.full((most,), value, dtype=torch.int32, device=device)
    return _held[key]
