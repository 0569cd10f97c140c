"""Counters that are zero between launches: what a kernel counts up it must count down again.

They outlive a call, so that a launch needs no memset before it; one set a device and stream, since launches on one
stream follow each other. The first call on a stream makes them: make it before a graph is captured.
"""

import torch

COUNTERS = 1 << 16
_held: dict[tuple[torch.device, int], torch.Tensor] = {}


def counters(device: torch.device, wanted: int) -> torch.Tensor:
    """At least `wanted` i32 zeros."""
    if wanted > COUNTERS:
        raise ValueError(f"a launch has {COUNTERS} counters, not {wanted}")
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream)
    if key not in _held:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # torch captures on a side stream: any stream's counters do, since a graph's launches follow each other
            for (other, _), held in _held.items():
                if other == device:
                    return held
            raise ValueError("call the kernel once before capturing it in a graph: its counters must exist")
        _held[key] = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    return _held[key]
