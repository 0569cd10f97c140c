"""The tuner never picks a wrong kernel, tells a win from noise, and says what it did."""

import gzip
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from draftwood.autotune import effort, landscape, neighbours, winners, worker
from draftwood.autotune.outcome import Outcome, Verdict
from draftwood.autotune.race import LOOKS, race
from draftwood.autotune.space import Problem, _bare, code
from draftwood.autotune.timer import Machine
from draftwood.kernels import config
from draftwood.reference.ops import registered
from draftwood.reference.spec import case

pytest.importorskip("optuna")
from draftwood.autotune import atlas, report
from draftwood.autotune.sampler import DEFAULT, NAMES, Proposer
from draftwood.autotune.simulate import SMALLEST, Replica, Simulated, replay, table, tenth
from draftwood.autotune.storage import open_storage
from draftwood.autotune.surrogate import Surrogate, _mass
from draftwood.autotune.trials import Trials
from draftwood.autotune.tuner import Budget, Tuner
from draftwood.autotune.worker import Isolated, Post

ROOT = Path(__file__).resolve().parent.parent
FAULTS = str(Path(__file__).parent / "faults")
MACHINE = Machine("sm90-h200", "NVIDIA H200", "2.11", "3.6", "3.12", "580", "1980", "2026-11-20")


def bowl(default: tuple[int, int] = (16, 1), **times: float) -> landscape.Landscape:
    """The fastest is BLOCK 64 with 4 warps; `times` overrides single points, as b64w4=10.5."""
    passes = {}
    for block in (16, 32, 64, 128):
        for warps in (1, 2, 4, 8):
            us = times.get(f"b{block}w{warps}", 10.0 + abs(block - 64) / 16 + abs(warps - 4))
            passes[block, warps] = [(us, us, us)]
    start = {"BLOCK": default[0], "num_warps": default[1]}
    return landscape.Landscape(case(M=1), ("BLOCK", "num_warps"), start, passes, {})


def tuner(where: Path, found: landscape.Landscape, sampler: str = "grid", trials: int = 0, **options) -> Tuner:
    problem = Replica("thing", "sm90-h200", found)
    book = Trials(problem, open_storage(str(where)))
    return Tuner(problem, book, Simulated(found, problem), Proposer(problem, sampler), Budget(trials), **options)


class Patient(Isolated):
    """Waits long for what will answer, on a slow machine too, and short for what never does."""

    def attempt(self, point, rival):
        self.post = replace(self.post, timeout_s=5.0 if point["fault"] == "hanging" else 120.0)
        return super().attempt(point, rival)


# -- planted faults ----------------------------------------------------------------------------------------------------


def test_configs_that_are_fastest_and_faulty_are_each_refused_with_their_reason_and_none_wins(tmp_path):
    spec = registered([FAULTS])["double_rows"].spec
    problem = Problem("double_rows", spec.cases["perf"][0], "cpu", (FAULTS,))
    times = {point["fault"]: 1.0 + i for i, point in enumerate(problem.points)} | {"none": 50.0}
    passes = {tuple(p.values()): [(us := times[p["fault"]] + p["num_warps"], us, us)] for p in problem.points}
    planted = landscape.Landscape(problem.case, tuple(problem.space), problem.defaults, passes, {})
    (tmp_path / "times.json").write_text(json.dumps({"cases": [planted.as_dict()]}))
    runner = Patient(problem, Post("cpu", str(tmp_path / "times.json")))
    book = Trials(problem, open_storage(str(tmp_path / "journal")))
    try:
        search = Tuner(problem, book, runner, Proposer(problem, "grid"), Budget())
        search.search()
        verdict = search.settle()
    finally:
        runner.close()
    assert verdict is not None and verdict.winner == {"fault": "none", "num_warps": 2}
    found = {record.point["fault"]: record.outcome for record in book.finished().values()}
    gated = {r.point["fault"]: book.disqualified().get(r.identity, "") for r in book.finished().values()}
    reasons = {
        "wrong": ("wrong", "numeric: element outside its bound"),
        "racy": ("wrong", "race: store of bytes that program (0, 0, 0) stores too"),
        "non_deterministic": ("wrong", "repeat: out: 160 of 160 elements changed on the same inputs"),
        "out_of_bounds": ("wrong", "bounds: store of"),
        "hanging": ("hung", "no answer in 5 s while checking"),
        "crashing": ("crashed", "killed by signal SIGSEGV while checking"),
    }
    for fault, (status, why) in reasons.items():
        assert found[fault].status == status and found[fault].why.startswith(why), found[fault]
        assert found[fault].command.startswith("draftwood check double_rows --case 'M=4,N=40'")
    # right on the case that was timed, and wrong on a neighbour that the config would serve
    assert found["wrong_on_odd_rows"].status == "ok" and gated["wrong_on_odd_rows"].startswith("numeric")
    # a worker that hung, died, or was written into is replaced
    assert runner.restarts == 3
    bad = {entry["config"]["fault"]: entry["status"] for entry in atlas.found(problem, book, "2026-11-20")}
    assert bad == {fault: status for fault, (status, _) in reasons.items()} | {"wrong_on_odd_rows": "wrong"}


