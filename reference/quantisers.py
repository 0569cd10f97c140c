"""From weights to the integers of a block: ggml's reference quantisers, decided in f32 with the same roundings.

Each function takes blocks f32 [..., blocks, elements] and returns the fields that `formats.pack` packs. q8_0, q4_0 and
q4_k give ggml's bytes; q5_k and q6_k are a simple round-to-nearest that makes sound weights, not ggml's bytes; tq3_0
follows its rule, with sums in the order of the rotation's butterflies.
"""

import torch

from .hadamard import GROUP, pairwise_sum, rotate

Fields = dict[str, torch.Tensor]

TQ3_CODES = (-0.190685, -0.117832, -0.065717, -0.021460, 0.021460, 0.065717, 0.117832, 0.190685)
TQ3_BOUNDS = (-0.154259, -0.091775, -0.043589, 0.0, 0.043589, 0.091775, 0.154259)


def q8_0(blocks: torch.Tensor) -> Fields:
    d = _over(blocks.abs().amax(-1), 127)
    return {"d": d.half(), "q": _round_away(blocks * _inverse(d)).to(torch.int8)}


def q4_0(blocks: torch.Tensor) -> Fields:
    # the value of largest magnitude, the first of equals, with its sign; +0 where all are zeros of either sign
    d = (blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0] + 0.0) / -8
    q = (blocks * _inverse(d) + 8.5).trunc().clamp(0, 15)
    return {"d": d.half(), "q": q.to(torch.uint8)}


def tq3_0(blocks: torch.Tensor) -> Fields:
    """Codes of the rotated unit vector; the stored norm makes the decoded group as long as the group was."""
    groups = blocks.flatten(-2).unflatten(-1, (-1, GROUP))
    norm = _sqrt(pairwise_sum(groups.square()))[..., None]
    y = torch.where(norm > 1e-10, rotate(groups / norm.clamp_min(1e-10)), 0.0)
    q = torch.bucketize(y, torch.tensor(TQ3_BOUNDS, device=blocks.device), right=True)
    length = _sqrt(pairwise_sum(torch.tensor(TQ3_CODES, device=blocks.device)[q].square()))[..., None]
    stored = (norm / length).half().expand(*norm.shape[:-1], 4)
    return {"norm": stored.flatten(-2), "q": q.unflatten(-1, (4, 32)).flatten(-3, -2)}


def q4_k(blocks: torch.Tensor) -> Fields:
    """ggml's search for a scale and a minimum per 32 weights, then all of them in 6 bits of a shared d and dmin."""
    x = blocks.unflatten(-1, (8, 32))
    scale, minimum, searched = (part.reshape(*x.shape[:-1], -1) for part in _search(x.reshape(-1, 32)))
    header = _k_quantised(scale[..., 0], minimum[..., 0])
    step = (header["d"].float()[..., None] * header["scale"].float())[..., None]
    low = (header["dmin"].float()[..., None] * header["min"].float())[..., None]
    # where the step has become zero the codes of the search stay
    q = torch.where(step == 0, searched, ((x + low) / step).round().clamp(0, 15))
    return {**header, "q": q.to(torch.uint8).flatten(-2)}


def _k_quantised(scale: torch.Tensor, minimum: torch.Tensor) -> Fields:
    """Scales and minimums [..., 8] as 6-bit multiples of the largest / 63."""

    def six_bits(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = values.amax(-1)
        top = torch.where(top > 0, top, 0.0)
        inverse = torch.where(top > 0, torch.full_like(top, 63) / top, 0.0)
        return _over(top, 63).half(), (inverse[..., None] * values).round().clamp(0, 63).to(torch.uint8)

    d, scales = six_bits(scale)
    dmin, mins = six_bits(minimum)
    return {"d": d, "dmin": dmin, "scale": scales, "min": mins}


def _search(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: [R, 32] -> scale [R], -min [R], codes [R, 32]: x ~ scale * code + min, min <= 0.

    22 grids are tried for the least weighted square error. Sums run over the 32 weights in order, one
    rounding a step, as ggml's scalar code does.
    """
    # weights first: every step of a sum is one operation on contiguous rows
    x = x.t().contiguous()

    def total(terms: torch.Tensor) -> torch.Tensor:
        out = terms[0].clone()
        for term in terms[1:]:
            out += term
        return out

    w = _sqrt(total(x * x) / 32) + x.abs()
    low, high = x.amin(0).clamp_max(0), x.amax(0)
    flat = high == low
    reach = torch.where(flat, 1.0, high - low)
    sum_w, sum_x = total(w), total(w * x)

    def error(scale: torch.Tensor, minimum: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        miss = scale * codes + minimum - x
        return total(w * (miss * miss))

    # not `15 / reach`: in torch a number over a tensor is the reciprocal times the number, two roundings
    inverse = torch.full_like(reach, 15) / reach
    scale, minimum = 1 / inverse, low
    codes = (inverse * (x - minimum)).round().clamp(0, 15)
    best = error(scale, minimum, codes)
    for trial in range(21):
        grid = torch.tensor(0.1) * trial + -1.0 + 15
        # `high - minimum` with the minimum found so far, not the block's own: ggml overwrites it on every improvement
        trial_codes = (grid / (high - minimum) * (x - minimum)).round().clamp(0, 15)
        weighted = w * trial_codes
        sum_l, sum_l2, sum_xl = total(weighted), total(weighted * trial_codes), total(weighted * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det
        new_scale = torch.where(new_min > 0, sum_xl / sum_l2, new_scale)
        new_min = new_min.clamp_max(0)
        new_error = error(new_scale, new_min, trial_codes)
        better = (det > 0) & (new_error < best)
        pairs = ((new_scale, scale), (new_min, minimum), (new_error, best), (trial_codes, codes))
        scale, minimum, best, codes = (torch.where(better, new, old) for new, old in pairs)
    return scale.masked_fill(flat, 0), -minimum, codes.masked_fill(flat, 0).t()


def q5_k(blocks: torch.Tensor) -> Fields:
    x = blocks.unflatten(-1, (8, 32))
    low = x.amin(-1).clamp_max(0)
    header = _k_quantised((x.amax(-1) - low) / 31, -low)
    step = header["d"].float()[..., None] * header["scale"].float()
    shifted = x + (header["dmin"].float()[..., None] * header["min"].float())[..., None]
    return {**header, "q": (shifted * _inverse(step)).round().clamp(0, 31).to(torch.uint8).flatten(-2)}


def q6_k(blocks: torch.Tensor) -> Fields:
    x = blocks.unflatten(-1, (16, 16))
    scale = x.abs().amax(-1) / 31
    d = (scale.amax(-1) / 127).half()
    scales = (scale * _inverse(d.float())).round().clamp(0, 127)
    q = (x * _inverse(d.float()[..., None] * scales)).round().clamp(-32, 31) + 32
    return {"d": d, "scale": scales.to(torch.int8), "q": q.to(torch.uint8).flatten(-2)}


def _inverse(d: torch.Tensor) -> torch.Tensor:
    """1/d, 0 where d is 0, with an axis for the weights of the block."""
    return torch.where(d == 0, 0.0, 1 / d)[..., None]


def _over(x: torch.Tensor, number: float) -> torch.Tensor:
    """x / number with one rounding: on a GPU torch multiplies by the number's reciprocal."""
    return x / torch.full_like(x, number)


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest f32: torch's own on the CPU may be one unit off."""
    return x.double().sqrt().float()


def _round_away(x: torch.Tensor) -> torch.Tensor:
    """To the nearest integer, halves away from zero."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)
