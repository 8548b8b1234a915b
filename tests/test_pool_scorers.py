"""Scoring actors that serve one collection of a pool after the other. Real Ray; the engines are simulated."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from rollout_ray import RolloutPool
from rollout_ray.core.records import Question, Trajectory
from rollout_ray.scoring.grader import Grader
from tests.conftest import await_that, demo_rows
from tests.processes import SCORERS, later_workers
from tests.test_collect import simulated, trajectories
from tests.test_pool import assert_whole, at, events


@pytest.fixture
def scorers(local_ray: None) -> Callable[[], set[int]]:
    """The processes of this test's scoring actors."""
    return later_workers(SCORERS)


def process_as_reward(question: Question, trajectories: Sequence[Trajectory]) -> Iterator[float]:
    """A custom reward that tells which process gave it."""
    return (float(os.getpid()) for _ in trajectories)


def test_the_second_collection_starts_no_scorer(folders: Callable[[], Path], scorers: Callable[[], set[int]]) -> None:
    with RolloutPool(simulated(folders(), 2)) as pool:
        first = pool.collect(demo_rows(20), at(folders()))
        processes = await_that(scorers)
        # Other limits of grading: the actor stays, its grading child does not.
        other = {"scoring": {"grade_timeout_s": 7, "alpha": 0.0, "beta": 0.0}}
        second = pool.collect(demo_rows(30, seed=2), at(folders()) | other)
        assert await_that(scorers) == processes
    assert_whole(first, 20)
    assert_whole(second, 30)
    assert trajectories(second)["reward"].max() <= 0 < trajectories(first)["reward"].max()
    await_that(lambda: not scorers())


def test_an_idle_scorer_that_died_is_replaced(folders: Callable[[], Path], scorers: Callable[[], set[int]]) -> None:
    with RolloutPool(simulated(folders(), 2)) as pool:
        pool.collect(demo_rows(5), at(folders()))
        (pid,) = await_that(scorers)
        os.kill(pid, signal.SIGKILL)
        second = pool.collect(demo_rows(20), at(folders()))
        third = pool.collect(demo_rows(20), at(folders()))
    assert_whole(second, 20)
    assert len(events(second, "scorer_died")) == 1 and not events(third, "scorer_died")


def test_rewards_of_ones_own_are_given_by_a_new_process_each_time(
    folders: Callable[[], Path], scorers: Callable[[], set[int]]
) -> None:
    """The function may have been edited meanwhile."""
    own = {"scoring": {"reward": f"{__name__}:{process_as_reward.__name__}"}}
    with RolloutPool(simulated(folders(), 1)) as pool:
        pool.collect(demo_rows(5), at(folders()))
        kept = await_that(scorers)
        given = [set(trajectories(pool.collect(demo_rows(5), at(folders()) | own))["reward"]) for _ in range(2)]
    assert len(given[0]) == len(given[1]) == 1
    assert not (given[0] & given[1]) and not ((given[0] | given[1]) & {float(pid) for pid in kept})


def test_a_grader_asks_again_once_it_has_forgotten(long_computation: None) -> None:
    pair = ("\\sqrt{8}", "Answer: 2\\sqrt{2}")
    others = set(psutil.Process().children())
    with Grader(timeout_s=1) as grader:
        grader.prepare()
        (child,) = set(psutil.Process().children()) - others
        child.suspend()
        assert grader.grade(*pair).status == grader.grade(*pair).status == "timeout"
        grader.forget()
        assert grader.grade(*pair).status == "correct"