def test_the_command_of_a_refused_config_shows_it_again():
    argv = ["check", "double_rows", "--case", "M=4,N=40", "--oracle", "numeric", "--ops", FAULTS, "--json"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / ".typings")}
    run = lambda chosen: subprocess.run(
        [sys.executable, "-m", "draftwood.perf.cli", *argv, "--config", json.dumps(chosen)],
        capture_output=True,
        text=True,
        env=settings,
    )
    assert json.loads(run({"fault": "wrong"}).stdout)[0]["status"] == "fail"


def test_what_the_atlas_knows_is_skipped_until_the_version_or_the_kernel_changes(tmp_path):
    problem = Problem("rms_norm", registered()["rms_norm"].spec.cases["smoke"][0], "sm90-h200")
    entry = {
        "gpu": "sm90-h200",
        "triton": triton.__version__,
        "op": "rms_norm",
        "case": problem.case.as_dict(),
        "config": {"num_warps": 16},
        "kernel": problem.kernel_hash,
        "status": "wrong",
        "why": "numeric",
        "command": "",
        "date": "2026-11-20",
    }
    file = tmp_path / "atlas.json"
    atlas.save([entry], file)
    atlas.save([entry], file)
    assert len(atlas.load(file)) == 1
    assert list(atlas.known_bad(problem, file)) == [problem.identity({"num_warps": 16})]
    for changed in ({"triton": "9.9"}, {"kernel": "other"}, {"gpu": "sm86-rtx-3090"}):
        file.unlink()
        atlas.save([entry | changed], file)
        assert not atlas.known_bad(problem, file)


def test_a_skipped_config_is_not_tried(tmp_path):
    found = bowl()
    search = tuner(tmp_path / "journal", found, known_bad=lambda p: "bad" if p["BLOCK"] == 64 else None)
    search.search()
    assert not [r for r in search.records.values() if r.point["BLOCK"] == 64] and len(search.records) == 12


# -- statistics --------------------------------------------------------------------------------------------------------


def noisy(us: float, noise: float, source: random.Random):
    # one replay in a hundred is disturbed
    return lambda: us * math.exp(source.gauss(0, noise)) * (1.3 if source.random() < 0.01 else 1)


@pytest.mark.parametrize("noise", [0.002, 0.006, 0.02])
def test_racing_a_config_against_itself_says_no_difference_at_least_95_times_in_100(noise):
    source = random.Random(1)
    verdicts = [race(noisy(10, noise, source), noisy(10, noise, source)).verdict for _ in range(100)]
    assert verdicts.count("tie") >= 95


