"""A replica set on fakes, for the tests of the driver's decisions."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError

from rollout_ray import RunConfig
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun, resolve
from rollout_ray.telemetry.run_view import EngineView
from tests.driver_fakes import FakeClock, FakeEngines, FakeEvents, backend_info

KILLED = RayActorError()
REFUSED = RuntimeError("no such model")


def run_with(**resources: Any) -> ResolvedRun:
    """A run of simulated engines whose weights are known by their name alone."""
    cfg = RunConfig.model_validate(
        {"engine": {"backend": "simulated"}, "resources": {"engine_hang_seconds": 300.0, **resources}}
    )
    return resolve(cfg, Policy("hub/model", "hub/model"))


class Driven:
    """A replica set on fakes, and what a session would do with it."""

    def __init__(self, replicas: int = 2, run: ResolvedRun | None = None, **factory: Any) -> None:
        self.clock, self.events = FakeClock(), FakeEvents()
        self.engines = FakeEngines(self.clock, replicas, **factory)
        self.run = run or run_with()
        self.set = ReplicaSet(self.run, self.engines, clock=self.clock)
        self.views: dict[str, EngineView] = {}
        self.attach()

    def attach(self, run: ResolvedRun | None = None) -> None:
        self.views = {f"engine-{i}": EngineView() for i in range(self.engines.placement.replicas)}
        self.set.attach(run or self.run, 1, self.views, self.events)  # type: ignore[arg-type]

    def replica(self, name: str = "engine-0") -> Replica:
        return self.set.replicas[name]

    def load(self, name: str = "engine-0") -> None:
        self.replica(name).take_call()
        self.set.loaded(self.replica(name), backend_info())

    def begin(self, name: str = "engine-0") -> None:
        self.load(name)
        self.replica(name).take_call()
        self.set.begun(self.replica(name), backend_info())

    def run_on(self, name: str = "engine-0") -> Replica:
        """Brings an engine to hold 8 samples."""
        self.begin(name)
        self.set.exchange(self.replica(name), [], 8, 0)
        return self.replica(name)

    def fail(self, error: Exception, name: str = "engine-0") -> None:
        replica = self.replica(name)
        if replica.call:
            replica.take_call()
        self.set.died(replica, error)

    def pass_time(self, seconds: float) -> list[tuple[Replica, Exception]]:
        """Looks once a heartbeat, and returns the first engines that hang."""
        for _ in range(int(seconds / HEARTBEAT_S)):
            self.clock.advance(HEARTBEAT_S)
            self.set.look()
            if hanging := self.set.hanging():
                return hanging
        return []

    def states(self) -> list[ReplicaState]:
        return [replica.state for replica in self.set.replicas.values()]

    def shown(self) -> list[str]:
        return [view.state for view in self.views.values()]
