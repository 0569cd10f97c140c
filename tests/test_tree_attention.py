"""Properties of tree_attention."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draftwood.kernels.tree_attention import Config
from draftwood.kernels.tree_attention import tree_attention as kernel
from draftwood.lab.check import target
from draftwood.lab.oracles import implementation
from draftwood.reference import cache as caches
from draftwood.reference.hadamard import rotate, unrotate
from draftwood.reference.ops import find, registered
from draftwood.reference.tree import SHAPES
from draftwood.reference.tree_attention import SPEC, mask
from draftwood.reference.tree_attention import tree_attention as reference
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = np.load(Path(__file__).parent / "golden" / "attention.npz")
TREES = 10_000
either = pytest.mark.parametrize("attend", [reference, kernel], ids=["reference", "kernel"])
SMALL = SPEC.cases["smoke"][0].but(T=5, H=2, Hkv=1, context=20)


def drawn(seed: int = 0, **values: Any) -> dict[str, Any]:
    inputs = SPEC.inputs(SMALL.but(**values), torch.Generator().manual_seed(seed))
    return {name: x.to(target()) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"attention_{name}"]).to(target())


def of_transformers() -> dict[str, Any]:
    k, v = golden("k"), golden("v")
    start = torch.tensor([k.shape[1] - len(GOLDEN["attention_q"])], dtype=torch.int32, device=target())
    formats = {"format_k": "f16", "format_v": "f16"}
    return {"q": golden("q").float(), "cache_k": k, "cache_v": v, "start": start, **formats}


@either
def test_transformers_attends_under_the_mask_of_a_tree_to_the_same(attend):
    close(attend(**of_transformers(), ancestors=golden("ancestors")), golden("tree"))


@either
def test_a_triangle_of_ones_is_the_causal_attention_of_transformers(attend):
    T = len(GOLDEN["attention_q"])
    lower = torch.ones(T, T, dtype=torch.uint8, device=target()).tril()
    close(attend(**of_transformers(), ancestors=lower), golden("causal"))


@either
@pytest.mark.parametrize("window", [0, 7])
def test_a_block_that_sees_all_of_itself_is_the_attention_of_torch(attend, window):
    inputs = drawn(tree="block", window=window, H=4, Hkv=2)
    first, T = int(inputs["start"]), inputs["q"].shape[0]
    rows = slice(first - window if window else 0, first + T)
    k, v = (caches.values(inputs[name][:, rows], "f16")[None] for name in ("cache_k", "cache_v"))
    attention = torch.nn.functional.scaled_dot_product_attention
    wanted = attention(inputs["q"].transpose(0, 1)[None], k, v, enable_gqa=True)[0].transpose(0, 1)
    close(attend(**inputs), wanted)


@either
def test_the_order_of_the_nodes_does_not_matter(attend):
    inputs = drawn(tree="random", T=7)
    first, turned = int(inputs["start"]), torch.tensor([3, 0, 6, 1, 5, 2, 4], device=target())
    other = {**inputs, "q": inputs["q"][turned], "ancestors": inputs["ancestors"][turned][:, turned].contiguous()}
    for name in ("cache_k", "cache_v"):
        other[name] = inputs[name].clone()
        other[name][:, first : first + 7] = inputs[name][:, first + turned]
    close(attend(**other), attend(**inputs)[turned])


@either
@pytest.mark.parametrize("format", caches.FORMATS)
def test_rows_that_no_query_sees_change_no_bit(attend, format):
    inputs = drawn(tree="padded", T=6, D=128, window=9, format_k=format, format_v=format)
    o = attend(**inputs)
    nodes, first = int(inputs["ancestors"].amax(1).sum()), int(inputs["start"])
    for name in ("cache_k", "cache_v"):
        hidden = torch.ones(inputs[name].shape[1], dtype=torch.bool)
        hidden[first - 9 : first + nodes] = False
        inputs[name][:, hidden] = 1
    assert torch.equal(attend(**inputs), o)
    assert not o[nodes:].any() and o[:nodes].any(-1).all()


@either
def test_the_start_is_read_where_it_lies(attend):
    inputs = drawn(tree="chain", T=1, context=24, spare=8)
    for cache in ("cache_k", "cache_v"):
        inputs[cache] = inputs[cache].nan_to_num(0.5)
    moving, outs = inputs.pop("start"), []
    for start in (3, 24):
        moving.fill_(start)
        outs.append(attend(**inputs, start=moving))
        cut = {name: inputs[name][:, : start + 1] for name in ("cache_k", "cache_v")}
        close(outs[-1], attend(**{**inputs, **cut}, start=moving))
    assert not torch.allclose(*outs)


@either
def test_output_is_linear_in_the_values_and_blind_to_a_shift_of_all_keys(attend):
    inputs = drawn(tree="random")
    o = attend(**inputs)
    close(attend(**{**inputs, "cache_v": inputs["cache_v"] * 2}), 2 * o)
    shift = torch.full((64,), 0.25, dtype=torch.float16, device=target())
    # keys to a grid on which the shift is exact
    keys = (inputs["cache_k"] * 64).round() / 64
    coarse = attend(**{**inputs, "cache_k": keys})
    close(attend(**{**inputs, "cache_k": keys + shift}), coarse, 1e-4)


@either
def test_the_gate_scales_the_output_by_its_sigmoid(attend):
    inputs = drawn(gate=True)
    gate = inputs.pop("gate")
    plain = attend(**{**inputs, "gate": None})
    close(attend(**inputs, gate=gate), plain * torch.sigmoid(gate))


@either
@pytest.mark.parametrize(("format_k", "format_v"), [("tq3_0", "f16"), ("f16", "tq3_0"), ("q4_0", "q8_0")])
def test_a_quantised_cache_attends_as_its_values_do(attend, format_k, format_v):
    inputs = drawn(D=128, format_k=format_k, format_v=format_v)
    S = inputs["cache_k"].shape[1] - SMALL["spare"]
    k, v = (
        caches.values(inputs[f"cache_{x}"][:, :S], format)[None] for x, format in (("k", format_k), ("v", format_v))
    )
    visible = torch.ones(5, S, dtype=torch.bool, device=target())
    visible[:, S - 5 :] = inputs["ancestors"].bool()
    attention = torch.nn.functional.scaled_dot_product_attention
    wanted = attention(inputs["q"].transpose(0, 1)[None], k, v, attn_mask=visible, enable_gqa=True)
    close(attend(**inputs), wanted[0].transpose(0, 1), 1e-4)


@pytest.mark.parametrize(
    "config",
    [
        Config(BLOCK_S=16, programs=1),
        Config(BLOCK_S=16, programs=3, least_tiles=1),
        Config(BLOCK_S=64, BLOCK_M=16, least_tiles=1),
        Config(BLOCK_S=16, BLOCK_M=128, programs=1000, least_tiles=1),
    ],
    ids=["one split", "three splits", "many rows", "a split a tile"],
)
def test_how_the_cache_is_split_changes_only_roundings(config):
    inputs = drawn(T=9, context=67, tree="ddtree", format_k="q8_0", format_v="q4_0")
    close(kernel(**inputs, config=config), reference(**inputs))


def test_more_splits_than_rows_write_every_output():
    inputs = drawn(T=1, context=0, spare=200, tree="chain")
    close(kernel(**inputs, config=Config(BLOCK_S=16, least_tiles=1)), reference(**inputs))


@given(seed=st.integers(0, 200), T=st.integers(1, 9), shape=st.sampled_from(SHAPES))
@settings(max_examples=5)
def test_a_node_attends_as_the_last_of_its_path_does_over_three_steps(seed, T, shape):
    case = SMALL.but(T=T, H=1, tree=shape, context=seed % 40)
    call = implementation(find("tree_attention"), "kernels", registered())
    inputs = drawn(seed, **dict(case.values))
    assert not list(SPEC.oracles["path"](call, inputs, case, seed))


@pytest.mark.long
def test_ten_thousand_trees_attend_by_path_in_the_reference():
    call = implementation(find("tree_attention"), "reference", registered())
    generator = torch.Generator().manual_seed(0)

    def below(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    for seed in range(TREES):
        formats = {f"format_{x}": caches.FORMATS[below(4)] for x in "kv"}
        sizes = {"T": 1 + below(16), "context": below(12), "window": below(2) * below(9)}
        case = SMALL.but(H=2, Hkv=1 + below(2), tree=SHAPES[seed % len(SHAPES)], **sizes, **formats)
        mismatch = next(iter(SPEC.oracles["path"](call, drawn(seed, **dict(case.values)), case, seed)), None)
        assert mismatch is None, f"{case.id} seed {seed}: {mismatch}"


def some_trees(count: int, slots: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` random trees of 1 .. slots nodes side by side: ancestors [T, T], and each node's path from its root
    [T, slots], filled up with -1. Slots without a node have no ancestors and no path."""
    ancestors, paths = np.zeros((count * slots,) * 2, np.uint8), np.full((count * slots, slots), -1)
    for first in range(0, count * slots, slots):
        for node in range(generator.integers(1, slots + 1)):
            path = paths[first + generator.integers(node)] if node else paths[first]
            depth = int((path >= 0).sum()) if node else 0
            paths[first + node, : depth + 1] = [*path[:depth], first + node]
            ancestors[first + node, paths[first + node, : depth + 1]] = 1
    return torch.from_numpy(ancestors).to(target()), torch.from_numpy(paths).to(target())


