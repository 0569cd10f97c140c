"""The benchmark of whole steps: what it replays, what it holds a step against, and how it takes one apart."""

import json
import os

import pytest
import torch
from draftwood.autotune import timer
from draftwood.models import qwen35
from draftwood.models.decode import Plan, chain
from draftwood.perf import bench, matrix, model, model_cli, waterfall

CPU = torch.device("cpu")
TINY = qwen35.Config(4, 256, 256, 512, 4, 1, 4, False, qwen35.alternate(4), D=64, Hk=2, K=64, V=64, rotary=16)


@pytest.mark.parametrize(
    "plan, mean", [(Plan("tree", budget=22), 7.04), (chain(), 6.50), (Plan("tree", budget=40), 7.06)]
)
def test_accepted_lengths_are_replayed_with_the_published_mean(plan, mean):
    found = model.lengths(plan)
    assert abs(found.float().mean().item() - mean) < 0.25
    assert found.min() == 1 and found.max() <= 16


def test_no_walk_is_deeper_than_its_tree():
    assert model.lengths(Plan("tree", budget=8)).max() == 9


def test_every_kernel_has_its_op():
    ops = waterfall.kernel_ops()
    assert ops["_tree_gdn_wy"] == "tree_gdn" and ops["tiled"] == "dequant_matmul" and ops["_rms_norm"] == "rms_norm"


def test_a_kernel_that_an_op_takes_from_elsewhere_is_the_ops_own():
    ops = waterfall.kernel_ops()
    expected = {"plain_rows": "dequant_matmul", "_factors": "tree_gdn", "keys_left": "tree_attention"}
    assert ops | expected == ops


def test_every_kernel_that_the_committed_matrix_has_is_its_ops():
    launched: dict[str, set[str]] = {}
    for build in json.loads(matrix.COMMITTED.read_text())["builds"]:
        if build["kernel"]:
            launched.setdefault(build["kernel"], set()).add(build["op"])
    ops = waterfall.kernel_ops()
    assert {kernel: ops.get(kernel) for kernel in launched if ops.get(kernel) not in launched[kernel]} == {}


def test_a_waterfall_adds_up_to_its_step():
    order = ["embed", "dequant_matmul", "topk_logprobs", "ddtree", "embed", "tree_gdn", "topk_logprobs", "ddtree_walk"]
    order += ["gdn_commit", "torch"]
    kernels = [(op, 10.0 * i, 8.0) for i, op in enumerate(order)]
    fall = waterfall.waterfall(kernels, 0.098)
    assert fall["explained"] == 1.0 and fall["launches"] == 10 and fall["idle_us"] == 18
    assert fall["ops"]["embed"] == [16.0, 2]
    assert fall["phases_us"] == {"draft": 18.0, "tree": 20.0, "verify": 20.0, "choose": 10.0, "commit": 30.0}


def test_a_kernel_that_begins_early_counts_from_the_end_of_the_one_before():
    fall = waterfall.waterfall([("rms_norm", 0.0, 10.0), ("dequant_matmul", 2.0, 20.0), ("swiglu", 3.0, 9.0)], 0.022)
    assert fall["ops"] == {"dequant_matmul": [12.0, 1], "rms_norm": [10.0, 1], "swiglu": [0.0, 1]}
    assert fall["explained"] == 1.0 and fall["idle_us"] == 0


def test_a_tiny_model_is_timed_from_end_to_end_and_kept(tmp_path):
    setting = model.Setting(TINY, CPU, kv=("f16", "f16"), impl="reference")
    rows = list(model.entries(setting, (8, 9), (3, 5), further=(3,), replays=1))
    first, second = (["ar", "draft", *trees, "chain 15"] for trees in (("tree 3", "tree 5"), ("tree 3",)))
    assert [row["case"]["step"] for row in rows] == first + second
    assert all(row["ms"]["p50"] > 0 and row["floor_ms"] > 0 for row in rows)
    # twice, as a run does that saves after every row
    for kept in (rows[:2], rows):
        file = bench.save("model", timer.machine(CPU), "", kept, tmp_path)
    assert len(bench.load(file)["entries"]) == len(rows)
    ar, draft, tree, *_ = (row["floor_ms"] for row in rows)
    assert ar < tree and draft < tree


@pytest.mark.parametrize("name", ["ar", "tree 3", "chain 15"])
def test_a_step_can_be_run_once_to_be_compiled(name):
    model._step_once(model.Setting(TINY, CPU, precision="int8", kv=("f16", "f16"), impl="reference"), (8,), name)


def test_a_step_with_replayed_lengths_commits_that_many_rows():
    bench = model.build(model.Setting(TINY, CPU, kv=("f16", "f16"), impl="reference"))
    held = bench.state(8)
    plan = Plan("tree", budget=22)
    choose, wanted = model.Replay(bench.model, plan, CPU), model.lengths(plan)
    act = model.functools.partial(model.dflash.forward, bench.drafter, bench.model)
    for step in range(3):
        before = int(held.start)
        model.decode.speculate(bench.model, act, held, plan, choose)
        assert int(held.start) - before == wanted[step]


def test_memory_grows_unless_the_user_has_said_how_it_is_to_be_taken(monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    model_cli.let_memory_grow()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    # restored after the test
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    model_cli.let_memory_grow()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
