"""How a model's matrices meet its activations: the ops, the number types, the products every layer is made of."""

from dataclasses import dataclass
from functools import partial

import torch

from .ops import Ops
from .streams import at_once
from .weights import Weight


@dataclass(frozen=True)
class Precision:
    """dtype of the activations that meet weights; the residual stream's; whether single rows are rounded to int8."""

    activations: torch.dtype
    residual: torch.dtype
    int8: bool = False

    @property
    def tiles(self) -> bool:
        """Whether rearranged weights can be used: they take no f32 activations."""
        return self.activations != torch.float32


# f16 holds what a norm or a gate gives out; the residual stream grows past it
PRECISIONS = {
    "f32": Precision(torch.float32, torch.float32),
    "exact": Precision(torch.float16, torch.float32),
    "bf16": Precision(torch.bfloat16, torch.float32),
    "int8": Precision(torch.float16, torch.float32, int8=True),
}


@dataclass(frozen=True)
class Arithmetic:
    ops: Ops
    precision: Precision
    eps: float

    def normed(self, h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The residual stream h [T, E] as the next matrix takes it."""
        return self.ops.rms_norm(h, weight, self.eps, self.precision.activations)

    def linear(self, x: torch.Tensor, weight: Weight, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x: [T, K] -> [T, N], of the residual's dtype where one is added."""
        dtype = None if residual is None else residual.dtype
        how = self._how(x, weight)
        y = self.ops.dequant_matmul(x, weight.data, weight.format, how, residual, out_dtype=dtype, layout=weight.layout)
        return y if y.shape[1] == sum(weight.parts) else y[:, : sum(weight.parts)]

    def _how(self, x: torch.Tensor, weight: Weight) -> str:
        """Tiles take single rows in int8, blocks as they lie any number; plain weights none."""
        blocks = weight.data.dtype == torch.uint8
        return "int8" if self.precision.int8 and blocks and (len(x) == 1 or weight.layout == "gguf") else "exact"

    def project(self, x: torch.Tensor, weights: tuple[Weight, ...]) -> list[torch.Tensor]:
        """x: [T, K] times several matrices: one [T, rows] each, side by side in memory where they were joined."""

        def parts(some: tuple[Weight, ...]) -> list[torch.Tensor]:
            return [part for weight in some for part in self.linear(x, weight).split(weight.parts, 1)]

        groups = [group for group in (weights[:1], weights[1:]) if group]
        found = at_once(x.device, [partial(parts, group) for group in groups])
        return [part for some in found for part in some]

    def mlp(self, h: torch.Tensor, norm: torch.Tensor, gate_up: tuple[Weight, ...], down: Weight) -> torch.Tensor:
        """h + down(silu(gate x) * up x) of x, the normed h."""
        both, ops, dtype = gate_up[0], self.ops, self.precision.activations
        if len(gate_up) > 1:
            y = ops.swiglu(*self.project(self.normed(h, norm), gate_up))
        elif (how := self._how(h, both)) == "int8" and both.layout != "gguf":
            # the norm in the same launch
            y = ops.dequant_matmul(
                h, both.data, both.format, how, None, True, dtype, both.layout, norm=norm, eps=self.eps
            )
        else:
            y = ops.dequant_matmul(self.normed(h, norm), both.data, both.format, how, swiglu=True, layout=both.layout)
        return self.linear(y, down, h)
