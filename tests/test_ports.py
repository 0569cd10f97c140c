"""Facts of GPUs, compiling for GPUs that are not here, golden bundles."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from draftwood.autotune import gpu
from draftwood.perf import port, ports

from .test_cli import OUTSIDE, draftwood

GOOD = ports.Build("op", "sm90", "T=1", {}, "_kernel", shared=1024, registers=64)


@pytest.mark.parametrize(
    ("name", "model", "arch"),
    [
        ("NVIDIA H200", "H200", "sm90"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", "sm86"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", "sm80"),
        ("AMD Instinct MI300X OAM", "MI300X", "gfx942"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX", "gfx1100"),
    ],
)
def test_a_marketing_name_finds_its_model(name, model, arch):
    found = gpu.find(name)
    assert found and (found.name, found.arch) == (model, arch)


def test_an_odd_or_unknown_name_is_nobody():
    assert gpu.find("AMD Instinct MI50/MI60") is None
    assert gpu.find("") is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sm_90", "sm90"),
        ("sm90a", "sm90"),
        ("sm87", "sm86"),
        ("sm121", "sm120"),
        ("gfx942:sramecc+:xnack-", "gfx942"),
        ("gfx1030", "gfx1100"),
        ("gfx906", "gfx90a"),
    ],
)
def test_an_architecture_falls_back_to_a_relative(name, nearest):
    assert gpu.arch(name).name == nearest


def test_no_architecture_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="no architecture named 'turing'; there are sm75"):
        gpu.arch("turing")


def test_every_model_is_of_a_known_architecture():
    assert {model.arch for _, model in gpu._MODELS} <= set(gpu.ARCHS)


def test_a_kernel_that_stops_compiling_or_starts_to_spill_is_worse_and_nothing_else():
    broken, spilling = replace(GOOD, error="CompileError: no"), replace(GOOD, spills=8)
    assert ports.worse([broken], [GOOD]) == ["op on sm90, T=1: CompileError: no"]
    assert ports.worse([spilling], [GOOD]) == ["op on sm90, T=1: _kernel spills now (8)"]
    assert not ports.worse([replace(GOOD, registers=200)], [GOOD])
    assert not ports.worse([broken], [broken]) and not ports.worse([spilling], [spilling])


def test_a_saved_report_is_read_back(tmp_path):
    builds = [GOOD, replace(GOOD, arch="gfx942", occupancy=0.5), replace(GOOD, arch="sm75", kernel="", error="no")]
    ports.save(builds, 1.0, tmp_path / "ports.json")
    assert sorted(ports.load(tmp_path / "ports.json"), key=lambda b: b.key) == sorted(builds, key=lambda b: b.key)
    assert "0/1" in ports.page(builds, 1.0) and "1/1" in ports.page(builds, 1.0)


def test_occupancy_is_bound_by_what_runs_out_first():
    sm90 = gpu.ARCHS["sm90"]
    assert ports.occupancy(sm90, 32, 0, 4) == 1.0
    assert ports.occupancy(sm90, 255, 0, 4) == 0.125
    assert ports.occupancy(sm90, 32, 100 * 1024, 4) == 0.125


def test_an_op_is_compiled_for_gpus_that_are_not_here_and_read_from_the_cache_afterwards(tmp_path):
    command = ("ports", "scale_rows", "--ops", OUTSIDE, "--cases", "smoke", "--configs", "default", "--json")
    command += ("--arch", "sm_75", "--arch", "sm90", "--arch", "gfx942", "--arch", "gfx1201", "--jobs", "1")
    runs = [draftwood(*command, TRITON_INTERPRET="1", XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    builds = json.loads(runs[0].stdout)
    assert {build["arch"] for build in builds} == {"sm75", "sm90", "gfx942", "gfx1201"}
    assert all(build["registers"] and build["code"] and not build["error"] for build in builds)
    assert json.loads(runs[1].stdout) == builds
    assert list(Path(tmp_path).rglob("ports/*.json"))


def test_an_unknown_architecture_or_kind_of_config_is_one_sentence():
    assert "no architecture named 'volta'" in draftwood("ports", "--arch", "volta").stderr
    assert "no configs named 'best'" in draftwood("ports", "--configs", "best").stderr


def test_a_bundle_verifies_and_a_changed_or_broken_one_does_not(tmp_path):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = tmp_path / "bundle.safetensors"
    made = draftwood("golden", "export", str(file), "rms_norm", "--cases", "smoke")
    assert made.returncode == 0, made.stderr
    assert draftwood("golden", "verify", str(file)).returncode == 0
    with safe_open(file, "pt") as bundle:
        tensors, metadata = {key: bundle.get_tensor(key) for key in bundle.keys()}, bundle.metadata()  # noqa: SIM118
    for kind in ("native", "exact"):
        tensors[f"0.{kind}.out"] += torch.ones_like(tensors[f"0.{kind}.out"])
    save_file(tensors, file, metadata)
    run = draftwood("golden", "verify", str(file))
    assert run.returncode == 1 and "golden fail" in run.stderr
    file.write_bytes(file.read_bytes()[:100])
    assert "is no golden bundle" in draftwood("golden", "verify", str(file)).stderr.replace("\n", " ")


def test_a_bring_up_without_a_gpu_is_refused_in_a_sentence():
    import torch

    if not torch.cuda.is_available():
        assert "no GPU here to bring up" in draftwood("port").stderr


def test_a_bring_up_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(port, "CACHE", tmp_path)
    plan = port.steps(["rms_norm"], 0, 1)
    assert [step.name for step in plan] == ["doctor", "check", "bench"]
    performed: list[str] = []

    def perform(step: port.Step) -> port.Done:
        performed.append(step.name)
        return port.Done(step, 3 if performed.count("check") == 1 and step.name == "check" else 0, 1.0, [])

    monkeypatch.setattr(port, "perform", perform)
    assert [done.code for _, done in port.run(plan, "sm90-h200", False)] == [0, 3]
    assert [done.code for _, done in port.run(plan, "sm90-h200", False)] == [0, 0, 0]
    assert performed == ["doctor", "check", "check", "bench"]


def test_the_report_names_what_failed_and_how_fast_the_rest_is():
    machine = {
        "GPU": "NVIDIA H200",
        "folder": "sm90-h200",
        "driver": "580",
        "multiprocessors": 132,
        "memory": "140 GiB",
    }
    doctor = {"machine": {**machine, "bandwidth measured": "read 4500 GB/s"}, "packages": {"torch": "2", "triton": "3"}}
    bad = {
        "op": "rope",
        "case": "T=1",
        "oracle": "numeric",
        "status": "fail",
        "detail": "far off",
        "command": "draftwood",
    }
    timed = {"case": {"T": 1}, "us": {"p50": 2.0}, "roof": 0.5, "baselines": {"torch": 8.0}}
    plan = port.steps([], 0, 1)
    outputs = [doctor, [bad], {"results": {"rope": [timed]}}]
    text = port.report([port.Done(step, 0, 1.0, output) for step, output in zip(plan, outputs, strict=True)])
    assert "1 failed" in text and "far off" in text
    assert "| rope | T=1 | 2.0 | 50% | 4.0 |" in text
