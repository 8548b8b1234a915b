"""vLLM's engine core in a process of its own, as on GPUs: how it is made, that it ends with its actor, and what is said of
one that fails. Real vLLM on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.worker import Worker
from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.errors import EngineError
from tests.conftest import HANG_S, ROOT, demo_rows
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


def engine() -> psutil.Process:
    """The engine's process, which the server of this process's one engine actor has forked."""
    (actor,) = worker_pids("EngineActor")
    (server,) = [p for p in psutil.Process(actor).children() if "actors.engine_process" in " ".join(p.cmdline())]
    (found,) = server.children()
    return found


def core() -> psutil.Process:
    """The engine core, which was forked from that."""
    return core_of(engine())


def core_of(maker: psutil.Process) -> psutil.Process:
    (found,) = [child for child in maker.children() if "multiprocessing.resource_tracker" not in " ".join(child.cmdline())]
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
    """Nothing else would end it, and it would keep its GPU's memory."""
    left: list[psutil.Process] = []

    def kill_actor() -> None:
        server = engine().parent()
        assert server
        left.extend((server, engine(), core()))
        os.kill(server.ppid(), signal.SIGKILL)

    rollouts = collect(demo_rows(30), cfg, progress=midway(kill_actor))
    assert_whole(rollouts, 240)
    assert len(deaths(rollouts)) == 1 and len(left) == 3
    assert not psutil.wait_procs(left, timeout=HANG_S)[1]


STARTED = """
import sys, time
from actors.vllm_backend import VllmBackend
from rollout_ray import RunConfig

if __name__ == "__main__":  # a spawned process reads this file as well
    VllmBackend(RunConfig.model_validate({"engine": {"max_model_len": 256}}), gpus=0, threads=1)
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_ends_with_its_maker_however_it_was_made(tmp_path: Path, method: str) -> None:
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": method, "PYTHONPATH": str(ROOT)}
    maker = psutil.Popen(
        [sys.executable, str(script)],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdout and any(line == "started\n" for line in maker.stdout)
    made = core_of(maker)
    maker.kill()
    assert not psutil.wait_procs([made], timeout=HANG_S)[1]
    maker.communicate()


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
