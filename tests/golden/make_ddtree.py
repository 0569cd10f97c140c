"""Golden trees and walks of the two published builders: writes ddtree.npz beside this file.

    git clone https://github.com/liranringel/ddtree      the paper's own: best first, ties by the tuple of ranks
    git clone https://github.com/Luce-Org/lucebox        25625f95, July 2026: best first and chain seed, ties unordered
    pip install torch==2.13.0 numpy==2.4.6               and a g++ that knows C++17
    python make_ddtree.py ddtree/ddtree.py lucebox/server/src/common

Only the builder and the walk are taken from ddtree.py, which imports flash-attention at its top. It builds from logits;
their log-probs, taken as it takes them, are stored. lucebox builds from log-probs: multiples of 2^-14, so that sums of
them are exact and its way of summing, by difference from the sibling, cannot round.
"""

import ctypes
import heapq
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

BRIDGE = """
#include "ddtree.h"
extern "C" int tree(const float * lp, const int * ids, int L, int K, int budget, bool seed, const int * posterior,
                    int * tokens, int * parents, int * path, int * length, int * next) {
    auto tree = dflash::common::build_ddtree(lp, ids, L, K, budget, seed);
    for (int i = 0; i <= tree.n_nodes; i++) parents[i] = tree.parents[i];
    for (int i = 0; i < tree.n_nodes; i++) tokens[i + 1] = tree.token_ids[i];
    auto walked = dflash::common::follow_verified_tree(tree, posterior, *next);
    for (size_t i = 0; i < walked.size(); i++) path[i] = walked[i];
    *length = walked.size();
    return tree.n_nodes;
}
"""


def official(source: str) -> dict[str, object]:
    def function(begin: str, end: str) -> str:
        start = source.index(f"def {begin}(")
        return source[start : source.index(f"\ndef {end}(", start)]

    names: dict[str, object] = {
        "heapq": heapq,
        "time": time,
        "np": np,
        "torch": torch,
        "cuda_time": time.perf_counter,
        "empty_stage_times": lambda stages: dict.fromkeys(stages, 0.0),
        "DDTREE_TREE_BUILD_STAGE_ORDER": (),
    }
    exec(function("build_ddtree_tree", "compile_ddtree_tree"), names)
    exec(function("follow_verified_tree", "_compact_appended_window"), names)
    return names


def posterior_of(tokens: np.ndarray, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A target that mostly agrees with some child."""
    posterior = rng.integers(0, 50, len(tokens))
    for child in rng.permutation(np.arange(1, len(tokens))):
        if rng.random() < 0.8:
            posterior[parents[child]] = tokens[child]
    return posterior.astype(np.int32)


def from_official(source: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    names, golden = official(source), {}
    for i, (L, V, budget, spread) in enumerate(
        [(15, 8, 22, 3.0), (15, 15, 64, 2.0), (5, 4, 40, 1.0), (2, 3, 20, 1.0), (3, 4, 30, 0.0), (15, 8, 22, 0.0)]
    ):
        logits = torch.from_numpy(rng.standard_normal((L, V)).astype(np.float32) * np.float32(spread))
        best, ids = torch.topk(logits, k=V, dim=-1)
        nodes, _, parents, children, _, _ = names["build_ddtree_tree"](logits, budget)  # type: ignore[operator]
        tokens = np.concatenate([[7], nodes.numpy()])
        posterior = posterior_of(tokens, np.array(parents), rng)
        path, following = names["follow_verified_tree"](children, torch.from_numpy(posterior)[None])  # type: ignore[operator]
        golden |= {
            f"official{i}_logprobs": (best - torch.logsumexp(logits, dim=-1, keepdim=True)).numpy(),
            f"official{i}_ids": ids.numpy().astype(np.int32),
            f"official{i}_budget": np.array([budget, 0]),
            f"official{i}_tokens": tokens.astype(np.int32),
            f"official{i}_parents": np.array(parents, np.int32),
            f"official{i}_posterior": posterior,
            f"official{i}_path": np.array([*path, following], np.int32),
        }
    return golden


def from_lucebox(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    golden = {}
    with tempfile.TemporaryDirectory() as build:
        (Path(build) / "bridge.cpp").write_text(BRIDGE)
        library = f"{build}/tree.so"
        sources = [str(folder / "ddtree.cpp"), f"{build}/bridge.cpp"]
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{folder}", *sources, "-o", library], check=True
        )
        tree = ctypes.CDLL(library).tree
        cases = [
            (15, 8, 22, 1),
            (15, 8, 22, 0),
            (15, 8, 64, 1),
            (6, 5, 40, 1),
            (15, 8, 9, 1),
            (2, 3, 20, 1),
            (15, 1, 15, 1),
        ]
        for i, (L, K, budget, seed) in enumerate(cases):
            units = rng.integers(1, (np.arange(L)[:, None] + 2) * 6000, (L, K))
            logprobs = (np.sort(units, 1) / -16384.0).astype(np.float32)
            ids = np.stack([rng.permutation(50)[:K] for _ in range(L)]).astype(np.int32)
            out = [np.full(budget + 1, -1, np.int32) for _ in range(3)]
            length, following = ctypes.c_int(), ctypes.c_int()
            posterior = np.zeros(budget + 1, np.int32)
            # once for the tree, once more for the walk under a posterior drawn over that tree
            for _ in range(2):
                arrays = (logprobs, ids), (posterior, *out)
                head, tail = ([a.ctypes.data_as(ctypes.c_void_p) for a in group] for group in arrays)
                count = tree(
                    *head, L, K, budget, ctypes.c_bool(seed), *tail, ctypes.byref(length), ctypes.byref(following)
                )
                if not posterior.any():
                    tokens, parents = out[0][: count + 1].copy(), out[1][: count + 1].copy()
                    tokens[0] = 7
                    posterior[: count + 1] = posterior_of(tokens, parents, rng)
            golden |= {
                f"lucebox{i}_logprobs": logprobs,
                f"lucebox{i}_ids": ids,
                f"lucebox{i}_budget": np.array([budget, seed]),
                f"lucebox{i}_tokens": tokens,
                f"lucebox{i}_parents": parents,
                f"lucebox{i}_posterior": posterior[: count + 1],
                f"lucebox{i}_path": np.array([*out[2][: length.value], following.value], np.int32),
            }
    return golden


def main() -> None:
    rng = np.random.default_rng(20261120)
    golden = from_official(Path(sys.argv[1]).read_text(), rng) | from_lucebox(Path(sys.argv[2]), rng)
    np.savez_compressed(Path(__file__).parent / "ddtree.npz", **golden)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
