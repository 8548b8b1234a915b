"""Faults of engines, scorers and nodes on real Ray and, where memory is concerned, real vLLM: one test for each fault.

What the driver decides in each case is tested without Ray, in test_replica_set.py and its neighbours.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.core.errors import EngineError, Interrupted
from rollout_ray.core.records import Question, Trajectory
from rollout_ray.driver.scorer_pool import MOST_UNSCORED
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.progress import Plain
from rollout_ray.telemetry.run_view import RunView
from tests.conftest import HANG_S, ROOT, clean_environment, demo_rows
from tests.processes import ENGINES, SCORERS, later_workers
from tests.test_collect import When, keys, simulated

HANG_QUESTIONS = 200  # that take longer to score than a stop may


def changed(cfg: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    values = cfg.model_dump()
    for name, fields in sections.items():
        values[name] |= fields
    return RunConfig.model_validate(values)


def assert_whole(rollouts: Rollouts, trajectories: int) -> None:
    assert len(set(keys(rollouts))) == len(keys(rollouts)) == trajectories


def test_an_engine_that_no_longer_decodes_counts_as_dead(tmp_path: Path, local_ray: None) -> None:
    cfg = changed(simulated(tmp_path / "run", 2, sim_hang_rate=0.01), resources={"engine_hang_seconds": 3.0})
    rollouts = collect(demo_rows(100), cfg)  # of 800 draws one hangs an engine, but for 3 runs in 10,000
    assert_whole(rollouts, 800)
    died = [e["error"] for e in rollouts.run.events() if e["event"] == "engine_died"]
    assert died and all("no decoding step for" in error for error in died)
    assert rollouts.summary.engine_deaths == len(died)


def test_an_engine_that_no_longer_answers_counts_as_dead(tmp_path: Path, local_ray: None) -> None:
    engines = later_workers(ENGINES)
    stopped: list[psutil.Process] = []

    def stop_one() -> None:
        stopped.append(psutil.Process(engines().pop()))
        stopped[0].suspend()

    # Once both have drawn something: one that has not begun yet would not be missed.
    progress = When(lambda view: all(engine.samples for engine in view.engines.values()), stop_one)
    cfg = changed(simulated(tmp_path / "run", 2, speed=60_000), resources={"engine_hang_seconds": 3.0})
    rollouts = collect(demo_rows(100), cfg, progress=progress)
    assert_whole(rollouts, 800)
    assert "no decoding step for" in next(e["error"] for e in rollouts.run.events() if e["event"] == "engine_died")
    stopped[0].wait(HANG_S)  # Ray ends a process that does not heed it; it would keep its GPU's memory otherwise


def test_an_engine_without_memory_is_tried_again_smaller(tmp_path: Path, local_ray: None) -> None:
    rollouts = collect(demo_rows(20), simulated(tmp_path / "run", 1, sim_memory_seqs=64))
    assert_whole(rollouts, 160)
    found = rollouts.run.events()
    assert [e["max_num_seqs"] for e in found if e["event"] == "engine_shrunk"] == [128, 64]
    (started,) = (e for e in found if e["event"] == "engine_started")
    assert started["max_num_seqs"] == 64 and started["shrunk"] == 2
    assert rollouts.summary.engine_deaths == 0


def test_vllm_without_memory_is_tried_again_smaller(tmp_path: Path, local_ray: None) -> None:
    """A KV cache of half a million GiB cannot be allocated, nor can an eighth of it. For an engine core in a process of
    its own, test_core_process.py tests that the want of memory is recognized."""
    cfg = RunConfig.model_validate(
        {
            "output": {"output_dir": str(tmp_path / "run")},
            "engine": {"kv_cache_gib": 500_000.0},
            "resources": {"replicas": 1},
        }
    )
    with pytest.raises(EngineError, match=r"engine-0 could not start: .*memory"):
        collect(demo_rows(2), cfg)
    assert [e["event"] for e in RunDirectory(str(tmp_path / "run")).events()].count("engine_shrunk") == 3


def test_a_replica_is_retired_with_the_end_of_its_log(tmp_path: Path, local_ray: None) -> None:
    cfg = changed(simulated(tmp_path / "run", 1, sim_death_rate=1.0), resources={"max_engine_deaths": 0})
    with pytest.raises(EngineError, match=r"the end of .*logs/engine-0.log: the simulated engine dies as it was told to"):
        collect(demo_rows(5), cfg)


class RefuseOnce(Plain):
    """Stops an engine, and has vLLM refuse the first start after it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._engines, self._patch = later_workers(ENGINES), patch
        self.stopped: list[psutil.Process] = []

    def update(self, view: RunView) -> None:
        if not self.stopped and all(engine.samples for engine in view.engines.values()):
            self.stopped = [psutil.Process(self._engines().pop())]
            self.stopped[0].suspend()
            self._patch.setenv("VLLM_CPU_KVCACHE_SPACE", "much")
        elif self.stopped and any(engine.restarts for engine in view.engines.values()):
            self._patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def test_a_replacement_whose_start_fails_is_tried_again(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hung engine still owed has failed as well by then."""
    cfg = RunConfig.model_validate(
        {
            "output": {"output_dir": str(tmp_path / "run")},
            "engine": {"max_num_seqs": 4, "max_model_len": 512},
            "resources": {"replicas": 2, "engine_hang_seconds": 10.0},
        }
    )
    rollouts = collect(demo_rows(60), cfg, progress=RefuseOnce(monkeypatch))
    assert_whole(rollouts, 480)
    hung, refused = (e for e in rollouts.run.events() if e["event"] == "engine_died")
    assert "no decoding step for" in hung["error"] and hung["started"]
    assert "invalid literal for int() with base 10: 'much'" in refused["error"] and not refused["started"]
    assert [e["engine"] for e in rollouts.run.events() if e["event"] == "engine_started"][2:] == [hung["engine"]]


class Backlog(Plain):
    """The largest number of draws that were drawn and not yet committed."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def update(self, view: RunView) -> None:
        self.most = max(self.most, view.generated_samples - 8 * view.committed)


# What may be unscored; what two engines may still hold when that is reached, to be decoded (320 draws each) or waiting
# for their question's longest; what waits for its part; and one payload.
BOUND = MOST_UNSCORED + 2 * 3 * 320 + 256 * 8 + 320


def test_engines_wait_for_a_disk_that_does_not_answer(tmp_path: Path, local_ray: None) -> None:
    """The scorer stands still, as it would in a write to a stalled disk, until the engines have stopped as well."""

    scorers = later_workers(SCORERS)

    class Stall(Backlog):
        scorer = 0
        seen = -1
        since = 0.0

        def update(self, view: RunView) -> None:
            super().update(view)
            if not self.scorer and view.generated_samples > 500 and (started := scorers()):
                (self.scorer,) = started
                os.kill(self.scorer, signal.SIGSTOP)
            if self.scorer and self.since >= 0 and view.generated_samples != self.seen:
                self.seen, self.since = view.generated_samples, time.monotonic()
            elif self.scorer and self.since >= 0 and time.monotonic() - self.since > 3:
                os.kill(self.scorer, signal.SIGCONT)
                self.since = -1.0

    progress = Stall()
    rollouts = collect(demo_rows(2500), changed(simulated(tmp_path / "run"), output={"part_rows": 256}), progress=progress)
    assert_whole(rollouts, 20_000)
    assert progress.since == -1 and MOST_UNSCORED <= progress.most <= BOUND


def test_workers_that_ray_ends_for_want_of_memory_are_replaced_and_then_named(tmp_path: Path, programs: None) -> None:
    """Ray's own monitor, on a machine that it takes for full from the beginning."""
    environment = clean_environment() | {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in demo_rows(50)))
    flags = ["--dataset", "q.jsonl", "--output_dir", "run", "--backend", "simulated", "--sim_tokens_per_second", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "rollout_ray.run", *flags, "--replicas", "1", "--max_engine_deaths", "1"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode in (1, 5) and "unexpected" not in done.stderr, done.stderr
    assert re.search(r"rollout: (every engine died|scorer-0 died 2 times in a row).* low on memory", done.stderr), (
        done.stderr
    )
    assert re.search(r"died and is started again: .* low on memory", done.stderr), done.stderr


def test_engines_move_when_every_node_is_drained(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is under way between the last answer of the engine that leaves and the start of the next one."""
    node = ray.get_runtime_context().get_node_id()
    drained: list[frozenset[str]] = []
    monkeypatch.setattr("rollout_ray.driver.session.draining_nodes", lambda: drained.pop() if drained else frozenset())
    begun = When(
        lambda view: all(engine.samples for engine in view.engines.values()), lambda: drained.append(frozenset([node]))
    )
    rollouts = collect(demo_rows(150), simulated(tmp_path / "run", 1, speed=10_000), progress=begun)
    assert_whole(rollouts, 1200)
    (told,) = (e["engines"] for e in rollouts.run.events() if e["event"] == "node_draining")
    assert told == ["engine-0"]


def slow(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    time.sleep(0.5)
    return [0.0] * len(trajectories)


def test_a_stop_does_not_wait_for_all_that_is_to_be_scored(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not scored soon is drawn again by the next call, and no engine is kept up meanwhile."""
    monkeypatch.setattr("rollout_ray.driver.session.SAVE_S", 5.0)
    cfg = changed(
        simulated(tmp_path / "run", 1, speed=1e6),
        scoring={"reward": "tests.test_fleet:slow"}, resources={"scorers": 1}, output={"flush_seconds": 0.1},
    )  # fmt: skip
    stop = When(lambda view: view.committed > 0, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        collect(demo_rows(HANG_QUESTIONS), cfg, progress=stop)
    saved = RunDirectory(str(tmp_path / "run")).done_ids()
    assert 0 < len(saved) < HANG_QUESTIONS / 2


def test_a_stop_that_finds_all_complete_ends_the_run(tmp_path: Path, local_ray: None) -> None:
    stop = When(lambda view: view.generated_samples == 160, lambda: signal.raise_signal(signal.SIGINT))
    cfg = changed(simulated(tmp_path / "run", 1, speed=1e6), output={"flush_seconds": 1000.0})
    assert_whole(collect(demo_rows(20), cfg, progress=stop), 160)
