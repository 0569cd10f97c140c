"""o = softmax(q k^T / sqrt(D) + mask) v for grouped heads: query head h reads the keys and values of head h // (H /
Hkv).

tq3_0 holds R(k) and R(v), R orthonormal: then q k^T = R(q) R(k)^T, and R is taken off the weighted sum of R(v).
A query that sees no row, or none with a score above -inf, gets exactly 0.
"""

import torch

from .cache import stored
from .hadamard import rotate, unrotate
from .spec import accumulator


def attend(
    q: torch.Tensor,
    rows_k: torch.Tensor,
    rows_v: torch.Tensor,
    format_k: str,
    format_v: str,
    visible: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    """q, gate: [T, H, D]; rows: [Hkv, N, row] of caches; visible: [T, N] bool -> [T, H, D] of q's dtype."""
    (H, D), Hkv = q.shape[1:], rows_k.shape[0]
    wide = accumulator(q, rows_k, rows_v)
    asked = rotate(q.to(wide)) if format_k == "tq3_0" else q.to(wide)
    # rows that nobody sees may never have been written
    seen = visible.any(0)[:, None]
    heads = []
    for h in range(Hkv):
        k = stored(rows_k[h], format_k).to(wide).where(seen, 0.0)
        v = stored(rows_v[h], format_v).to(wide).where(seen, 0.0)
        group = asked[:, h * (H // Hkv) : (h + 1) * (H // Hkv)]
        scores = (group @ k.t() / D**0.5).masked_fill(~visible[:, None], float("-inf"))
        weights = torch.exp(scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min))
        total = weights.sum(-1, keepdim=True)
        heads.append(torch.where(total == 0, 0.0, weights @ v / total))
    o = torch.cat(heads, 1)
    o = unrotate(o) if format_v == "tq3_0" else o
    return (o if gate is None else o * torch.sigmoid(gate.to(wide))).to(q.dtype)
