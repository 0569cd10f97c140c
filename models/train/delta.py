"""The gated delta rule over whole sequences, differentiable: chunks in parallel, the state handed from chunk to chunk.

    S_t = e^g_t S_(t-1) + k_t (b_t (v_t - e^g_t S_(t-1)' k_t))'        o_t = S_t' q_t

Inside a chunk, with G the sums of g and D_ij = e^(G_i - G_j) for j <= i (tril: below the diagonal):

    A  = tril(diag(b) K K' o D)         [U | W] = (I + A)^-1 diag(b) [V | e^G K]
    N  = U - W S                        O = (e^G Q) S + (Q K' o D) N
    S <- e^G_last S + (e^(G_last - G) K)' N

Plain torch, for training: `reference/` and `kernels/` say and do the same for inference.
"""

import torch
import torch.nn.functional as F

CHUNK = 64
# rows of the blocks that are inverted by a finite series: its terms stay small
SERIES = 16


def chunked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """q, k: [B, T, H, K], k of length 1, q scaled; v: [B, T, H, V]; g <= 0 and beta: [B, T, H] -> o [B, T, H, V]."""
    T = q.shape[1]
    if rest := -T % chunk:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, rest)) for x in (q, k, v))
        g, beta = (F.pad(x, (0, 0, 0, rest)) for x in (g, beta))
    # [B, H, n, chunk, ..]
    q, k, v = (x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    g, beta = (x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2) for x in (g, beta))
    G = g.cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    D = (G[..., :, None] - G[..., None, :]).masked_fill(later, float("-inf")).exp()
    A = (beta[..., None] * (k @ k.mT) * D).tril(-1)
    inverse = inverted(A)
    U = inverse @ (beta[..., None] * v)
    W = inverse @ ((beta * G.exp())[..., None] * k)
    scores, q = (q @ k.mT) * D, q * G.exp()[..., None]
    k, kept = k * (G[..., -1:] - G).exp()[..., None], G[..., -1].exp()
    S = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for i in range(q.shape[2]):
        N = U[:, :, i] - W[:, :, i] @ S
        out.append(q[:, :, i] @ S + scores[:, :, i] @ N)
        S = kept[:, :, i, None, None] * S + k[:, :, i].mT @ N
    return torch.stack(out, 2).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :T]


def inverted(A: torch.Tensor) -> torch.Tensor:
    """(I + A)^-1 for A [.., n, n] zero on and above its diagonal, n a power of two."""
    n = A.shape[-1]
    if n <= SERIES:
        # (I - A)(I + A^2)(I + A^4)(I + A^8): A^16 is zero
        one, power = torch.eye(n, dtype=A.dtype, device=A.device), -A
        found = one + power
        for _ in range(max(n - 1, 1).bit_length() - 1):
            power = power @ power
            found = found + found @ power
        return found
    half = n // 2
    top, bottom = inverted(A[..., :half, :half]), inverted(A[..., half:, half:])
    corner = -bottom @ A[..., half:, :half] @ top
    return torch.cat((torch.cat((top, torch.zeros_like(corner)), -1), torch.cat((corner, bottom), -1)), -2)


def recurrent(
    S: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """One token: S [B, H, K, V] is changed in place; q, k [B, H, K], v [B, H, V], g, beta [B, H] -> o [B, H, V]."""
    S *= g.exp()[..., None, None]
    delta = beta[..., None] * (v - (S.mT @ k[..., None])[..., 0])
    S += k[..., :, None] * delta[..., None, :]
    return (S.mT @ q[..., None])[..., 0]