def multiplied(x: torch.Tensor, format: str) -> torch.Tensor:
    """What the tensor cores take of x: f16, of tq3_0 after the rotation."""
    return unrotate(rotate(x).half().double()) if format == "tq3_0" else x.half().double()


def by_path(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, paths: torch.Tensor, context: int) -> torch.Tensor:
    """Each node over the committed rows and those of its path, one KV head; zero where a slot has no node."""
    q = q / q.shape[2] ** 0.5
    rows = context + paths.clamp(min=0)
    committed = torch.einsum("thd,sd->ths", q, k[:context])
    own = torch.einsum("thd,tpd->thp", q, k[rows]).masked_fill((paths < 0)[:, None], -torch.inf)
    p = torch.cat((committed, own), 2).softmax(2)
    out = torch.einsum("ths,sd->thd", p[:, :, :context], v[:context])
    out += torch.einsum("thp,tpd->thd", p[:, :, context:], v[rows])
    return out * (paths[:, :1] >= 0)[:, :, None]


@pytest.mark.parametrize(
    "trees", [2, pytest.param(TREES, marks=pytest.mark.long)], ids=["two trees", "ten thousand trees"]
)
def test_every_node_of_random_trees_attends_as_its_path_alone_does_in_the_kernel(trees):
    if trees == TREES and target() != "cuda":
        pytest.skip("ten thousand trees take the interpreter an hour; the reference takes them below")
    generator, slots, side = np.random.default_rng(0), 8, 1 if trees < TREES else 3
    formats = [("f16", "f16")] if trees < TREES else [(x, x) for x in caches.FORMATS] + [("q8_0", "tq3_0")]
    rounds = -(-trees // (side * len(formats)))
    for format_k, format_v in formats:
        T, context = side * slots, 8 if trees < TREES else 150
        sizes = {"H": 6, "D": 64 if trees < TREES else 256, "T": T, "context": context, "tree": "chain", "dtype": "f16"}
        inputs = drawn(**sizes, format_k=format_k, format_v=format_v)
        k, v = (
            caches.values(inputs[f"cache_{x}"], format)[0].double() for x, format in (("k", format_k), ("v", format_v))
        )
        exact = inputs["q"].double(), k, v
        rounded = tuple(map(multiplied, exact, (format_k, format_k, format_v)))
        rule = SPEC.tolerances(SMALL.but(**sizes, format_k=format_k, format_v=format_v))["out"]
        slack = 2 * (rule.ulps * torch.finfo(rule.compute).eps + torch.finfo(torch.float16).eps)
        for _ in range(rounds):
            inputs["ancestors"], paths = some_trees(side, slots, generator)
            want, native = (by_path(*operands, paths, context) for operands in (exact, rounded))
            got = kernel(**inputs).double()
            # the lab's rule (lab/compare.py): twice what the rounding of operands costs by itself, and some units
            bound = rule.factor * (native - want).abs().max() + slack * (want.abs() + want.square().mean().sqrt())
            wrong = ~((got - want).abs() <= bound)
            assert not bool(wrong.any()), (
                f"{format_k} {format_v}: node {int(wrong.nonzero()[0][0])} of {paths.tolist()}"
            )


def test_the_mask_of_a_tree_is_its_ancestors_and_that_of_a_block_all_ones():
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(mask("chain", 4, generator), torch.ones(4, 4, dtype=torch.uint8).tril())
    assert mask("block", 3, generator).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_k": "q4_1"}, "not 64 in q4_1"),
        ({"format_v": "tq3_0"}, "not 64 in tq3_0"),
        ({"format_v": "q8_0"}, "takes q8_0 caches"),
        ({"ancestors": torch.ones(4, 5, dtype=torch.uint8)}, r"ancestors \[5, 5\]"),
        ({"q": torch.zeros(5, 64, 2).transpose(1, 2)}, "dense rows"),
        ({"q": torch.zeros(5, 3, 64), "cache_k": torch.zeros(2, 30, 64).half()}, "a divisor of H|for 3 heads"),
    ],
)
def test_what_it_cannot_attend_to_is_refused_in_a_sentence(change, words):
    inputs = {name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in drawn().items()}
    with pytest.raises(ValueError, match=words):
        kernel(**{**inputs, **change})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"left": "rows"}, "not 'rows'"),
        ({"BLOCK_M": 144}, "a power of two of queries"),
        ({"left": "keys", "BLOCK_S": 32}, "does not suit"),
        ({"left": "keys", "BLOCK_M": 144}, "does not suit"),
    ],
)
def test_a_config_that_cannot_run_is_a_sentence(config, words):
    from draftwood.kernels.tree_attention import Config, tree_attention

    inputs = SPEC.inputs(SPEC.cases["qwen35"][0].but(T=64, context=128), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=words):
        tree_attention(**inputs, config=Config(**config))