def test_a_difference_beyond_the_noise_is_seen_and_a_clear_one_costs_few_blocks():
    source = random.Random(2)
    slower = [race(noisy(10, 0.006, source), noisy(11, 0.006, source)) for _ in range(100)]
    assert sum(one.verdict == "slower" for one in slower) >= 95
    faster = [race(noisy(10, 0.006, source), noisy(9, 0.006, source)) for _ in range(100)]
    assert sum(one.verdict == "faster" for one in faster) >= 95
    clear = [race(noisy(10, 0.006, source), noisy(20, 0.006, source)) for _ in range(20)]
    assert all(one.verdict == "slower" and len(one.a) <= 12 for one in clear)


def test_a_drifting_clock_makes_no_difference():
    clock = iter(range(10**6))
    drifting = lambda: 10 * (1 + 0.001 * next(clock))
    assert race(drifting, drifting).verdict == "tie"


def test_a_race_ends_at_its_last_look():
    source = random.Random(3)
    one = race(noisy(10, 0.2, source), noisy(10, 0.2, source), most=12)
    assert len(one.a) == 12 and one.low < one.ratio < one.high and 12 in LOOKS


def test_a_win_inside_the_noise_is_a_tie_and_the_default_stays(tmp_path):
    search = tuner(tmp_path / "journal", bowl(default=(64, 4), b64w2=9.97))
    search.search()
    verdict = search.settle()
    assert verdict.winner == {"BLOCK": 64, "num_warps": 4} and "nothing is faster" in verdict.why


def test_of_configs_that_tie_the_one_nearer_the_default_wins(tmp_path):
    search = tuner(tmp_path / "journal", bowl(default=(16, 4), b64w4=10.0, b64w8=9.99, b64w2=9.99))
    search.search()
    assert search.settle().winner == {"BLOCK": 64, "num_warps": 4}


def test_a_time_is_placed_by_its_race_against_the_best_whatever_the_clock_does(tmp_path):
    search = tuner(tmp_path / "journal", bowl())
    slow = iter(range(100))
    honest = search.runner._us
    # every trial the clock is a tenth slower than at the one before
    search.runner._us = lambda point: honest(point)
    attempt = search.runner.attempt

    def throttled(point, rival):
        factor = 1.1 ** next(slow)
        search.runner._us = lambda p: honest(p) * factor
        return attempt(point, rival)

    search.runner.attempt = throttled
    search.search()
    search.runner._us = honest
    for record in search.records.values():
        assert record.outcome.us == pytest.approx(honest(record.point), rel=0.05)


class Shared:
    """A replay whose result lies where the last one's does."""

    memory = torch.zeros(1)

    def __init__(self, us: float, bits: float) -> None:
        self.us, self.bits, self.result, self.launches = us, bits, Shared.memory, 1

    def sample(self) -> float:
        Shared.memory[0] = self.bits
        return self.us


def test_what_the_rival_leaves_in_shared_memory_is_not_taken_for_the_challengers():
    bench = object.__new__(worker.Bench)
    bench.problem = Problem("rms_norm", registered()["rms_norm"].spec.cases["smoke"][0], "cpu")
    bench.rival, bench.sets = ({}, Shared(2.0, 1.0)), [{}]
    bench._replay = lambda _point, _like=None: Shared(1.0, 2.0)
    bench._call = lambda _name: torch.full((1,), 2.0)
    assert bench._timed({}, {}).outcome.status == "ok"
    bench._call = lambda _name: torch.full((1,), 3.0)
    assert "other bits after 1 timed runs" in bench._timed({}, {}).outcome.why


# -- samplers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", NAMES)
def test_a_sampler_proposes_every_legal_point_once_and_no_other(sampler):
    if sampler == "cmaes":
        pytest.importorskip("cmaes", reason="no cmaes here: pip install 'draftwood[tune]'")
    found = bowl()
    for key in [(16, 8), (128, 1), (32, 2)]:
        del found.passes[key]
    problem = Replica("thing", "sm90-h200", found)
    proposer, seen = Proposer(problem, sampler, seed=3), []
    while (point := proposer.propose()) is not None:
        proposer.taken([point])
        seen.append(found.key(point))
        proposer.result(point, found.us(point) if len(seen) % 5 else None)
    assert sorted(seen) == sorted(found.passes)


