"""The command line, as a user meets it: tables, JSON, exit codes, one sentence for bad input, ops of one's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = str(Path(__file__).parent / "outside")


def draftwood(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "COLUMNS": "200", **env}
    return subprocess.run(
        [sys.executable, "-m", "draftwood.perf.cli", *args],
        capture_output=True,
        text=True,
        env=settings,
        cwd=ROOT.parent,
    )


def test_help_names_the_commands_without_importing_torch():
    code = (
        "import sys; from draftwood.perf import cli; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / ".typings")})
    run = draftwood("--help")
    assert run.returncode == 0
    for command in ("check", "list", "bench", "formats", "doctor", "test"):
        assert command in run.stdout


def test_one_case_runs_in_this_process_with_the_interpreter_found_necessary_by_itself():
    run = draftwood("check", "rms_norm", "--case", "M=3,D=256,gap=0,dtype=f32,out=same", "--json", TRITON_INTERPRET="")
    assert run.returncode == 0, run.stderr
    assert {verdict["status"] for verdict in json.loads(run.stdout)} <= {"pass", "skip"}


def test_an_op_of_ones_own_is_checked_listed_and_timed(here):
    listed = json.loads(here("list", "--ops", OUTSIDE, "--json").stdout)
    assert "scale_rows" in {row["op"] for row in listed}
    checked = draftwood("check", "scale_rows", "--ops", OUTSIDE, "--json")
    verdicts = json.loads(checked.stdout)
    assert checked.returncode == 0 and {v["status"] for v in verdicts} <= {"pass", "skip"} and len(verdicts) > 20
    timed = json.loads(draftwood("bench", "scale_rows", "--ops", OUTSIDE, "--json", "--no-save").stdout)
    assert timed["results"]["scale_rows"][0]["us"]["p50"] > 0


def test_formats_are_listed_with_their_bits_and_errors(here):
    rows = {row["format"]: row for row in json.loads(here("formats", "--json").stdout)}
    assert rows["q4_0"]["bits"] == 4.5 and rows["tq3_0"]["id"] == 42 and 0.18 < rows["tq3_0"]["theory"] < 0.19
    assert "tq3_0" in here("formats").stdout


def test_ops_come_from_the_environment_too(here, monkeypatch):
    monkeypatch.setenv("DRAFTWOOD_OPS", OUTSIDE)
    assert "scale_rows" in here("list", "scale_rows").stdout


def test_a_failing_op_prints_what_is_needed_to_see_it_again(tmp_path, here):
    for folder in ("reference", "kernels"):
        (tmp_path / folder).mkdir()
        text = (Path(OUTSIDE) / folder / "scale_rows.py").read_text()
        (tmp_path / folder / "scale_rows.py").write_text(text.replace("b_x * tl.load(s + i_m)", "b_x * tl.load(s)"))
    run = draftwood("check", "scale_rows", "--ops", str(tmp_path), "--cases", "smoke")
    assert run.returncode == 1
    assert "numeric fail" in run.stderr and "got" in run.stderr and "want" in run.stderr
    command = next(line.strip() for line in run.stderr.splitlines() if line.strip().startswith("draftwood check"))
    assert command == f"draftwood check scale_rows --case 'M=3,N=20' --seed 0 --oracle numeric --ops {tmp_path}"
    again = here("check", "scale_rows", "--case", "M=3,N=20", "--oracle", "numeric", "--ops", str(tmp_path))
    assert again.returncode == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["check", "no_such_op"], "no op named 'no_such_op'; there are dequant_matmul"),
        (["check", "rms_norm", "--cases", "huge"], "no case list named 'huge'; there are smoke, edge, qwen35, perf"),
        (["check", "rms_norm", "--case", "M=0,D=8,gap=0,dtype=f32,out=same"], "rms_norm supports M from 1 to"),
        (
            ["check", "rms_norm", "--case", "M=1,D=8,gap=0,dtype=f8,out=same"],
            "rms_norm supports dtype in f32, bf16, f16, not f8",
        ),
        (["check", "rms_norm", "--case", "M=1"], "the case names M"),
        (["check", "--case", "M=1"], "--case needs exactly one op"),
        (["check", "--ops", "/nowhere"], "'/nowhere' is neither a folder nor an importable package"),
        (["bench", "rms_norm", "--case", "M"], "'M' in the case 'M' is not name=value"),
        (["check", "rms_norm", "--config", '{"foo": 1}'], "'foo' is nothing that rms_norm has"),
        (["check", "rms_norm", "--config", '{"num_warps": '], "--config is no JSON"),
        (["check", "rms_norm", "--config", "[2]"], "no object"),
        (["check", "rms_norm", "rope", "--config", "{}"], "exactly one op"),
        pytest.param(
            ["bench", "rms_norm", "--config", "{}"],
            "takes a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(args, sentence, here):
    run = here(*args)
    assert run.returncode == 2
    assert sentence in run.stderr.replace("\n", " ") and "Traceback" not in run.stderr


def test_doctor_reports_the_machine_as_json(here):
    run = here("doctor", "--json")
    report = json.loads(run.stdout)
    assert {"machine", "packages", "ops"} <= set(report) and report["packages"]["torch"] != "not installed"
