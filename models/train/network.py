"""The target in plain torch: `models/target.py` said again for training, over a dict of weights named as in GGUF.

`forward` takes whole sequences, with gradients; `Writer` goes token by token, many texts at once. What is held in
another form than the file's: ssm_a is log(-A), so that it may take any value.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..qwen35 import Config, tensors
from .delta import chunked, recurrent

Weights = dict[str, torch.Tensor]


def fresh(c: Config, seed: int) -> Weights:
    """Initial weights, on the CPU."""
    random = torch.Generator().manual_seed(seed)
    found: Weights = {}
    for name, shape in tensors(c).items():
        part = name.removesuffix(".weight").split(".")[-1]
        if part.endswith("norm"):
            value = torch.ones(shape)
        elif part == "ssm_a":
            value = torch.empty(shape).uniform_(1, 16, generator=random).log()
        elif name.endswith("ssm_dt.bias"):
            step = torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1), generator=random).exp()
            value = step + torch.log(-torch.expm1(-step))
        elif part == "ssm_conv1d":
            value = torch.empty(shape).uniform_(-0.5, 0.5, generator=random)
        else:
            # what is added to the residual stream starts smaller, the more layers add to it
            shrink = (2 * c.L) ** -0.5 if part in ("ssm_out", "attn_output", "ffn_down") else 1.0
            width = 0.05 if part == "token_embd" else shape[1] ** -0.5
            value = torch.randn(shape, generator=random) * width * shrink
        found[name] = value
    return found


def stored(weights: Weights) -> Weights:
    """The weights as a file holds them."""
    return {name: -value.exp() if name.endswith("ssm_a") else value for name, value in weights.items()}


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], weight, eps)


def unit(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def frequencies(rotary: int, theta: float, device: torch.device) -> torch.Tensor:
    """reference/rope.py's, made on the device: a captured step copies nothing to it."""
    return (theta ** -(torch.arange(0, rotary, 2, dtype=torch.float64, device=device) / rotary)).float()


