"""Engines come and go with the nodes of their cluster, and nodes are let go when there is nothing left for them.

Owns what changes with the number of nodes in the course of a run: which engines have room, which of them the scheduler may
count on, which are no longer needed, and what of it is logged. An engine's life is fleet.py's, the draws are the
scheduler's, how many engines there are to be at most is autoscaling.py's. Once a heartbeat is enough for all of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from rollout_ray.core.errors import PlacementError
from rollout_ray.driver.replica import Replica, waits_for_placement
from rollout_ray.driver.replica_set import HEARTBEAT_S, ReplicaSet
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import choose_placement, live_nodes
from rollout_ray.storage.event_log import EventLog
from rollout_ray.telemetry.run_view import EngineView

log = logging.getLogger(__name__)

LET_GO_S = 3 * HEARTBEAT_S  # without work before an engine ends: others may still give some back
REMIND_S = 60.0


class Elastic:
    """The part of a session that follows the cluster. Engines of a pool are `lent`: they stay, and none is added."""

    def __init__(
        self,
        run: ResolvedRun,
        replica_set: ReplicaSet,
        scheduler: Scheduler,
        views: dict[str, EngineView],
        events: EventLog,
        pool_resources: bool,
    ) -> None:
        self._run, self._replica_set, self._scheduler, self._views, self._events = (
            run,
            replica_set,
            scheduler,
            views,
            events,
        )
        self._lets_go = replica_set.placement.scales and not pool_resources
        self._grows = run.config.resources.replicas is None and not replica_set.placement.scales and not pool_resources
        self._nodes = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
        self._idle_since: dict[str, float] = {}
        self._reminded = time.monotonic()

    def look(self, unscored: Set[Any]) -> None:
        """Once a heartbeat. `unscored` holds the payloads that no scorer has read yet."""
        self._look_at_nodes()
        for replica in self._replica_set.replicas.values():
            self._check_placement(replica)
            replica.payloads &= unscored
        if self._lets_go:
            self._let_go()
        self._scheduler.expected_engines = sum(replica.placed for replica in self._replica_set.replicas.values())
        self._remind()

    def ensure_engine(self) -> None:
        """There is work, and every engine may have been let go: work comes back with a scorer's death."""
        if not self._replica_set.replicas:
            self._add()

    # What there is

    def _look_at_nodes(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        now = frozenset(node["NodeID"] for node in nodes)
        joined, left = now - self._nodes, self._nodes - now
        if not (joined or left):
            return
        self._nodes = now
        log.info("%d node(s) joined, %d left: the cluster has %d", len(joined), len(left), len(now))
        self._events.write("nodes", count=len(now), joined=sorted(joined), left=sorted(left))
        if joined and self._grows:
            self._grow(nodes)

    def _grow(self, nodes: list[dict[str, Any]]) -> None:
        """The run was to use what there is, and there is more now."""
        gpus = self._replica_set.placement.gpus
        try:
            placement = choose_placement(live_nodes(nodes), self._run, degree=gpus or None)
        except PlacementError:  # a node that held engines has gone
            return
        if placement.gpus == gpus:
            for _ in range(placement.replicas - len(self._views)):
                self._add()

    def _add(self) -> None:
        name = f"engine-{len(self._views)}"
        self._views[name] = EngineView()
        self._replica_set.add(name)
        self._events.write("engine_added", engine=name)

    def _check_placement(self, replica: Replica) -> None:
        """Whether the slot's engine has a node, or waits for one."""
        if replica.started or replica.placement_group is None:
            replica.placed = replica.started or not waits_for_placement(replica)
            return
        table = placement_group_table(replica.placement_group)
        replica.placed = table.get("state") == "CREATED"
        replica.node = table["bundles_to_node_id"][0] if replica.placed else ""
        state, view = "starting" if replica.placed else "waiting", self._views[replica.name]
        if replica.refused is None and view.state != state:
            view.enter(state)

    def _remind(self) -> None:
        waiting = [replica for replica in self._replica_set.replicas.values() if not replica.placed]
        if not waiting:
            self._reminded = time.monotonic()
        elif time.monotonic() - self._reminded >= REMIND_S:
            self._reminded = time.monotonic()
            placement = self._replica_set.placement
            log.warning(
                "%d engine(s) wait for a node with %d GPU(s) and %d CPU(s) free; `ray status` on the head says why",
                len(waiting), placement.gpus, placement.cpus,
            )  # fmt: skip

    # What is no longer needed

    def _let_go(self) -> None:
        """Ends engines for which nothing is left, once what they have drawn was read; their nodes are idle then, and
        the autoscaler ends those. Those that still wait for a node are not started any more."""
        now = time.monotonic()
        for replica in list(self._replica_set.replicas.values()):
            idle = replica.begun and replica.empty
            if self._scheduler.pending or not (idle or not replica.placed):
                self._idle_since.pop(replica.name, None)
            elif not replica.placed or now - self._idle_since.setdefault(replica.name, now) >= LET_GO_S:
                if replica.begun:
                    self._scheduler.remove_engine(replica.name)
                self._replica_set.let_go(replica, "ended")
                self._events.write("engine_let_go", engine=replica.name, node=replica.node)
