"""The draft in plain torch, for training: blocks that begin at anchors anywhere in a text, many of them at once.

    context keys   0 1 2 3 4 | 5 6 7 8 ...        a block that begins at anchor 5 sees features of positions 0 .. 4
    block                      r M M M ...        r the true token at 5, M masks; every row sees its whole block
    labels                       6 7 8 ...        the tokens at the rows' own positions; r predicts nothing

Which context a block sees is a matter of positions alone, never of its place among the blocks; anchors may lie close
together or be the same, and no block sees another. These are the two ways to leak the answer: see the tests.
"""

import torch
import torch.nn.functional as F

from ..draft import Config, tensors
from .network import Part, Weights, frequencies, mlp, norm, turned


def fresh(c: Config, seed: int) -> Weights:
    """Initial weights, on the CPU."""
    random = torch.Generator().manual_seed(seed)
    found: Weights = {}
    for name, shape in tensors(c).items():
        shrink = (2 * c.L) ** -0.5 if "attn_output" in name or "ffn_down" in name else 1.0
        found[name] = (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random) * shape[1] ** -0.5 * shrink
        )
    return found


def forward(
    c: Config, w: Weights, embedding: torch.Tensor, features: torch.Tensor, roots: torch.Tensor, anchors: torch.Tensor
) -> torch.Tensor:
    """features: [B, T, n E]; roots, anchors: [B, A], the tokens and positions where blocks begin; embedding: [vocab, E]
    -> hidden vectors after the last norm, [B, A, block, E]."""
    T, device = features.shape[1], features.device
    context = norm(F.linear(features, w["dflash.fc.weight"]), w["dflash.hidden_norm.weight"], c.eps)
    block = torch.cat((roots[..., None], roots.new_full((*roots.shape, c.block - 1), c.mask_token)), -1)
    h = F.embedding(block, embedding).float()
    at, steps = torch.arange(T, device=device), torch.arange(c.block, device=device)
    turns = frequencies(c.D, c.theta, device)
    angle, own = at[:, None] * turns, (anchors[..., None] + steps)[..., None] * turns
    hidden = (at >= anchors[..., None])[:, None, None, :, None, :]
    for i in range(c.L):
        part = Part(w, f"blk.{i}.")
        x = norm(h, part("attn_norm"), c.eps)
        q = turned(norm(split(c, part, "attn_q", x), part("attn_q_norm"), c.eps), own)
        k, v = keys(c, part, x, own)
        k_context, v_context = keys(c, part, context, angle)
        # heads over Hkv: [B, Hkv, group, A, block, D]
        q = q.unflatten(-2, (c.Hkv, -1)).permute(0, 3, 4, 1, 2, 5).to(v.dtype) * c.D**-0.5
        far = torch.einsum("bhgaid,bthd->bhgait", q, k_context.to(v.dtype)).masked_fill(hidden, float("-inf"))
        near = torch.einsum("bhgaid,bajhd->bhgaij", q, k.to(v.dtype))
        p = torch.cat((far, near), -1).softmax(-1, dtype=torch.float32).to(v.dtype)
        o = torch.einsum("bhgait,bthd->baihgd", p[..., :T], v_context)
        o = o + torch.einsum("bhgaij,bajhd->baihgd", p[..., T:], v)
        h = h + part.linear("attn_output", o.flatten(-3))
        h = h + mlp(part, norm(h, part("ffn_norm"), c.eps))
    return norm(h, w["output_norm.weight"], c.eps)


def split(c: Config, part: Part, name: str, x: torch.Tensor) -> torch.Tensor:
    return part.linear(name, x).unflatten(-1, (-1, c.D))


def keys(c: Config, part: Part, x: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k = norm(split(c, part, "attn_k", x), part("attn_k_norm"), c.eps)
    return turned(k, angle), split(c, part, "attn_v", x)


def labels(tokens: torch.Tensor, anchors: torch.Tensor, block: int) -> torch.Tensor:
    """tokens: [B, T] -> [B, A, block - 1], the tokens after each anchor."""
    at = anchors[..., None] + torch.arange(1, block, device=tokens.device)
    return tokens.gather(1, at.flatten(1)).view_as(at)


def loss(logits: torch.Tensor, wanted: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """logits: [B, A, block - 1, vocab]; a row k after the anchor weighs e^(-(k-1)/gamma).
    Published drafts take 7; the shorter the accepted paths, the more the first rows decide."""
    each = F.cross_entropy(logits.flatten(0, -2).float(), wanted.flatten(), reduction="none").view_as(wanted)
    weight = torch.exp(-torch.arange(wanted.shape[-1], device=wanted.device) / gamma)
    return (each * weight).sum() / (weight.sum() * wanted[..., 0].numel())
