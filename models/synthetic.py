"""Random weights of a model's real shapes and formats, made where they are needed: for timing, and for tests."""

import torch

from ..reference.formats import find, row_bytes
from .qwen35 import Config, Mix, format_of, tensors
from .weights import Rows

# where a block's f16 scales stand, and the value that makes weights of about 0.02
SCALES = {
    "q4_k": ((0, 6e-5), (2, 4.5e-4)),
    "q5_k": ((0, 3e-5), (2, 4.5e-4)),
    "q6_k": ((208, 1.5e-5),),
    "q8_0": ((0, 2.7e-4),),
    "q4_0": ((0, 4.3e-3),),
}


def blocks(format: str, N: int, K: int, generator: torch.Generator) -> torch.Tensor:
    """u8 [N, row_bytes] of random codes, or [N, K] of a plain format."""
    device, known = generator.device, find(format)
    if known.dtype is not None:
        return torch.empty(N, K, dtype=known.dtype, device=device).normal_(0, 0.02, generator=generator)
    data = torch.randint(0, 256, (N, row_bytes(format, K)), dtype=torch.uint8, device=device, generator=generator)
    fields = data.view(N, -1, known.bytes)
    for at, size in SCALES[format]:
        fields[..., at : at + 2] = torch.tensor([size], dtype=torch.float16, device=device).view(torch.uint8)
    return data


class Weights:
    """`take` of models/target.py: a tensor by its GGUF name, of the format a mix gives it."""

    def __init__(self, c: Config, mix: Mix, device: torch.device, seed: int = 0) -> None:
        self.c, self.mix, self.shapes = c, mix, tensors(c)
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, name: str) -> Rows:
        shape, device = self.shapes[name], self.generator.device
        if len(shape) == 2 and "conv1d" not in name:
            format = format_of(self.mix, name, self.c.L)
            return Rows(blocks(format, *shape, self.generator), format)
        noise = torch.empty(shape, device=device).normal_(0, 1, generator=self.generator)
        match name.split(".")[-2:]:
            case [_, "ssm_a"]:
                values = -torch.exp(noise)
            case ["ssm_conv1d", _]:
                values = 0.3 * noise
            case ["ssm_dt", _]:
                values = noise - 2
            case _:
                values = 1 + 0.1 * noise
        return Rows(values, "f32")
