"""Follow the nodes of the cluster: add engines as nodes join, and let nodes go when their work is done.

It decides which engines the scheduler may count on. The replica set starts and ends engines, and autoscaling.py says
how many there are at most. Once a heartbeat is enough for all of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import ray

from rollout_ray.core.errors import PlacementError
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import choose_placement, live_nodes

log = logging.getLogger(__name__)

LET_GO_S = 3 * HEARTBEAT_S  # an engine without work ends after this: another may still return some
REMIND_S = 60.0

Nodes = Callable[[], Sequence[Mapping[str, Any]]]


class Cluster:
    """What the driver sees of the cluster: its nodes, as `ray.nodes()` lists them, and the time."""

    def __init__(self, nodes: Nodes = ray.nodes, clock: Callable[[], float] = time.monotonic) -> None:
        self.nodes, self.clock = nodes, clock

    def live(self) -> list[Mapping[str, Any]]:
        """Return the nodes that are up."""
        return [node for node in self.nodes() if node["Alive"]]


class Elastic:
    """The part of a session that follows the cluster."""

    def __init__(
        self,
        run: ResolvedRun,
        replica_set: ReplicaSet,
        scheduler: Scheduler,
        cluster: Cluster | None = None,
        *,
        in_pool: bool,
    ) -> None:
        """Follow the cluster as it is now. The engines of a pool stay, and none is added."""
        self._run = run
        self._replica_set = replica_set
        self._scheduler = scheduler
        self._cluster = cluster or Cluster()
        scales = replica_set.placement.scales
        self._lets_go = scales and not in_pool
        self._grows = run.config.resources.replicas is None and not scales and not in_pool
        self._nodes = frozenset(node["NodeID"] for node in self._cluster.live())
        self._idle_since: dict[str, float] = {}
        self._reminded = self._cluster.clock()

    def look(self, unread: Set[Any]) -> None:
        """Follow what has changed; call it once a heartbeat. `unread`: the payloads that no scorer has read yet."""
        self._look_at_nodes()
        self._replica_set.look()
        replicas = self._replica_set.replicas.values()
        for replica in replicas:
            replica.payloads &= unread
        if self._lets_go:
            self._let_go()
        self._scheduler.expected_engines = sum(replica.state is not ReplicaState.WAITING for replica in replicas)
        self._remind()

    def ensure_engine(self) -> None:
        """Start an engine if none is left. A scorer's death returns work after every engine was let go."""
        if not self._replica_set.replicas:
            self._replica_set.add()

    # Engines that are added

    def _look_at_nodes(self) -> None:
        nodes = self._cluster.live()
        now = frozenset(node["NodeID"] for node in nodes)
        joined, left = now - self._nodes, self._nodes - now
        if not (joined or left):
            return
        self._nodes = now
        log.info("%d node(s) joined, %d left: the cluster has %d", len(joined), len(left), len(now))
        self._replica_set.note("nodes", count=len(now), joined=sorted(joined), left=sorted(left))
        if joined and self._grows:
            self._grow(nodes)

    def _grow(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Add the engines that the nodes hold now and did not hold before."""
        gpus = self._replica_set.placement.gpus
        try:
            placement = choose_placement(live_nodes(nodes), self._run, degree=gpus or None)
        except PlacementError:  # a node that held engines has gone
            return
        if placement.gpus == gpus:
            for _ in range(placement.replicas - self._replica_set.num_added):
                self._replica_set.add()

    def _remind(self) -> None:
        waiting = [r for r in self._replica_set.replicas.values() if r.state is ReplicaState.WAITING]
        if not waiting:
            self._reminded = self._cluster.clock()
        elif self._cluster.clock() - self._reminded >= REMIND_S:
            self._reminded = self._cluster.clock()
            placement = self._replica_set.placement
            log.warning(
                "%d engine(s) wait for a node with %d GPU(s) and %d CPU(s) free; `ray status` on the head says why",
                len(waiting),
                placement.gpus,
                placement.cpus,
            )

    # Engines that are let go

    def _let_go(self) -> None:
        """End engines that have no work left, once their payloads are read, and engines that still wait for a node.

        Their nodes are idle then, and the autoscaler ends those.
        """
        now = self._cluster.clock()
        for replica in list(self._replica_set.replicas.values()):
            if self._scheduler.pending or not self._is_idle(replica):
                self._idle_since.pop(replica.name, None)
            elif replica.state is ReplicaState.WAITING or (
                now - self._idle_since.setdefault(replica.name, now) >= LET_GO_S
            ):
                if replica.serves:
                    self._scheduler.remove_engine(replica.name)
                self._replica_set.let_go(replica)

    @staticmethod
    def _is_idle(replica: Replica) -> bool:
        return replica.state is ReplicaState.WAITING or (replica.serves and replica.is_empty)
