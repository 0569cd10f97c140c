"""Properties of prefill_attention."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.prefill_attention import Config
from draftwood.kernels.prefill_attention import prefill_attention as kernel
from draftwood.kernels.tree_attention import tree_attention
from draftwood.lab.check import target
from draftwood.reference.prefill_attention import SPEC
from draftwood.reference.prefill_attention import prefill_attention as reference
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "attention.npz")
either = pytest.mark.parametrize("attend", [reference, kernel], ids=["reference", "kernel"])
SMALL = SPEC.cases["smoke"][0].but(T=12, H=2, Hkv=1, context=20)


def drawn(seed: int = 0, **values: Any) -> dict[str, Any]:
    inputs = SPEC.inputs(SMALL.but(**values), torch.Generator().manual_seed(seed))
    return {name: x.to(target()) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def i32(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32, device=target())


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@either
@pytest.mark.parametrize(("of", "window"), [("causal", 0), ("window", 9)])
def test_transformers_attends_to_the_same(attend, of, window):
    q, k, v, wanted = (torch.from_numpy(GOLDEN[f"attention_{name}"]).to(target()) for name in ("q", "k", "v", of))
    close(attend(q.float(), k, v, i32(k.shape[1] - len(q)), "f16", "f16", window), wanted)


@given(cut=st.integers(1, 11), window=st.sampled_from([0, 5]), context=st.sampled_from([0, 20]))
@settings(max_examples=6)
@either
def test_a_prompt_in_two_parts_is_the_prompt_in_one(attend, cut, window, context):
    inputs = drawn(window=window, context=context)
    q, start = inputs.pop("q"), inputs.pop("start")
    whole = attend(q, start=start, **inputs)
    parts = attend(q[:cut], start=start, **inputs), attend(q[cut:].contiguous(), start=i32(context + cut), **inputs)
    close(torch.cat(parts), whole)


@pytest.mark.parametrize("format", ["f16", "q8_0", "tq3_0"])
def test_its_last_query_is_a_decode_step(format):
    inputs = drawn(D=128, format_k=format, format_v=format)
    last = {**inputs, "q": inputs["q"][-1:], "start": inputs["start"] + 11}
    one = torch.ones(1, 1, dtype=torch.uint8, device=target())
    close(kernel(**inputs)[-1:], tree_attention(**last, ancestors=one))


@either
def test_a_window_as_long_as_the_past_is_no_window(attend):
    inputs = drawn()
    unbounded = attend(**inputs)
    assert torch.equal(attend(**{**inputs, "window": 32}), unbounded)
    assert not torch.allclose(attend(**{**inputs, "window": 31}), unbounded, rtol=1e-6)


@either
def test_a_query_does_not_see_what_comes_after_it(attend):
    inputs = drawn(T=6)
    o = attend(**inputs)
    for name in ("cache_k", "cache_v"):
        inputs[name][:, 23:26] = 7
    later = attend(**inputs)
    assert torch.equal(later[:3], o[:3]) and not torch.allclose(later[3:], o[3:])


@either
def test_a_window_of_one_returns_the_own_value(attend):
    inputs = drawn(window=1, context=3)
    wanted = inputs["cache_v"][0, 3:15].float()
    close(attend(**inputs), wanted[:, None].expand(-1, 2, -1))


@pytest.mark.parametrize("config", [Config(BLOCK_M=16, BLOCK_S=64), Config(BLOCK_M=128, BLOCK_S=16)])
def test_the_tiles_change_only_roundings(config):
    inputs = drawn(T=35, context=9, window=17, format_k="q4_0", format_v="q8_0", H=1)
    close(kernel(**inputs, config=config), reference(**inputs))


def test_heads_that_do_not_share_evenly_are_refused():
    inputs = drawn()
    with pytest.raises(ValueError, match="for 3 heads"):
        kernel(**{**inputs, "q": torch.zeros(12, 3, 64), "cache_k": torch.zeros(2, 40, 64).half()})
