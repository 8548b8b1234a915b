"""Decide how many replicas the nodes hold, and reserve a placement group for each.

A replica never spans nodes. This module starts no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import ModelSize
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.sizing.hardware import EngineLimits, Gpu, lay_out, usual_limits

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ENGINES_PER_SCORER = 2
MOST_SCORERS = 16  # each takes 300 MiB, all of them may be on the head, and one scores for dozens of engines
CPU_REPLICAS = 2  # two one-core engines beat one engine of two cores; more of them share the memory bandwidth


@dataclass(frozen=True)
class Node:
    """The cores and GPUs of a live machine."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Placement:
    """How many engines run, and what each gets.

    Attributes:
        replicas: Number of engines.
        gpus: GPUs of each engine.
        threads: CPU threads of each engine.
        note: The reason, for the user.
        limits: Batch limits of an engine on these machines.
        cpus: CPUs that Ray books for an engine. They may differ from its threads.
        scales: Whether nodes for some of the engines may be still to come.
    """

    replicas: int
    gpus: int
    threads: int
    note: str
    limits: EngineLimits
    cpus: int = 1
    scales: bool = False


def choose_placement(
    nodes: Sequence[Node],
    run: ResolvedRun,
    gpu: Gpu | None = None,
    model: ModelSize | None = None,
    degree: int | None = None,
) -> Placement:
    """Return how many engines to run on the nodes.

    Args:
        nodes: The machines.
        run: The resolved run.
        gpu: The smallest GPU of the nodes, or None if not known.
        model: The size of the model, or None if not known.
        degree: GPUs of a replica, if another replica has fixed them.

    Raises:
        PlacementError: The nodes cannot hold the engines that the config asks for.
    """
    config = run.config
    wanted = config.resources.replicas
    if config.engine.backend == "simulated":
        return Placement(wanted or CPU_REPLICAS, 0, 1, "simulated engines", usual_limits(config.engine, 0), cpus=0)
    if not any(node.gpus for node in nodes):
        return _on_the_cpu(nodes, config)
    layout = lay_out(run, model, gpu, max(node.gpus for node in nodes), degree)
    size = layout.tensor_parallel_size
    capacity = sum(node.gpus // size for node in nodes)
    have = ", ".join(str(node.gpus) for node in nodes)
    if capacity == 0:
        raise PlacementError(
            f"tensor_parallel_size {size} needs {size} GPUs on one node and the nodes have {have}; lower it"
        )
    if wanted and wanted > capacity:
        raise PlacementError(
            f"{wanted} replicas of {size} GPU(s) were asked for and the nodes ({have} GPUs) hold {capacity}; "
            "lower --replicas"
        )
    replicas = wanted or capacity
    note = f"{replicas} engine(s) of {size} GPU(s) each, the nodes have {have}; {layout.reason}"
    return Placement(replicas, size, 1, note, layout.limits)


def _on_the_cpu(nodes: Sequence[Node], config: RunConfig) -> Placement:
    """Return how many engines to run on nodes without GPUs. Raises PlacementError."""
    wanted, size = config.resources.replicas, config.engine.tensor_parallel_size or 1
    cpus = sum(node.cpus for node in nodes)
    if size > 1:
        raise PlacementError(
            f"tensor_parallel_size {size} needs GPUs and the machines at hand have none; set it to 1 to run on the CPU"
        )
    if cpus < (wanted or 1):
        raise PlacementError(f"{wanted or 1} engines need a CPU each and Ray has {cpus}; lower --replicas")
    replicas = wanted or min(CPU_REPLICAS, cpus)
    threads = max(1, min(node.cpus for node in nodes if node.cpus) * len(nodes) // replicas)
    note = f"no GPU here: {replicas} engine(s) on the CPU, {threads} thread(s) each"
    return Placement(replicas, 0, threads, note, usual_limits(config.engine, 0))


def scorers_for(config: RunConfig, replicas: int) -> int:
    """Return the number of scorers for that many engines."""
    return config.resources.scorers or min(MOST_SCORERS, max(1, replicas // ENGINES_PER_SCORER))


def live_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the live machines in an answer of `ray.nodes()`."""
    return [
        Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes if node["Alive"]
    ]


def reserve(placement: Placement) -> PlacementGroup | None:
    """Request a placement group for one replica, on one node, without waiting. Return None if it books nothing."""
    from ray.util.placement_group import placement_group

    bundle = {"GPU": float(placement.gpus), "CPU": float(placement.cpus)}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    return placement_group([bundle], strategy="STRICT_PACK") if bundle else None


def release(group: PlacementGroup | None) -> None:
    """Remove a placement group. Ray would keep it for as long as the driver is connected."""
    from ray.util.placement_group import remove_placement_group

    if group is not None:
        remove_placement_group(group)
