"""Result files, comparison with committed results, and the choice of configs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from draftwood.autotune import gpu, timer
from draftwood.kernels import config
from draftwood.kernels.lib.device import slug
from draftwood.perf import bench
from draftwood.reference.ops import find, registered

MACHINE = timer.Machine("sm90-h200", "NVIDIA H200", "2.11", "3.6", "3.12", "580", "1980", "2026-11-20")


def row(M: int, p50: float, spread: float = 0.1) -> dict:
    us = {"p20": p50 - spread, "p50": p50, "p80": p50 + spread}
    return {
        "case": {"M": M},
        "impl": "kernels",
        "config": {},
        "us": us,
        "bytes": 1,
        "gb_s": 1.0,
        "roof": 0.5,
        "baselines": {},
    }


def test_a_result_file_has_the_schema_one_entry_a_line_sorted(tmp_path):
    bench.save("rms_norm", MACHINE, "draftwood bench rms_norm", [row(23, 5.0), row(1, 2.0)], tmp_path)
    file = bench.save("rms_norm", MACHINE, "draftwood bench rms_norm", [row(9, 3.0), row(1, 2.5)], tmp_path)
    assert file == tmp_path / "sm90-h200" / "rms_norm.json"
    held = json.loads(file.read_text())
    assert {key: held[key] for key in ("schema", "op", "gpu", "command")} == {
        "schema": 1,
        "op": "rms_norm",
        "gpu": "sm90-h200",
        "command": "draftwood bench rms_norm",
    }
    assert held["versions"]["torch"] == "2.11"
    # the newer of two measurements of a case stays
    assert [(e["case"]["M"], e["us"]["p50"]) for e in held["entries"]] == [(1, 2.5), (9, 3.0), (23, 5.0)]
    lines = file.read_text().splitlines()
    assert len(lines) == 2 + len(held["entries"])
    assert all(json.loads(line.rstrip(",")) in held["entries"] for line in lines[1:-1])


def test_peers_that_were_not_timed_again_keep_their_times_unless_versions_changed(tmp_path):
    first = {**row(1, 2.0), "baselines": {"torch": 5.0, "peer": 4.0}}
    again = {**row(1, 1.0), "baselines": {"torch": 6.0}}
    bench.save("rms_norm", MACHINE, "", [first], tmp_path)
    file = bench.save("rms_norm", MACHINE, "", [again], tmp_path)
    assert json.loads(file.read_text())["entries"][0]["baselines"] == {"torch": 6.0, "peer": 4.0}
    bench.save("rms_norm", replace(MACHINE, triton="3.7"), "", [again], tmp_path)
    assert json.loads(file.read_text())["entries"][0]["baselines"] == {"torch": 6.0}


def test_only_a_slowdown_beyond_slack_and_spread_is_named(tmp_path):
    file = bench.save("rms_norm", MACHINE, "", [row(1, 2.0), row(9, 3.0), row(23, 5.0, 1.0)], tmp_path)
    now = [row(1, 2.05), row(9, 4.0), row(23, 6.0, 1.0), row(64, 9.0)]
    (sentence,) = bench.compare(now, file, 0.1)
    assert sentence == "M=9: 4.0 us, committed 3.0 us (1.33x)"


def test_cold_operands_are_rotated_past_the_cache_and_warm_ones_shared():
    assert timer.copies(0) == 16
    assert timer.copies(1 << 40) == 2
    assert timer.copies(timer.ROTATE // 8) == 8
    op = find("embed")
    (inputs,) = timer.operands(op, op.spec.cases["smoke"][0], torch.device("cpu"))
    assert {"ids", "weight"} <= set(inputs)


def test_every_committed_result_file_is_of_this_schema():
    for file in bench.RESULTS.glob("*/*.json"):
        held = json.loads(file.read_text())
        assert held["schema"] == 1 and held["versions"]["gpu"] == file.parent.name
        # beside the ops' there are those of studies and of a model's steps
        if file.stem not in registered():
            continue
        assert held["op"] == file.stem and held["gpu"] == file.parent.name
        assert held["entries"] and all(e["us"]["p20"] <= e["us"]["p50"] <= e["us"]["p80"] for e in held["entries"])


@dataclass(frozen=True)
class Knobs:
    BLOCK: int = 1
    num_warps: int = 4


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    caches = (config.homes, config.entries, config._tuned)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def write(home: Path, gpu: str, entries: list[tuple[dict, dict]]) -> None:
    listed = [{"case": case, "config": chosen} for case, chosen in entries]
    (home / gpu).mkdir()
    (home / gpu / "thing.json").write_text(json.dumps({"schema": 1, "op": "thing", "gpu": gpu, "entries": listed}))


def block(gpu: str, **dims: int | str) -> int:
    return config._tuned("thing", Knobs(), gpu, tuple(dims.items())).BLOCK


def test_the_nearest_case_of_the_same_names_is_chosen(configs):
    cases = [
        ({"M": 1, "format": "q4_k"}, {"BLOCK": 8}),
        ({"M": 32, "format": "q4_k"}, {"BLOCK": 32}),
        ({"M": 2, "format": "q6_k"}, {"BLOCK": 2}),
    ]
    write(configs, "sm90-h200", cases)
    assert block("sm90-h200", M=2, format="q4_k") == 8
    assert block("sm90-h200", M=23, format="q4_k") == 32
    assert block("sm90-h200", M=1, format="q8_0") == Knobs().BLOCK


def test_lookup_goes_from_the_gpu_over_its_architecture_and_older_relatives_to_the_defaults(configs):
    write(configs, "sm90-h200", [({"M": 1}, {"BLOCK": 90})])
    write(configs, "sm86-rtx-3090", [({"M": 1}, {"BLOCK": 86})])
    write(configs, "gfx942-mi300x", [({"M": 1}, {"BLOCK": 942})])
    assert block("sm90-h200", M=1) == 90
    assert (
        block("sm90-h100-pcie", M=1) == 90 and config.choose("thing", "sm90-h100-pcie", {"M": 1}).why == "architecture"
    )
    assert block("sm100-b200", M=1) == 90 and config.choose("thing", "sm100-b200", {"M": 1}).why == "older"
    assert block("sm89-rtx-4090", M=1) == 86
    # a program of sm120 has less shared memory than one of sm90
    assert block("sm120-rtx-5090", M=1) == 86
    assert block("gfx950-mi350x", M=1) == 942
    # nothing older, and another family
    assert block("sm75-t4", M=1) == Knobs().BLOCK and block("gfx1100-rx-7900-xtx", M=1) == Knobs().BLOCK


def test_a_folder_without_a_fitting_case_leaves_the_choice_to_the_next(configs):
    write(configs, "sm90-h200", [({"M": 1, "format": "q4_k"}, {"BLOCK": 90})])
    write(configs, "sm86-rtx-3090", [({"M": 1, "format": "q6_k"}, {"BLOCK": 86})])
    assert block("sm90-h200", M=1, format="q6_k") == 86


def test_shared_memory_by_architecture_is_what_the_gpu_facts_say():
    for family in config.FAMILIES:
        assert family == {name: gpu.ARCHS[name].shared // 1024 for name in family}


def test_inside_untuned_every_kernel_takes_its_default(configs, monkeypatch):
    write(configs, "sm90-h200", [({"M": 1}, {"BLOCK": 90})])
    monkeypatch.setattr(config, "folder", lambda _device: "sm90-h200")
    device = torch.device("cuda")
    assert config.pick("thing", Knobs(), device, M=1).BLOCK == 90
    with config.untuned():
        assert config.pick("thing", Knobs(), device, M=1) == Knobs()
    assert config.pick("thing", Knobs(), device, M=1).BLOCK == 90


def test_what_is_picked_can_be_recorded():
    with config.recording() as seen:
        config.pick("thing", Knobs(BLOCK=3), torch.device("cpu"), M=1)
    assert seen == {"thing": {"BLOCK": 3, "num_warps": 4}}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("AMD Instinct MI50/MI60", "mi50-mi60"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"),
        ("", "unknown"),
    ],
)
def test_gpu_names_become_folder_names(name, folder):
    assert slug(name) == folder
