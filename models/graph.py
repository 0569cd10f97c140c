"""Run something once and for all: on a GPU it is captured in a CUDA graph and replayed, elsewhere it is just called."""

from collections.abc import Callable, Sequence

import torch


def capture(
    run: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Callable[[], None]:
    """What runs `run` again on the tensors it was captured with; `generators` are those it draws from.

    `run` is executed twice here, to compile and warm up: capture before the state that it changes matters.
    """
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=stream):
        run()
    # the graph lives as long as what replays it
    return graph.replay
