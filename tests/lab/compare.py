"""Is this output right? Element by element, against the f64 reference and the error that torch makes at the same
precision.

    bound = factor * max|torch - f64|  +  ulps * eps(compute) * (|f64| + rms)  +  eps(out) * |f64|

and the same in the root mean square, which sees a small error everywhere that no single element shows. Where the SPEC
says how far the rounding of operands scatters an output, both bounds are at least `SIGMAS` standard deviations of that.
NaN, +inf and -inf are sets: an element belongs to the same one in all three or the output is wrong.
"""

from dataclasses import dataclass

import torch

from ..reference.spec import Bitwise, Calibrated, Tolerance

# one of 1.7 million normal numbers lies farther out
SIGMAS = 5.0


@dataclass(frozen=True)
class Worst:
    """The worst element of a comparison and by how much it misses its bound (ratio > 1: wrong)."""

    where: str
    got: float
    want: float
    ratio: float
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} at {self.where}: got {self.got!r}, want {self.want!r}"


def compare(
    name: str,
    got: torch.Tensor,
    native: torch.Tensor,
    exact: torch.Tensor,
    rule: Tolerance,
    scatter: torch.Tensor | None = None,
) -> Worst | None:
    """None if `got` is right. `native` is the reference at the op's own precision, `exact` the one in f64, `scatter`
    the standard deviation that rounding operands makes."""
    if got.shape != native.shape or got.dtype != native.dtype:
        reason = f"shape or dtype: got {tuple(got.shape)} {got.dtype}, want {tuple(native.shape)} {native.dtype}"
        return Worst(name, float("nan"), float("nan"), float("inf"), reason)
    if isinstance(rule, Bitwise) or not got.is_floating_point():
        return _first_difference(name, got, native)
    # where the output is: a trial of a large case compares tens of millions of elements
    got, exact = got.detach().double(), exact.detach().double().to(got.device)
    native64 = native.detach().double().to(got.device)
    odd = _sets_differ(got, native64)
    if odd.any():
        return _worst(
            name, got, native64, odd.double(), "NaN or infinity where the reference has none, or none where it has"
        )
    spread = torch.zeros_like(exact) if scatter is None else scatter.detach().double().to(got.device)
    return _bounded(name, got, native64, exact, spread, rule, torch.finfo(native.dtype).eps)


def _bounded(
    name: str,
    got: torch.Tensor,
    native: torch.Tensor,
    exact: torch.Tensor,
    spread: torch.Tensor,
    rule: Calibrated,
    eps_out: float,
) -> Worst | None:
    finite = torch.isfinite(got) & torch.isfinite(exact) & torch.isfinite(native)
    if not finite.any():
        return None
    zero = torch.zeros_like(exact)
    error, base = (got - exact).where(finite, zero).abs(), (native - exact).where(finite, zero).abs()
    size = exact.where(finite, zero).abs()
    rms = _rms(size, finite)
    slack = rule.ulps * torch.finfo(rule.compute).eps
    granted = SIGMAS * spread.where(finite & torch.isfinite(spread), zero)
    bound = torch.maximum(rule.factor * base.max() + slack * (size + rms) + eps_out * size, granted)
    ratio = torch.where(error > 0, error / bound.clamp_min(1e-300), zero)
    if ratio.max() > 1:
        return _worst(name, got, exact, ratio, "element outside its bound")
    rms_bound = torch.maximum(rule.factor * _rms(base, finite) + slack * rms, _rms(granted, finite))
    if (rms_ratio := float(_rms(error, finite) / rms_bound.clamp_min(1e-300))) > 1:
        found = _worst(
            name,
            got,
            exact,
            ratio,
            f"rms error {float(_rms(error, finite)):.3g} over its bound {float(rms_bound):.3g}, worst",
        )
        return Worst(found.where, found.got, found.want, rms_ratio, found.reason)
    return None


def _rms(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values.square().sum() / mask.sum().clamp_min(1)).sqrt()


def _sets_differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.isnan() != b.isnan()) | (a.isposinf() != b.isposinf()) | (a.isneginf() != b.isneginf())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as integers of their own width."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(width) if tensor.dtype != torch.bool else tensor.detach().contiguous()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def _first_difference(name: str, got: torch.Tensor, want: torch.Tensor) -> Worst | None:
    differ = bits(got) != bits(want).to(got.device)
    return (
        _worst(name, got.cpu(), want.cpu(), differ.double(), f"{int(differ.sum())} elements differ, first")
        if differ.any()
        else None
    )


def _worst(name: str, got: torch.Tensor, want: torch.Tensor, ratio: torch.Tensor, reason: str) -> Worst:
    flat = int(ratio.nan_to_num(float("inf")).argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), ratio.shape)] if ratio.dim() else []
    return Worst(
        f"{name}{index}",
        got.reshape(-1)[flat].item(),
        want.reshape(-1)[flat].item(),
        float(ratio.reshape(-1)[flat]),
        reason,
    )
