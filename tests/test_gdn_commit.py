"""Properties of gdn_commit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.gdn_commit import Config
from draftwood.kernels.gdn_commit import gdn_commit as kernel
from draftwood.lab.check import target
from draftwood.reference import tree
from draftwood.reference.gdn_commit import SPEC
from draftwood.reference.gdn_commit import gdn_commit as reference
from draftwood.reference.spec import map_tensors
from draftwood.reference.tree_gdn import tree_gdn
from draftwood.reference.tree_mask import tree_mask
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "gdn_fla.npz")
either = pytest.mark.parametrize("commit", [reference, kernel], ids=["reference", "kernel"])
strategies = pytest.mark.parametrize("strategy", ["wy", "replay", "store_f32"])


def drawn(seed: int = 0, **changes: Any) -> dict[str, Any]:
    case = SPEC.cases["smoke"][0].but(**{"Hk": 1, "Hv": 2, "K": 16, "V": 16} | changes)
    return map_tensors(SPEC.inputs(case, torch.Generator().manual_seed(seed)), lambda tensor: tensor.to(target()))


def along(x: dict[str, Any], path: list[int], length: int | None = None) -> dict[str, Any]:
    ints = [
        torch.tensor(v, dtype=torch.int32, device=target()) for v in ([path], [len(path) if length is None else length])
    ]
    return x | {"path": ints[0], "length": ints[1]}


def after(commit, x: dict[str, Any], **extra: Any) -> torch.Tensor:
    state = x["state"].clone()
    commit(**x | {"state": state}, **extra)
    return state


def close(got: torch.Tensor, want: torch.Tensor, eps: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=eps, atol=eps * float(want.abs().max()))


@either
@strategies
def test_flash_linear_attention_ends_in_the_same_state_at_every_node(commit, strategy):
    names = ("q", "k", "v", "a", "b", "A", "dt_bias", "state")
    x: dict[str, Any] = {name: torch.from_numpy(GOLDEN[name]).to(target()) for name in names}
    parents = torch.from_numpy(GOLDEN["parents"]).int().to(target())
    _, saved = tree_gdn(**x, parents=parents, ancestors=tree_mask(parents)[0], strategy=strategy)
    nodes = (0, 6, 15, 20)
    paths = [tree.path(parents[0].cpu(), node) for node in nodes]
    # one tree, a path a sequence: rows of a batch may be one and the same memory
    B, D = len(nodes), max(map(len, paths))
    wide = {name: x[name].expand(B, *x[name].shape[1:]) for name in ("k", "v", "a", "b")}
    state = x["state"].repeat(B, 1, 1, 1)
    kept = saved.repeat(B, *[1] * (saved.dim() - 1)) if saved.numel() else saved
    path = torch.tensor([p + [-1] * (D - len(p)) for p in paths], dtype=torch.int32, device=target())
    length = torch.tensor([len(p) for p in paths], dtype=torch.int32, device=target())
    commit(**wide, A=x["A"], dt_bias=x["dt_bias"], state=state, saved=kept, path=path, length=length, strategy=strategy)
    close(state, torch.from_numpy(GOLDEN["states"]).to(target())[0, list(nodes)])


@either
@strategies
@settings(max_examples=4)
@given(cut=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_path_in_two_parts_is_the_path_at_once(commit, strategy, cut, seed):
    x = drawn(seed, T=6, D=6, Hv=1, shape="chain", strategy=strategy)
    path = list(range(6))
    halfway = along(x, path[cut:]) | {"state": after(commit, along(x, path[:cut]))}
    close(after(commit, halfway), after(commit, along(x, path)))


@either
@strategies
def test_what_stands_behind_the_length_is_not_read(commit, strategy):
    x = drawn(T=5, shape="chain", strategy=strategy)
    behind = along(x, [0, 1, 1 << 30, -1], 2)
    assert torch.equal(after(commit, behind), after(commit, along(x, [0, 1])))


@either
@pytest.mark.parametrize("strategy", SPEC.choices["strategy"])
def test_a_path_of_nothing_leaves_every_bit(commit, strategy):
    x = drawn(strategy=strategy, accept="none")
    assert torch.equal(after(commit, x), x["state"])


@either
@strategies
def test_rejected_nodes_leave_no_trace(commit, strategy):
    x = drawn(T=7, shape="star", strategy=strategy)
    other = map_tensors(along(x, [0, 3]), torch.clone)
    for name in ("k", "v", "a", "b"):
        other[name][:, [1, 2, 4, 5, 6]] = float("nan")
    if other["saved"].numel():
        other["saved"][:, [1, 2, 4, 5, 6]] = float("nan")
    assert torch.equal(after(commit, other), after(commit, along(x, [0, 3])))


@pytest.mark.parametrize("config", [Config(BLOCK_D=16), Config(BLOCK_V=16)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_config_changes_the_last_bits_alone(config, dtype):
    x = drawn(T=20, D=20, V=32, shape="chain", dtype=dtype)
    close(after(kernel, x, config=config), after(reference, x), 2e-6)
