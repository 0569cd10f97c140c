"""`draftwood port` from its first step to its last, without a GPU: kernels interpreted, times from a file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from draftwood.autotune import ahead, winners
from draftwood.autotune.landscape import Landscape
from draftwood.autotune.race import race
from draftwood.autotune.space import Problem
from draftwood.autotune.timer import Machine
from draftwood.kernels import config
from draftwood.perf import bench, port, port_report
from draftwood.reference.ops import registered
from draftwood.reference.spec import Case, case
from triton.backends.compiler import GPUTarget

from .test_cli import OUTSIDE, ROOT

pytest.importorskip("optuna")
from draftwood.autotune import drive
from draftwood.autotune.storage import open_storage
from draftwood.autotune.trials import Trials

MACHINE = Machine("sm90-h200", "NVIDIA H200", "2.11", "3.6", "3.12", "580", "1980", "2026-11-20")
SPACE = 'SPACE = {"num_warps": (2, 1, 4, 8)}\n\n\ndef legal(config, case, gpu):\n    return None\n'
# on the first case eight warps are twice as fast, on the second nothing is faster than the default beyond the noise
WARPS = {4: {2: 10.0, 1: 11.0, 4: 7.0, 8: 5.0}, 7: {2: 10.0, 1: 12.0, 4: 9.95, 8: 14.0}}


def two_cases(home: Path) -> tuple[str, str]:
    """A folder with an op of four points and two small timed cases, and a file of their times."""
    for folder in ("reference", "kernels"):
        (home / folder).mkdir()
        text = (Path(OUTSIDE) / folder / "scale_rows.py").read_text()
        (home / folder / "scale_rows.py").write_text(
            text.replace('"perf": product(M=512, N=4096)', '"perf": product(M=(4, 7), N=20)')
        )
    (home / "autotune").mkdir()
    (home / "autotune" / "scale_rows.py").write_text(SPACE)
    cases = []
    for M, times in WARPS.items():
        passes = {(warps,): [(us, us, us)] for warps, us in times.items()}
        cases.append(Landscape(case(M=M, N=20), ("num_warps",), {"num_warps": 2}, passes, {}).as_dict())
    (home / "times.json").write_text(json.dumps({"op": "scale_rows", "gpu": "sm90-h200", "cases": cases}))
    return str(home), str(home / "times.json")


def bring_up(home: Path, ops: str, times: str, *more: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "XDG_CACHE_HOME": str(home / "cache")}
    argv = ["port", "scale_rows", "--ops", ops, "--rehearse", str(home / "out"), "--times", times, "--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "draftwood.perf.cli", *argv, "--compilers", "1", *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=ROOT.parent,
    )


def finished(home: Path) -> int:
    """Trials that ended with a result, as the journal has them."""
    file = home / "out" / "tune.journal"
    return file.read_text().count('"outcome"') if file.exists() else 0


@pytest.mark.long
def test_a_bring_up_killed_while_it_tunes_goes_on_and_repeats_no_trial(tmp_path):
    ops, times = two_cases(tmp_path)
    first = bring_up(tmp_path, ops, times, "--tune", "60")
    while finished(tmp_path) < 2:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = bring_up(tmp_path, ops, times, "--tune", "60")
    said = again.communicate(timeout=240)[1]
    assert again.returncode == 0, said
    assert "bench: all 2 done before" in said and "tune: " in said and "again: 1 done" in said
    for one in registered([ops])["scale_rows"].spec.cases["perf"]:
        problem = Problem("scale_rows", one, "sm90-h200", (ops,))
        book = Trials(problem, open_storage(str(tmp_path / "out" / "tune.journal")))
        tried = Counter(trial.user_attrs["identity"] for trial in book._all() if "outcome" in trial.user_attrs)
        assert len(tried) == 4 and set(tried.values()) == {1}
    entries = winners.load(tmp_path / "out" / "configs" / "sm90-h200" / "scale_rows.json")
    assert [(one["case"]["M"], one["config"], one.get("default")) for one in entries] == [
        (4, {"num_warps": 8}, None),
        (7, {}, {"num_warps": 2}),
    ]
    report = (tmp_path / "out" / "results" / "sm90-h200" / "PORT.md").read_text()
    assert "NOT finished" not in report and "| scale_rows | 2 | 1 | 1 | – | – | 8 |" in report


def test_tuning_takes_the_ops_with_the_most_cases_last_and_reaches_all_that_the_seconds_are_enough_for(
    tmp_path, monkeypatch
):
    order = port.Order("sm90-h200", ("dequant_matmul", "swiglu", "advance"), tune_s=250.0, results=tmp_path)
    done, asked = port.Journal(tmp_path / "j.jsonl"), []
    done.add("doctor", ("machine",), {"target": ["cuda", 90, 32]})
    monkeypatch.setattr(drive, "run", lambda plan, _watch: asked.append(plan) or iter(()))
    parts = port.turns(order, done)
    assert not list(port._tune(order, done, parts, port.Clock(0.0)))
    (plan,) = asked
    assert plan.target == ("cuda", 90, 32)
    assert len(plan.problems) == len(parts) and plan.seconds == pytest.approx(250, abs=5)
    assert list(dict.fromkeys(problem.op_name for problem in plan.problems)) == ["advance", "swiglu", "dequant_matmul"]
    # of a call that ends in between, some time is left for winners that wait for their gate; what is spent is spent
    done.add("seconds", ("tune", "1"), 240.0)
    list(port._tune(order, done, parts, port.Clock(0.0)))
    assert len(asked[1].problems) == int(asked[1].seconds / port.LEAST_S) and asked[1].seconds <= 10
    list(port._tune(order, done, parts, port.Clock(port.SETTLE_S)))
    assert len(asked) == 2


def test_a_case_that_no_worker_starts_for_is_done_and_says_so(tmp_path, monkeypatch):
    order = port.Order("sm90-h200", ("advance",), tune_s=60.0, results=tmp_path, device="cpu")
    done = port.Journal(tmp_path / "j.jsonl")

    def gives_up(plan, watch):
        watch(drive.Event("given up", "id", text="hung", extra={"name": plan.problems[0].name}))
        return iter(())

    monkeypatch.setattr(drive, "run", gives_up)
    parts = port.turns(order, done)
    ((part, found),) = port._tune(order, done, parts[:1], port.Clock(0.0))
    assert part == parts[0] and found == {"entry": None, "why": "hung", "moved": False}


def test_what_every_case_takes_beside_its_search_is_put_aside_before_the_rest_is_shared():
    shares = drive.Shares(100.0, [10, 30, 60])
    assert shares.of(0) == pytest.approx(10.0, rel=0.01)
    shares.beside.append(20.0)
    assert shares.of(1) == pytest.approx((100 - 40) * 30 / 90, rel=0.01)
    # one that took long says nothing of the others
    shares.beside.append(80.0)
    assert shares.of(2) == pytest.approx(100 - 20, rel=0.01)
    # where no time is left for a search, the default is tried and little more
    shares.until = 0.0
    assert shares.of(2) == drive.LEAST_S


def test_a_config_that_loses_its_last_race_makes_way_for_the_default(tmp_path, monkeypatch):
    op = registered()["rms_norm"]
    one = op.spec.cases["perf"][0]
    order = port.Order("sm90-h200", ("rms_norm",), results=tmp_path / "r", configs=tmp_path / "c")
    done, part = port.Journal(tmp_path / "j.jsonl"), ("rms_norm", one.id)
    row = {
        "case": one.as_dict(),
        "impl": "kernels",
        "config": {"num_warps": 8},
        "us": {"p20": 1.9, "p50": 2.0, "p80": 2.1},
        "baselines": {},
    }
    done.add("bench", part, row | {"baselines": {"torch": 8.0}, "config": {"num_warps": 0}})
    lost = {"us": 1.5, "spread": [1.4, 1.6], "config": {"num_warps": 0}, "gain": 0.75, "verdict": "tuned is slower"}
    found = {"machine": vars(MACHINE), "read_gb_s": 4500.0, "default": bench.same({"num_warps": 0})}
    answers = iter([found | {"row": row | {"default": lost}}, found | {"row": None}])
    monkeypatch.setattr(port, "_one_by_one", lambda _order, jobs: iter([(jobs[0][0], next(answers))]))
    ((_, kept),) = port._again(order, done, [part], port.Clock(0.0))
    assert kept["default"]["verdict"] == "same" and kept["config"] == {"num_warps": 0}
    (entry,) = winners.load(tmp_path / "c" / "sm90-h200" / "rms_norm.json")
    assert entry["default"] == {"num_warps": 0} and entry["config"] == {} and entry["us"]["p50"] == 1.5
    (gained,) = bench.load(tmp_path / "r" / "sm90-h200" / "against.json")["entries"]
    assert gained["op"] == "rms_norm" and gained["default"]["gain"] == 1.0
    done.add("again", part, kept)
    assert "| rms_norm | 1 | 0 | 1 | 0 | 1.000 | 1.00 |" in port_report._gained(done.of("again"))


def test_a_default_that_stays_is_an_entry_for_every_tunable_op(tmp_path):
    """Whatever the launcher's defaults hold besides the knobs."""
    for name, op in registered().items():
        if not op.has("autotune"):
            continue
        for one in op.spec.cases["perf"]:
            problem = Problem(name, Case(one.values), "sm90-h200")
            entry = winners.stays(problem, MACHINE, problem.defaults, (1.0, 1.0, 1.0), 4500.0, {})
            assert entry["default"] == problem.defaults and entry["config"] == {} and "within" not in entry
            assert winners.within(problem, one.as_dict(), problem.defaults) is not None
            assert winners.carried(problem, [entry]) in (None, *problem.points)


