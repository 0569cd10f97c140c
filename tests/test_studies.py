"""Trials are kept, shared, resumed and never repeated: journals under kill -9, several workers on one study."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier

import pytest
from draftwood.reference.spec import case

pytest.importorskip("optuna")
from draftwood.autotune.landscape import Landscape
from draftwood.autotune.outcome import Found, Outcome
from draftwood.autotune.sampler import Proposer
from draftwood.autotune.simulate import Replica, Simulated
from draftwood.autotune.space import Point
from draftwood.autotune.storage import Flock, open_storage, serve
from draftwood.autotune.trials import Trials, alive, me
from draftwood.autotune.tuner import Budget, Tuner


def planted(blocks: tuple[int, ...] = (16, 32, 64, 128), warps: tuple[int, ...] = (1, 2, 4, 8)) -> Landscape:
    """A smooth bowl with its bottom at BLOCK 64, num_warps 4."""
    times = {(b, w): 10.0 + abs(b - 64) / 16 + abs(w - 4) for b in blocks for w in warps}
    passes = {key: [(us, us, us)] for key, us in times.items()}
    return Landscape(case(M=1), ("BLOCK", "num_warps"), {"BLOCK": 16, "num_warps": 1}, passes, {})


def worker(where: str, landscape: Landscape, trials: int = 0, seed: int = 0, pause_s: float = 0.0) -> Tuner:
    problem = Replica("thing", "sm90-h200", landscape)
    runner = Simulated(landscape, problem, seed, pause_s)
    book = Trials(problem, open_storage(where))
    return Tuner(problem, book, runner, Proposer(problem, "random", seed), Budget(trials))


def in_child(*work) -> int:
    """A forked process that does the work and ends without cleaning up."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work[0](*work[1:])
        code = 0
    finally:
        os._exit(code)


def tune(where: str, landscape: Landscape, trials: int, seed: int, pause_s: float) -> None:
    worker(where, landscape, trials, seed, pause_s).search()


def real_trials(book: Trials) -> list[str]:
    """Identities of the trials that ended with a result, every one of them."""
    return [t.user_attrs["identity"] for t in book._all() if t.state.is_finished() and "outcome" in t.user_attrs]


# -- one journal -------------------------------------------------------------------------------------------------------


