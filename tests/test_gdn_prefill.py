"""Properties of gdn_prefill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.gdn_prefill import Config
from draftwood.kernels.gdn_prefill import gdn_prefill as kernel
from draftwood.lab.check import target
from draftwood.reference.gdn_prefill import SPEC
from draftwood.reference.gdn_prefill import gdn_prefill as reference
from draftwood.reference.spec import map_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "gdn_transformers.npz")
either = pytest.mark.parametrize("prefill", [reference, kernel], ids=["reference", "kernel"])
lengths = pytest.mark.parametrize("T", [5, 20], ids=["recurrent", "chunked"])
TOKENS = ("q", "k", "v", "a", "b")


def drawn(T: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    case = SPEC.cases["smoke"][0].but(**{"Hk": 1, "Hv": 2, "K": 16, "V": 16, "T": T} | changes)
    return map_tensors(SPEC.inputs(case, torch.Generator().manual_seed(seed)), lambda tensor: tensor.to(target()))


def ran(prefill, x: dict[str, Any], **extra: Any) -> tuple[torch.Tensor, torch.Tensor]:
    state = x["state"].clone()
    return prefill(**x | {"state": state}, **extra), state


def close(got: torch.Tensor, want: torch.Tensor, eps: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=eps, atol=eps * float(want.abs().max()))


@either
@pytest.mark.parametrize("step", [70, 1], ids=["at once", "one by one"])
def test_a_transformers_layer_from_nothing_is_the_same(prefill, step):
    x = {name: torch.from_numpy(GOLDEN[name]).to(target()) for name in GOLDEN.files}
    q, k, v = x["conv"].split([64, 64, 192], -1)
    tokens = {"q": q.unflatten(-1, (2, 32)), "k": k.unflatten(-1, (2, 32)), "v": v.unflatten(-1, (6, 32))}
    tokens |= {"a": x["a"], "b": x["b"]}
    state = torch.zeros_like(x["state"])
    weights = {"A": -x["A_log"].exp(), "dt_bias": x["dt_bias"], "state": state, "head_map": "grouped"}
    T = 70 if step == 70 else 12
    rows = [slice(t, t + step) for t in range(0, T, step)]
    o = torch.cat([prefill(**{name: y[:, row] for name, y in tokens.items()}, **weights) for row in rows], 1)
    close(o, x["o"][:, :T])
    if T == 70:
        close(state, x["state"])


@either
@settings(max_examples=5)
@given(T=st.integers(2, 40), cut=st.integers(1, 39), seed=st.integers(0, 99))
def test_tokens_in_two_runs_are_the_tokens_at_once(prefill, T, cut, seed):
    x, cut = drawn(T, seed, Hv=1), min(cut, T - 1)
    o, state = ran(prefill, x)
    first, halfway = ran(prefill, x | {name: x[name][:, :cut] for name in TOKENS})
    second, end = ran(prefill, x | {name: x[name][:, cut:] for name in TOKENS} | {"state": halfway})
    close(torch.cat([first, second], 1), o)
    close(end, state)


@either
@lengths
def test_outputs_are_linear_in_values_and_state(prefill, T):
    x = drawn(T)
    o, state = ran(prefill, x)
    # powers of two round nowhere
    for got, want in zip(ran(prefill, x | {"v": x["v"] / 4, "state": x["state"] / 4}), (o, state), strict=True):
        assert torch.equal(got * 4, want)


@either
@lengths
def test_what_was_written_last_is_read_back_whole(prefill, T):
    x = drawn(T)
    # beta = 1, and the query is the key just written
    x["b"][:] = 40.0
    o, _ = ran(prefill, x | {"q": x["k"]})
    squares = x["k"].square().sum(-1, keepdim=True)
    close(o, x["v"] * squares / (squares + 1e-6) * x["k"].shape[-1] ** -0.5, 1e-4)


@either
@lengths
def test_with_beta_zero_the_state_only_decays(prefill, T):
    x = drawn(T)
    x["b"][:] = -200.0
    _, state = ran(prefill, x)
    decay = (x["A"] * torch.nn.functional.softplus(x["a"] + x["dt_bias"])).sum(1).exp()
    close(state, x["state"] * decay[..., None, None])


@either
@lengths
def test_after_a_total_decay_nothing_before_is_remembered(prefill, T):
    x = drawn(T)
    x["A"][:] = -16.0
    x["a"][:, 3] = 30.0
    other = map_tensors(x, torch.clone)
    other["state"] *= -3
    other["v"][:, :3] += 1
    for got, want in zip(ran(prefill, other), ran(prefill, x), strict=True):
        close(got[:, 3:] if got.dim() == 4 and got.shape[1] == T else got, want[:, 3:] if want.shape[1] == T else want)


@pytest.mark.parametrize(
    "config",
    [
        Config(BLOCK_T=16),
        Config(BLOCK_T=32),
        Config(BLOCK_V=16),
        Config(precision="ieee"),
        Config(BLOCK_T=16, segment=2),
        Config(segment=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_config_changes_the_last_bits_alone(config, dtype):
    x = drawn(70, K=32, V=32, Hv=1, dtype=dtype)
    (o, state), (want, end) = ran(kernel, x, config=config), ran(reference, x)
    close(o.float(), want.float(), 1e-2 if dtype == "bf16" else 2e-5)
    close(state, end)
