"""vLLM's engine core in a process of its own, as on GPUs: how it is made, that it ends with its actor, and what is said of
one that fails. Real vLLM on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.actors.engine.actor import EngineActor
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.engine.out_of_memory import NoMemory
from rollout_ray.core.errors import EngineError
from rollout_ray.models.resolved_run import resolve
from tests.conftest import HANG_S, OWN_PROCESS, ROOT, demo_rows
from tests.processes import ENGINES, children, later_workers, servers
from tests.test_collect import When
from tests.test_fleet import assert_whole, changed


@pytest.fixture
def cfg(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", OWN_PROCESS)
    return RunConfig.model_validate(
        {
            "engine": {"max_num_seqs": 16},
            "sampling": {"max_tokens": 64},
            "output": {"output_dir": str(tmp_path / "run")},
            "resources": {"replicas": 1},
        }
    )


def core_of(maker: psutil.Process) -> psutil.Process:
    """The core of the newest engine of the server that `maker` has started: an earlier one may still be ending. Its title
    may not be there yet."""
    (server,) = servers(maker)
    engine = max(server.children(), key=psutil.Process.create_time)
    (found,) = set(engine.children()) - set(children(engine, "multiprocessing.resource_tracker"))
    return found


def core() -> psutil.Process:
    """The core of the one engine that was forked from this process's server."""
    return core_of(psutil.Process())


def midway(action: Callable[[], None]) -> When:
    """While most of a run's 96 draws still wait: an engine decodes 16 at once."""
    return When(lambda view: view.generated_samples >= 8, action)


def deaths(rollouts: Rollouts) -> list[str]:
    return [event["error"] for event in rollouts.run.events() if event["event"] == "engine_died"]


def test_one_that_was_killed_counts_as_dead(cfg: RunConfig) -> None:
    """vLLM itself would wait for ever."""
    rollouts = collect(demo_rows(12), cfg, progress=midway(lambda: core().kill()))
    assert_whole(rollouts, 96)
    (died,) = deaths(rollouts)
    assert "EngineCore" in died and "ended with exit code -9" in died


def test_it_ends_with_an_actor_that_was_killed(cfg: RunConfig) -> None:
    """Nothing else would end it, and it would keep its GPU's memory."""
    engines = later_workers(ENGINES)
    left: list[psutil.Process] = []

    def kill_actor() -> None:
        left.extend((core(), *core().parents()[:1]))
        (actor,) = engines()
        os.kill(actor, signal.SIGKILL)

    rollouts = collect(demo_rows(12), cfg, progress=midway(kill_actor))
    assert_whole(rollouts, 96)
    assert len(deaths(rollouts)) == 1 and len(left) == 2
    assert not psutil.wait_procs(left, timeout=HANG_S)[1]


def test_an_actor_without_a_server_starts_one_that_ends_with_it(cfg: RunConfig) -> None:
    """As on a cluster's other machines."""
    engines = later_workers(ENGINES)
    spec = LaunchSpec.of(resolve(cfg), gpus=0, threads=1)
    actor = ray.remote(EngineActor).remote(replace(spec, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": OWN_PROCESS}))
    ray.get(actor.start.remote())
    (pid,) = engines()
    core = core_of(psutil.Process(pid))
    left = [core, *core.parents()[:2]]
    assert left[2].ppid() == pid
    os.kill(pid, signal.SIGKILL)
    assert not psutil.wait_procs(left, timeout=HANG_S)[1]


def test_its_want_of_memory_is_recognized(cfg: RunConfig, tmp_path: Path) -> None:
    """vLLM's words about it stand in the log only."""
    greedy = changed(cfg, engine={"kv_cache_gib": 500_000.0})
    spec = LaunchSpec.of(resolve(greedy), gpus=0, threads=1)
    apart = {"VLLM_ENABLE_V1_MULTIPROCESSING": OWN_PROCESS}
    actor = ray.remote(EngineActor).remote(replace(spec, environment=apart, log_file=str(tmp_path / "engine.log")))
    with pytest.raises(NoMemory, match="memory"):
        ray.get(actor.start.remote())


HANGING = """
import ctypes, os, signal
from vllm.v1.engine import utils
from rollout_ray.actors.vllm_backend.core_process import end_cores_with_this_process

def hang():
    print(os.getpid(), flush=True)
    ctypes.PyDLL(None).sleep(100_000)  # no thread of Python's can run meanwhile

if __name__ == "__main__":  # a spawned process reads this file as well
    end_cores_with_this_process()
    utils.get_mp_context().Process(target=hang).start()
    signal.pause()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_that_hangs_ends_with_its_maker_however_it_was_made(tmp_path: Path, method: str, programs: None) -> None:
    """On GPUs vLLM forks it, on the CPU it never does."""
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    variables = os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": method, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], env=variables, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout
        made = psutil.Process(int(maker.stdout.readline()))
        assert made.ppid() == maker.pid and made.is_running()
        maker.kill()
        assert not psutil.wait_procs([made], timeout=HANG_S)[1]


@pytest.mark.parametrize("own_process", ["0", OWN_PROCESS])
def test_what_failed_in_it_is_named(cfg: RunConfig, monkeypatch: pytest.MonkeyPatch, own_process: str) -> None:
    """vLLM says only that something did, and points to a log; an earlier engine's error in that log is not the cause."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", own_process)
    log = Path(cfg.output.output_dir) / "logs" / "engine-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("ValueError: what an earlier engine died of\n")
    failing = changed(
        cfg, engine={"extra": {"worker_cls": "tests.failing_worker.FailingWorker"}}, resources={"max_engine_deaths": 0}
    )
    with pytest.raises(EngineError, match=r"every engine died; the last one, engine-0: .*an illegal memory access"):
        collect(demo_rows(2), failing)
