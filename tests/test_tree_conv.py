"""Properties of tree_conv."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.tree_conv import Config
from draftwood.kernels.tree_conv import tree_conv as kernel
from draftwood.lab.check import target
from draftwood.lab.oracles import implementation
from draftwood.reference import tree
from draftwood.reference.ops import find, registered
from draftwood.reference.tree_conv import SPEC
from draftwood.reference.tree_conv import tree_conv as reference
from hypothesis import given, settings
from hypothesis import strategies as st

TREES, BATCH = 10_000, 500
GOLDEN = np.load(Path(__file__).parent / "golden" / "gdn_transformers.npz")
either = pytest.mark.parametrize("conv", [reference, kernel], ids=["reference", "kernel"])


def drawn(shape: str, T: int, seed: int = 0, B: int = 1, C: int = 24, W: int = 4) -> dict[str, Any]:
    case = SPEC.cases["smoke"][0].but(B=B, T=T, C=C, W=W, shape=shape)
    inputs = SPEC.inputs(case, torch.Generator().manual_seed(seed))
    return {name: tensor.to(target()) for name, tensor in inputs.items()}


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@either
def test_transformers_convolves_a_chain_from_nothing_to_the_same(conv):
    u, weight, wanted = (torch.from_numpy(GOLDEN[name]).to(target()) for name in ("u", "weight", "conv"))
    state = torch.zeros(1, 3, u.shape[2], device=target())
    close(conv(u, weight, state, torch.arange(-1, u.shape[1] - 1, dtype=torch.int32, device=target())[None]), wanted)


@either
@settings(max_examples=8)
@given(
    shape=st.sampled_from(("random", "forest", "binary")),
    T=st.integers(1, 14),
    W=st.integers(2, 5),
    seed=st.integers(0, 999),
)
def test_a_node_is_the_last_output_of_a_plain_convolution_down_its_path(conv, shape, T, W, seed):
    x = drawn(shape, T, seed, W=W)
    y, node = conv(**x), T - 1
    rows = torch.cat([x["state"], x["u"][:, tree.path(x["parents"][0], node)]], 1)
    plain = torch.nn.functional.conv1d(rows.mT, x["weight"][:, None], groups=rows.shape[2])[..., -1]
    close(y[:, node], torch.nn.functional.silu(plain))


@either
def test_nodes_that_are_no_ancestors_change_not_a_bit(conv):
    x = drawn("random", 12, seed=3)
    node = 8
    foreign = [other for other in range(12) if other not in tree.path(x["parents"][0], node)]
    other = x["u"].clone()
    other[:, foreign] = 1e4
    assert torch.equal(conv(**x)[:, node], conv(**x | {"u": other})[:, node])


@either
def test_ancestors_beyond_the_taps_change_not_a_bit(conv):
    x = drawn("chain", 9)
    other = x["u"].clone()
    other[:, :3] = 1e4
    assert torch.equal(conv(**x)[:, 6:], conv(**x | {"u": other})[:, 6:])


@either
@settings(max_examples=5)
@given(seed=st.integers(0, 999))
def test_the_order_of_nodes_does_not_matter(conv, seed):
    x = drawn("random", 10, seed)
    # any order in which parents come first
    rank = torch.rand(10, generator=torch.Generator().manual_seed(seed)).tolist()
    order: list[int] = []
    while len(order) < 10:
        ready = [n for n in range(10) if n not in order and int(x["parents"][0, n]) in (tree.ROOT, *order)]
        order.append(min(ready, key=rank.__getitem__))
    moved = [order.index(int(p)) if p >= 0 else int(p) for p in x["parents"][0, order]]
    parents = torch.tensor([moved], dtype=torch.int32, device=target())
    assert torch.equal(conv(**x | {"u": x["u"][:, order], "parents": parents}), conv(**x)[:, order])


@either
def test_what_lies_in_padding_is_not_seen_and_its_output_is_zero(conv):
    x = drawn("padded", 12, B=2)
    padding = x["parents"] == tree.PAD
    other = x["u"].clone()
    other[padding] = float("nan")
    y, z = conv(**x), conv(**x | {"u": other})
    assert torch.equal(y, z) and not y[padding].any()


@either
def test_channels_do_not_meet(conv):
    x = drawn("random", 7, C=40)
    half = {
        "u": x["u"][..., 9:20].contiguous(),
        "weight": x["weight"][9:20],
        "state": x["state"][..., 9:20].contiguous(),
    }
    close(conv(**half, parents=x["parents"]), conv(**x)[..., 9:20])


@pytest.mark.parametrize("config", [Config(1, 64, 1), Config(4, 64), Config(32, 32)], ids=str)
def test_the_blocks_of_a_config_do_not_change_a_bit(config):
    x = drawn("ddtree", 9, C=70)
    assert torch.equal(kernel(**x, config=config), kernel(**x))


@pytest.mark.long
@pytest.mark.parametrize("folder", ["reference", "kernels"] if target() == "cuda" else ["reference"])
def test_ten_thousand_trees_equal_their_paths_run_as_chains(folder):
    call = implementation(find("tree_conv"), folder, registered())
    for seed in range(TREES // BATCH):
        shape = tree.SHAPES[seed % len(tree.SHAPES)]
        case = SPEC.cases["smoke"][0].but(B=BATCH, T=20, C=8, shape=shape)
        inputs = drawn(shape, 20, seed, B=BATCH, C=8)
        assert not list(SPEC.oracles["path"](call, inputs, case, seed))
