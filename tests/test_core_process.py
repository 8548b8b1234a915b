"""vLLM's engine core in a process of its own, as on GPUs: how it is made, that it ends with its actor, and what is said of
one that fails. Real vLLM on the CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.vllm_arguments import environment
from actors.worker import Worker
from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.errors import EngineError
from tests.conftest import HANG_S, demo_rows
from tests.test_collect import When, worker_pids
from tests.test_fleet import assert_whole, changed


class FailingWorker(Worker):
    """Fails as a worker whose GPU does: in the middle of a run, with an error of its own."""

    steps = 0

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        FailingWorker.steps += 1
        if FailingWorker.steps == 100:
            raise RuntimeError("an illegal memory access was encountered")
        return super().execute_model(*args, **kwargs)


@pytest.fixture
def cfg(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return RunConfig.model_validate({"output": {"output_dir": str(tmp_path / "run")}, "resources": {"replicas": 1}})


def server() -> psutil.Process:
    """The fork server of this process's one actor that has vLLM."""
    (actor,) = worker_pids("EngineActor")
    (found,) = [p for p in psutil.Process(actor).children() if "multiprocessing.forkserver" in " ".join(p.cmdline())]
    return found


def core() -> psutil.Process:
    """The engine core that was forked from it."""
    (found,) = server().children()
    return found


def midway(action: Callable[[], None]) -> When:
    return When(lambda view: view.generated_draws >= 50, action)


def deaths(rollouts: Rollouts) -> list[str]:
    return [event["error"] for event in rollouts.run.events() if event["event"] == "engine_died"]


def test_one_that_was_killed_counts_as_dead(cfg: RunConfig) -> None:
    """vLLM itself would wait for ever."""
    rollouts = collect(demo_rows(30), cfg, progress=midway(lambda: core().kill()))
    assert_whole(rollouts, 240)
    (died,) = deaths(rollouts)
    assert "EngineCore" in died and "ended with exit code -9" in died


def test_it_is_forked_and_ends_with_an_actor_that_was_killed(cfg: RunConfig) -> None:
    """Nothing else would end it: its parent is the server that it was forked from, and it would keep its GPU's memory."""
    left: list[psutil.Process] = []

    def kill_actor() -> None:
        left.extend((server(), core(), *core().children()))
        os.kill(server().ppid(), signal.SIGKILL)

    rollouts = collect(demo_rows(30), cfg, progress=midway(kill_actor))
    assert_whole(rollouts, 240)
    assert len(deaths(rollouts)) == 1 and len(left) >= 2
    assert not psutil.wait_procs(left, timeout=HANG_S)[1]


@pytest.mark.parametrize("own_process", ["0", "1"])
def test_what_failed_in_it_is_named(cfg: RunConfig, monkeypatch: pytest.MonkeyPatch, own_process: str) -> None:
    """vLLM says only that something did, and points to a log; an earlier engine's error in that log is not the cause."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", own_process)
    log = Path(cfg.output.output_dir) / "logs" / "engine-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("ValueError: what an earlier engine died of\n")
    failing = changed(
        cfg, engine={"extra": {"worker_cls": f"{__name__}.FailingWorker"}}, resources={"max_engine_deaths": 0}
    )
    with pytest.raises(EngineError, match=r"every engine died; the last one, engine-0: .*an illegal memory access"):
        collect(demo_rows(30), failing)


@pytest.mark.parametrize(("own_process", "workers"), [(None, "fork"), ("1", "fork"), ("0", "spawn")])
def test_workers_on_gpus_are_forked_where_that_is_safe(
    monkeypatch: pytest.MonkeyPatch, own_process: str | None, workers: str
) -> None:
    """From the core's process, which has no threads yet; not from an actor's."""
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    if own_process:
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", own_process)
    found = environment(RunConfig(), gpus=2, threads=1)
    assert found["VLLM_WORKER_MULTIPROC_METHOD"] == workers
    assert found.get("VLLM_ENABLE_V1_MULTIPROCESSING") == (None if own_process else "1")
