"""Start early what local engines will need: the query of the GPUs, and the server that forks engines.

It decides whether they are of use here. Both go on while the caller does something else.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rollout_ray.actors.engine.process import forking
from rollout_ray.actors.vllm_backend.arguments import environment
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.paths import cluster_address
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Node, choose_placement
from rollout_ray.sizing.gpus import COMMAND, start_query


@contextmanager
def prewarm(run: ResolvedRun) -> Iterator[None]:
    """Start what engines that may run on this machine will need; end it with the block."""
    if run.config.engine.backend != "vllm":
        yield
        return
    start_query()
    needs = _engine_needs(run)
    with forking(needs) if needs else nullcontext():
        yield


def _engine_needs(run: ResolvedRun) -> dict[str, str] | None:
    """Return the variables that engines on this machine will need; None if no engine may run here.

    It is None on macOS as well: much of macOS does not work after a fork.
    """
    if sys.platform != "linux":
        return None
    if shutil.which(COMMAND[0]) and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return environment(run, gpus=1, threads=1)
    if cluster_address(run.config) or _has_ray():
        return None
    from rollout_ray.ray_cluster.ray_internals import cpus_of_this_machine  # imports Ray

    try:
        return environment(run, gpus=0, threads=choose_placement([Node(cpus_of_this_machine(), 0)], run).threads)
    except PlacementError:
        return None


def _has_ray() -> bool:
    """Return whether the caller is connected to Ray already."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
