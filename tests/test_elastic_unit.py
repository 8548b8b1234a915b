"""Engines follow the nodes of the cluster: added, waiting, let go. Without Ray."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rollout_ray.core.records import Question
from rollout_ray.driver.elastic import LET_GO_S, REMIND_S, Cluster, Elastic
from rollout_ray.driver.replica import ReplicaState
from rollout_ray.driver.scheduler import Scheduler
from tests.driven_replicas import Driven, run_with

CPU_NODE = {"CPU": 1.0}


class Followed(Driven):
    """A replica set whose cluster has `nodes`, as many as the test says."""

    def __init__(self, replicas: int = 1, *, scales: bool = False, in_pool: bool = False, asked: int | None = None) -> None:
        super().__init__(replicas, run_with(replicas=asked), scales=scales)
        self.nodes = [self.node(0)]
        self.scheduler = Scheduler((Question(str(i), "?", None) for i in range(1)), 1, 4, expected_engines=replicas)
        self.elastic = Elastic(self.run, self.set, self.scheduler, Cluster(lambda: self.nodes, self.clock), in_pool=in_pool)

    @staticmethod
    def node(number: int) -> dict[str, Any]:
        return {"NodeID": f"node-{number}", "Alive": True, "Resources": CPU_NODE}

    def give_work(self, name: str = "engine-0") -> None:
        self.begin(name)
        self.scheduler.add_engine(name, 8)
        self.set.exchange(self.replica(name), self.scheduler.assign(name, 0, 0.0), 4, 0)

    def finish(self, name: str = "engine-0") -> None:
        self.replica(name).take_call()
        self.scheduler.complete(name, [(0, 0)])
        self.set.exchange(self.replica(name), [], 0, 0)


@pytest.mark.parametrize(("in_pool", "asked"), [(True, None), (False, 1)])
def test_no_engine_is_added_to_a_pool_or_beyond_what_was_asked_for(in_pool: bool, asked: int | None) -> None:
    followed = Followed(1, in_pool=in_pool, asked=asked)
    followed.nodes += [followed.node(1)]
    followed.elastic.look(set())
    assert list(followed.set.replicas) == ["engine-0"]


def test_a_run_grows_by_the_engines_that_the_new_nodes_hold() -> None:
    followed = Followed(1)
    followed.nodes += [followed.node(1)]
    followed.elastic.look(set())
    assert list(followed.set.replicas) == ["engine-0", "engine-1"] == list(followed.views)
    assert followed.events.named("nodes") == [{"count": 2, "joined": ["node-1"], "left": []}]
    assert followed.events.named("engine_added") == [{"engine": "engine-1"}]
    assert followed.scheduler.expected_engines == 2


def test_the_scheduler_counts_on_engines_that_have_a_node() -> None:
    followed = Followed(2, scales=True)
    followed.engines.last("engine-1").found_node = None
    followed.elastic.look(set())
    assert followed.scheduler.expected_engines == 1 and followed.shown() == ["starting", "waiting"]
    followed.engines.last("engine-1").found_node = "node-1"
    followed.elastic.look(set())
    assert followed.scheduler.expected_engines == 2 and followed.shown() == ["starting", "starting"]


def test_an_engine_without_work_is_let_go_after_a_while() -> None:
    followed = Followed(1, scales=True)
    followed.give_work()
    followed.elastic.look(set())
    followed.finish()
    followed.elastic.look(set())
    assert followed.states() == [ReplicaState.IDLE]
    followed.clock.advance(LET_GO_S)
    followed.elastic.look(set())
    assert not followed.set.replicas and followed.shown() == ["ended"] and not followed.engines.reserved
    assert followed.events.named("engine_let_go") == [{"engine": "engine-0", "node": "node-a"}]


def test_an_engine_stays_while_a_scorer_has_not_read_what_it_made() -> None:
    followed = Followed(1, scales=True)
    followed.give_work()
    followed.finish()
    followed.replica().payloads = {"unread"}
    for _ in range(3):
        followed.clock.advance(LET_GO_S)
        followed.elastic.look({"unread"})
    assert followed.states() == [ReplicaState.IDLE]
    followed.elastic.look(set())
    followed.clock.advance(LET_GO_S)
    followed.elastic.look(set())
    assert not followed.set.replicas


@pytest.mark.parametrize(("scales", "in_pool"), [(False, False), (True, True)])
def test_engines_stay_where_no_node_goes_with_them(scales: bool, in_pool: bool) -> None:
    followed = Followed(1, scales=scales, in_pool=in_pool)
    followed.give_work()
    followed.finish()
    for _ in range(3):
        followed.clock.advance(LET_GO_S)
        followed.elastic.look(set())
    assert followed.states() == [ReplicaState.IDLE]


def test_an_engine_that_waits_for_a_node_is_let_go_once_nothing_is_pending() -> None:
    followed = Followed(2, scales=True)
    followed.engines.last("engine-1").found_node = None
    followed.elastic.look(set())
    assert len(followed.set.replicas) == 2
    followed.give_work("engine-0")
    followed.elastic.look(set())
    assert list(followed.set.replicas) == ["engine-0"]


def test_work_that_comes_back_after_all_engines_were_let_go_gets_a_new_one() -> None:
    followed = Followed(1, scales=True)
    followed.give_work()
    followed.finish()
    for _ in range(2):
        followed.elastic.look(set())
        followed.clock.advance(LET_GO_S)
    assert not followed.set.replicas
    followed.elastic.ensure_engine()
    assert list(followed.set.replicas) == ["engine-1"]
    followed.elastic.ensure_engine()
    assert len(followed.set.replicas) == 1


def test_a_warning_reminds_of_engines_that_wait(caplog: pytest.LogCaptureFixture) -> None:
    followed = Followed(2, scales=True)
    followed.engines.last("engine-1").found_node = None
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            followed.elastic.look(set())
            followed.clock.advance(REMIND_S / 2)
    assert caplog.text.count("1 engine(s) wait for a node with 0 GPU(s)") == 1
