"""The set of replicas: keeps each supplied with an engine, and replaces, moves or retires engines that fail.

Only this module starts an engine again: Ray restarts none of our actors, and vLLM none of its processes. It sees no
question: the scheduler knows what an engine holds, and the session returns that to the queue. A replica set serves one
run after the other; attaching a run drops what is left of the earlier one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from ray.exceptions import RayActorError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.exchange import Exchange
from rollout_ray.core.errors import EngineError
from rollout_ray.core.records import RolloutRequest
from rollout_ray.driver.failures import reason_of
from rollout_ray.driver.handle import EngineFactory, RunningEngine
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.lifecycle import ReplicaLifecycle
from rollout_ray.driver.recovery import Recovery
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.driver.weights import load_weights
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Placement
from rollout_ray.storage.event_log import EventLog
from rollout_ray.telemetry.run_view import EngineView

COALESCE_S = 0.1  # an engine gathers finished chunks for this long before it hands them over


class ReplicaSet:
    """All replicas. One whose engine dies gets another, up to `max_engine_deaths` times in a row without a result."""

    def __init__(
        self,
        run: ResolvedRun,
        engines: EngineFactory,
        found: Mapping[str, RunningEngine] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the engines of the placement.

        Args:
            run: The config and the weights of the engines.
            engines: Launches engines.
            found: Engines that are up, by replica; they are not started.
            clock: Returns seconds from any origin.

        Raises:
            EngineError: Some engines are up, and the others cannot get the same weights.
        """
        self._life = ReplicaLifecycle(run, engines, clock)
        self._recovery = Recovery(self._life, run.config.resources)
        self._launched = self._run = run
        self._num_scorers = 1
        found = found or {}
        if found and len(found) < engines.placement.replicas:
            self._life.check_weights()
        for name in (f"engine-{number}" for number in range(engines.placement.replicas)):
            if name in found:
                self._life.adopt(name, found[name])
            else:
                self._life.add(name)

    @property
    def replicas(self) -> dict[str, Replica]:
        """Return the replicas, by name."""
        return self._life.replicas

    @property
    def placement(self) -> Placement:
        """Return what each engine runs on."""
        return self._life.engines.placement

    @property
    def deaths(self) -> int:
        """Return how many engines of the present run died."""
        return self._recovery.deaths

    @property
    def policy(self) -> Policy:
        """Return the weights that the engines hold."""
        return self._life.policy

    # Runs

    def attach(self, run: ResolvedRun, num_scorers: int, views: dict[str, EngineView], events: EventLog) -> None:
        """Serve a run from now on, with as many replicas as it has views.

        Replicas without an engine get one. The others' engines take up the run; one that has died meanwhile shows it by
        that.
        """
        self.detach()
        self._run, self._num_scorers = run, num_scorers
        self._life.show_in(views, events)
        self._recovery.begin_run(run.config.resources)
        for name in views:
            replica = self.replicas.get(name)
            if replica is None:
                self._life.add(name)
                continue
            replica.deaths, replica.adopted = 0, replica.has_loaded
            if replica.has_loaded:
                self._life.begin(replica, run)
            elif not replica.has_engine:
                self._life.restart(replica)
            else:
                self._life.enter(replica, replica.state)  # on the new run's display
                if not replica.call:  # an interrupt came between its answer and what was to follow
                    replica.call = [replica.engine.start()]

    def detach(self) -> None:
        """Serve no run. The engines drop what they hold."""
        self._life.show_nowhere()
        self._run = self._launched
        for replica in self.replicas.values():
            if replica.serves:
                replica.engine.drop()
            if replica.has_loaded:
                self._life.enter(replica, ReplicaState.LOADED)
                replica.call = ()

    @property
    def num_added(self) -> int:
        """Return how many replicas the present run has had so far."""
        return len(self._life.views)

    def add(self) -> None:
        """Start an engine in a further replica."""
        name = f"engine-{self.num_added}"
        self._life.views[name] = EngineView()
        self._life.add(name)
        self._life.note("engine_added", engine=name)

    def let_go(self, replica: Replica) -> None:
        """End a replica that the run does not need any more, and give its resources back."""
        self._life.let_go(replica, "ended")
        self._life.note("engine_let_go", engine=replica.name, node=replica.node)

    def note(self, event: str, **fields: Any) -> None:
        """Write an event of the present run."""
        self._life.note(event, **fields)

    def look(self) -> None:
        """Find out which engines that start have a node. Call it once a heartbeat."""
        for replica in self.replicas.values():
            self._life.look(replica)

    def end_pending(self) -> None:
        """End engines that have no process yet. No later job takes over those of a named pool, and they would ask for a
        node that nobody uses."""
        for replica in self.replicas.values():
            if replica.is_pending and replica.engine.is_pending():
                self._life.end(replica)

    def close(self) -> None:
        """End every engine and give the resources back."""
        self._life.close()

    # What engines say

    def calls(self) -> dict[Any, Replica]:
        """Return the answers that engines owe, each with its replica."""
        return {replica.call[0]: replica for replica in self.replicas.values() if replica.call}

    def loaded(self, replica: Replica, info: BackendInfo) -> None:
        """Have an engine that is up take up the run. It shows that a start is possible, so refused ones are repeated."""
        self._life.loaded(replica, info)
        self._life.begin(replica, self._run)
        self._recovery.repeat_refused()

    def begun(self, replica: Replica, info: BackendInfo) -> None:
        """Note that an engine has taken up the run."""
        replica.node = info.node
        self._life.enter(replica, ReplicaState.IDLE)
        if replica.adopted:
            version = self.policy.version
            self._life.note("engine_adopted", engine=replica.name, policy_version=version, max_num_seqs=info.max_num_seqs)

    def exchange(
        self, replica: Replica, work: Sequence[RolloutRequest], unfinished: int, reclaim: int, *, soon: bool = False
    ) -> None:
        """Hand work to an engine and ask for what it has finished. An engine that holds nothing is not asked.

        Args:
            replica: A replica without a call in flight.
            work: Chunks that the engine takes on.
            unfinished: Samples that the engine holds, those of `work` among them.
            reclaim: Samples to return, of those that it has not begun.
            soon: The engine answers as soon as it has gathered what finishes together.
        """
        state = ReplicaState.RUNNING if unfinished else ReplicaState.IDLE
        self._life.enter(replica, replica.state if replica.state is ReplicaState.DRAINING else state, unfinished)
        if unfinished:
            wait_s = COALESCE_S if soon else HEARTBEAT_S
            replica.call = replica.engine.exchange(work, wait_s, COALESCE_S, reclaim, self._num_scorers)

    def answered(self, replica: Replica, exchange: Exchange) -> None:
        """Note whether an engine still decodes."""
        if exchange.steps > replica.steps or not exchange.unfinished:
            replica.steps, replica.progress_at = exchange.steps, self._life.clock()
        if exchange.chunks:
            replica.deaths = 0

    # Failures

    def hanging(self) -> list[tuple[Replica, Exception]]:
        """Return the replicas whose engine hangs, by the limits of the present run, each with the error that says so."""
        return self._recovery.hanging()

    def died(self, replica: Replica, error: Exception) -> None:
        """End an engine that died, hangs or could not start; replace it or retire its replica.

        Raises:
            EngineError: No engine is left; the text has the engine's last words.
        """
        self._recovery.died(replica, error)

    # Nodes that go

    def drain(self, nodes: Set[str]) -> list[str]:
        """Take engines off nodes that are being drained.

        An engine that serves the run gets no more work. Any other moves at once.

        Returns:
            The names of the replicas that are told now.
        """
        told = [r for r in self.replicas.values() if r.has_engine and r.node in nodes]
        told = [replica for replica in told if replica.state is not ReplicaState.DRAINING]
        for replica in told:
            if replica.serves:
                self._life.enter(replica, ReplicaState.DRAINING, replica.unfinished)
            else:
                self._life.move(replica)
        return [replica.name for replica in told]

    def move_drained(self) -> list[str]:
        """Move the draining engines that hold nothing and whose payloads are read; return their names."""
        moved = [r for r in self.replicas.values() if r.state is ReplicaState.DRAINING and r.is_empty]
        for replica in moved:
            self._life.move(replica)
        return [replica.name for replica in moved]

    # Weights

    def update_weights(self, policy: Policy) -> float:
        """Load other weights of the same shape into every engine, between two runs. Return the seconds that it took.

        An engine that cannot load them is ended; the next run starts it again with them.

        Raises:
            EngineError: No engine can load them. The old weights stay in use.
        """
        began = self._life.clock()
        try:
            loaded, failed = load_weights(self._life, policy, self._run.config.resources.engine_hang_seconds)
        except BaseException:
            for replica in self.replicas.values():  # nobody knows now which weights each of them holds
                self._life.end(replica)
            raise
        for replica, error in failed:
            self._life.note("engine_died", engine=replica.name, started=replica.has_loaded, error=reason_of(error))
            self._life.end(replica)
        refused = [reason_of(error) for _, error in failed if not isinstance(error, RayActorError)]
        if refused and not loaded:
            raise EngineError(
                f"no engine could load the weights in {policy.path}: {refused[-1]}; the old weights stay in use"
            )
        self._life.policy = policy
        seconds = self._life.clock() - began
        self._life.note(
            "weights_updated", path=policy.path, policy_version=policy.version, engines=loaded, seconds=round(seconds, 3)
        )
        return seconds
