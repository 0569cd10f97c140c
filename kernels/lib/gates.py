"""What every gated-delta kernel does before the recurrence: norms, gates, the key head; and the check of its tensors.

g = A * softplus(a + dt_bias)       beta = sigmoid(b)       x^ = x * rsqrt(sum x^2 + 1e-6)
"""

import torch
import triton
import triton.language as tl


@triton.jit
def log_decay(b_a, b_bias, b_A):
    """A * softplus(a + bias), torch's threshold of 20 included."""
    b_x = b_a + b_bias
    b_e = tl.exp(tl.where(b_x > 20.0, 20.0, b_x))
    b_w = 1.0 + b_e
    # Kahan: log(1 + e) stays exact to the last bit where 1 + e rounds e away; Triton has no log1p
    b_log = tl.where(b_w == 1.0, b_e, tl.log(b_w) * (b_e / tl.where(b_w == 1.0, 1.0, b_w - 1.0)))
    return b_A * tl.where(b_x > 20.0, b_x, b_log)


@triton.jit
def squares(b_x, AXIS: tl.constexpr):
    b_x = b_x.to(tl.float32)
    return tl.sum(b_x * b_x, AXIS)


@triton.jit
def key_head(i_h, HK, HV, TILED: tl.constexpr):
    """The key head of value head i_h: GGUF's tiled order or Hugging Face's grouped one."""
    return i_h % HK if TILED else i_h // (HV // HK)


def rows(op: str, name: str, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """x [B, T, heads] or [B, T, heads, channels] and its strides over B and T; raise unless a token's row is dense."""
    dense = 1
    for size, step in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size > 1 and step != dense:
            raise ValueError(f"{op} takes {name} with dense rows, not {tuple(x.shape)} strides {x.stride()}")
        dense *= size
    return x, x.stride(0), x.stride(1)


def check_heads(op: str, shapes: dict[str, torch.Tensor], dense: tuple[torch.Tensor, ...], head_map: str) -> None:
    """Raise unless k [B, T, Hk, K], v [B, T, Hv, V] and the rest of `shapes` fit and `dense` are contiguous."""
    k, v = shapes["k"], shapes["v"]
    (B, T, Hv, V), (Hk, K) = v.shape, k.shape[2:]
    want = {"q": (B, T, Hk, K), "k": (B, T, Hk, K), "state": (B, Hv, V, K), "A": (Hv,), "dt_bias": (Hv,)}
    for name, x in shapes.items():
        if tuple(x.shape) != want.get(name, (B, T, Hv)) and name != "v":
            raise ValueError(
                f"{op}: v {tuple(v.shape)} wants {name} {want.get(name, (B, T, Hv))}, not {tuple(x.shape)}"
            )
    if Hv % Hk or any(size not in (16, 32, 64, 128) for size in (K, V)):
        raise ValueError(
            f"{op} takes Hv a multiple of Hk and K, V of 16, 32, 64 or 128, not Hv {Hv} Hk {Hk} K {K} V {V}"
        )
    if not all(x.is_contiguous() for x in dense):
        raise ValueError(f"{op} takes contiguous A, dt_bias, state and tree, not strides {[x.stride() for x in dense]}")
    if head_map not in ("tiled", "grouped"):
        raise ValueError(f"{op} knows the head maps tiled and grouped, not '{head_map}'")
