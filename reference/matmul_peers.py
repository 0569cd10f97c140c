"""What others offer for a product with weights of four bits: baselines of dequant_matmul, timed beside it.

Both hold codes of 4 bits with one scale for 128 columns, 4.25 bits a weight where q4_k has 4.5. Their weights are the
blocks' own, rounded once more: their results are near, and only their times are of interest.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from .formats import dequantise
from .spec import Inputs
from .tiles import from_tiles

GROUP = 128
Run = Callable[[], torch.Tensor]


def _unsuited(inputs: Inputs) -> bool:
    """Four bits against four, one plain product, few rows."""
    plain = not inputs["swiglu"] and inputs["norm"] is None
    return inputs["format"] != "q4_k" or not plain or inputs["x"].shape[0] > 64


def _four_bits(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes u8 [N, K] of value code - 8, and scales bf16 [N, K/128]."""
    weight, format = inputs["weight"], inputs["format"]
    blocks = weight if inputs["layout"] == "gguf" else from_tiles(weight, format)
    codes, scales = [], []
    for part in blocks.split(4096):
        groups = dequantise(part, format).unflatten(-1, (-1, GROUP))
        scale = (groups.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-8)
        codes.append(((groups / scale).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(-2))
        scales.append(scale[..., 0].bfloat16())
    return torch.cat(codes), torch.cat(scales)


def tinygemm(inputs: Inputs) -> Run | None:
    """torch's int4 kernel, bf16 activations."""
    x = inputs["x"].bfloat16()
    if _unsuited(inputs) or x.device.type != "cuda" or torch.cuda.get_device_capability(x.device) < (8, 0):
        return None
    codes, scales = _four_bits(inputs)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    scales_and_zeros = torch.stack([scales.T, torch.zeros_like(scales.T)], -1).contiguous()
    return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales_and_zeros)


@functools.cache
def _known_configs() -> None:
    """Searching its own takes minutes a shape."""
    import gemlite.core

    configs = Path(gemlite.core.__file__).parent / "configs" / "h100.json"
    gemlite.core.GemLiteLinear.load_config(str(configs), print_error=False)


def gemlite(inputs: Inputs) -> Run | None:
    """gemlite's Triton kernels, f16 activations, with the configs that it ships for an H100."""
    x = inputs["x"].half()
    if _unsuited(inputs) or x.device.type != "cuda":
        return None
    from gemlite.helper import A16Wn

    _known_configs()
    codes, scales = _four_bits(inputs)
    layer = A16Wn(device=str(x.device), dtype=torch.float16).from_weights(
        codes, scales.half(), torch.full_like(scales, 8).half(), 4, GROUP
    )
    return lambda: layer(x)
