"""One engine slot: what is known of the engine in it, how it is started and ended, and the words for why it died.

Owns no decision: with what an engine is started, and when again, is fleet.py's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rollout_ray.actors.engine.actor import EngineActor
from rollout_ray.actors.engine.launch import LaunchSpec, forwarded_environment
from rollout_ray.actors.engine.process import EngineLost, server_here
from rollout_ray.driver.named_pool import NamedPool
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Placement
from rollout_ray.ray_cluster.ray_internals import is_pending

PROCESS_S = 10.0  # within which an actor that has room has a process


@dataclass
class Replica:
    """One engine slot. `call` has the returns of its start, its taking up of the run, or its exchange in flight: the
    answer, and of an exchange what it hands over, by lane; it is empty while the engine is idle.

    `started` is set once the engine has loaded, `begun` once it has taken up the present run; `adopted` where it had
    started before that run. `deaths` counts those since a piece was last delivered, `shrunk` the steps down in memory;
    `refused` is what its start raised, while it waits for another engine to show that starting is possible at all;
    `leaving` is set while its node is being drained; `placed` unless it waits for a node with room. `payloads` are those
    that it has handed over and that may be unread; `asked_at` is when the engine was asked for.
    """

    name: str
    placement_group: Any = None
    actor: Any = None
    call: Sequence[Any] = ()
    log: str | None = None
    started: bool = False
    begun: bool = False
    adopted: bool = False
    deaths: int = 0
    shrunk: int = 0
    keep_share: bool = False
    refused: Exception | None = None
    node: str = ""
    leaving: bool = False
    placed: bool = False
    payloads: set[Any] = field(default_factory=set)
    steps: int = 0
    asked_at: float = 0.0
    progress_at: float = field(default_factory=time.monotonic)

    @property
    def empty(self) -> bool:
        """Whether its engine has nothing in hand, and nothing that may be unread."""
        return not self.call and not self.payloads


def start(replica: Replica, run: ResolvedRun, placement: Placement, logs: str | None, named_pool: NamedPool | None) -> None:
    """Starts an engine of this run in the slot, on a fresh actor in the slot's room, with the placement's limits; `logs` is
    the folder for its output."""
    options: dict[str, Any] = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    if replica.placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            replica.placement_group, placement_group_bundle_index=0
        )
    keepalive, note = None, None
    if named_pool:
        options |= named_pool.options(replica.name)
        keepalive, note = named_pool.keepalive, named_pool.note
    replica.log = f"{logs}/{replica.name}.log" if logs else None
    spec = LaunchSpec(
        name=replica.name,
        run=run,
        gpus=placement.gpus,
        threads=placement.threads,
        limits=placement.limits,
        environment=forwarded_environment(os.environ),
        log_file=replica.log,
        keepalive=keepalive,
        note=note,
        server=server_here(),
    )
    replica.actor = ray.remote(EngineActor).options(**options).remote(spec)
    replica.call, replica.started, replica.begun, replica.adopted = [replica.actor.start.remote()], False, False, False
    replica.refused, replica.node, replica.leaving, replica.asked_at = None, "", False, time.monotonic()


def end(replica: Replica) -> None:
    """Ends the slot's engine, where it has one."""
    if replica.actor is not None:
        ray.kill(replica.actor)
    replica.actor, replica.call, replica.started, replica.begun = None, (), False, False


def waits_for_placement(replica: Replica) -> bool:
    """Whether Ray has found no node yet for the slot's engine."""
    if replica.placement_group is not None:
        return str(placement_group_table(replica.placement_group).get("state")) != "CREATED"
    return time.monotonic() - replica.asked_at > PROCESS_S and is_pending(replica.actor)


def was_killed(error: Exception) -> bool:
    """Whether a process ended under the engine, as against an exception that it raised."""
    ended = isinstance(error, (ray.exceptions.RayError, EngineLost, TimeoutError))
    return ended and not isinstance(error, ray.exceptions.RayTaskError)


def reason_of(error: Exception) -> str:
    """An error on one line. Ray's reports of a death run over many; those that say why are kept."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayActorError):
        why = [line for line in lines if not line.startswith(("class_name", "actor_id", "pid", "namespace", "ip", "name"))]
        return " ".join(why).partition(" Some common causes")[0][:600]
    return " ".join(lines)[:600] or type(error).__name__
