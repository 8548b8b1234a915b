"""Pools: engines that serve one collection after the other, and take new weights between them. Real Ray; real vLLM where
the weights matter."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollout_ray import RolloutPool, Rollouts, RunConfig, collect
from rollout_ray.core.errors import ConfigError, EngineError, Interrupted, LedgerError
from rollout_ray.core.records import sampling_seed
from tests.conftest import OWN_PROCESS, ROOT, await_that, demo_rows
from tests.processes import ENGINES, later_workers
from tests.test_checkpoints import checkpoint, cut, noisy
from tests.test_collect import When, keys, simulated, trajectories


def at(output: Path) -> dict[str, Any]:
    return {"output": {"output_dir": str(output)}}


def events(rollouts: Rollouts, kind: str) -> list[dict[str, Any]]:
    return [event for event in rollouts.run.events() if event["event"] == kind]


def assert_whole(rollouts: Rollouts, questions: int) -> None:
    """Every trajectory once, with the seed of its key."""
    frame = trajectories(rollouts)
    assert len(frame) == len(set(keys(rollouts))) == 8 * questions
    for row in frame.itertuples():
        assert row.seed == sampling_seed(42, row.question_id, row.arm, row.sample)


def until_started(pool: RolloutPool, count: int, folders: Callable[[], Path], *earlier: Rollouts) -> None:
    """Collects until so many engines have started, in the collections before too: one may draw all of a collection while
    another still starts."""
    started = sum(len(events(one, "engine_started")) for one in earlier)
    while started < count:
        started += len(events(pool.collect(demo_rows(5), at(folders())), "engine_started"))


def test_the_second_collection_starts_no_engine(folders: Callable[[], Path], local_ray: None) -> None:
    engines = later_workers(ENGINES)
    with RolloutPool(simulated(folders(), 2, sim_start_seconds=1.0)) as pool:
        first = pool.collect(demo_rows(30), at(folders()))
        until_started(pool, 2, folders, first)
        first_ones = both(engines)
        second = pool.collect(demo_rows(40, seed=2), at(folders()) | {"sampling": {"max_tokens": 50}})
        assert both(engines) == first_ones
    assert_whole(first, 30)
    assert_whole(second, 40)
    assert events(first, "engine_started") and not events(first, "engine_adopted")
    assert len(events(second, "engine_adopted")) == 2 and not events(second, "engine_started")
    assert set(trajectories(second)["engine"]) == {"engine-0", "engine-1"}
    assert trajectories(second)["num_tokens"].max() <= 50 < trajectories(first)["num_tokens"].max()
    assert set(trajectories(second)["policy_version"]) == {0}


def test_a_pool_draws_what_a_run_of_its_own_draws(folders: Callable[[], Path], local_ray: None) -> None:
    cfg = simulated(folders(), 2)
    with RolloutPool(cfg) as pool:
        pool.collect(demo_rows(10, seed=3), at(folders()))
        pooled = pool.collect(demo_rows(20), at(folders()))
    alone = collect(demo_rows(20), cfg)
    columns = ["question_id", "arm", "sample", "seed", "full_text"]
    assert trajectories(pooled)[columns].equals(trajectories(alone)[columns])


def test_an_interrupted_collection_leaves_nothing_to_the_next(folders: Callable[[], Path], local_ray: None) -> None:
    """The next asks other questions under other arms; then the interrupted one is gone on with."""
    interrupted, other = at(folders()), at(folders()) | {"arms": {"arm_set": "samples"}, "sampling": {"n_samples": 3}}
    with RolloutPool(simulated(folders(), 2, speed=40_000)) as pool:
        stop = When(lambda view: view.generated_samples >= 200, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            pool.collect(demo_rows(100), interrupted, progress=stop)
        second = pool.collect(demo_rows(50, seed=2), other)
        frame = trajectories(second)
        assert len(set(keys(second))) == len(frame) == 150 and set(frame["arm"]) == {"samples"}
        texts = {row.seed: row.full_text for row in frame.itertuples()}
        third = pool.collect(demo_rows(100), interrupted)
        assert_whole(third, 100)
        assert third.summary.session_tokens < third.summary.tokens
        assert not set(texts) & set(trajectories(third)["seed"])


@pytest.mark.parametrize("during", [False, True])
def test_an_engine_that_dies_is_replaced(folders: Callable[[], Path], local_ray: None, during: bool) -> None:
    engines = later_workers(ENGINES)

    def kill_one() -> None:
        os.kill(engines().pop(), signal.SIGKILL)

    with RolloutPool(simulated(folders(), 2, speed=30_000)) as pool:  # the other engine has work for longer than a start
        until_started(pool, 2, folders)
        if not during:
            kill_one()
        progress = When(lambda view: view.generated_samples >= 200, kill_one if during else lambda: None)
        second = pool.collect(demo_rows(100), at(folders()), progress=progress)
        until_started(pool, 1, folders, second)
        third = pool.collect(demo_rows(10), at(folders()))
    assert_whole(second, 100)
    assert len(events(second, "engine_died")) == 1 and second.summary.engine_deaths == 1
    assert len(events(third, "engine_adopted")) == 2 and not events(third, "engine_died")


def test_a_retired_engine_is_tried_again_in_the_next_collection(folders: Callable[[], Path], local_ray: None) -> None:
    values = simulated(folders(), 1).model_dump()
    values["resources"]["max_engine_deaths"] = 0
    engines = later_workers(ENGINES)
    with RolloutPool(RunConfig.model_validate(values)) as pool:
        pool.collect(demo_rows(5), at(folders()))
        os.kill(engines().pop(), signal.SIGKILL)
        with pytest.raises(EngineError, match="every engine died"):
            pool.collect(demo_rows(5), at(folders()))
        assert_whole(pool.collect(demo_rows(5), at(folders())), 5)


def test_a_run_that_needs_other_engines_is_refused_by_field(folders: Callable[[], Path], local_ray: None) -> None:
    with RolloutPool(simulated(folders(), 1)) as pool:
        with pytest.raises(ConfigError, match=r"engine\.dtype is 'auto' there and 'float32' here"):
            pool.collect(demo_rows(1), at(folders()) | {"engine": {"dtype": "float32"}})
        with pytest.raises(ConfigError, match=r"sampling\.topp is not a field"):
            pool.collect(demo_rows(1), {"sampling": {"topp": 1}})
        assert_whole(pool.collect(demo_rows(1), at(folders())), 1)


def test_nothing_of_an_unnamed_pool_is_left(folders: Callable[[], Path], local_ray: None) -> None:
    engines = later_workers(ENGINES)
    with RolloutPool(simulated(folders(), 2)) as pool:
        pool.collect(demo_rows(1), at(folders()))
    await_that(lambda: not engines())


def both(engines: Callable[[], set[int]]) -> set[int]:
    """The two engines' processes, once there are two: one may still be starting."""
    return await_that(lambda: found if len(found := engines()) == 2 else set())


