"""Threads of one process: calls to a pool are served in turn, and runs share a Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rollout_ray import RolloutPool, RunConfig
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.turns import Turns
from rollout_ray.ray_cluster import connection
from tests.conftest import HANG_S, ROOT, clean_environment, demo_rows
from tests.test_collect import When, simulated
from tests.test_pool import assert_whole, at

TWO_AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from rollout_ray import collect
from tests.conftest import demo_rows, simulated_greedy

def run(name):
    return collect(demo_rows(20), simulated_greedy(f"{sys.argv[1]}/{name}")).summary.questions

with ThreadPoolExecutor(2) as threads:
    print(list(threads.map(run, "ab")))
print(run("c"))
"""


def test_threads_take_turns() -> None:
    turns, inside, most = Turns("it"), 0, 0
    together = threading.Barrier(4)

    def work() -> None:
        nonlocal inside, most
        together.wait()
        for _ in range(50):
            with turns.turn():
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result()
    assert most == 1


def test_a_thread_never_waits_for_itself() -> None:
    turns = Turns("the pool")
    with (
        turns.turn(),
        pytest.raises(RolloutError, match="the pool is in use by this very thread; call it after"),
        turns.turn(),
    ):
        pass
    with turns.turn():
        pass


def test_calls_of_several_threads_to_a_pool_are_served_in_turn(folders: Callable[[], Path], local_ray: None) -> None:
    with RolloutPool(simulated(folders(), 1)) as pool, ThreadPoolExecutor(3) as threads:
        for run in [threads.submit(pool.collect, demo_rows(20), at(folders())) for _ in range(3)]:
            assert_whole(run.result(), 20)
        again = When(lambda view: pool.policy_version == 0, lambda: pool.collect(demo_rows(1), at(folders())))
        with pytest.raises(RolloutError, match="the pool is in use by this very thread"):
            pool.collect(demo_rows(5), at(folders()), progress=again)


def test_the_last_of_several_runs_ends_their_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: happened.count("start") > happened.count("end"))
    monkeypatch.setattr(connection, "_connect", lambda address, folder, remedy: happened.append("start"))
    monkeypatch.setattr("ray.shutdown", lambda: happened.append("end"))
    elsewhere = RunConfig.model_validate({"resources": {"ray_address": "10.0.0.1:6379"}})
    together = threading.Barrier(3)

    def run() -> None:
        with connection.connected(RunConfig()):
            together.wait(HANG_S)
            assert happened == ["start"]
            with pytest.raises(
                RolloutError, match=r"this process uses a Ray of its own for another run, and the run asks f"
            ):
                connection.connected(elsewhere).__enter__()
            together.wait(HANG_S)

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(run) for _ in range(3)]:
            done.result()
    assert happened == ["start", "end"]
    with connection.connected(elsewhere):
        pass
    assert happened == ["start", "end", "start", "end"]


def test_two_runs_at_once_share_a_ray(tmp_path: Path, programs: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:2] == ["[20, 20]", "20"]