def test_the_same_seed_proposes_the_same_points():
    found = bowl()
    first, again = (replay("thing", "sm90-h200", found, "gp", 4, 9).best for _ in range(2))
    assert first == again


LANDSCAPES = [file for file in sorted(landscape.HOME.glob("*/*.json.gz"))]


@pytest.mark.parametrize("file", LANDSCAPES, ids=lambda file: file.name.split(".")[0])
def test_after_a_tenth_of_the_trials_the_default_sampler_is_within_2_percent_and_beats_random_search(file):
    for one in (one for one in landscape.load(file) if len(one.points) >= SMALLEST):
        budget = tenth(len(one.points))
        rows = {
            sampler: table(replay(file.name, file.parent.name, one, sampler, seed, budget) for seed in range(6))[0]
            for sampler in (DEFAULT, "random")
        }
        assert rows[DEFAULT]["within_2"] >= 0.8
        assert rows[DEFAULT]["regret_mean"] < rows["random"]["regret_mean"]


def test_the_kept_table_says_that_the_default_sampler_wins_everywhere():
    rows = json.loads((landscape.HOME / "regret.json").read_text())["rows"]
    mine = [row for row in rows if row["sampler"] == DEFAULT]
    assert len(mine) >= 4 and all(row["within_2"] >= 0.95 for row in mine)
    for row in mine:
        others = (r for r in rows if (r["op"], r["case"]) == (row["op"], row["case"]) and "warm" not in r["sampler"])
        assert all(row["regret_mean"] <= other["regret_mean"] for other in others)


def test_the_models_find_a_bowls_lowest_point_and_know_what_they_were_told():
    x = np.linspace(0, 1, 33)[:, None]
    y = (x[:, 0] - 0.7) ** 2
    model, known = Surrogate(x, np.zeros(33)), [0, 16, 32]
    for _ in range(6):
        model.fit(known, y[known])
        left = np.array([i for i in range(33) if i not in known])
        known.append(int(left[np.argmax(model.improvement(left, y[known].min()))]))
    assert y[known].min() == y.min()
    assert model.expected(np.array(known[:-1])) == pytest.approx(y[known[:-1]], abs=0.02)


def test_what_is_foreseen_goes_first_and_is_given_up_where_it_is_wrong():
    x, truth = np.linspace(0, 1, 40)[:, None], np.linspace(0, 4, 40)
    for foreseen in (truth, -truth):
        model, known = Surrogate(x, foreseen), [20]
        for _ in range(5):
            model.fit(known, truth[known])
            left = np.array([i for i in range(40) if i not in known])
            known.append(int(left[np.argmax(model.improvement(left, truth[known].min()))]))
        assert truth[known].min() == 0.0, known


def test_a_normal_distributions_mass_is_known_in_its_tails():
    u = np.linspace(-8, 8, 161)
    assert _mass(u) == pytest.approx([0.5 * math.erfc(-one / math.sqrt(2)) for one in u], rel=1e-6)


def test_more_instructions_more_programs_and_more_launches_are_foreseen_to_take_longer():
    one = effort.Launch(programs=264, warps=4, code=4096, registers=32, shared=0)
    us = lambda *launches: effort.features(launches, "sm90-h200")[0]
    assert (
        us(one) < us(replace(one, code=8192))
        and us(one) < us(replace(one, programs=264 * 64))
        and us(one) < us(one, one)
    )
    # as many registers as leave room for one program at a time
    assert us(replace(one, programs=264 * 8)) < us(replace(one, programs=264 * 8, registers=255))
    assert effort.features((one,), "sm99-nobody-knows")[0] > 0


