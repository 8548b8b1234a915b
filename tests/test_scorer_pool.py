"""What becomes of scorers and of what they hold: commits, deaths, lost payloads, late parts, the end. Without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from rollout_ray import RunConfig
from rollout_ray.actors.scorer import Receipt
from rollout_ray.core.errors import LedgerError, RolloutError
from rollout_ray.core.records import Question, RolloutRequest
from rollout_ray.driver.scorer_pool import ScorerPool
from rollout_ray.telemetry.summary import Summary
from tests.driver_fakes import FakeCall, FakeClock, FakeEvents, FakeScorer, FakeScorers

KILLED = ActorDiedError()


def receipt(*committed: int, waiting: int = 0) -> Receipt:
    return Receipt(committed, Summary(), waiting)


def request(ordinal: int, samples: int = 4) -> RolloutRequest:
    return RolloutRequest(ordinal, 0, Question(str(ordinal), "?", None), 0, samples)


class Driven:
    """A scorer pool on fakes."""

    def __init__(self, num_scorers: int = 1, keeps: bool = False, **resources: Any) -> None:
        self.clock, self.events = FakeClock(), FakeEvents()
        self.factory = FakeScorers(self.clock, keeps=keeps)
        cfg = RunConfig.model_validate({"output": {"flush_seconds": 10.0}, "resources": resources})
        self.pool = ScorerPool(cfg, self.factory, num_scorers, self.events, self.clock)  # type: ignore[arg-type]

    def last(self, scorer_index: int = 0) -> FakeScorer:
        return self.factory.launched[scorer_index][-1]

    def begin(self, scorer_index: int = 0) -> None:
        self.answer(self.last(scorer_index).calls[-1], receipt())

    def answer(self, call: FakeCall, value: Any) -> Any:
        call.answer(value)
        return self.pool.answered(self.pool.calls()[call], call)


def test_a_payload_is_kept_until_each_of_its_questions_is_committed() -> None:
    driven = Driven()
    driven.begin()
    driven.pool.score(0, "payload", [request(1), request(2)])
    first = driven.last()
    assert first.calls[-1].arguments == ("payload", frozenset({1, 2})) and driven.pool.unread() == {"payload"}
    driven.answer(first.calls[-1], receipt(1, waiting=1))
    driven.pool.flush()
    driven.answer(first.calls[-1], KILLED)
    assert driven.last() is not first
    assert [c.arguments for c in driven.last().calls if c.method == "score"] == [("payload", frozenset({2}))]


def test_a_dead_scorer_is_replaced_and_its_successor_gets_what_is_not_committed() -> None:
    driven = Driven()
    driven.begin()
    driven.pool.score(0, "a", [request(1)])
    driven.pool.score(0, "b", [request(2)])
    first = driven.last()
    a, b = first.calls[-2:]
    a.die(KILLED)
    b.die(KILLED)
    scorers = driven.pool.calls()
    assert driven.pool.answered(scorers[a], a) == driven.pool.answered(scorers[b], b) == (None, ())
    assert first.ended and len(driven.factory.launched[0]) == 2
    assert [call.method for call in driven.last().calls] == ["begin", "score", "score"]
    assert driven.pool.unscored == 8
    assert [fields["lane"] for fields in driven.events.named("scorer_died")] == [0]


def test_scorers_that_die_without_a_commit_end_the_run() -> None:
    driven = Driven(max_engine_deaths=2)
    for _ in range(2):
        driven.answer(driven.last().calls[-1], KILLED)
    with pytest.raises(RolloutError, match="scorer-0 died 3 times in a row and nothing was committed"):
        driven.answer(driven.last().calls[-1], KILLED)
    assert len(driven.events.named("scorer_died")) == 3


def test_a_commit_forgives_earlier_deaths() -> None:
    driven = Driven(max_engine_deaths=1)
    for ordinal in range(4):
        driven.begin()
        driven.pool.score(0, f"payload {ordinal}", [request(ordinal)])
        driven.answer(driven.last().calls[-1], receipt(ordinal))
        driven.pool.flush()
        driven.answer(driven.last().calls[-1], KILLED)
    assert len(driven.factory.launched[0]) == 5


def test_a_lost_payload_is_generated_again() -> None:
    driven = Driven()
    driven.begin()
    driven.pool.score(0, "gone", [request(1), request(2)])
    lost = RayTaskError("score", "", ObjectLostError("ab" * 28, None, ""))
    answer = driven.answer(driven.last().calls[-1], lost)
    assert [r.ordinal for r in answer.lost] == [1, 2] and driven.pool.unscored == 0
    assert driven.events.named("payload_lost") == [{"draws": 8, "error": "ObjectLostError"}]
    driven.pool.flush()
    driven.answer(driven.last().calls[-1], KILLED)
    assert [call.method for call in driven.last().calls] == ["begin"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(LedgerError("the disk is full"), LedgerError), (ValueError("reward"), RolloutError)],
)
def test_what_a_scorer_raises_ends_the_run_by_its_own_name(raised: Exception, expected: type[Exception]) -> None:
    driven = Driven()
    driven.begin()
    driven.pool.score(0, "payload", [request(1)])
    with pytest.raises(expected, match=str(raised)):
        driven.answer(driven.last().calls[-1], RayTaskError("score", "", raised))


def test_engines_get_nothing_new_while_too_much_waits_to_be_scored() -> None:
    driven = Driven(2)
    driven.pool.most_unscored = 8
    driven.pool.score(0, "a", [request(1)])
    assert not driven.pool.behind
    driven.pool.score(1, "b", [request(2)])
    assert driven.pool.behind
    driven.answer(driven.last(1).calls[-1], receipt())
    assert not driven.pool.behind


def test_a_part_is_asked_for_after_the_time_or_at_the_end() -> None:
    driven = Driven()
    driven.begin()
    driven.pool.score(0, "a", [request(1)])
    driven.answer(driven.last().calls[-1], receipt(waiting=1))
    driven.pool.flush_due(last=False)
    assert not driven.pool.calls()
    driven.clock.advance(10.0)
    driven.pool.flush_due(last=False)
    assert [call.method for call in driven.pool.calls()] == ["flush"]
    driven.answer(driven.last().calls[-1], receipt(1))
    driven.pool.flush_due(last=True)
    assert not driven.pool.calls()


def test_save_counts_what_is_saved_and_names_a_scorer_that_cannot(caplog: pytest.LogCaptureFixture) -> None:
    driven = Driven(3)
    for index in range(3):
        driven.begin(index)
    driven.pool.score(0, "unscored", [request(1)])
    unscored = driven.last(0).calls[-1]
    told = {0: Receipt((7, 8), Summary(), 0, saved=5), 1: RayTaskError("save", "", OSError("the disk is full"))}
    for index, value in told.items():
        scorer = driven.last(index)
        made = scorer._call

        def answered(method: str, *arguments: Any, made: Any = made, value: Any = value) -> Any:
            call = made(method, *arguments)
            call.answer(value)
            return call

        scorer._call = answered  # type: ignore[method-assign]
    assert driven.pool.save(5.0) == (2, 5)
    assert driven.last(0).calls[-1].method == "save"
    assert driven.last(0).cancelled == [unscored]
    assert "scorer-1 could not save" in caplog.text and "scorer-2 could not save: no answer within 5 s" in caplog.text


def test_a_scorer_with_a_call_in_flight_is_not_kept() -> None:
    driven = Driven(2, keeps=True)
    driven.begin(0)
    driven.pool.close()
    assert list(driven.factory.kept) == [0] and not driven.last(0).ended and driven.last(1).ended
