"""How many engines the machines hold, and what is said where they hold none."""

from __future__ import annotations

import pytest

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.resolved_run import resolve
from rollout_ray.ray_cluster.placement import Node, choose_placement, live_nodes, scorers_for


def choose(
    nodes: list[Node], tp: int | None = None, replicas: int | None = None, backend: str = "vllm"
) -> tuple[int, int, int]:
    config = RunConfig.model_validate(
        {"engine": {"tensor_parallel_size": tp, "backend": backend}, "resources": {"replicas": replicas}}
    )
    placement = choose_placement(nodes, resolve(config))
    return placement.replicas, placement.gpus, placement.threads


@pytest.mark.parametrize(
    ("nodes", "tp", "replicas", "expected"),
    [
        ([Node(64, 8)], 1, None, (8, 1, 1)),
        ([Node(64, 8)], 8, None, (1, 8, 1)),
        ([Node(64, 8), Node(64, 8)], 8, None, (2, 8, 1)),
        ([Node(64, 8), Node(16, 3)], 2, None, (5, 2, 1)),
        ([Node(64, 8)], 2, 3, (3, 2, 1)),
        ([Node(4, 0), Node(64, 8)], 1, None, (8, 1, 1)),
        ([Node(2, 0)], 1, None, (2, 0, 1)),
        ([Node(16, 0)], 1, None, (2, 0, 8)),
        ([Node(16, 0)], 1, 1, (1, 0, 16)),
        ([Node(1, 0)], 1, None, (1, 0, 1)),
    ],
)
def test_what_is_chosen(nodes: list[Node], tp: int, replicas: int | None, expected: tuple[int, int, int]) -> None:
    assert choose(nodes, tp, replicas) == expected


@pytest.mark.parametrize(
    ("nodes", "tp", "replicas", "message"),
    [
        ([Node(2, 0)], 8, None, "needs GPUs and the machines at hand have none; set it to 1 to run on the CPU"),
        ([Node(64, 4), Node(64, 4)], 8, None, "needs 8 GPUs on one node and the nodes have 4, 4"),
        ([Node(64, 8)], 2, 5, "5 replicas of 2 GPU.* hold 4; lower --replicas"),
        ([Node(2, 0)], 1, 3, "3 engines need a CPU each and Ray has 2"),
    ],
)
def test_what_does_not_fit_is_said_and_not_waited_for(
    nodes: list[Node], tp: int, replicas: int | None, message: str
) -> None:
    with pytest.raises(PlacementError, match=message):
        choose(nodes, tp, replicas)


def test_without_gpus_it_says_that_it_runs_on_the_cpu() -> None:
    assert (
        choose_placement([Node(2, 0)], resolve(RunConfig())).note == "no GPU here: 2 engine(s) on the CPU, 1 thread(s) each"
    )


def test_simulated_engines_need_no_machine() -> None:
    assert choose([Node(1, 0)], replicas=50, backend="simulated") == (50, 0, 1)


def test_scorers_follow_the_engines_up_to_what_one_machine_holds() -> None:
    assert [scorers_for(RunConfig(), engines) for engines in (1, 2, 8, 32, 1000)] == [1, 1, 4, 16, 16]
    assert scorers_for(RunConfig.model_validate({"resources": {"scorers": 40}}), 8) == 40


def test_dead_nodes_do_not_count() -> None:
    nodes = [{"Alive": alive, "Resources": {"CPU": 4.0, "GPU": 2.0}} for alive in (True, False)]
    assert live_nodes(nodes) == [Node(4, 2)]
