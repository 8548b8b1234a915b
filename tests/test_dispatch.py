"""Work moves between the scheduler, the engines and the scorers, and nothing is lost on the way. Without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from rollout_ray.actors.scorer import Receipt
from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.records import Question
from rollout_ray.driver.dispatch import Dispatch
from rollout_ray.driver.replica import ReplicaState
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.driver.scorer_pool import ScorerPool
from rollout_ray.telemetry.run_view import RunView
from rollout_ray.telemetry.summary import Summary
from tests.driven_replicas import Driven
from tests.driver_fakes import FakeCall, FakeEngine, FakeScorer, FakeScorers, backend_info, exchange_of

KILLED = ActorDiedError()


class Dispatched(Driven):
    """A session's parts on fakes: questions of 4 samples each, one scorer."""

    def __init__(self, questions: int = 2, replicas: int = 1) -> None:
        super().__init__(replicas)
        self.scheduler = Scheduler(
            (Question(str(i), "?", None) for i in range(questions)), questions, 4, expected_engines=replicas
        )
        self.scorers = FakeScorers(self.clock)
        self.pool = ScorerPool(self.run.config, self.scorers, 1, self.events, self.clock)  # type: ignore[arg-type]
        self.view = RunView(total=questions, engines=self.views)
        calls = self.engines.calls
        self.dispatch = Dispatch(calls, self.scheduler, self.set, self.pool, self.view, self.events)  # type: ignore[arg-type]
        self.answer(self.scorer.calls[-1], Receipt((), Summary(), 0))

    def answer(self, call: FakeCall, value: Any) -> None:
        call.answer(value)
        assert self.dispatch.take_answers()

    def engine(self, name: str = "engine-0") -> FakeEngine:
        return self.engines.last(name)

    @property
    def scorer(self) -> FakeScorer:
        return self.scorers.launched[0][-1]

    def start(self, name: str = "engine-0") -> None:
        self.answer(self.engine(name).calls[-1], backend_info())
        self.answer(self.engine(name).calls[-1], backend_info())

    def held(self, name: str = "engine-0") -> list[int]:
        """The questions that an engine was given last."""
        return [request.ordinal for request in self.engine(name).calls[-1].arguments[0]]


def test_a_question_goes_from_the_queue_to_an_engine_to_a_scorer_to_its_commit() -> None:
    driven = Dispatched()
    driven.start()
    assert driven.held() == [0, 1] and driven.scheduler.pending == 0
    driven.answer(driven.engine().calls[-1], exchange_of([(0, 0), (1, 0)]))
    assert driven.scorer.calls[-1].method == "score" and driven.view.generated_samples == 8
    assert driven.states() == [ReplicaState.IDLE] and driven.events.named("engine_idle")
    driven.answer(driven.scorer.calls[-1], Receipt((0, 1), Summary(), 0))
    assert driven.view.committed == 2 and driven.scheduler.finished and not driven.dispatch.take_answers()


def test_what_a_dead_engine_held_goes_to_the_next() -> None:
    driven = Dispatched()
    driven.start()
    driven.answer(driven.engine().calls[-1], KILLED)
    assert driven.scheduler.pending == 8 and driven.states() == [ReplicaState.STARTING]
    driven.start()
    assert driven.held() == [0, 1]


def test_a_question_that_was_in_flight_at_three_deaths_becomes_error_trajectories() -> None:
    driven = Dispatched(questions=1)
    for _ in range(3):
        driven.start()
        driven.answer(driven.engine().calls[-1], KILLED)
    assert driven.scheduler.finished and driven.scorer.calls[-1].arguments[1] == frozenset({0})
    assert driven.view.generated_samples == 4


def test_a_payload_that_was_lost_is_generated_again() -> None:
    driven = Dispatched(questions=1)
    driven.start()
    driven.answer(driven.engine().calls[-1], exchange_of([(0, 0)]))
    driven.answer(driven.scorer.calls[-1], RayTaskError("score", "", ObjectLostError("ab" * 28, None, "")))
    assert driven.view.generated_samples == 0 and driven.scheduler.pending == 4
    driven.dispatch.supply_idle_engines()
    assert driven.held() == [0]


def test_engines_get_nothing_new_while_the_scorers_are_behind() -> None:
    driven = Dispatched(questions=5)
    driven.start()
    assert driven.held() == [0, 1, 2, 3]
    driven.pool.most_unscored = 4
    driven.answer(driven.engine().calls[-1], exchange_of([(0, 0)]))
    assert driven.states() == [ReplicaState.IDLE] and driven.scheduler.pending == 4
    driven.answer(driven.scorer.calls[-1], Receipt((0,), Summary(), 0))
    driven.dispatch.supply_idle_engines()
    assert driven.held() == [4]


def test_an_engine_that_drains_returns_what_it_has_not_begun_and_gets_no_more() -> None:
    driven = Dispatched()
    driven.start()
    driven.set.drain({"node-a"})
    driven.answer(driven.engine().calls[-1], exchange_of([(0, 0)], unfinished=4))
    work, reclaim = driven.engine().calls[-1].arguments
    assert (work, reclaim) == ([], 4) and driven.shown() == ["leaving"]


@pytest.mark.parametrize("raised", [ConfigError("an arm cannot be served"), LedgerError("the disk is full")])
def test_an_arm_that_an_engine_refuses_ends_the_run_and_any_other_error_its_engine(raised: Exception) -> None:
    driven = Dispatched()
    driven.answer(driven.engine().calls[-1], backend_info())
    driven.engine().calls[-1].answer(RayTaskError("begin", "", raised))
    if isinstance(raised, ConfigError):
        with pytest.raises(ConfigError, match="an arm cannot be served"):
            driven.dispatch.take_answers()
    else:
        driven.dispatch.take_answers()
        assert driven.states() == [ReplicaState.STARTING] and len(driven.engines.launched["engine-0"]) == 2


def test_at_a_stop_the_scorers_get_what_the_engines_have_finished() -> None:
    """The first answer has a whole chunk, the second what finished of the other one."""
    driven = Dispatched()
    driven.start()
    engine = driven.engine()
    engine.calls[-1].answer(exchange_of([(0, 0)], unfinished=2))
    engine.answer_drop = frozenset({0})
    driven.dispatch.take_finished(5.0)
    assert [call.arguments for call in driven.scorer.calls if call.method == "score"] == [
        (("payload", "engine-0", 0), frozenset({0})),
        (("dropped", "engine-0", 0), frozenset({1})),
    ]


@pytest.mark.parametrize("answer", [None, KILLED])
def test_an_engine_that_does_not_answer_at_a_stop_is_named(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    driven = Dispatched()
    driven.start()
    if answer:
        driven.engine().calls[-1].answer(answer)
    driven.dispatch.take_finished(5.0)
    assert "engine-0 could not hand over what it had finished" in caplog.text
    assert [call.method for call in driven.scorer.calls] == ["begin"]