def turned(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """x: [.., T, H, D], its first dims rotated by angle [.., T, R/2]."""
    half, cos, sin = angle.shape[-1], angle.cos()[..., None, :], angle.sin()[..., None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def forward(
    c: Config, w: Weights, tokens: torch.Tensor, captured: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """tokens: [B, T] -> the hidden vectors after the last norm [B, T, E], and the outputs of the captured layers side
    by side [B, T, n E]."""
    h, features = F.embedding(tokens, w["token_embd.weight"]).float(), []
    angle = torch.arange(tokens.shape[1], device=h.device)[:, None] * frequencies(c.rotary, c.theta, h.device)
    for i, is_delta in enumerate(c.recurrent):
        part = Part(w, f"blk.{i}.")
        x = norm(h, part("attn_norm"), c.eps)
        h = h + (delta(c, part, x) if is_delta else attention(c, part, x, angle))
        h = h + mlp(part, norm(h, part("post_attention_norm"), c.eps))
        if i in captured:
            features.append(h)
    return norm(h, w["output_norm.weight"], c.eps), torch.cat(features, -1) if features else None


@dataclass(frozen=True)
class Part:
    """The weights of a layer, by the last part of their names."""

    weights: Weights
    prefix: str

    def __call__(self, name: str) -> torch.Tensor:
        return self.weights[f"{self.prefix}{name}.weight"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self(name))

    def gates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """g and beta of the delta rule, [.., Hv] f32."""
        a, b = self.linear("ssm_alpha", x).float(), self.linear("ssm_beta", x).float()
        A, bias = self.weights[f"{self.prefix}ssm_a"], self.weights[f"{self.prefix}ssm_dt.bias"]
        return -A.exp() * F.softplus(a + bias), b.sigmoid()


def mlp(part: Part, x: torch.Tensor) -> torch.Tensor:
    return part.linear("ffn_down", F.silu(part.linear("ffn_gate", x)) * part.linear("ffn_up", x))


def split(c: Config, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Channels [.., C] -> q, k [.., Hv, K] of length 1, q scaled, and v [.., Hv, V]; head h has key head h % Hk."""
    q, k, v = y.split((c.Hk * c.K, c.Hk * c.K, c.Hv * c.V), -1)
    q, k = (unit(x.unflatten(-1, (c.Hk, c.K))) for x in (q, k))
    tiles = (1,) * (q.dim() - 2) + (c.Hv // c.Hk, 1)
    return q.tile(tiles) * c.K**-0.5, k.tile(tiles), v.unflatten(-1, (c.Hv, c.V)).float()


def delta(c: Config, part: Part, x: torch.Tensor) -> torch.Tensor:
    T, taps = x.shape[1], part("ssm_conv1d")
    u = F.pad(part.linear("attn_qkv", x), (0, 0, c.W - 1, 0))
    y = u[:, :T] * taps[:, 0]
    for j in range(1, c.W):
        y = y + u[:, j : j + T] * taps[:, j]
    q, k, v = split(c, F.silu(y))
    g, beta = part.gates(x)
    with torch.autocast(x.device.type, enabled=False):
        o = chunked(q, k, v, g, beta)
    z = part.linear("attn_gate", x).unflatten(-1, (c.Hv, c.V))
    return part.linear("ssm_out", (norm(o, part("ssm_norm"), c.eps) * F.silu(z)).flatten(-2))


def heads(c: Config, part: Part, x: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """q [.., H, D], gate [.., H D], k, v [.., Hkv, D]; q and k normed and rotated."""
    q, gate = part.linear("attn_q", x).unflatten(-1, (c.H, 2, c.D)).unbind(-2)
    k, v = (part.linear(name, x).unflatten(-1, (c.Hkv, c.D)) for name in ("attn_k", "attn_v"))
    q, k = norm(q, part("attn_q_norm"), c.eps), norm(k, part("attn_k_norm"), c.eps)
    return turned(q, angle), gate.flatten(-2), turned(k, angle), v


def attention(c: Config, part: Part, x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    q, gate, k, v = heads(c, part, x, angle)
    k, v = (one.repeat_interleave(c.H // c.Hkv, -2) for one in (k, v))
    q, k, v = (one.to(v.dtype).transpose(1, 2) for one in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return part.linear("attn_output", o.transpose(1, 2).flatten(-2) * gate.sigmoid())


class Writer:
    """B texts that grow by a token a call, from one state to the next, all in place: `step` can be captured."""

    def __init__(self, c: Config, weights: Weights, B: int, T: int) -> None:
        device = weights["token_embd.weight"].device
        self.c, self.w, self.p = c, weights, torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(B, dtype=torch.long, device=device)
        self.frequencies = frequencies(c.rotary, c.theta, device)
        self.positions = torch.arange(T, device=device)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(B, *shape, device=device)

        self.held = [
            (zeros(c.W, c.C), zeros(c.Hv, c.K, c.V)) if is_delta else (zeros(T, c.Hkv, c.D), zeros(T, c.Hkv, c.D))
            for is_delta in c.recurrent
        ]

    def reset(self) -> None:
        for tensor in (self.p, *(one for pair in self.held for one in pair)):
            tensor.zero_()

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """Take self.tokens [B] in; the logits [B, vocab] of what follows."""
        c, h = self.c, F.embedding(self.tokens, self.w["token_embd.weight"]).float()
        for i, (one, other) in enumerate(self.held):
            part = Part(self.w, f"blk.{i}.")
            x = norm(h, part("attn_norm"), c.eps)
            h = h + (self._delta(part, x, one, other) if c.recurrent[i] else self._attention(part, x, one, other))
            h = h + mlp(part, norm(h, part("post_attention_norm"), c.eps))
        self.p += 1
        return head(c, self.w, norm(h, self.w["output_norm.weight"], c.eps))

    def _delta(self, part: Part, x: torch.Tensor, tail: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        c = self.c
        tail.copy_(torch.cat((tail[:, 1:], part.linear("attn_qkv", x)[:, None].float()), 1))
        q, k, v = split(c, F.silu((tail * part("ssm_conv1d").T).sum(1)))
        g, beta = part.gates(x)
        with torch.autocast(x.device.type, enabled=False):
            o = recurrent(S, q, k, v, g, beta)
        z = part.linear("attn_gate", x).unflatten(-1, (c.Hv, c.V))
        return part.linear("ssm_out", (norm(o, part("ssm_norm"), c.eps) * F.silu(z)).flatten(-2))

    def _attention(self, part: Part, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        c = self.c
        q, gate, k, v = heads(c, part, x, self.p[:, None].float() * self.frequencies)
        keys.index_copy_(1, self.p, k[:, None].float())
        values.index_copy_(1, self.p, v[:, None].float())
        q = q.unflatten(1, (c.Hkv, -1))
        scores = torch.einsum("bhgd,bthd->bhgt", q, keys).float() * c.D**-0.5
        p = scores.masked_fill(self.positions > self.p, float("-inf")).softmax(-1)
        o = torch.einsum("bhgt,bthd->bhgd", p, values).flatten(1)
        return part.linear("attn_output", o * gate.sigmoid())


def head(c: Config, w: Weights, hidden: torch.Tensor) -> torch.Tensor:
    return F.linear(hidden, w["token_embd.weight" if c.tied else "output.weight"])