def test_gains_count_what_is_proven():
    rows = [
        {"op": "a", "default": {"gain": gain, "verdict": verdict}}
        for gain, verdict in ((2.0, "tuned is faster"), (1.3, "no difference"), (1.0, "same"), (0.5, "tuned is slower"))
    ]
    (one,) = bench.gains(rows)
    assert (one["cases"], one["faster"], one["slower"], one["most"]) == (4, 1, 1, 2.0)
    assert one["mean"] == pytest.approx(1.0)


def test_a_config_serves_no_epilogue_that_it_has_no_room_for():
    """Four programs of the ring's of four warps; swiglu takes eight, and is asked for by twice the rows of W."""
    op = registered()["dequant_matmul"]
    one = next(
        c
        for c in op.spec.cases["perf"]
        if (c["M"], c["N"], c["precision"], c["layout"]) == (8, 17408, "exact", "tiles")
    )
    problem = Problem("dequant_matmul", one, "sm90-h200")
    point = next(p for p in problem.points if (p["algorithm"], p["warps"], p["resident"]) == ("ring", 4, 4))
    names = ("M", "N", "K", "format", "precision", "layout")
    bounds = winners.within(problem, {name: one[name] for name in names}, point)
    entry = {"case": one.as_dict(), "config": point, "within": bounds}
    asked = {name: one[name] for name in names}
    assert config.nearest([entry], asked) is entry
    assert config.nearest([entry], {**asked, "M": 9}) is entry
    assert config.nearest([entry], {**asked, "N": 34816}) is None


