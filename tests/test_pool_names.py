"""Named pools, which serve one job after the other, and pools whose engines find no room. Real Ray, simulated engines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rollout_ray import RolloutPool, RunConfig
from rollout_ray.actors.engine.keepalive import NAMESPACE
from rollout_ray.core.errors import ConfigError, EngineError
from tests.conftest import HANG_S, ROOT, await_that, clean_environment, demo_rows
from tests.processes import ENGINES, later_workers
from tests.test_checkpoints import checkpoint, noisy
from tests.test_collect import simulated, trajectories
from tests.test_pool import assert_whole, at, both, events

JOB = """
import json, os, sys
os.makedirs(sys.argv[3])
from rollout_ray import RolloutPool, RunConfig
from tests.conftest import demo_rows
values = json.loads(sys.argv[1])
pool = RolloutPool(RunConfig.model_validate(values), name=sys.argv[2])
taken = {}  # how it came by each engine; one may be done before another has started
while len(taken) < values["resources"]["replicas"]:
    rollouts = pool.collect(demo_rows(10), {"output": {"output_dir": f"{sys.argv[3]}/{len(os.listdir(sys.argv[3]))}"}})
    for event in rollouts.run.events():
        if event["event"] in ("engine_started", "engine_adopted"):
            taken.setdefault(event["engine"], event["event"])
print(json.dumps(list(taken.values())), flush=True)
if sys.argv[4] == "crash":
    import signal
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[4] == "wait":
    sys.stdin.read()
"""


def values_of(cfg: RunConfig, **resources: Any) -> dict[str, Any]:
    values = cfg.model_dump(exclude_unset=True)
    values["resources"] |= resources
    return values


def job(values: dict[str, Any], name: str, output: Path, end: str) -> subprocess.Popen[str]:
    """A process of its own that collects with a named pool on this process's Ray."""
    steering = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}
    steering["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-c", JOB, json.dumps(values), name, str(output), end],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)} | steering,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """How it came by its engines, by the kinds of its events, and what it said on stderr."""
    out, err = process.communicate(timeout=HANG_S)
    return json.loads(out) if out else [], err


@pytest.fixture
def name(request: pytest.FixtureRequest, folders: Callable[[], Path], local_ray: None) -> Iterator[str]:
    """Of a pool whose engines are ended after the test."""
    name = f"pool-{os.getpid()}-{abs(hash(request.node.name))}"
    yield name
    RolloutPool(simulated(folders(), 1), name=name).close()


def test_jobs_share_a_named_pool_s_engines(folders: Callable[[], Path], name: str) -> None:
    """One job after the other, though the second did not end well; the third wants other engines."""
    engines = later_workers(ENGINES)
    values = values_of(simulated(folders(), 2))
    first, _ = ended(job(values, name, folders(), "end"))
    first_ones = both(engines)
    second, _ = ended(job(values, name, folders(), "crash"))
    third, _ = ended(job(values, name, folders(), "end"))
    assert first == ["engine_started"] * 2 and second == third == ["engine_adopted"] * 2
    assert both(engines) == first_ones
    values["engine"]["dtype"] = "float32"
    _, words = ended(job(values, name, folders(), "end"))
    assert "has engines of another kind: engine.dtype is 'auto' there and 'float32' here" in words


def test_two_jobs_at_once_are_refused(folders: Callable[[], Path], name: str) -> None:
    values = values_of(simulated(folders(), 1))
    first = job(values, name, folders(), "wait")
    assert first.stdout and first.stdout.readline()
    with (
        pytest.raises(
            EngineError, match=rf"the pool '{name}' is in use by process {first.pid} on .*, and one job at a time"
        ),
        RolloutPool(RunConfig.model_validate(values), name=name),
    ):
        pass
    first.communicate("", timeout=HANG_S)
    with RolloutPool(RunConfig.model_validate(values), name=name) as pool:
        assert_whole(pool.collect(demo_rows(3), at(folders())), 3)


