"""Facts of GPUs, compiling for GPUs that are not here, golden bundles."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from draftwood.autotune import binary, gpu
from draftwood.kernels.lib.device import slug
from draftwood.perf import fit, forecast, matrix, port, port_report, ports
from draftwood.reference.ops import OPS, registered

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


def test_an_odd_or_unknown_name_is_nobody_and_still_makes_a_folder():
    assert gpu.find("AMD Instinct MI50/MI60") is None and slug("AMD Instinct MI50/MI60") == "mi50-mi60"
    assert gpu.find("") is None and slug("") == "unknown"


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


def test_the_facts_of_an_architecture_are_the_same_wherever_they_stand():
    from draftwood.kernels.config import FAMILIES

    listed = {name: kib for family in FAMILIES for name, kib in family.items()}
    assert listed == {name: arch.shared // 1024 for name, arch in gpu.ARCHS.items()}


def test_a_kernel_that_stops_compiling_or_starts_to_spill_is_worse_and_nothing_else():
    broken, spilling = replace(GOOD, error="CompileError: no"), replace(GOOD, spills=8)
    (text,) = matrix.worse([broken], [GOOD])
    assert text.startswith("op on sm90 with its default config, T=1: _kernel fails now: CompileError: no")
    assert "draftwood ports op --save" in text
    (text,) = matrix.worse([spilling], [GOOD])
    assert "_kernel spills now (8)" in text
    (text,) = matrix.worse([replace(spilling, config={"num_warps": 1})], [GOOD])
    assert 'with {"num_warps": 1}' in text
    waiting = replace(GOOD, serial="C7512, insufficient register resources")
    (text,) = matrix.worse([waiting], [GOOD])
    assert "products of _kernel wait for each other now (C7512, insufficient register resources)" in text
    assert not matrix.worse([replace(GOOD, registers=200)], [GOOD])
    assert not any(matrix.worse([build], [build]) for build in (broken, spilling, waiting))


def test_a_saved_report_is_read_back_and_a_part_of_it_replaced(tmp_path):
    file = tmp_path / "ports.json"
    builds = [GOOD, replace(GOOD, arch="gfx942", occupancy=0.5), replace(GOOD, arch="sm75", kernel="", error="no")]
    report = matrix.save(builds, None, file)
    assert sorted(matrix.held(report), key=lambda b: b.key) == sorted(builds, key=lambda b: b.key)
    assert "0/1" in matrix.page(report) and "1/1" in matrix.page(report) and "Nobody's" in matrix.page(report)
    row = {"right passes": 9, "missed": 1, "needless": 2, "right refusals": 3}
    report = matrix.save([replace(GOOD, registers=65)], {"count": 15, "seed": 0, "rows": {"op": row, "all": row}}, file)
    assert {build.registers for build in matrix.held(report) if build.arch == "sm90"} == {65}
    assert len(report["builds"]) == 3
    assert "4 did not run; 1 of these were not foreseen: 25.0% of all failures." in matrix.page(report)


def test_what_spills_by_default_is_shown_beside_what_does_not(tmp_path):
    file = tmp_path / "ports.json"
    entry = {"case": {"T": 1}, "config": {}, "changes": {"num_warps": 8}, "spills": 0, "default_spills": 9}
    rest = {**entry, "case": {"T": 2}, "changes": {}, "spills": 7}
    spilled = fit.rows("op", "sm75", [entry, rest, {**rest, "spills": 0}])
    report = matrix.save([replace(GOOD, arch="sm75", spills=9), GOOD], None, file, spilled)
    assert "| op | sm75 | 2 | 1 spill | num_warps=8 | 7 |" in matrix.page(report)
    # what serves again needs no other
    report = matrix.save([replace(GOOD, arch="sm75")], None, file)
    assert not report["fitted"] and "num_warps=8" not in matrix.page(report)
    assert "looked for other configs" not in matrix.page(report)


def test_occupancy_is_bound_by_what_runs_out_first():
    sm90, gfx942 = gpu.ARCHS["sm90"], gpu.ARCHS["gfx942"]
    assert binary.occupancy(sm90, 32, 0, 4) == (1.0, "warps")
    assert binary.occupancy(sm90, 255, 0, 4) == (0.125, "registers")
    assert binary.occupancy(sm90, 32, 100 * 1024, 4) == (0.125, "shared")
    # LDS is left out of what AMD's compiler calls occupancy
    assert binary.occupancy(gfx942, 64, 0, 4, resident=8) == (1.0, "warps")
    assert binary.occupancy(gfx942, 64, 40 * 1024, 4, resident=8) == (0.125, "shared")


def test_every_default_of_the_committed_matrix_compiles_everywhere():
    builds = matrix.held(matrix.load())
    ops = {build.op for build in builds}
    assert ops <= set(OPS)
    assert {(build.op, build.arch) for build in builds} == {(op, arch) for op in ops for arch in gpu.ARCHS}
    assert not [build for build in builds if build.error and not build.config]
    if builds:
        assert matrix.PAGE.read_text() == matrix.page(matrix.load()), "write it anew: draftwood ports --save"


def test_every_op_has_a_config_without_spills_on_every_architecture():
    found = matrix.free(matrix.load())
    assert {arch for _, arch in found} == set(gpu.ARCHS)
    assert not {pair: text for pair, text in found.items() if text == "?" or text.startswith("no")}


def test_the_table_of_configs_without_spills_tells_no_from_unknown_and_from_the_default():
    row = {"op": "op", "case": "T=1", "default_spills": 9}
    builds = [replace(GOOD, arch=arch, spills=9 * (arch != "sm90")) for arch in ("sm75", "sm80", "sm86", "sm90")]
    rows = [
        {**row, "arch": "sm80", "changes": {"num_warps": 8, "BLOCK": 16}, "spills": 0},
        {**row, "arch": "sm86", "changes": {"num_warps": 8}, "spills": 0},
        {**row, "arch": "sm86", "case": "T=2", "changes": {}, "spills": 4},
    ]
    report = {"builds": [matrix._row(build) for build in builds], "fitted": rows}
    assert matrix.free(report) == {
        ("op", "sm75"): "?",
        ("op", "sm80"): "1 cases: num_warps=8 BLOCK=16",
        ("op", "sm86"): "no: 1 cases spill 4 to 4",
        ("op", "sm90"): "default",
    }
    page = matrix.page(report)
    assert "2 of 4 pairs of an op and an architecture" in page
    assert "| op | ? | 1 cases: num_warps=8 BLOCK=16 | no: 1 cases spill 4 to 4 | default |" in page


@pytest.mark.parametrize("op", OPS)
def test_a_launcher_asks_what_is_compiled_for_and_not_what_is_here(op):
    # elsewhere its tensors are on no GPU: asking theirs would compile another path than the one launched there
    text = (Path(__file__).resolve().parent.parent / "kernels" / f"{op}.py").read_text()
    assert not re.search(r"device\.type|is_cuda|torch\.cuda\.", text), "ask kernels/lib/device.py: compiled_for"


def test_an_op_is_compiled_for_gpus_that_are_not_here_and_read_from_the_cache_afterwards(tmp_path):
    command = ("ports", "scale_rows", "--ops", OUTSIDE, "--cases", "smoke", "--configs", "default", "--json")
    command += ("--arch", "sm_75", "--arch", "sm90", "--arch", "gfx942", "--arch", "gfx1201", "--jobs", "1")
    runs = [draftwood(*command, TRITON_INTERPRET="1", XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    builds = json.loads(runs[0].stdout)
    assert {build["arch"] for build in builds} == {"sm75", "sm90", "gfx942", "gfx1201"}
    assert all(build["registers"] and build["code"] and not build["error"] for build in builds)
    assert json.loads(runs[1].stdout) == builds
    assert list(Path(tmp_path).rglob("runs/*.json")) and list(Path(tmp_path).rglob("kernels/*/*.json"))


@pytest.mark.parametrize(
    ("compiler", "error"),
    [
        ("while True: pass", "TooLong: not compiled in 1 s of a core"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "CompilerDied: ended by SIGTERM"),
        ("raise RuntimeError('line\\nno such thing')", "RuntimeError: no such thing"),
    ],
)
def test_a_compiler_that_hangs_dies_or_refuses_costs_one_kernel_and_says_so(compiler, error, tmp_path, monkeypatch):
    calls = tmp_path / "calls"

    def compile_here(*_args, **_kwargs):
        with calls.open("a") as file:
            file.write("x")
        exec(compiler, {"os": os, "signal": signal})

    monkeypatch.setattr(ports, "CACHE", tmp_path)
    monkeypatch.setattr(ports, "LIMIT_S", 1)
    monkeypatch.setattr(ports.elsewhere, "compile_here", compile_here)
    for _ in range(2):
        assert ports._built("name", None, None, {}, gpu.ARCHS["sm90"])["error"] == error
    assert calls.read_text() == "x"
    # more time may be enough where time was what it lacked
    monkeypatch.setattr(ports, "LIMIT_S", 2)
    ports._built("name", None, None, {}, gpu.ARCHS["sm90"])
    assert calls.read_text() == ("xx" if error.startswith("TooLong") else "x")


def test_products_that_ptxas_has_wait_for_each_other_are_said_so(tmp_path, monkeypatch):
    def compile_here(*_args, **_kwargs):
        assert ports.triton.knobs.nvidia.dump_ptxas_log
        print("ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to")
        print("ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
              "insufficient register resources for the function '_kernel'")  # fmt: skip

    monkeypatch.setattr(ports, "CACHE", tmp_path)
    monkeypatch.setattr(ports, "measure", lambda *_: {})
    monkeypatch.setattr(ports.elsewhere, "compile_here", compile_here)
    found = ports._built("name", None, None, {}, gpu.ARCHS["sm90"])
    assert found["serial"] == "C7512, insufficient register resources"


def test_where_defaults_spill_there_are_configs_to_try_smaller_ones_first_and_legal_ones_alone():
    op = registered()["tree_gdn"]
    case = next(case for case in op.spec.cases["perf"] if case["strategy"] == "wy")
    start, module = vars(op.module("kernels").Config()), op.module("autotune")
    found = fit.candidates(op, case, start, "gfx1201")
    changes = [sum(point[knob] != start[knob] for knob in start) for point in found]
    assert changes == sorted(changes) and changes[0] == 1
    for point in found:
        assert module.legal({knob: point[knob] for knob in module.SPACE}, case, "gfx1201") is None
        assert point["num_warps"] >= start["num_warps"] and point["BLOCK_V"] <= start["BLOCK_V"]


def test_what_served_a_relative_or_another_case_is_tried_first(tmp_path, monkeypatch):
    op = registered()["prefill_attention"]
    case = op.spec.cases["perf"][0]
    start = vars(op.module("kernels").Config())
    serves = {**start, "BLOCK_M": 16, "num_warps": 8}
    (tmp_path / "gfx1100-fitted").mkdir()
    entry = {"case": case.as_dict(), "config": serves, "spills": 0}
    (tmp_path / "gfx1100-fitted" / "prefill_attention.json").write_text(json.dumps({"entries": [entry]}))
    tried: list[dict] = []

    def compile_all(task):
        tried.append(json.loads(task.points[0]))
        spills = 0 if tried[-1] == serves else 7
        return [replace(GOOD, arch=task.arch, case=task.cases[0], spills=spills)]

    monkeypatch.setattr(fit, "CONFIGS", tmp_path)
    monkeypatch.setattr(fit, "compile_all", compile_all)
    monkeypatch.setattr(fit, "default", lambda *_: start)
    found = fit.fitted("prefill_attention", "gfx1151", (), 9)
    assert {json.dumps(entry["config"]) for entry in found} == {json.dumps(serves)}
    assert tried == [start, serves] * len(op.spec.cases["perf"])


def test_where_even_the_smallest_of_all_spills_few_are_tried(monkeypatch, tmp_path):
    tried: list[str] = []

    def compile_all(task):
        tried.append(task.points[0])
        return [replace(GOOD, arch=task.arch, case=task.cases[0], spills=len(tried))]

    start = vars(registered()["prefill_attention"].module("kernels").Config())
    monkeypatch.setattr(fit, "CONFIGS", tmp_path)
    monkeypatch.setattr(fit, "compile_all", compile_all)
    monkeypatch.setattr(fit, "default", lambda *_: start)
    found = fit.fitted("prefill_attention", "gfx1100", (), 9)
    assert len(tried) == 4 * len(found) and not any(entry["changes"] for entry in found)


def test_what_others_may_be_reading_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    entry = {"case": {"T": 1}, "config": {}, "changes": {"num_warps": 8}, "spills": 0, "stamp": {}}
    file = fit.save("op", "sm75", [entry], tmp_path)
    before = file.read_text()
    assert json.loads(before)["entries"] == [{key: entry[key] for key in entry if key != "changes"}]
    seen: list[str] = []
    replaced = os.replace
    monkeypatch.setattr(os, "replace", lambda draft, to: (seen.append(file.read_text()), replaced(draft, to)))
    fit.save("op", "sm75", [entry, {**entry, "case": {"T": 2}}], tmp_path)
    assert seen == [before] and len(json.loads(file.read_text())["entries"]) == 2
    assert [path.name for path in file.parent.iterdir()] == ["op.json"]


def test_more_points_of_a_forecast_are_the_same_ones_and_others():
    op = registered()["prefill_attention"]
    few, many = (forecast.draw(op, "sm90", count) for count in (2, 9))
    assert many[: len(few)] == few and len(many) > len(few)


def test_a_fitted_config_is_taken_last_and_only_on_its_own_architecture(tmp_path, monkeypatch):
    from draftwood.kernels import config

    for home in ("sm86-fitted", "sm75-t4", "sm86-rtx-3090", "sm89-fitted"):
        (tmp_path / home).mkdir()
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    config.homes.cache_clear()
    try:
        assert config.homes("sm86-a40") == (
            ("sm86-a40", "exact"),
            ("sm86-rtx-3090", "architecture"),
            ("sm75-t4", "older"),
            ("sm86-fitted", "fitted"),
        )
    finally:
        config.homes.cache_clear()


def test_a_config_that_will_not_run_is_explained_before_anything_is_compiled():
    config = json.dumps({"BLOCK_S": 128, "BLOCK_M": 64, "num_stages": 4})
    run = draftwood("ports", "prefill_attention", "--arch", "gfx1201", "--arch", "sm90", "--explain", config)
    assert run.returncode == 1
    assert "prefill_attention on gfx1201" in run.stdout and "gfx1201 has 65536" in run.stdout
    assert "no knob named 'BLOCK'" in draftwood("ports", "rms_norm", "--explain", '{"BLOCK": 1}').stderr
    assert draftwood("ports", "rms_norm", "--explain", "{}").returncode == 0


def test_a_forecast_counts_what_was_missed_and_what_took_too_long_apart():
    point = forecast.Point("op", "sm90", "T=1", "{}", "", "")
    slow = f"{ports.TOO_LONG}: not compiled in 60 s of a core"
    points = [
        point,
        replace(point, found="no"),
        replace(point, foreseen="no"),
        replace(point, foreseen="no", found="no"),
        replace(point, found=slow),
        replace(point, foreseen="no", found=slow),
    ]
    rows = forecast.table(points)
    cells = {"right passes": 1, "missed": 1, "needless": 1, "right refusals": 2, "slow": 1, "not refused": 3}
    assert rows["op"] == cells == rows["all"]
    assert forecast.misses(rows) == 1 / 3


def test_what_is_missed_in_a_part_stands_for_the_whole():
    point = forecast.Point("op", "sm90", "T=1", "{}", "", "")
    points = [replace(point, foreseen="no", found="no")] * 8 + [point] * 9 + [replace(point, found="no")]
    whole, part = forecast.table(points), forecast.table(points, {"op": 40})
    assert forecast.misses(whole) == 1 / 9 and forecast.misses(part) == 4 / 12
    # one or none among ten, and yet 4.74 might be expected
    assert abs(forecast.most_misses(whole) - 4.744 / 12.744) < 1e-3
    assert abs(forecast.most_misses(part) - 4 * 4.744 / (4 * 4.744 + 8)) < 1e-3


def test_all_that_is_refused_is_compiled_and_of_the_rest_a_part():
    work = forecast.work(["prefill_attention", "swiglu"], ["gfx1201", "sm90"], 8, [])
    some, willing = forecast.part(work, 5)
    every, _ = forecast.part(work, 0)
    assert every == work and set(some) < set(work)
    refused = [task for task in work if forecast.judged(task, []).foreseen]
    assert refused and set(refused) <= set(some)
    left = [task.op for task in some if task not in refused]
    assert left.count("prefill_attention") == left.count("swiglu") == 5
    assert willing["swiglu"] == sum(task.op == "swiglu" for task in work)
    assert willing["prefill_attention"] == sum(task.op == "prefill_attention" for task in work) - len(refused)


def test_the_committed_forecast_missed_less_than_one_real_failure_in_a_hundred():
    if held := matrix.load().get("forecast"):
        assert forecast.misses(held["rows"]) < 0.01


def test_an_unknown_architecture_or_kind_of_config_is_one_sentence(here):
    assert "no architecture named 'volta'" in here("ports", "--arch", "volta").stderr
    assert "no configs named 'best'" in here("ports", "--configs", "best").stderr


def test_a_bundle_verifies_and_a_changed_or_broken_one_does_not(tmp_path, here):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = tmp_path / "bundle.safetensors"
    made = here("golden", "export", str(file), "rms_norm", "--cases", "smoke")
    assert made.returncode == 0, made.stderr
    assert here("golden", "verify", str(file)).returncode == 0
    with safe_open(file, "pt") as bundle:
        tensors, metadata = {key: bundle.get_tensor(key) for key in bundle.keys()}, bundle.metadata()  # noqa: SIM118
    for kind in ("native", "exact"):
        tensors[f"0.{kind}.out"] += torch.ones_like(tensors[f"0.{kind}.out"])
    save_file(tensors, file, metadata)
    run = here("golden", "verify", str(file))
    assert run.returncode == 1 and "golden fail" in run.stderr
    file.write_bytes(file.read_bytes()[:100])
    assert "is no golden bundle" in here("golden", "verify", str(file)).stderr.replace("\n", " ")


def test_a_bring_up_without_a_gpu_is_refused_in_a_sentence(here):
    import torch

    if not torch.cuda.is_available():
        assert "no GPU here to bring up" in here("port").stderr


def order(tmp_path, **changes) -> port.Order:
    return port.Order("sm90-h200", ("rms_norm",), results=tmp_path, configs=tmp_path, **changes)


def steps(performed: list[str], dies_in: str = "") -> tuple[port.Step, ...]:
    """Steps of three parts each; one dies in the midst of its second."""

    def perform(name):
        def run(_order, _done, parts, _clock):
            for part in parts:
                performed.append(f"{name} {part[0]}")
                if f"{name} {part[0]}" == dies_in and performed.count(dies_in) == 1:
                    raise KeyboardInterrupt
                yield part, "" if name == "compile" else []

        return run

    names = ("compile", "check", "late")
    return tuple(port.Step(name, lambda _o, _d: [("a",), ("b",), ("c",)], perform(name)) for name in names)


def test_a_bring_up_goes_on_in_the_midst_of_the_step_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(port, "CACHE", tmp_path)
    performed: list[str] = []
    plan = steps(performed, dies_in="check b")
    with pytest.raises(KeyboardInterrupt):
        port.run(order(tmp_path), port.journal(order(tmp_path)), plan)
    assert port.run(order(tmp_path), port.journal(order(tmp_path)), plan)
    assert performed == [
        *("compile a", "compile b", "compile c", "check a", "check b"),
        *("check b", "check c", "late a", "late b", "late c"),
    ]


def test_a_journal_that_was_cut_short_loses_its_last_line_alone(tmp_path):
    journal = port.Journal(tmp_path / "j.jsonl")
    journal.add("check", ("op", "T=1"), [])
    journal.add("check", ("op", "T=2"), [])
    journal.handle.close()
    text = (tmp_path / "j.jsonl").read_bytes()
    (tmp_path / "j.jsonl").write_bytes(text[:-9])
    again = port.Journal(tmp_path / "j.jsonl")
    assert list(again.of("check")) == [("op", "T=1")]
    again.add("check", ("op", "T=3"), [])
    assert list(port.Journal(tmp_path / "j.jsonl").of("check")) == [("op", "T=1"), ("op", "T=3")]


def test_a_bring_up_with_no_time_left_says_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(port, "CACHE", tmp_path)
    performed: list[str] = []
    limited = order(tmp_path, limit_s=1e-9)
    assert not port.run(limited, port.journal(limited), steps(performed))
    assert not performed and "no time left for 3 of 3" in capsys.readouterr().err


def test_what_has_no_result_here_is_timed_first_and_what_has_the_most_cases_last(tmp_path):
    several = replace(order(tmp_path), ops=("dequant_matmul", "swiglu", "rms_norm"))
    (tmp_path / "sm90-h200").mkdir()
    (tmp_path / "sm90-h200" / "swiglu.json").touch()
    timed = dict.fromkeys(op for op, _ in port._to_time(several, port.Journal(tmp_path / "j.jsonl")))
    assert list(timed) == ["rms_norm", "dequant_matmul", "swiglu"]


def test_a_bring_up_can_end_after_any_step(here):
    assert "no step named 'benches'; there are doctor, compile, check" in here("port", "--until", "benches").stderr


def test_what_is_tuned_first_is_spread_over_the_ops(tmp_path):
    both = replace(order(tmp_path), ops=("rms_norm", "swiglu"))
    turns = port.turns(both, port.Journal(tmp_path / "j.jsonl"))
    assert [op for op, _ in turns[:4]] == ["rms_norm", "swiglu", "rms_norm", "swiglu"]


def test_the_report_names_what_failed_and_how_fast_the_rest_is(tmp_path):
    machine = {
        "GPU": "NVIDIA H200",
        "folder": "sm90-h200",
        "driver": "580",
        "multiprocessors": 132,
        "memory": "140 GiB",
        "bandwidth measured": "read 4500 GB/s",
    }
    bad = {
        "op": "rope",
        "case": "T=1",
        "oracle": "numeric",
        "status": "fail",
        "detail": "far off",
        "command": "draftwood",
    }
    timed = {"case": {"T": 1}, "us": {"p20": 1.9, "p50": 2.0, "p80": 2.1}, "roof": 0.5, "baselines": {"torch": 8.0}}
    entry = {"us": {"p50": 1.0}, "default_us": 2.0, "config": {"num_warps": 2}, "tried": 5, "of": 9}
    done = port.Journal(tmp_path / "j.jsonl")
    done.add("doctor", ("machine",), {"machine": machine, "packages": {"torch": "2", "triton": "3"}})
    done.add("check", ("rope", "T=1"), [bad])
    done.add("bench", ("rope", "T=1"), timed)
    done.add("bench", ("rope", "T=2"), {"error": "out of memory"})
    done.add("tune", ("rope", "T=1"), {"entry": entry, "why": "", "moved": True})
    text = port_report.report(order(tmp_path), done, True)
    assert "1 verdicts on 1 cases: 1 failed" in text and "far off" in text and "out of memory" in text
    assert "| rope | T=1 | 2.0 | 1.9–2.1 | 50% | 4.0 |" in text
    assert "| rope | T=1 | 2.0 | 1.0 | 2.00 | 5/9 | num_warps=2 |" in text
    assert port_report.bad(done) == 2 and "NOT finished" in port_report.report(order(tmp_path), done, False)
