"""Engines that hang, at work or at their start, and engines on nodes that are drained. Without Ray."""

from __future__ import annotations

import pytest

from rollout_ray.core.errors import EngineError
from rollout_ray.driver.health import START_LIMIT_S
from rollout_ray.driver.replica import ReplicaState
from tests.driven_replicas import KILLED, Driven, run_with
from tests.driver_fakes import exchange_of

S = ReplicaState


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