def test_where_the_default_stays_every_launch_keeps_its_own(tmp_path, monkeypatch):
    """Defaults may go by size: an entry that changes nothing keeps the neighbour's winner away, and no more."""
    problem = Problem("rms_norm", registered()["rms_norm"].spec.cases["perf"][0], "sm90-h200")
    entry = winners.stays(problem, MACHINE, {"num_warps": 4}, (1.0, 1.0, 1.0), 4500.0, {})
    winners.save("rms_norm", "sm90-h200", [entry], tmp_path)
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    for cache in (config.homes, config.entries, config._tuned):
        cache.cache_clear()
    default = problem.op.module("kernels").Config(num_warps=16)
    with config.compiling_for("sm90-h200"):
        picked = config.pick("rms_norm", default, torch.device("cpu"), M=1, D=5120)
    for cache in (config.homes, config.entries, config._tuned):
        cache.cache_clear()
    assert picked is not None and picked == default


def test_what_is_picked_is_raced_only_where_it_is_not_the_default(monkeypatch):
    op, device = registered()["rms_norm"], torch.device("cpu")
    runs, _ = bench.calls(op, op.spec.cases["smoke"][0], device)
    assert bench.against_default(op, runs, device)["verdict"] == "same"
    ran = []
    monkeypatch.setattr(bench, "picks", lambda _op, _run: ({"num_warps": 8}, {"num_warps": 0}))
    monkeypatch.setattr(bench, "race", lambda a, b: ran.append(1) or race(lambda: 2.0, lambda: 1.0))
    found = bench.against_default(op, runs, device)
    assert ran and found["verdict"] == "tuned is faster" and found["gain"] == 2.0 and found["us"] == 2.0
    assert found["config"] == {"num_warps": 0} and found["least"] == 2.0 == found["most"]