def kill_and_resume(where: Path, kills: int, seed: int) -> None:
    """Run the search again and again, each time killed at a random moment, then once to its end."""
    moments, landscape = random.Random(seed), planted((8, 16, 32, 64, 128, 256), (1, 2, 4, 8, 16))
    seen: set[str] = set()
    for number in range(kills):
        pid = in_child(tune, str(where), landscape, 0, number, 0.002)
        time.sleep(moments.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if where.exists():
            book = worker(str(where), landscape).trials
            finished = real_trials(book)
            assert len(finished) == len(set(finished)), "a finished trial was repeated"
            assert seen <= set(finished), "a finished trial was lost"
            seen = set(finished)
    last = worker(str(where), landscape)
    last.search()
    finished = real_trials(last.trials)
    assert len(finished) == len(set(finished)) == 30 and seen <= set(finished)
    assert all(line.endswith("}") and json.loads(line) for line in where.read_text().splitlines())


def test_kill_9_at_any_moment_loses_no_finished_trial_and_repeats_none(tmp_path):
    kill_and_resume(tmp_path / "journal", kills=12, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills_lose_no_finished_trial_and_repeat_none(tmp_path, seed):
    kill_and_resume(tmp_path / "journal", kills=100, seed=seed)


def test_a_line_that_a_death_cut_short_is_dropped_and_the_journal_stays_readable(tmp_path):
    where = tmp_path / "journal"
    worker(str(where), planted(), trials=4).search()
    whole = where.read_bytes()
    with where.open("ab") as handle:
        handle.write(b'{"op_code": 4, "worker_id": "gone", "study')
    tuner = worker(str(where), planted(), trials=6)
    tuner.search()
    assert where.read_bytes().startswith(whole) and b"gone" not in where.read_bytes()
    assert len(real_trials(tuner.trials)) == 6


def test_cutting_keeps_every_whole_line_however_long_the_torn_one(tmp_path):
    file = tmp_path / "journal"
    for torn in (1, 65535, 65536, 200_000):
        for whole in (b"", b"one\n", b"one\ntwo\n" * 30_000):
            file.write_bytes(whole + b"x" * torn)
            lock = Flock(file)
            lock.acquire()
            lock.release()
            assert file.read_bytes() == whole


def test_a_lock_dies_with_its_process(tmp_path):
    file = tmp_path / "journal"
    pid = in_child(lambda: (Flock(file).acquire(), os.kill(os.getpid(), signal.SIGKILL)))
    os.waitpid(pid, 0)
    before = time.monotonic()
    lock = Flock(file)
    assert lock.acquire() and time.monotonic() - before < 1
    lock.release()


def test_an_interrupt_gives_back_what_was_claimed_and_not_tried(tmp_path):
    def stop(event):
        if event.kind == "trial" and event.done == 3:
            raise KeyboardInterrupt

    tuner = worker(str(tmp_path / "journal"), planted())
    tuner.watch = stop
    tuner.submit = lambda _point: None
    with pytest.raises(KeyboardInterrupt):
        tuner.search()
    assert not tuner.trials.running() and len(real_trials(tuner.trials)) == 3
    again = worker(str(tmp_path / "journal"), planted())
    again.search()
    assert len(real_trials(again.trials)) == 16


def test_a_new_value_of_a_knob_times_only_what_is_new(tmp_path):
    where = str(tmp_path / "journal")
    worker(where, planted()).search()
    wider = worker(where, planted((16, 32, 64, 128, 256)))
    assert wider.trials.adopt() == 16 and wider.trials.adopt() == 0
    timed = []
    wider.watch = lambda event: timed.append(event.record.point) if event.kind == "trial" else None
    wider.search()
    assert {point["BLOCK"] for point in timed} == {256} and len(timed) == 4


def test_a_changed_kernel_times_everything_again(tmp_path):
    where = str(tmp_path / "journal")
    worker(where, planted()).search()
    other = worker(where, planted())
    other.problem.__dict__["kernel_hash"] = "another"
    assert not other.trials.finished()
    other.search()
    assert len(other.records) == 16


def test_a_result_whose_state_was_not_written_is_completed_and_not_repeated(tmp_path):
    where = str(tmp_path / "journal")
    book = worker(where, planted()).trials
    claim = book.claim({"BLOCK": 64, "num_warps": 4})
    # between the two writes of `finish`
    book._close = lambda *_: None
    pid = in_child(lambda: book.claim({"BLOCK": 32, "num_warps": 4}))
    os.waitpid(pid, 0)
    book.finish(claim, Outcome("ok", us=10.0))
    fresh = worker(where, planted()).trials
    fresh.storage.set_trial_user_attr(claim.trial_id, "owner", "")
    dead = f"{socket.gethostname()}:999999999:1"
    fresh.storage.set_trial_user_attr(claim.trial_id, "owner", dead)
    assert fresh.bury() == 2 and [r.outcome.us for r in fresh.finished().values()] == [10.0]


def test_an_owner_is_alive_only_as_the_process_it_was():
    assert alive(me(), time.time())
    host, pid, _ = me().rsplit(":", 2)
    assert not alive(f"{host}:{pid}:1", time.time())
    assert alive("another-machine:1:1", time.time()) and not alive("another-machine:1:1", time.time() - 1e5)


# -- many workers ------------------------------------------------------------------------------------------------------


def meet(where: str, landscape: Landscape, seed: int, barrier: Barrier) -> None:
    """Tune, but no trial runs before every worker holds a claim: none can finish the study before another came."""
    tuner = worker(where, landscape, 0, seed, 0.004)
    attempt = tuner.runner.attempt

    def first(point: Point, rival: Point | None) -> Found:
        barrier.wait(60)
        tuner.runner.attempt = attempt
        return attempt(point, rival)

    tuner.runner.attempt = first
    tuner.search()


def share(where: str, workers: int, landscape: Landscape) -> list[str]:
    """Identities that `workers` processes finished on one study, each starting from another seed."""
    book = worker(where, landscape).trials
    barrier = get_context("fork").Barrier(workers)
    pids = [in_child(meet, where, landscape, seed, barrier) for seed in range(workers)]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    owners = {t.user_attrs["owner"] for t in book._all() if "outcome" in t.user_attrs}
    assert len(owners) == workers, "a worker did nothing"
    return real_trials(book)


def test_workers_on_one_journal_do_no_trial_twice(tmp_path):
    finished = share(str(tmp_path / "journal"), 3, planted())
    assert len(finished) == len(set(finished)) == 16


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of our own on loopback; skipped with a sentence where there is none."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [home for home in homes if (home / "initdb").exists()]
    initdb = str(found[0] / "initdb") if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL here: apt install postgresql")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL here: pip install 'draftwood[cluster]'")
    # PostgreSQL refuses to run as root
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="draftwood-pg-") as name, socket.socket() as free:
        home, data = Path(name), Path(name) / "data"
        if user:
            shutil.chown(home, user)
        run = {"user": user, "cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([initdb, "-D", str(data), "-U", "tuner", "-A", "trust", "--no-sync"], check=True, **run)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", name, "-c", "fsync=off"]
        server = subprocess.Popen([str(Path(initdb).parent / "postgres"), "-D", str(data), *options], **run)
        try:
            url = f"postgresql://tuner@127.0.0.1:{port}/postgres"
            _wait(url, server)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(20)


def _wait(url: str, server: subprocess.Popen) -> None:
    import psycopg

    for _ in range(200):
        assert server.poll() is None, "PostgreSQL did not start"
        try:
            psycopg.connect(url, connect_timeout=1).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError("PostgreSQL does not answer")


@pytest.fixture(scope="module")
def database():
    with postgres() as url:
        yield url


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_on_one_postgresql_study_do_no_trial_twice(database, workers):
    landscape = planted((16, 32, 64, 128), (1, 2, 4, 8))
    # a study of its own
    landscape.case = case(M=workers)
    finished = share(database, workers, landscape)
    assert len(finished) == len(set(finished)) == 16


def test_workers_may_meet_on_a_database_without_tables(database):
    """Two that start at the same time on a fresh database both come through."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create database fresh")
    url = database.rsplit("/", 1)[0] + "/fresh"
    pids = [in_child(lambda: worker(url, planted(), trials=1).search()) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]


def test_workers_share_a_study_through_the_grpc_proxy(tmp_path):
    # imported in the children alone: gRPC does not survive a fork
    if find_spec("grpc") is None:
        pytest.skip("no gRPC here: pip install 'draftwood[cluster]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = in_child(serve, str(tmp_path / "journal"), port)
    try:
        workers = [in_child(tune, f"grpc://127.0.0.1:{port}", planted(), 0, seed, 0.01) for seed in range(2)]
        assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    finished = real_trials(worker(str(tmp_path / "journal"), planted()).trials)
    assert len(finished) == len(set(finished)) == 16
