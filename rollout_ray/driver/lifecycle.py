"""Start, end and move the engines of replicas, and show what they do in the events and on the display.

It decides nothing. An engine that starts later than others gets the same weights, or none starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.core.errors import EngineError
from rollout_ray.driver.handle import EngineFactory, RunningEngine
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.storage.event_log import EventLog
from rollout_ray.telemetry.run_view import EngineView


class ReplicaLifecycle:
    """The replicas, and the steps of their engines' lives.

    Attributes:
        replicas: The replicas, by name.
        policy: The weights that the engines hold.
        engines: Launches engines.
        views: What the present run shows of each replica; also of those that have ended.
        clock: Returns seconds from any origin.
    """

    def __init__(self, run: ResolvedRun, engines: EngineFactory, clock: Callable[[], float]) -> None:
        self.replicas: dict[str, Replica] = {}
        self.policy = run.policy
        self.engines = engines
        self.clock = clock
        self._launched = run
        self.views: dict[str, EngineView] = {}
        self._events: EventLog | None = None
        self._pending_events: list[tuple[str, dict[str, Any]]] = []

    # Events and display

    def show_in(self, views: dict[str, EngineView], events: EventLog) -> None:
        """Show the replicas in a run from now on. Events since the last run go to this one."""
        self.views, self._events = views, events
        for event, fields in self._pending_events:
            events.write(event, **fields)
        self._pending_events.clear()

    def show_nowhere(self) -> None:
        """Serve no run."""
        self.views, self._events = {}, None

    def note(self, event: str, **fields: Any) -> None:
        """Write an event of the run, or of the next run."""
        if self._events:
            self._events.write(event, **fields)
        else:
            self._pending_events.append((event, fields))

    def enter(self, replica: Replica, state: ReplicaState, unfinished: int = 0) -> None:
        """Bring a replica into a state, with so many samples in its engine."""
        if state is not replica.state:
            replica.progress_at = self.clock()
        replica.enter(state)
        replica.unfinished = unfinished
        if state.shown:
            self._show(replica, state.shown)

    def _show(self, replica: Replica, shown: str) -> None:
        if replica.name in self.views:
            self.views[replica.name].enter(shown, replica.unfinished)

    # An engine's life

    def add(self, name: str) -> None:
        """Start an engine in a replica of its own."""
        self.check_weights()
        self.replicas[name] = Replica(name, self.engines.reserve())
        self._launch(self.replicas[name])

    def adopt(self, name: str, engine: RunningEngine) -> None:
        """Make an engine that is up a replica."""
        replica = Replica(name, handle=engine.handle, log_file=engine.handle.log_file, node=engine.node)
        for state in (ReplicaState.STARTING, ReplicaState.LOADED):
            self.enter(replica, state)
        self.replicas[name] = replica

    def restart(self, replica: Replica) -> None:
        """Start an engine in a replica without one."""
        self.check_weights()
        self._launch(replica)

    def check_weights(self) -> None:
        """Raise EngineError if the folder of the weights has changed since the first engine started."""
        if self.policy.changed_on_disk():
            raise EngineError(
                f"the weights in {self.policy.path} have changed since the engines started, so no engine can start again. "
                "Keep a checkpoint's folder as it is while engines use it"
            )

    def _launch(self, replica: Replica) -> None:
        limits = replica.memory.reduce(self.engines.placement.limits)
        run = replace(self._launched, policy=self.policy)
        replica.handle = self.engines.launch(replica.name, run, limits, replica.reservation)
        replica.call = [replica.handle.start()]
        replica.log_file = replica.handle.log_file
        replica.node = ""
        replica.error = None
        replica.adopted, replica.asked_at = False, self.clock()
        self.enter(replica, ReplicaState.STARTING)

    def look(self, replica: Replica) -> None:
        """Find out whether Ray has found a node for an engine that has not loaded yet."""
        if not replica.is_pending:
            return
        node = replica.engine.node()
        replica.node = node or ""
        state = ReplicaState.WAITING if node is None else ReplicaState.STARTING
        if state is not replica.state:
            self.enter(replica, state)

    def loaded(self, replica: Replica, info: BackendInfo) -> None:
        """Note that an engine is up."""
        if replica.state is ReplicaState.WAITING:  # it got its node after the last look
            self.enter(replica, ReplicaState.STARTING)
        self.enter(replica, ReplicaState.LOADED)
        replica.node = info.node
        seconds = self.clock() - replica.asked_at
        process = seconds - info.import_seconds - info.load_seconds  # Ray placed the actor and started its process
        phases = {name: round(took, 2) for name, took in {"process": process, **info.phases}.items()}
        fields = {name: value for name, value in vars(info).items() if name != "prompts"}
        fields |= {"seconds": round(seconds, 2), "phases": phases}
        self.note("engine_started", engine=replica.name, shrunk=replica.memory.steps, **fields)

    def begin(self, replica: Replica, run: ResolvedRun) -> None:
        """Have an engine that is up take up a run."""
        self.enter(replica, ReplicaState.BEGINNING)
        replica.steps, replica.call = 0, [replica.engine.begin(run)]

    def end(self, replica: Replica) -> None:
        """End the engine of a replica, if it has one."""
        if replica.handle is not None:
            replica.handle.end()
        replica.handle, replica.call = None, ()
        self.enter(replica, ReplicaState.DEAD)

    def move(self, replica: Replica) -> None:
        """Start the engine of a replica on other resources."""
        self.end(replica)
        self.engines.release(replica.reservation)
        replica.reservation = self.engines.reserve()
        self.restart(replica)

    def let_go(self, replica: Replica, shown: str) -> None:
        """End a replica for good and give its resources back. `shown` is its last state on the display."""
        self.end(replica)
        self.enter(replica, ReplicaState.RETIRED)
        del self.replicas[replica.name]
        self.engines.release(replica.reservation)
        self._show(replica, shown)

    def close(self) -> None:
        """End every engine and give the resources back: the cluster may outlive the run. The display stays as it is."""
        for replica in self.replicas.values():
            if replica.handle is not None:
                replica.handle.end()
            self.engines.release(replica.reservation)
        self.replicas.clear()