def test_a_config_is_raced_against_what_is_picked_or_says_why_not(monkeypatch):
    op, device = registered()["rms_norm"], torch.device("cpu")
    chosen = op.module("kernels").Config(num_warps=2)
    monkeypatch.setattr(bench, "race", lambda a, b: race(lambda: 2.0, lambda: 1.0))
    row = bench.duel(op, op.spec.cases["smoke"][0], device, chosen)
    assert row["verdict"] == "faster" and row["ratio"] == 0.5 and (row["picked_us"][1], row["us"][1]) == (2.0, 1.0)
    assert row["config"] == {"num_warps": 2} != row["picked"]
    op = registered()["tree_attention"]
    chosen = op.module("kernels").Config(left="keys", BLOCK_M=144)
    row = bench.duel(op, op.spec.cases["smoke"][0], device, chosen)
    assert row["verdict"] == "refused" and "does not suit" in row["why"]


def test_what_waits_for_a_compiler_is_given_up_with_its_case(monkeypatch):
    """Else every case waits for what the ones before it wanted."""
    started = threading.Event()

    def slowly(_problem, _shapes, _point):
        started.wait(20)
        return ahead.Built()

    monkeypatch.setattr(ahead, "compile_one", slowly)
    monkeypatch.setattr(ahead.Ahead, "_new", lambda _self: ThreadPoolExecutor(1))
    one, two = (Problem("advance", c, "sm90-h200") for c in registered()["advance"].spec.cases["perf"])
    pool = ahead.Ahead(1, GPUTarget("cuda", 90, 32))
    running, waiting = (pool.submit(one, None, {"num_warps": warps}) for warps in (1, 2))
    other = pool.submit(two, None, {"num_warps": 1})
    pool.drop(one)
    assert waiting.cancelled() and [future for _, future in pool.given_to(one)] == [running]
    started.set()
    assert other.result(20) == ahead.Built() and pool.submit(one, None, {"num_warps": 2}).result(20) == ahead.Built()
    pool.close()


def test_compilers_work_ahead_on_as_many_points_as_a_case_has_time_for():
    assert drive.tried_in(0.0) == drive.SPARE and drive.tried_in(1.5) == drive.SPARE + 20


def test_with_little_time_compilers_begin_with_the_first_points_of_every_case(monkeypatch):
    problems = tuple(Problem("swiglu", c, "sm90-h200") for c in registered()["swiglu"].spec.cases["perf"])
    monkeypatch.setattr(ahead.Ahead, "_new", lambda _self: None)
    monkeypatch.setattr(ahead.Ahead, "pump", lambda _self, _slack: None)
    plan = drive.Plan(problems, "cuda:0", seconds=2.0, compilers=1)
    kept = list(drive._pool(plan, ("cuda", 90, 32)).kept)
    rounds = [problem.case["M"] for problem, point in kept if point]
    assert [point for _, point in kept[: len(problems)]] == [None] * len(problems)
    assert rounds[: 2 * len(problems)] == [one.case["M"] for one in problems for _ in range(2)]
    # what won on one case is compiled for one that comes later, before what is only likely there
    pool = drive._pool(plan, ("cuda", 90, 32))
    best = {"case": problems[0].case.as_dict(), "config": problems[0].points[-1]}
    drive._pass_on(pool, {"swiglu": [best]}, problems[1:3])
    assert pool.kept[0] == (problems[2], problems[0].points[-1])
    drive._pass_on(pool, {}, ())