def test_a_landscape_file_holds_what_was_saved(tmp_path):
    found = bowl()
    found.refused[256, 1] = "wrong: numeric"
    found.launches[64, 4] = (effort.Launch(23, 4, 4096, 32, 0), effort.Launch(1, 8, 512, 16, 1024))
    file = tmp_path / "thing.json.gz"
    landscape.save(file, "thing", "hash", MACHINE, [found])
    (again,) = landscape.load(file)
    assert again == found and json.loads(gzip.decompress(file.read_bytes()))["kernel"] == "hash"
    landscape.save(tmp_path / "twice.json.gz", "thing", "hash", MACHINE, [found])
    assert file.read_bytes() == (tmp_path / "twice.json.gz").read_bytes()
    assert math.isinf(found.us({"BLOCK": 256, "num_warps": 1})) and found.best == 10.0


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_comment_a_docstring_or_an_empty_line_changes_no_kernel_hash_and_code_does():
    text = '"""Doc."""\n\nimport os  # why\n\n\ndef f(a):\n    """Of f."""\n    # say\n    return f"{a} # no comment"\n'
    plain = 'import os\ndef f(a):\n    return f"{a} # no comment"'
    assert _bare(text).replace("\n\n", "\n").split() == plain.split()
    assert _bare(text) == _bare(text.replace("# say", "# say more").replace("Of f.", "Of f,\n    at length."))
    assert _bare(text) != _bare(text.replace("# no comment", "# a change"))


def test_the_kernel_hash_covers_what_the_kernel_imports_from_its_folder():
    files = set(code(ROOT / "kernels", "topk_logprobs"))
    assert {"topk_logprobs.py", "lib/order.py"} <= files and "config.py" not in files


def test_a_kernel_hash_covers_what_is_used_beside_it_and_no_more(tmp_path):
    def written(folder: str, unused: str = "1", used: str = "2", constant: str = "3") -> dict[str, str]:
        root = tmp_path / folder
        (root / "lib").mkdir(parents=True)
        (root / "op.py").write_text("from .lib.near import f as g\n\n\ndef op():\n    return g()\n")
        other = f"\n\n\ndef other():\n    return {unused}\n"
        near = f"from .far import h\n\nC = {constant}\n\n\ndef f():\n    return h() + C{other}"
        (root / "lib" / "near.py").write_text(near)
        (root / "lib" / "far.py").write_text(
            f"@once\ndef h():\n    return {used}\n\n\ndef other():\n    return {unused}\n"
        )
        return code(root, "op")

    plain = written("plain")
    assert set(plain) == {"op.py", "lib/near.py", "lib/far.py"} and "@once" in plain["lib/far.py"]
    assert written("unused", unused="9") == plain
    assert written("used", used="9") != plain and written("constant", constant="9") != plain


def test_points_skip_only_what_legal_refuses():
    for one in registered()["dequant_matmul"].spec.cases["smoke"][:4]:
        problem = Problem("dequant_matmul", one, "sm90-h200")
        values = {knob: problem.space[knob] for knob in problem.space}
        unread = problem.op.module("autotune").unread_by(one)
        for knob in unread:
            for value in values[knob][1:]:
                assert problem.refusal({**problem.points[0], knob: value})


def test_refusals_are_counted_by_their_sentence():
    problem = Problem("gated_rms_norm", registered()["gated_rms_norm"].spec.cases["perf"][0], "sm90-h200")
    (text,) = problem.refusals()
    assert text == "# elements on # warps are more than # a lane" and len(problem.points) == 23


# -- what is written ---------------------------------------------------------------------------------------------------


def test_committed_configs_are_stamped_and_stale_once_anything_changes(tmp_path):
    problem = Problem("rms_norm", registered()["rms_norm"].spec.cases["perf"][0], "sm90-h200")
    verdict = Verdict({"num_warps": 8}, (1.9, 2.0, 2.1), 2.4, "", 5)
    made = winners.made(problem, MACHINE, verdict, 4525.0)
    file = winners.save("rms_norm", "sm90-h200", [made], tmp_path)
    winners.save("rms_norm", "sm90-h200", [made | {"default_us": 3.0}], tmp_path)
    (held,) = winners.load(file)
    assert (
        held["config"] == {"num_warps": 8}
        and held["default_us"] == 3.0
        and held["of"] == len(problem.points)
        and 0 < held["roof"] < 1
    )
    assert set(held["stamp"]) == {"kernel", "space", "torch", "triton", "driver", "date"}
    assert winners.stale(held, problem, MACHINE) == []
    newer = Machine(**{**vars(MACHINE), "triton": "3.7"})
    assert winners.stale(held, problem, newer) == ["triton 3.6 -> 3.7"]
    held["stamp"]["kernel"] = "other"
    assert winners.stale(held, problem, MACHINE) == ["the kernel's code has changed"]
    assert winners.stale({"case": {}}, problem, MACHINE) == ["no stamp"]


