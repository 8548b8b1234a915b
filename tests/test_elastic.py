"""Runs on a cluster that autoscales: what may come, and engines that follow the nodes. The runs use real Ray, with its own
autoscaler and simulated engines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rollout_ray.ray_cluster.autoscaling import gpu_to_come, nodes_to_come
from rollout_ray.ray_cluster.placement import Node
from rollout_ray.sizing.hardware import Gpu
from tests.conftest import ROOT, Command, clean_environment

HEAD = {"resources": {"CPU": 0}, "max_workers": 0}
H100 = {"resources": {"CPU": 208, "GPU": 8, "memory": 1e12}, "max_workers": 2}
SMALL = {"resources": {"CPU": 30, "GPU": 1}}


@pytest.mark.parametrize(
    ("most", "kinds", "expected"),
    [
        (4, {"head": HEAD, "h100": H100}, [Node(208, 8)] * 2),
        (1, {"head": HEAD, "h100": H100}, [Node(208, 8)]),
        (3, {"head": HEAD, "small": SMALL, "h100": H100}, [Node(208, 8)] * 2 + [Node(30, 1)]),
        (2, {"head": SMALL}, []),
        (0, {"head": HEAD, "h100": H100}, []),
        (2, {"head": HEAD, "cpu": {"resources": {}}}, [Node(0, 0)] * 2),
    ],
)
def test_what_may_come_is_what_the_autoscaler_has_at_most(most: int, kinds: dict[str, Any], expected: list[Node]) -> None:
    config = {"max_workers": most, "head_node_type": "head", "available_node_types": kinds}
    assert nodes_to_come(config) == expected


def test_without_an_autoscaler_nothing_comes() -> None:
    assert nodes_to_come(None) == [] and gpu_to_come(None) is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"h100": H100}, None),
        ({"h100": {**H100, "labels": {"ray.io/accelerator-type": "H100"}}}, Gpu("H100", 80)),
        (
            {
                "a": {"resources": {"GPU": 1, "accelerator_type:A10": 1}},
                "b": {"labels": {"ray.io/accelerator-type": "H200"}},
            },
            Gpu("A10", 22),
        ),
        ({"odd": {"labels": {"ray.io/accelerator-type": "no such"}}}, None),
    ],
)
def test_the_gpus_of_nodes_to_come_are_known_by_their_types(kinds: dict[str, Any], expected: Gpu | None) -> None:
    assert gpu_to_come({"available_node_types": kinds}) == expected


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_engines_follow_the_nodes_of_an_autoscaling_cluster(tmp_path: Path, version: str, run_alone: Command) -> None:
    """From no worker up and down again; with v2, two nodes are killed in between. Ray's logs are in a /tmp/ray that goes
    with the namespace."""
    script = (
        f"mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray\n{sys.executable} -m tests.chaos.elastic {tmp_path} {version}"
    )
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = run_alone(script, ROOT, environment, unshared=("--mount",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"expected=5600, found=5600, missing=0, duplicates=0", done.stdout), done.stdout