def test_updated_weights_outlive_the_job(folders: Callable[[], Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "step-1").mkdir()
    with RolloutPool(simulated(folders(), 2), name=name) as pool:
        pool.update_weights(str(tmp_path / "step-1"))
    with RolloutPool(simulated(folders(), 2), name=name) as pool:
        assert (pool.policy_version, pool.weights) == (1, str(tmp_path / "step-1"))
        rollouts = pool.collect(demo_rows(3), at(folders()))
    assert set(trajectories(rollouts)["policy_version"]) == {1}


def test_engines_that_nobody_uses_end(folders: Callable[[], Path], name: str) -> None:
    """After a job that crashed, as after one that ended."""
    engines = later_workers(ENGINES)
    for end in ("end", "crash"):
        ended(job(values_of(simulated(folders(), 2), pool_idle_seconds=2.0), name, folders(), end))
        both(engines)
        await_that(lambda: not engines())


def test_engines_stay_while_their_job_does_something_else(folders: Callable[[], Path], name: str) -> None:
    cfg = RunConfig.model_validate(values_of(simulated(folders(), 2), pool_idle_seconds=1.0))
    with RolloutPool(cfg, name=name) as pool:
        pool.collect(demo_rows(3), at(folders()))
        threading.Event().wait(4)
        assert len(events(pool.collect(demo_rows(3), at(folders())), "engine_adopted")) == 2


def test_close_ends_the_engines_of_a_named_pool(folders: Callable[[], Path], name: str) -> None:
    engines = later_workers(ENGINES)
    cfg = simulated(folders(), 2)
    with RolloutPool(cfg, name=name) as pool:
        pool.collect(demo_rows(3), at(folders()))
    both(engines)
    RolloutPool(cfg, name=name).close()
    await_that(lambda: not engines())


def test_a_name_needs_a_cluster_that_outlives_the_job(tmp_path: Path) -> None:
    script = (
        f"from rollout_ray import *; RolloutPool(RunConfig(output={{'output_dir': '{tmp_path}'}}), name='x').collect([])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    assert "a named pool needs a Ray cluster that outlives this job" in done.stderr
    with pytest.raises(ConfigError, match="a pool's name has up to 64 letters"):
        RolloutPool(RunConfig(), name="a/b")


# Room


@pytest.fixture
def room_for_one(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that book a CPU each, as on a GPU they book that, where only one is free."""
    import rollout_ray.ray_cluster.autoscaling as autoscaling

    placed = autoscaling.choose_placement
    monkeypatch.setattr(autoscaling, "choose_placement", lambda *given: replace(placed(*given), cpus=1))
    taken = placement_group([{"CPU": 3.0}], strategy="STRICT_PACK")
    ray.get(taken.ready())
    yield
    remove_placement_group(taken)


def test_new_weights_do_not_wait_for_an_engine_without_room(
    folders: Callable[[], Path], tmp_path: Path, room_for_one: None
) -> None:
    """It has them when it gets its room."""
    with RolloutPool(simulated(folders(), 2)) as pool:
        assert_whole(pool.collect(demo_rows(20), at(folders())), 20)
        assert pool.update_weights(checkpoint(tmp_path / "new", noisy)) == 1
        second = pool.collect(demo_rows(20, seed=2), at(folders()))
    assert_whole(second, 20)
    assert set(trajectories(second)["policy_version"]) == {1} and set(trajectories(second)["engine"]) == {"engine-0"}


def test_an_engine_of_a_named_pool_without_room_does_not_outlive_its_job(
    folders: Callable[[], Path], room_for_one: None
) -> None:
    """It would ask for a node for nobody, and the next job would wait for what it has to say."""
    cfg = RunConfig.model_validate(values_of(simulated(folders(), 2), engine_hang_seconds=HANG_S))
    with RolloutPool(cfg, "crowded") as pool:
        pool.collect(demo_rows(10), at(folders()))
    pending = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("crowded/engine-")]
    assert [actor["name"].split("/")[1] for actor in pending] == ["engine-0"]
    with RolloutPool(cfg, "crowded") as pool:
        second = pool.collect(demo_rows(10), at(folders()))
        pool.close()
    assert len(events(second, "engine_adopted")) == 1


def test_a_named_pool_starts_no_engine_with_a_folder_that_was_written_over(
    folders: Callable[[], Path], tmp_path: Path, local_ray: None
) -> None:
    """One of its engines is gone when the next job comes, and the others hold the weights of before."""
    latest = Path(checkpoint(tmp_path / "latest"))
    cfg = simulated(folders(), 2)
    with RolloutPool(cfg, "overwritten") as pool:
        pool.collect(demo_rows(10), at(folders()))
        pool.update_weights(str(latest))
        (name,) = (
            a["name"]
            for a in ray.util.list_named_actors(all_namespaces=True)
            if a["name"].startswith("overwritten/engine-1/")
        )
    ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    shutil.copy2(Path(checkpoint(tmp_path / "next", noisy)) / "model.safetensors", latest)
    pool = RolloutPool(cfg, "overwritten")
    with pytest.raises(EngineError, match="have changed since the engines started"):
        pool.collect(demo_rows(10), at(folders()))
    RolloutPool(cfg, "overwritten").close()
