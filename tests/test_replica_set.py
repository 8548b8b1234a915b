"""What becomes of a replica whose engine starts, is refused, dies or lacks memory. Without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import OutOfMemoryError

from rollout_ray.actors.engine.out_of_memory import MOST_STEPS, NoMemory
from rollout_ray.actors.engine.process import EngineLost
from rollout_ray.core.errors import EngineError
from rollout_ray.driver.failures import last_words
from rollout_ray.driver.replica import IllegalTransition, Replica, ReplicaState
from rollout_ray.models.checkpoints import Policy
from tests.driven_replicas import KILLED, REFUSED, Driven, run_with
from tests.driver_fakes import FakeEngine, backend_info, exchange_of

S = ReplicaState


# The state machine


def test_an_engine_goes_from_its_start_to_its_first_work() -> None:
    driven = Driven(1)
    seen = [driven.states()[0]]
    driven.load()
    seen.append(driven.states()[0])
    driven.replica().take_call()
    driven.set.begun(driven.replica(), backend_info())
    seen.append(driven.states()[0])
    driven.set.exchange(driven.replica(), [], 8, 0)
    seen.append(driven.states()[0])
    assert seen == [S.STARTING, S.BEGINNING, S.IDLE, S.RUNNING]
    assert [call.method for call in driven.engines.last("engine-0").calls] == ["start", "begin", "exchange"]
    assert driven.shown() == ["running"] and driven.views["engine-0"].unfinished == 8
    assert driven.events.named("engine_started")[0]["engine"] == "engine-0"


@given(st.lists(st.sampled_from(list(ReplicaState)), min_size=1, max_size=8))
def test_a_transition_is_legal_or_changes_nothing(states: list[ReplicaState]) -> None:
    replica = Replica("engine-0")
    for state in states:
        before = replica.state
        with_engine = state not in (S.DEAD, S.REFUSED, S.RETIRED)
        replica.handle = FakeEngine("engine-0") if with_engine else None
        try:
            replica.enter(state)
        except IllegalTransition:
            assert replica.state is before
        else:
            assert replica.state is state and replica.has_engine is with_engine
            assert not (before is S.RETIRED or (before is S.DEAD and state is S.RUNNING))


@pytest.mark.parametrize("state", [S.RUNNING, S.IDLE, S.DRAINING, S.LOADED])
def test_what_has_no_engine_cannot_serve(state: ReplicaState) -> None:
    with pytest.raises(IllegalTransition, match=f"engine-0 cannot go from DEAD to {state.name}"):
        Replica("engine-0").enter(state)


def test_a_state_and_its_handle_agree() -> None:
    with pytest.raises(IllegalTransition, match="cannot be STARTING with the handle None"):
        Replica("engine-0").enter(S.STARTING)


# Refused starts


def test_a_refused_start_is_repeated_once_another_engine_is_up() -> None:
    driven = Driven(2)
    driven.fail(REFUSED, "engine-1")
    assert driven.states() == [S.STARTING, S.REFUSED] and driven.shown() == ["starting", "dead"]
    driven.load("engine-0")
    assert driven.states() == [S.BEGINNING, S.STARTING]
    assert len(driven.engines.launched["engine-1"]) == 2 and driven.views["engine-1"].restarts == 1


def test_a_run_ends_when_every_start_is_refused() -> None:
    driven = Driven(2)
    driven.fail(REFUSED, "engine-1")
    with pytest.raises(EngineError, match="engine-0 could not start: no such model"):
        driven.fail(REFUSED, "engine-0")


def test_a_refused_start_ends_the_run_although_others_wait_for_a_node() -> None:
    driven = Driven(2, scales=True)
    driven.engines.last("engine-1").found_node = None
    driven.set.look()
    with pytest.raises(EngineError, match="engine-0 could not start"):
        driven.fail(REFUSED, "engine-0")


def test_a_refused_replica_is_not_asked_for_its_node() -> None:
    """A named pool asked Ray whether the actor None was pending, ten seconds after a refusal."""
    driven = Driven(2)
    driven.fail(REFUSED, "engine-1")
    assert not driven.pass_time(30)
    assert driven.states() == [S.STARTING, S.REFUSED]
    driven.set.end_pending()


def test_a_refused_replica_gets_an_engine_in_the_next_run_of_its_pool() -> None:
    driven = Driven(2)
    driven.fail(REFUSED, "engine-1")
    driven.set.detach()
    driven.attach()
    assert driven.states() == [S.STARTING, S.STARTING] and len(driven.engines.launched["engine-1"]) == 2


def test_the_last_engine_dies_while_the_others_are_refused() -> None:
    driven = Driven(2, run_with(max_engine_deaths=0))
    driven.fail(REFUSED, "engine-1")
    with pytest.raises(EngineError, match="engine-1 could not start, and every other engine died: no such model"):
        driven.fail(KILLED, "engine-0")


# Deaths


def test_a_dead_engine_is_replaced_on_the_same_resources() -> None:
    driven = Driven(1)
    driven.run_on()
    reserved = set(driven.engines.reserved)
    driven.fail(KILLED)
    first, second = driven.engines.launched["engine-0"]
    assert first.ended and not second.ended and driven.engines.reserved == reserved
    assert driven.states() == [S.STARTING] and driven.set.deaths == 1
    assert driven.events.named("engine_died")[0]["started"] is True


def test_a_result_forgives_earlier_deaths() -> None:
    driven = Driven(1, run_with(max_engine_deaths=1))
    for _ in range(3):
        replica = driven.run_on()
        replica.take_call()
        driven.set.answered(replica, exchange_of([(0, 0)], 0))
        driven.fail(KILLED)
    assert driven.states() == [S.STARTING] and driven.set.deaths == 3


def test_a_replica_is_retired_after_too_many_deaths_and_the_others_go_on() -> None:
    driven = Driven(2, run_with(max_engine_deaths=1))
    driven.run_on("engine-1")
    driven.fail(KILLED, "engine-0")
    driven.fail(KILLED, "engine-0")
    assert list(driven.set.replicas) == ["engine-1"]
    assert driven.shown() == ["retired", "running"] and len(driven.engines.reserved) == 1
    assert [e["engine"] for e in driven.events.named("engine_retired")] == ["engine-0"]


def test_a_run_ends_with_the_last_words_of_its_last_engine(tmp_path: Path) -> None:
    driven = Driven(1, run_with(max_engine_deaths=0))
    replica = driven.run_on()
    log_file = tmp_path / "engine-0.log"
    log_file.write_text("CUDA error: an illegal memory access\n")
    replica.log_file = str(log_file)
    with pytest.raises(EngineError, match=r"every engine died; the last one, engine-0: .*the end of .*: CUDA error"):
        driven.fail(KILLED)


@pytest.mark.parametrize(
    "error",
    [
        NoMemory("DefaultCPUAllocator: can't allocate memory"),
        EngineLost("the machine or its container ran out of memory, and the engine was killed"),
        OutOfMemoryError("Actor was killed due to the node running low on memory. Memory on the node was 15GB / 16GB"),
    ],
)
def test_a_run_that_ends_for_lack_of_memory_says_what_to_lower(error: Exception) -> None:
    assert last_words(error, None).endswith(
        ". Lower --replicas, --scorers, --max_num_seqs or --kv_cache_gib, or give the machine or container more memory"
    )
    assert "Lower" not in last_words(KILLED, None)


def test_no_engine_starts_with_weights_that_were_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    run = replace(run_with(), policy=Policy(str(tmp_path), "another fingerprint"))
    with pytest.raises(EngineError, match="have changed since the engines started"):
        Driven(1, run)


# Memory


def test_an_engine_without_memory_asks_for_less_until_it_fits() -> None:
    driven = Driven(1)
    for _ in range(2):
        driven.fail(NoMemory("out of memory"))
    asked = [engine.limits for engine in driven.engines.launched["engine-0"]]
    assert [limits.max_num_seqs for limits in asked if limits] == [8, 4, 2]
    assert [limits.gpu_memory_utilization for limits in asked if limits] == [0.8, 0.6, 0.45]
    driven.load()
    assert driven.events.named("engine_started")[0]["shrunk"] == 2 and driven.set.deaths == 0


def test_an_engine_that_has_memory_for_its_weights_alone_keeps_its_share() -> None:
    driven = Driven(1)
    driven.fail(NoMemory("No available memory for the cache", keep_share=True))
    limits = driven.engines.last("engine-0").limits
    assert limits is not None and (limits.max_num_seqs, limits.gpu_memory_utilization) == (4, 0.8)


def test_an_engine_that_never_has_enough_memory_is_refused() -> None:
    driven = Driven(1)
    for _ in range(MOST_STEPS):
        driven.fail(NoMemory("out of memory"))
    with pytest.raises(EngineError, match="engine-0 could not start: out of memory"):
        driven.fail(NoMemory("out of memory"))
