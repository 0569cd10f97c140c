"""The gated delta rule, one token at a time: what tree_gdn, gdn_commit and gdn_prefill share.

    q^ = q / sqrt(sum q^2 + 1e-6) / sqrt(K)       k^ = k / sqrt(sum k^2 + 1e-6)
    g = A * softplus(a + dt_bias) <= 0            beta = sigmoid(b)

    u = beta * (v - e^g S k^)      S' = e^g S + u k^T      o = S' q^

The state S of a value head is [V, K], K fastest, as llama.cpp keeps it. Hv value heads share Hk key heads:

    tiled    value head h uses key head h % Hk            GGUF files
    grouped  value head h uses key head h // (Hv / Hk)    Hugging Face checkpoints
"""

import torch

from .spec import DTYPES, Case, Dim, Inputs

EPS = 1e-6
HEAD_MAPS = ("tiled", "grouped")
VALUES = ("typical", "equal", "zero", "extreme")

DIMS = (
    Dim("B", 1, 1 << 16, fuzz=3, doc="sequences"),
    Dim("Hk", 1, 128, fuzz=3, doc="key heads"),
    Dim("Hv", 1, 128, fuzz=6, doc="value heads, a multiple of Hk"),
    Dim("K", 16, 128, fuzz=32, multiple=16, doc="key size of a head, a power of two"),
    Dim("V", 16, 128, fuzz=32, multiple=16, doc="value size of a head, a power of two"),
)


def illegal(case: Case) -> str | None:
    if case["Hv"] % case["Hk"]:
        return f"Hv must be a multiple of Hk, not {case['Hv']} of {case['Hk']}"
    odd = [f"{name} = {case[name]}" for name in ("K", "V") if case[name] & (case[name] - 1)]
    return f"head sizes are powers of two, not {', '.join(odd)}" if odd else None


def key_heads(Hk: int, Hv: int, head_map: str) -> torch.Tensor:
    """[Hv]: the key head of every value head."""
    heads = torch.arange(Hv)
    match head_map:
        case "tiled":
            return heads % Hk
        case "grouped":
            return heads // (Hv // Hk)
    raise ValueError(f"head maps are {', '.join(HEAD_MAPS)}, not '{head_map}'")


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def query(q: torch.Tensor, heads: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """[..., Hk, K] -> [..., Hv, K], normalised and scaled."""
    return normalised(q.to(wide))[..., heads, :] * q.shape[-1] ** -0.5


def key(k: torch.Tensor, heads: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """[..., Hk, K] -> [..., Hv, K], normalised."""
    return normalised(k.to(wide))[..., heads, :]


def log_decay(a: torch.Tensor, A: torch.Tensor, dt_bias: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    return A.to(wide) * torch.nn.functional.softplus(a.to(wide) + dt_bias.to(wide), threshold=20)


def step(
    S: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """S [B, Hv, V, K], q k [B, Hv, K], v [B, Hv, V], g beta [B, Hv] -> o [B, Hv, V], u [B, Hv, V], the next S."""
    S = g.exp()[..., None, None] * S
    u = beta[..., None] * (v - (S * k[..., None, :]).sum(-1))
    S = S + u[..., :, None] * k[..., None, :]
    return (S * q[..., None, :]).sum(-1), u, S


def draw(case: Case, T: int, generator: torch.Generator) -> Inputs:
    """q, k, v (views of one conv output), a, b, A, dt_bias and state for T tokens.

    equal    every token alike, beta = 1/2, no decay: the triangular system at its worst
    extreme  row scales over nine decades (eps matters, f16 nearly overflows), decays from none to e^-500
    """
    B, Hk, Hv, K, V = case["B"], case["Hk"], case["Hv"], case["K"], case["V"]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    qkv = torch.nn.functional.silu(normal(B, T, 2 * Hk * K + Hv * V) * 10 ** uniform(-1, 0.5, 2 * Hk * K + Hv * V))
    a, b = 2 * normal(B, T, Hv), 2 * normal(B, T, Hv)
    A = -uniform(0.5, 16, Hv)
    dt = 10 ** uniform(-3, -1, Hv)
    dt_bias = dt + torch.log(-torch.expm1(-dt))
    state = 0.3 * normal(B, Hv, V, K) * 10 ** uniform(-1, 0.5, Hv, 1, 1)
    match case["values"]:
        case "equal":
            qkv, a, b = qkv[:, :1].expand_as(qkv), torch.full_like(a, -30), torch.zeros_like(b)
        case "zero":
            qkv, state = torch.zeros_like(qkv), torch.zeros_like(state)
        case "extreme":
            qkv = qkv / 3 * 10 ** uniform(-6, 3, B, T, 1)
            a, b = uniform(-30, 30, B, T, Hv), uniform(-20, 20, B, T, Hv)
    dtype = DTYPES[case["dtype"]]
    qkv = qkv.to(dtype).contiguous()
    q, k, v = qkv.split([Hk * K, Hk * K, Hv * V], -1)
    return {
        "q": q.unflatten(-1, (Hk, K)),
        "k": k.unflatten(-1, (Hk, K)),
        "v": v.unflatten(-1, (Hv, V)),
        "a": a.to(dtype),
        "b": b.to(dtype),
        "A": A,
        "dt_bias": dt_bias,
        "state": state.to(DTYPES[case["state"]]),
    }


def token_bytes(case: Case, T: int) -> int:
    """q, k, v, a, b in and o out."""
    row = 2 * case["Hk"] * case["K"] + 2 * case["Hv"] * case["V"] + 2 * case["Hv"]
    return case["B"] * T * row * DTYPES[case["dtype"]].itemsize


def state_bytes(case: Case) -> int:
    return case["B"] * case["Hv"] * case["V"] * case["K"] * DTYPES[case["state"]].itemsize
