"""Properties of tree_gdn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.tree_gdn import Config
from draftwood.kernels.tree_gdn import tree_gdn as kernel
from draftwood.lab.check import target
from draftwood.lab.oracles import implementation
from draftwood.reference import paths, tree
from draftwood.reference.gdn_prefill import gdn_prefill
from draftwood.reference.ops import find, registered
from draftwood.reference.spec import map_tensors
from draftwood.reference.tree_gdn import SPEC
from draftwood.reference.tree_gdn import tree_gdn as reference
from draftwood.reference.tree_mask import tree_mask
from hypothesis import given, settings
from hypothesis import strategies as st

TREES, BATCH = 10_000, 500
GOLDEN = np.load(Path(__file__).parent / "golden" / "gdn_fla.npz")
either = pytest.mark.parametrize("gdn", [reference, kernel], ids=["reference", "kernel"])
strategies = pytest.mark.parametrize("strategy", ["wy", "store_f32"])
TOKENS = ("q", "k", "v", "a", "b")


def drawn(shape: str, T: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"Hk": 1, "Hv": 2, "K": 16, "V": 16}
    case = SPEC.cases["smoke"][0].but(**sizes | {"T": T, "shape": shape} | changes)
    inputs = SPEC.inputs(case, torch.Generator().manual_seed(seed))
    return map_tensors(inputs, lambda tensor: tensor.to(target()))


def replanted(x: dict[str, Any], parents: list[int], rows: list[int]) -> dict[str, Any]:
    """The same tokens in another order, over another tree."""
    new = torch.tensor([parents], dtype=torch.int32, device=target())
    return x | {name: x[name][:, rows] for name in TOKENS} | {"parents": new, "ancestors": tree_mask(new)[0]}


def close(got: torch.Tensor, want: torch.Tensor, eps: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=eps, atol=eps * float(want.abs().max() if want.numel() else 0))


@either
@strategies
def test_flash_linear_attention_run_down_every_path_is_the_same(gdn, strategy):
    x = {name: torch.from_numpy(GOLDEN[name]).to(target()) for name in (*TOKENS, "A", "dt_bias", "state")}
    parents = torch.from_numpy(GOLDEN["parents"]).int().to(target())
    o, saved = gdn(**x, parents=parents, ancestors=tree_mask(parents)[0], strategy=strategy)
    close(o, torch.from_numpy(GOLDEN["o"]).to(target()))
    if strategy == "store_f32":
        close(saved, torch.from_numpy(GOLDEN["states"]).to(target()))


@either
@strategies
def test_a_chain_is_a_prefill(gdn, strategy):
    x = drawn("chain", 11, strategy=strategy)
    o, _ = gdn(**x)
    tokens = {name: x[name] for name in (*TOKENS, "A", "dt_bias", "state", "head_map")}
    close(o, gdn_prefill(**tokens | {"state": x["state"].clone()}))


@either
@strategies
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_the_order_of_nodes_does_not_matter(gdn, strategy, seed):
    T = 6
    x = drawn("forest", T, seed, Hv=1, strategy=strategy)
    # any order in which parents come first
    rank = torch.rand(T, generator=torch.Generator().manual_seed(seed)).tolist()
    order: list[int] = []
    while len(order) < T:
        ready = [n for n in range(T) if n not in order and int(x["parents"][0, n]) in (tree.ROOT, *order)]
        order.append(min(ready, key=rank.__getitem__))
    moved = [order.index(int(p)) if p >= 0 else int(p) for p in x["parents"][0, order]]
    o, saved = gdn(**x)
    moved_o, moved_saved = gdn(**replanted(x, moved, order))
    close(moved_o, o[:, order])
    close(moved_saved, saved[:, order])


@either
@strategies
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_nodes_that_are_no_ancestors_change_not_a_bit(gdn, strategy, seed):
    x = drawn("random", 7, seed, Hv=1, strategy=strategy)
    node = 5
    foreign = [other for other in range(7) if other not in tree.path(x["parents"][0], node)]
    other = map_tensors(x, torch.clone)
    for name in TOKENS:
        other[name][:, foreign] = 3.0
    assert torch.equal(gdn(**other)[0][:, node], gdn(**x)[0][:, node])


@either
@strategies
def test_what_lies_in_padding_is_not_seen_and_its_output_is_zero(gdn, strategy):
    x = drawn("padded", 7, B=2, Hv=1, strategy=strategy)
    padding = x["parents"] == tree.PAD
    other = map_tensors(x, torch.clone)
    for name in TOKENS:
        other[name][padding] = float("nan")
    for got, want in zip(gdn(**other), gdn(**x), strict=True):
        assert torch.equal(got, want) and not got[padding].any()


@either
@strategies
def test_outputs_are_linear_in_values_and_state(gdn, strategy):
    x = drawn("random", 7, strategy=strategy)
    o, saved = gdn(**x)
    # powers of two round nowhere
    for got, want in zip(gdn(**x | {"v": x["v"] * 8, "state": x["state"] * 8}), (o, saved), strict=True):
        assert torch.equal(got, want * 8)
    parts = [gdn(**x | {"v": x["v"] * 0}), gdn(**x | {"state": x["state"] * 0})]
    close(parts[0][0] + parts[1][0], o)
    close(parts[0][1] + parts[1][1], saved)


@either
@strategies
def test_a_tiled_model_is_the_grouped_one_with_its_value_heads_reordered(gdn, strategy):
    x = drawn("random", 4, Hk=2, Hv=6, strategy=strategy)
    # tiled head j * Hk + key is grouped head key * 3 + j
    order = [key * 3 + j for j in range(3) for key in range(2)]
    heads = {name: x[name][:, :, order].contiguous() for name in ("v", "a", "b")}
    heads |= {"A": x["A"][order], "dt_bias": x["dt_bias"][order], "state": x["state"][:, order].contiguous()}
    grouped, tiled = gdn(**x | {"head_map": "grouped"}), gdn(**x | heads)
    for got, want in zip(tiled, grouped, strict=True):
        assert torch.equal(got, want[:, :, order])


@either
def test_a_nan_in_one_row_of_the_state_reaches_that_value_channel_alone(gdn):
    x = drawn("random", 6)
    x["state"][0, 1, 5, 3] = float("nan")
    o, u = gdn(**x)
    for out in (o, u):
        reached = out.isnan().any(1)[0].nonzero().tolist()
        assert reached == [[1, 5]] and out[0, :, 1, 5].isnan().all()


def test_strategies_agree():
    x = drawn("ddtree", 18, Hv=1)
    o = kernel(**x)[0]
    for strategy in ("replay", "store_f32"):
        close(kernel(**x | {"strategy": strategy})[0], o)
    close(kernel(**x | {"strategy": "store_f16"})[0], o, 2e-3)


@pytest.mark.parametrize(
    ("config", "T"),
    [
        (Config(BLOCK_V=16), 37),
        (Config(precision="ieee"), 37),
        (Config(precision="tf32x3"), 17),
        (Config(BLOCK_T=64), 67),
        (Config(BLOCK_K=16, BLOCK_T=16), 67),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_config_changes_the_last_bits_alone(config, T, dtype):
    x = drawn("ddtree", T, K=32, V=32, Hv=1, dtype=dtype)
    eps = 1e-2 if dtype == "bf16" else 2e-5
    for got, want in zip(kernel(**x, config=config), reference(**x), strict=True):
        close(got.float(), want.float(), eps)


def test_repeated_keys_do_not_blow_up_the_triangular_system():
    x = drawn("chain", 64, values="equal", Hv=1)
    # beta near 1 and no decay: powers of the system's matrix reach 1e17, its inverse stays within 1
    x["b"][:] = 3.0
    for got, want in zip(kernel(**x, config=Config(precision="ieee")), reference(**x), strict=True):
        close(got, want, 1e-5)


def test_a_small_decay_behind_a_huge_one_is_not_lost():
    x = drawn("chain", 16, Hv=1)
    x["A"][:], x["dt_bias"][:], x["a"][:] = -16.0, 0.0, -6.0
    # e^-32000 once: in sums of f32 from the root the decays after it would drown
    x["a"][:, 1] = 2000.0
    for got, want in zip(kernel(**x), reference(**x), strict=True):
        close(got, want, 2e-6)


def test_what_the_kernel_does_not_take_is_refused_with_its_value():
    x = drawn("chain", 4)
    for change, said in (
        ({"strategy": "wx"}, "'wx'"),
        ({"head_map": "mixed"}, "'mixed'"),
        ({"v": x["v"][..., :12]}, "12"),
        ({"q": x["q"][..., ::2]}, "8"),
        ({"v": x["v"].transpose(2, 3).contiguous().transpose(2, 3)}, "dense rows"),
        ({"state": x["state"].mT}, "strides"),
        ({"parents": x["parents"][:, :3]}, "3"),
    ):
        with pytest.raises(ValueError, match=said):
            kernel(**x | change)


@pytest.mark.long
@pytest.mark.parametrize("strategy", SPEC.choices["strategy"])
@pytest.mark.parametrize("folder", ["reference", "kernels"] if target() == "cuda" else ["reference"])
@pytest.mark.parametrize("shape", tree.SHAPES)
def test_ten_thousand_trees_equal_their_paths_run_as_chains_over_five_steps(shape, folder, strategy, monkeypatch):
    monkeypatch.setattr(paths, "STEPS", 5)
    call = implementation(find("tree_gdn"), folder, registered())
    for seed in range(tree.SHAPES.index(shape), TREES // BATCH, len(tree.SHAPES)):
        case = SPEC.cases["smoke"][0].but(Hk=1, Hv=2, K=16, V=16, B=BATCH, T=20, shape=shape, strategy=strategy)
        inputs = map_tensors(SPEC.inputs(case, torch.Generator().manual_seed(seed)), lambda tensor: tensor.to(target()))
        for oracle in SPEC.oracles.values():
            assert not list(oracle(call, inputs, case, seed))