# Weights


def test_new_weights_are_on_every_row_and_in_the_run_s_identity(
    folders: Callable[[], Path], tmp_path: Path, local_ray: None
) -> None:
    (tmp_path / "step-1").mkdir()
    with RolloutPool(simulated(folders(), 2)) as pool:
        interrupted = at(folders())
        before = pool.collect(demo_rows(10), interrupted)
        assert pool.update_weights(str(tmp_path / "step-1")) == pool.policy_version == 1
        after = pool.collect(demo_rows(10), at(folders()))
        with pytest.raises(LedgerError, match=r"model\.model_path was .*model\.fingerprint was"):
            pool.collect(demo_rows(10), interrupted)
        with pytest.raises(ConfigError, match=r"there is no folder .*the old weights stay in use"):
            pool.update_weights(str(tmp_path / "step-2"))
        assert pool.policy_version == 1
    assert set(trajectories(before)["policy_version"]) == {0} and set(trajectories(after)["policy_version"]) == {1}
    assert keys(before) == keys(after)
    assert not trajectories(before)["full_text"].equals(trajectories(after)["full_text"])
    (updated,) = events(after, "weights_updated")
    assert updated["policy_version"] == 1 and updated["engines"] == 2 and updated["seconds"] >= 0


def test_an_engine_that_starts_later_has_the_new_weights(
    folders: Callable[[], Path], tmp_path: Path, local_ray: None
) -> None:
    (tmp_path / "step-1").mkdir()
    engines = later_workers(ENGINES)
    with RolloutPool(simulated(folders(), 1)) as pool:
        pool.update_weights(str(tmp_path / "step-1"))
        before = pool.collect(demo_rows(10), at(folders()))
        os.kill(engines().pop(), signal.SIGKILL)
        after = pool.collect(demo_rows(10), at(folders()))
    columns = ["seed", "full_text", "policy_version"]
    assert trajectories(before)[columns].equals(trajectories(after)[columns])
    assert set(trajectories(after)["policy_version"]) == {1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo model after a step of training, as far as an engine can tell: without a tokenizer, too."""
    return checkpoint(tmp_path_factory.mktemp("trained") / "step-1", noisy)


# One sequence at a time: what stands beside it in a batch, which is a matter of time, may change a text by its rounding.
ONE_BY_ONE = {"max_model_len": 512, "max_num_seqs": 1}
GREEDY = {"arms": {"arm_set": "greedy"}, "sampling": {"max_tokens": 80}, "engine": ONE_BY_ONE}


def greedy(rollouts: Rollouts) -> list[str]:
    return list(trajectories(rollouts)["full_text"])


@pytest.fixture(scope="module")
def fresh(trained: str, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> list[str]:
    """What an engine that is started with the trained weights draws."""
    folder = tmp_path_factory.mktemp("fresh")
    values = GREEDY | at(folder / "run") | {"model": {"model_path": trained, "tokenizer_path": demo_folder()}}
    return greedy(collect(demo_rows(6), RunConfig.model_validate(values | {"resources": {"replicas": 1}})))


def demo_folder() -> str:
    return str(ROOT / "rollout_ray" / "demo_model")


@pytest.mark.parametrize("own_process", ["0", OWN_PROCESS])
def test_vllm_draws_with_the_new_weights(
    folders: Callable[[], Path], tmp_path: Path, trained: str, fresh: list[str], own_process: str,
    local_ray: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As an engine that was started with them would, and with the old ones again as before; in the engine's process and
    with vLLM's own. A checkpoint of another shape changes nothing."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", own_process)
    engines = later_workers(ENGINES)
    cfg = RunConfig.model_validate(GREEDY | {"resources": {"replicas": 1}})
    with RolloutPool(cfg) as pool:
        old = greedy(pool.collect(demo_rows(6), at(folders())))
        with pytest.raises(ConfigError, match=r"model\.norm\.weight is 8 there"):
            pool.update_weights(checkpoint(tmp_path / "cut", cut))
        pool.update_weights(trained)
        new = pool.collect(demo_rows(6), at(folders()))
        assert greedy(new) == fresh != old
        assert len(events(new, "engine_adopted")) == 1 and not events(new, "engine_started")
        if own_process == "0":
            os.kill(engines().pop(), signal.SIGKILL)
            assert greedy(pool.collect(demo_rows(6), at(folders()))) == fresh
        pool.update_weights(demo_folder())
        again = pool.collect(demo_rows(6), at(folders()))
    assert greedy(again) == old and set(trajectories(again)["policy_version"]) == {2}


def test_no_engine_starts_with_a_folder_that_was_written_over(
    folders: Callable[[], Path], tmp_path: Path, local_ray: None
) -> None:
    folder = Path(checkpoint(tmp_path / "latest"))
    engines = later_workers(ENGINES)
    with RolloutPool(simulated(folders(), 1)) as pool:
        pool.update_weights(str(folder))
        pool.collect(demo_rows(5), at(folders()))
        shutil.copy2(Path(checkpoint(tmp_path / "next", noisy)) / "model.safetensors", folder)
        os.kill(engines().pop(), signal.SIGKILL)
        with pytest.raises(EngineError, match="have changed since the engines started"):
            pool.collect(demo_rows(5), at(folders()))
