"""Where engines go: how many replicas the machines hold, and one reservation (a placement group) for each.

Owns that choice and its messages. A replica never spans nodes. It starts nothing.
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
MOST_SCORERS = 16  # of 300 MiB each, at times all on the head; each scores what dozens of engines draw
CPU_REPLICAS = 2  # on the CPU two one-core engines beat one of two cores; more of them only share memory bandwidth


@dataclass(frozen=True)
class Node:
    """One live machine: its cores and GPUs."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Placement:
    """`replicas` engines with `gpus` GPUs and `threads` CPU threads each; `note` says in words why.

    `limits` are an engine's on these machines; `cpus` is what Ray books for an engine, which need not be the threads that
    it uses. Where the cluster `scales`, nodes for some of the engines may be still to
    come.
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
    """How many engines to run, of a model of that size on nodes whose smallest GPU is `gpu`; None: not known. `degree`
    fixes the GPUs of a replica. Raises PlacementError where the nodes cannot hold what was asked for."""
    config = run.config
    wanted, size = config.resources.replicas, config.engine.tensor_parallel_size or 1
    cpus = sum(node.cpus for node in nodes)
    if config.engine.backend == "simulated":
        return Placement(wanted or CPU_REPLICAS, 0, 1, "simulated engines", usual_limits(config.engine, 0), cpus=0)
    if not any(node.gpus for node in nodes):
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
    layout = lay_out(run, model, gpu, max(node.gpus for node in nodes), degree)
    size = layout.tensor_parallel_size
    room = sum(node.gpus // size for node in nodes)
    have = ", ".join(str(node.gpus) for node in nodes)
    if room == 0:
        raise PlacementError(
            f"tensor_parallel_size {size} needs {size} GPUs on one node and the nodes have {have}; lower it"
        )
    if wanted and wanted > room:
        raise PlacementError(
            f"{wanted} replicas of {size} GPU(s) were asked for and the nodes ({have} GPUs) hold {room}; lower --replicas"
        )
    replicas = wanted or room
    note = f"{replicas} engine(s) of {size} GPU(s) each, the nodes have {have}; {layout.reason}"
    return Placement(replicas, size, 1, note, layout.limits)


def scorers_for(config: RunConfig, replicas: int) -> int:
    """How many scoring actors that many engines get."""
    return config.resources.scorers or min(MOST_SCORERS, max(1, replicas // ENGINES_PER_SCORER))


def live_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The live machines of a `ray.nodes()` answer."""
    return [
        Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes if node["Alive"]
    ]


def reserve(placement: Placement) -> PlacementGroup | None:
    """Asks for the room of one replica, all on one node, without waiting for it; None where it needs none."""
    from ray.util.placement_group import placement_group

    bundle = {"GPU": float(placement.gpus), "CPU": float(placement.cpus)}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    return placement_group([bundle], strategy="STRICT_PACK") if bundle else None


def release(room: PlacementGroup | None) -> None:
    """Gives a reservation back; Ray keeps it for as long as the driver is connected otherwise."""
    from ray.util.placement_group import remove_placement_group

    if room is not None:
        remove_placement_group(room)
