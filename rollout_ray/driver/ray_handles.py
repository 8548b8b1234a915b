"""Engines and scorers as Ray actors: fills the interface of handle.py.

It decides nothing: which engine starts, and when, is the replica set's choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rollout_ray.actors.engine.actor import EngineActor
from rollout_ray.actors.engine.launch import LaunchSpec, forwarded_environment
from rollout_ray.actors.engine.process import server_here
from rollout_ray.actors.scorer import ScorerActor
from rollout_ray.core.records import RolloutRequest
from rollout_ray.driver.handle import Calls, ScorerHandle
from rollout_ray.driver.run_context import RunContext
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.autoscaling import beside_the_driver
from rollout_ray.ray_cluster.placement import Placement, release, reserve
from rollout_ray.ray_cluster.ray_internals import is_pending
from rollout_ray.sizing.hardware import EngineLimits

if TYPE_CHECKING:
    from rollout_ray.driver.named_pool import NamedPool

PROCESS_S = 10.0  # an actor whose node is found has a process within this


class RayCalls:
    """Calls to Ray actors."""

    def wait(self, calls: Sequence[Any], timeout_s: float, count: int = 1) -> list[Any]:
        if not calls:
            return []
        ready, others = ray.wait(list(calls), num_returns=count, timeout=timeout_s)
        if ready and others:
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return list(ready)

    def result(self, call: Any) -> Any:
        return ray.get(call)

    def put(self, value: Any) -> Any:
        return ray.put(value)


class RayEngine:
    """One engine actor, in its placement group where it has one."""

    def __init__(self, actor: Any, log_file: str | None, placement_group: Any = None) -> None:
        self._actor = actor
        self._log_file = log_file
        self._group = placement_group
        self._asked_at = time.monotonic()

    @property
    def log_file(self) -> str | None:
        return self._log_file

    def node(self) -> str | None:
        if self._group is not None:
            table = placement_group_table(self._group)
            return table["bundles_to_node_id"][0] if str(table.get("state")) == "CREATED" else None
        if time.monotonic() - self._asked_at <= PROCESS_S:
            return ""
        return None if self.is_pending() else ""

    def is_pending(self) -> bool:
        return is_pending(self._actor)

    def start(self) -> Any:
        return self._actor.start.remote()

    def begin(self, run: ResolvedRun) -> Any:
        return self._actor.begin.remote(run)

    def exchange(
        self, work: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int, num_scorers: int
    ) -> list[Any]:
        exchange = self._actor.exchange.options(num_returns=1 + num_scorers)
        return list(exchange.remote(num_scorers, work, wait_s, coalesce_s, reclaim))

    def update_weights(self, policy: Policy) -> Any:
        return self._actor.update_weights.remote(policy)

    def drop(self, num_scorers: int = 0) -> list[Any]:
        finished = self._actor.drop.options(num_returns=1 + num_scorers).remote(num_scorers)
        return list(finished) if num_scorers else [finished]

    def end(self) -> None:
        ray.kill(self._actor)


class RayEngines:
    """Launches engine actors. `logs` is the folder for their output; None leaves it to Ray."""

    def __init__(self, placement: Placement, logs: str | None, named_pool: NamedPool | None = None) -> None:
        self.calls: Calls = RayCalls()
        self.placement = placement
        self._logs, self._named_pool = logs, named_pool

    def reserve(self) -> Any:
        # An engine of a named pool holds its resources itself: Ray would end a group of its own with this job.
        return None if self._named_pool else reserve(self.placement)

    def release(self, reservation: Any) -> None:
        release(reservation)

    def launch(self, name: str, run: ResolvedRun, limits: EngineLimits, reservation: Any) -> RayEngine:
        options: dict[str, Any] = {"num_cpus": self.placement.cpus, "num_gpus": self.placement.gpus}
        if reservation is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(reservation, placement_group_bundle_index=0)
        spec = LaunchSpec(
            name=name,
            run=run,
            gpus=self.placement.gpus,
            threads=self.placement.threads,
            limits=limits,
            environment=forwarded_environment(os.environ),
            log_file=f"{self._logs}/{name}.log" if self._logs else None,
            server=server_here(),
        )
        if self._named_pool:
            options |= self._named_pool.options(name)
            spec = replace(spec, keepalive=self._named_pool.keepalive, note=self._named_pool.note)
        actor = ray.remote(EngineActor).options(**options).remote(spec)
        return RayEngine(actor, spec.log_file, reservation)


class RayScorer:
    """One scoring actor, with the run that it scores."""

    def __init__(self, actor: Any, run: ResolvedRun, context: RunContext, prepares: bool) -> None:
        self.actor = actor
        self._run = run
        self._directory = context.directory
        self._rewards = context.rewards
        self._prepares = prepares

    def begin(self) -> Any:
        call = self.actor.begin.remote(self._directory, self._run.config, self._run.arms, self._rewards)
        if self._prepares:
            self.actor.prepare.remote()
        return call

    def score(self, payload: Any, ordinals: Set[int]) -> Any:
        return self.actor.score.remote(payload, ordinals)

    def flush(self) -> Any:
        return self.actor.flush.remote()

    def save(self) -> Any:
        return self.actor.save.remote()

    def cancel(self, call: Any) -> None:
        ray.cancel(call)

    def end(self) -> None:
        ray.kill(self.actor)


class IdleScorers:
    """Scoring actors between two runs of a pool, by index. Each has imported the grading code, which takes seconds."""

    def __init__(self) -> None:
        self._actors: dict[int, Any] = {}

    def take(self, scorer_index: int) -> Any | None:
        """Return the actor of this index, which the caller owns from now on; None if there is none."""
        return self._actors.pop(scorer_index, None)

    def keep(self, scorer_index: int, actor: Any) -> None:
        """Keep an actor without a call in flight for the next run."""
        self._actors[scorer_index] = actor

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()


class RayScorers:
    """Launches the scoring actors of a run, and keeps them in `idle` afterwards."""

    def __init__(self, run: ResolvedRun, context: RunContext, placement: Placement, idle: IdleScorers | None) -> None:
        self.calls: Calls = RayCalls()
        self._run = run
        self._context = context
        self._placement = placement
        # A reward function of the user's may have changed by the next run: its actors do not serve twice.
        self._idle = None if run.config.scoring.reward_functions else idle

    def launch(self, scorer_index: int) -> RayScorer:
        actor = self._idle.take(scorer_index) if self._idle else None
        if actor is None:
            place = beside_the_driver() if self._placement.scales else "DEFAULT"
            actor = ray.remote(ScorerActor).options(num_cpus=0, scheduling_strategy=place).remote(scorer_index)
        # On the CPU, the engines' own start needs the cores.
        return RayScorer(actor, self._run, self._context, prepares=self._placement.gpus > 0)

    def keep(self, scorer_index: int, scorer: ScorerHandle) -> bool:
        if self._idle is None or not isinstance(scorer, RayScorer):
            return False
        self._idle.keep(scorer_index, scorer.actor)
        return True