def test_a_config_serves_no_launch_that_it_is_not_legal_for():
    op = registered()["tree_conv"]
    one = next(case for case in op.spec.cases["perf"] if case["T"] == 9)
    problem, asked = Problem("tree_conv", one, "sm90-h200"), {name: one[name] for name in ("B", "T", "C", "W")}
    wide = {"BLOCK_T": 16, "BLOCK_C": 64, "num_warps": 1}
    assert winners.within(problem, asked, wide) == {"T": [9, None]}
    assert winners.within(problem, asked, {**wide, "BLOCK_T": 1}) == {}
    entry = {"case": one.as_dict(), "config": wide, "within": {"T": [9, None]}}
    assert config.nearest([entry], {**asked, "T": 18}) and config.nearest([entry], {**asked, "T": 8}) is None
    assert config.nearest([entry], {"C": one["C"]}) == entry
    # more than twice as many were not measured
    assert config.nearest([entry], {**asked, "T": 19}) is None


def test_every_committed_config_is_legal_and_of_a_known_case():
    for file in winners.CONFIGS.glob("*/*.json"):
        if file.stem not in registered():
            continue
        op = registered()[file.stem]
        for entry in winners.load(file):
            assert op.spec.refuse(case(**entry["case"])) is None, f"{file}: {entry['case']}"
            op.module("kernels").Config(**entry["config"])


