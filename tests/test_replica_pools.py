"""Replicas that serve one run after the other: adoption, limits of a run, new weights, the end. Without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_ray import RunConfig
from rollout_ray.api.pool_fields import warn_of_replicas
from rollout_ray.core.errors import EngineError
from rollout_ray.driver.handle import RunningEngine
from rollout_ray.driver.replica import ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.models.checkpoints import Policy
from rollout_ray.telemetry.run_view import EngineView
from tests.driven_replicas import REFUSED, Driven, run_with
from tests.driver_fakes import FakeClock, FakeEngine, FakeEngines, FakeEvents, backend_info

S = ReplicaState


# Pools


def test_a_named_pool_adopts_the_engines_that_are_up_and_starts_the_others() -> None:
    run = run_with()
    clock = FakeClock()
    engine = FakeEngine("engine-0")
    engines = FakeEngines(clock, 2)
    replicas = ReplicaSet(run, engines, {"engine-0": RunningEngine(engine, run.policy, "node-a")}, clock)
    views, events = {f"engine-{i}": EngineView() for i in range(2)}, FakeEvents()
    replicas.attach(run, 1, views, events)  # type: ignore[arg-type]
    assert list(engines.launched) == ["engine-1"]
    assert [call.method for call in engine.calls] == ["begin"]
    replicas.replicas["engine-0"].take_call()
    replicas.begun(replicas.replicas["engine-0"], backend_info())
    assert [event for event, _ in events.written] == ["engine_adopted"]


def test_the_engines_of_a_pool_take_up_each_run_after_dropping_the_last() -> None:
    driven = Driven(1)
    driven.run_on()
    driven.set.detach()
    assert driven.states() == [S.LOADED] and driven.engines.last("engine-0").dropped == 1
    driven.attach()
    driven.replica().take_call()
    driven.set.begun(driven.replica(), backend_info())
    assert driven.states() == [S.IDLE] and len(driven.events.named("engine_adopted")) == 1


@pytest.mark.parametrize(("pool", "run", "told"), [(2, None, False), (2, 2, False), (2, 4, True), (None, 4, True)])
def test_a_run_that_asks_for_another_number_of_engines_is_told(
    pool: int | None, run: int | None, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    configs = [RunConfig.model_validate({"resources": {"replicas": count}}) for count in (pool, run)]
    warn_of_replicas(*configs)
    assert ("The run uses the engines of the pool" in caplog.text) == told


def test_a_run_s_own_limits_hold_on_a_pool() -> None:
    driven = Driven(1, run_with(engine_hang_seconds=300, max_engine_deaths=50))
    driven.begin()
    driven.set.detach()
    driven.attach(run_with(engine_hang_seconds=20, max_engine_deaths=0))
    driven.replica().take_call()
    driven.set.begun(driven.replica(), backend_info())
    driven.set.exchange(driven.replica(), [], 8, 0)
    ((replica, error),) = driven.pass_time(25)
    with pytest.raises(EngineError, match="every engine died"):
        driven.set.died(replica, error)


def test_a_start_whose_answer_was_lost_to_an_interrupt_is_asked_again() -> None:
    driven = Driven(1)
    driven.replica().take_call()
    driven.set.detach()
    driven.attach()
    assert [call.method for call in driven.engines.last("engine-0").calls] == ["start", "start"]


def test_what_happens_between_two_runs_stands_in_the_events_of_the_next() -> None:
    driven = Driven(1)
    driven.begin()
    driven.set.detach()
    driven.engines.last("engine-0").calls.clear()
    policy = Policy("hub/next", "hub/next", 1)
    answer_next(driven.engines.last("engine-0"), "update_weights")
    driven.set.update_weights(policy)
    assert not driven.events.named("weights_updated")
    driven.attach()
    assert driven.events.named("weights_updated")[0]["policy_version"] == 1


def test_engines_without_a_process_end_with_the_job_of_their_named_pool() -> None:
    driven = Driven(2)
    driven.begin("engine-0")
    driven.engines.last("engine-1").pending = True
    driven.set.end_pending()
    assert driven.states() == [S.IDLE, S.DEAD]


def test_close_ends_every_engine_and_gives_the_resources_back() -> None:
    driven = Driven(3)
    driven.fail(REFUSED, "engine-1")
    driven.set.close()
    assert all(engine.ended for engines in driven.engines.launched.values() for engine in engines)
    assert not driven.engines.reserved and not driven.set.replicas


# Weights


def answer_next(engine: FakeEngine, method: str, error: Exception | None = None) -> None:
    """Answers the next call of this method as soon as it is made."""
    made = engine._call

    def answered(name: str, *arguments: Any) -> Any:
        call = made(name, *arguments)
        if name == method:
            call.fail(error) if error else call.answer(1.0)
        return call

    engine._call = answered  # type: ignore[method-assign]


def between_runs(replicas: int = 2) -> Driven:
    driven = Driven(replicas)
    for name in driven.set.replicas:
        driven.begin(name)
    driven.set.detach()
    return driven


NEXT = Policy("hub/next", "hub/next", 1)


def test_an_engine_that_cannot_load_new_weights_starts_with_them() -> None:
    driven = between_runs()
    answer_next(driven.engines.last("engine-0"), "update_weights")
    answer_next(driven.engines.last("engine-1"), "update_weights", RuntimeError("torn"))
    driven.set.update_weights(NEXT)
    assert driven.states() == [S.LOADED, S.DEAD] and driven.set.policy == NEXT
    driven.attach()
    assert driven.states() == [S.BEGINNING, S.STARTING]
    assert driven.engines.last("engine-1").policy == NEXT


def test_the_old_weights_stay_where_no_engine_can_load_the_new_ones() -> None:
    driven = between_runs()
    for name in driven.set.replicas:
        answer_next(driven.engines.last(name), "update_weights", RuntimeError("torn"))
    with pytest.raises(EngineError, match="no engine could load the weights in hub/next: torn; the old weights stay"):
        driven.set.update_weights(NEXT)
    assert driven.set.policy != NEXT


def test_an_engine_that_takes_too_long_to_load_weights_is_ended() -> None:
    driven = between_runs()
    answer_next(driven.engines.last("engine-0"), "update_weights")
    driven.set.update_weights(NEXT)
    assert driven.states() == [S.LOADED, S.DEAD]


def test_new_weights_do_not_wait_for_ever_for_a_start_that_hangs() -> None:
    driven = Driven(2)
    driven.begin("engine-0")
    driven.set.detach()
    answer_next(driven.engines.last("engine-0"), "update_weights")
    driven.set.update_weights(NEXT)
    assert driven.states() == [S.LOADED, S.DEAD]
    driven.attach()
    assert driven.engines.last("engine-1").policy == NEXT


def test_new_weights_do_not_wait_for_an_engine_without_a_node() -> None:
    driven = Driven(2)
    driven.begin("engine-0")
    driven.set.detach()
    driven.engines.last("engine-1").found_node = None
    answer_next(driven.engines.last("engine-0"), "update_weights")
    began = driven.clock()
    driven.set.update_weights(NEXT)
    assert driven.states() == [S.LOADED, S.DEAD] and driven.clock() - began < 10
