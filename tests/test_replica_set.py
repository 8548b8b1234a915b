"""What becomes of a replica: start, refusal, death, less memory, retirement, hang, drain, pools. Without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from rollout_ray import RunConfig
from rollout_ray.actors.engine.out_of_memory import MOST_STEPS, NoMemory
from rollout_ray.core.errors import EngineError
from rollout_ray.driver.handle import RunningEngine
from rollout_ray.driver.health import HEARTBEAT_S, START_LIMIT_S
from rollout_ray.driver.replica import IllegalTransition, Replica, ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun, resolve
from rollout_ray.telemetry.run_view import EngineView
from tests.driver_fakes import FakeClock, FakeEngine, FakeEngines, FakeEvents, backend_info, exchange_of

KILLED = RayActorError()
REFUSED = RuntimeError("no such model")
S = ReplicaState


def run_with(**resources: Any) -> ResolvedRun:
    """A run of simulated engines whose weights are known by their name alone."""
    cfg = RunConfig.model_validate(
        {"engine": {"backend": "simulated"}, "resources": {"engine_hang_seconds": 300.0, **resources}}
    )
    return resolve(cfg, Policy("hub/model", "hub/model"))


class Driven:
    """A replica set on fakes, and what a session would do with it."""

    def __init__(self, replicas: int = 2, run: ResolvedRun | None = None, **factory: Any) -> None:
        self.clock, self.events = FakeClock(), FakeEvents()
        self.engines = FakeEngines(self.clock, replicas, **factory)
        self.run = run or run_with()
        self.set = ReplicaSet(self.run, self.engines, clock=self.clock)
        self.views: dict[str, EngineView] = {}
        self.attach()

    def attach(self, run: ResolvedRun | None = None) -> None:
        self.views = {f"engine-{i}": EngineView() for i in range(self.engines.placement.replicas)}
        self.set.attach(run or self.run, 1, self.views, self.events)  # type: ignore[arg-type]

    def replica(self, name: str = "engine-0") -> Replica:
        return self.set.replicas[name]

    def load(self, name: str = "engine-0") -> None:
        self.replica(name).take_call()
        self.set.loaded(self.replica(name), backend_info())

    def begin(self, name: str = "engine-0") -> None:
        self.load(name)
        self.replica(name).take_call()
        self.set.begun(self.replica(name), backend_info())

    def run_on(self, name: str = "engine-0") -> Replica:
        """Brings an engine to hold 8 samples."""
        self.begin(name)
        self.set.exchange(self.replica(name), [], 8, 0)
        return self.replica(name)

    def fail(self, error: Exception, name: str = "engine-0") -> None:
        replica = self.replica(name)
        if replica.call:
            replica.take_call()
        self.set.died(replica, error)

    def pass_time(self, seconds: float) -> list[tuple[Replica, Exception]]:
        """Looks once a heartbeat, and returns the first engines that hang."""
        for _ in range(int(seconds / HEARTBEAT_S)):
            self.clock.advance(HEARTBEAT_S)
            self.set.look()
            if hanging := self.set.hanging():
                return hanging
        return []

    def states(self) -> list[ReplicaState]:
        return [replica.state for replica in self.set.replicas.values()]

    def shown(self) -> list[str]:
        return [view.state for view in self.views.values()]


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


# Hangs


def test_an_engine_that_does_not_decode_hangs_after_the_limit() -> None:
    driven = Driven(1)
    replica = driven.run_on()
    assert not driven.pass_time(299)
    ((found, error),) = driven.pass_time(3)
    assert found is replica and "no decoding step for 301 s" in str(error)
    driven.set.died(found, error)
    assert driven.states() == [S.STARTING] and driven.set.deaths == 1


def test_an_engine_that_decodes_does_not_hang() -> None:
    driven = Driven(1)
    replica = driven.run_on()
    for steps in range(1, 10):
        assert not driven.pass_time(200)
        replica.take_call()
        driven.set.answered(replica, exchange_of((), 8, steps))
        driven.set.exchange(replica, [], 8, 0)


def test_an_engine_that_answers_but_no_longer_decodes_hangs() -> None:
    driven = Driven(1)
    replica = driven.run_on()
    replica.take_call()
    driven.set.answered(replica, exchange_of((), 8, 5))
    driven.set.exchange(replica, [], 8, 0)
    assert not driven.pass_time(200)
    replica.take_call()
    driven.set.answered(replica, exchange_of((), 8, 5))
    driven.set.exchange(replica, [], 8, 0)
    assert driven.pass_time(105)


def test_an_idle_engine_does_not_hang() -> None:
    driven = Driven(1)
    driven.begin()
    assert not driven.pass_time(1000)
    driven.set.exchange(driven.replica(), [], 8, 0)
    assert not driven.pass_time(299)


def test_an_engine_whose_answer_lies_ready_does_not_hang() -> None:
    driven = Driven(1)
    replica = driven.run_on()
    replica.call[0].answer(exchange_of((), 8, 1))
    driven.clock.advance(1000)
    assert not driven.set.hanging()


def test_a_driver_that_was_stopped_gives_engines_their_whole_time_again() -> None:
    """Ctrl-Z stops a local engine with its driver: it has no answer ready when both go on."""
    driven = Driven(1)
    driven.run_on()
    assert not driven.pass_time(100)
    driven.clock.advance(10_000)
    assert not driven.set.hanging()
    assert not driven.pass_time(190)
    assert driven.pass_time(20)


def test_a_start_that_hangs_is_refused_with_a_remedy() -> None:
    driven = Driven(1)
    assert not driven.pass_time(START_LIMIT_S)
    ((replica, error),) = driven.pass_time(5)
    with pytest.raises(EngineError, match=r"could not start: the engine did not load within 3600 s; .*engine_hang_seconds"):
        driven.set.died(replica, error)


def test_a_start_may_take_as_long_as_the_limit_of_hangs() -> None:
    driven = Driven(1, run_with(engine_hang_seconds=2 * START_LIMIT_S))
    assert not driven.pass_time(2 * START_LIMIT_S - 1)
    assert driven.pass_time(5)


def test_an_engine_that_waits_for_a_node_has_its_whole_time_to_start_then() -> None:
    driven = Driven(1, scales=True)
    driven.engines.last("engine-0").found_node = None
    assert not driven.pass_time(2 * START_LIMIT_S) and driven.shown() == ["waiting"]
    driven.engines.last("engine-0").found_node = "node-a"
    assert not driven.pass_time(START_LIMIT_S) and driven.shown() == ["starting"]
    assert driven.pass_time(5)
    assert driven.views["engine-0"].restarts == 0


def test_a_start_that_hangs_while_others_work_is_repeated() -> None:
    driven = Driven(2)
    driven.begin("engine-0")
    ((replica, error),) = driven.pass_time(START_LIMIT_S + 5)
    driven.set.died(replica, error)
    assert driven.states() == [S.IDLE, S.STARTING] and driven.set.deaths == 1


# Drained nodes


def test_a_draining_engine_shows_that_it_leaves_and_moves_once_it_is_empty() -> None:
    driven = Driven(1)
    replica = driven.run_on()
    reserved = set(driven.engines.reserved)
    assert driven.set.drain({"node-a"}) == ["engine-0"]
    assert driven.states() == [S.DRAINING] and driven.shown() == ["leaving"] and driven.views["engine-0"].unfinished == 8
    assert driven.set.drain({"node-a"}) == [] == driven.set.move_drained()
    replica.take_call()
    driven.set.answered(replica, exchange_of((), 3, 1))
    driven.set.exchange(replica, [], 3, 3)
    assert driven.shown() == ["leaving"] and driven.views["engine-0"].unfinished == 3
    replica.take_call()
    driven.set.exchange(replica, [], 0, 0)
    replica.payloads = {"unread"}
    assert driven.set.move_drained() == []
    replica.payloads = set()
    assert driven.set.move_drained() == ["engine-0"]
    assert driven.states() == [S.STARTING] and driven.shown() == ["starting"]
    assert not (driven.engines.reserved & reserved) and len(driven.engines.reserved) == 1 and driven.set.deaths == 0


def test_an_engine_that_still_starts_on_a_draining_node_moves_at_once() -> None:
    driven = Driven(2)
    driven.engines.last("engine-0").found_node = "node-a"
    driven.set.look()
    assert driven.set.drain({"node-a"}) == ["engine-0"]
    assert driven.engines.launched["engine-0"][0].ended and driven.states() == [S.STARTING] * 2
    assert driven.set.move_drained() == []


def test_a_draining_engine_that_dies_is_replaced() -> None:
    driven = Driven(1)
    driven.run_on()
    driven.set.drain({"node-a"})
    driven.fail(KILLED)
    assert driven.states() == [S.STARTING]


# Pools


def adopted(run: ResolvedRun) -> tuple[ReplicaSet, FakeEngine, FakeEngines, FakeClock]:
    clock, engine = FakeClock(), FakeEngine("engine-0")
    engines = FakeEngines(clock, 2)
    found = {"engine-0": RunningEngine(engine, run.policy, "node-a")}
    return ReplicaSet(run, engines, found, clock), engine, engines, clock


def test_a_named_pool_adopts_the_engines_that_are_up_and_starts_the_others() -> None:
    run = run_with()
    replicas, engine, engines, _ = adopted(run)
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