def test_a_report_holds_its_pictures_and_every_trial(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib here: pip install 'draftwood[report]'")
    found = bowl()
    found.refused[128, 8] = "wrong: numeric: <b>bad</b>"
    del found.passes[128, 8]
    search = tuner(tmp_path / "journal", found)
    search.search()
    records = sorted(search.records.values(), key=lambda record: record.number)
    pictures = {
        "best-so-far": report._best_so_far(records),
        "importance": report._importance(search.problem, records[:9]),
    }
    text = report.page(_Named(search.problem), records, pictures)
    assert text.count("data:image/png;base64,") == 2 and "http" not in text and "<b>bad" not in text
    assert text.count("<tr><td>") >= 16 and all(png.startswith(b"\x89PNG") for png in pictures.values())


class _Named:
    """A problem without rules of its own."""

    def __init__(self, problem):
        self.problem = problem

    def __getattr__(self, name):
        return getattr(self.problem, name)

    def refusals(self):
        return Counter({"# is too many": 3})


def test_importance_names_the_knob_that_matters():
    passes = {(b, w): [(float(b), float(b), float(b))] for b in (16, 32, 64) for w in (1, 2, 4)}
    found = landscape.Landscape(case(M=1), ("BLOCK", "num_warps"), {"BLOCK": 16, "num_warps": 1}, passes, {})
    problem = Replica("thing", "sm90-h200", found)
    from draftwood.autotune.outcome import Record

    ran = [Record(i, p, str(i), Outcome("ok", us=found.us(p))) for i, p in enumerate(problem.points)]
    shares = report.importance(problem, ran)
    assert next(iter(shares)) == "BLOCK" and shares["BLOCK"] > 0.9 and sum(shares.values()) == pytest.approx(1)


# -- the machine -------------------------------------------------------------------------------------------------------

SMI = """#!/bin/sh
case "$2" in
  *clocks_event_reasons*) echo 0x0000000000000024 ;;
  *compute-apps*) echo {pid}; echo 1 ;;
esac
"""


def test_throttling_and_other_processes_are_noticed(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI.replace("{pid}", str(os.getpid())))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watching = neighbours.Neighbours("")
    watching.uuid = "GPU-1"
    assert watching._look() == [
        "throttled by the power limit",
        "throttled by temperature",
        "1 other processes on the GPU",
    ]


def test_without_nvidia_smi_nothing_is_claimed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    watching = neighbours.Neighbours("")
    assert watching._look() is None and watching.notes() == ()


def test_candidates_are_compiled_ahead_without_a_gpu(tmp_path):
    code = """
import os, sys, torch
from draftwood.autotune import ahead, elsewhere
from draftwood.autotune.space import Problem
from draftwood.reference.ops import registered
from triton.backends.compiler import GPUTarget
ahead.prepare(GPUTarget("cuda", 90, 32))
op = registered()["rms_norm"]
problem = Problem("rms_norm", op.spec.cases["perf"][0], "sm90-h200")
shapes = elsewhere.drawn(op.spec, problem.case)
print([ahead.compile_one(problem, shapes, point).why for point in problem.points[:2]])
print(ahead.compile_one(problem, shapes, {"num_warps": 3}).why)
print([len(ahead.compile_one(problem, None, point).launches) for point in problem.points[:2]])
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    first, second, third = run.stdout.splitlines()
    assert first == "['', '']" and "num_warps" in second and third == "[1, 1]", run.stderr
    assert len(list(tmp_path.rglob("*.cubin"))) == 2


DRIVE = """
import sys
from draftwood.autotune import drive
from draftwood.autotune.outcome import Found, Outcome
from draftwood.autotune.race import race
from draftwood.autotune.space import Problem
from draftwood.autotune.timer import Machine
from draftwood.kernels import config
from draftwood.reference.ops import registered

class Clock:
    # the more warps, the faster; what the gate was asked, and at which case
    asked = []
    def __init__(self, problem, post):
        self.load(problem)
    def load(self, problem):
        self.problem = problem
        machine = Machine("sm90-h200", "NVIDIA H200", "2.11", "3.6", "3.12", "580", "1980", "2026-11-20")
        self.facts = {"default": problem.defaults, "machine": machine, "read_gb_s": 4500.0, "asked": {}, "shapes": None}
    def us(self, point):
        return 8.0 / {**self.problem.defaults, **point}["num_warps"]
    def attempt(self, point, rival):
        us = self.us(point)
        return Found(Outcome("ok", us=us, spread=(us, us)), self.ask("duel", rival, point) if rival else None)
    def ask(self, verb, *rest):
        if verb == "gate":
            Clock.asked.append((rest[0].case.id, self.problem.case.id))
            return Found(Outcome("wrong" if len(Clock.asked) == 1 else "ok", "numeric"))
        return race(lambda: self.us(rest[0]), lambda: self.us(rest[1]))
    def command(self, point):
        return ""
    def close(self):
        pass

if __name__ == "__main__":
    drive.Isolated = Clock
    cases = registered()["advance"].spec.cases["perf"]
    plan = drive.Plan(tuple(Problem("advance", case, "sm90-h200") for case in cases), "cuda:0", seconds=200.0,
                      storage=sys.argv[1], compilers=2, target=("cuda", 90, 32))
    for settled in drive.run(plan, lambda event: None):
        print(settled.problem.case["T"], settled.verdict.winner, settled.verdict.tried, settled.entry["default_us"])
    print(len(Clock.asked))
"""


def test_cases_are_tuned_in_turn_and_a_winner_that_the_gate_refuses_makes_way(tmp_path):
    script = tmp_path / "drive.py"
    script.write_text(DRIVE)
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script), str(tmp_path / "journal")]
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    *lines, asked = run.stdout.splitlines()
    warps = registered()["advance"].module("autotune").SPACE["num_warps"]
    # the fastest config was refused, once for both cases: they are looked up by the same names
    second = {"num_warps": sorted(warps)[-2]}
    assert [line.split(" ", 1)[1].startswith(f"{second} {len(warps)} ") for line in lines] == [True, True], run.stderr
    assert asked == "2"
