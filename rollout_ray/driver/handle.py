"""The interface between the driver's decisions and the actors that carry them out.

ray_handles.py fills it with Ray, the unit tests with fakes. A call in flight and a payload are opaque: the driver
compares them, waits for them and passes them on.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_ray.core.records import RolloutRequest
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Placement
from rollout_ray.sizing.hardware import EngineLimits


class Calls(Protocol):
    """Calls in flight to any actor."""

    def wait(self, calls: Sequence[Any], timeout_s: float, count: int = 1) -> list[Any]:
        """Return the calls that have ended, once `count` of them have or `timeout_s` has passed."""

    def result(self, call: Any) -> Any:
        """Return what a call returned. Raises RayError: RayTaskError with what it raised, others if the actor is gone."""

    def put(self, value: Any) -> Any:
        """Return `value` as a payload."""


class EngineHandle(Protocol):
    """One engine. Every method returns at once; the calls tell later what came of it."""

    @property
    def log_file(self) -> str | None:
        """Return the path of the engine's output on its node."""

    def node(self) -> str | None:
        """Return the id of its node, empty where that is not known yet; None while it waits for a node."""

    def is_pending(self) -> bool:
        """Return whether the engine has no process yet."""

    def start(self) -> Any:
        """Load the engine, once; its answer is a BackendInfo."""

    def begin(self, run: ResolvedRun) -> Any:
        """Take up a run; its answer is a BackendInfo."""

    def exchange(
        self, work: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int, num_scorers: int
    ) -> list[Any]:
        """Hand over work; return the call of an Exchange, and a payload for each scorer."""

    def update_weights(self, policy: Policy) -> Any:
        """Load other weights; its answer is the seconds that it took."""

    def drop(self, num_scorers: int = 0) -> list[Any]:
        """Drop what the engine holds of its run; return the call of a set of scorer indexes, and a payload for each scorer.

        A payload has the finished samples, also of chunks in work. It is empty if the set does not name its scorer.
        """

    def end(self) -> None:
        """End the engine."""


class EngineFactory(Protocol):
    """Launches engines of one placement."""

    calls: Calls
    placement: Placement

    def reserve(self) -> Any:
        """Return the resources of one replica, asked for and perhaps still to come; None: its engine holds them itself."""

    def release(self, reservation: Any) -> None:
        """Give resources back."""

    def launch(self, name: str, run: ResolvedRun, limits: EngineLimits, reservation: Any) -> EngineHandle:
        """Return an engine of this run, asked for on these resources."""


@dataclass(frozen=True)
class RunningEngine:
    """A named pool's engine that an earlier job started: its handle, its weights and its node."""

    handle: EngineHandle
    policy: Policy
    node: str


class ScorerHandle(Protocol):
    """One scorer. Every method returns at once."""

    def begin(self) -> Any:
        """Take up the run; its answer, as of the other calls, is a Receipt."""

    def score(self, payload: Any, ordinals: Set[int]) -> Any:
        """Score the payload's chunks of the questions with these ordinals."""

    def flush(self) -> Any:
        """Commit what is complete."""

    def save(self) -> Any:
        """Commit what is complete, and save the samples of the other questions."""

    def cancel(self, call: Any) -> None:
        """Cancel a call that has not begun."""

    def end(self) -> None:
        """End the scorer."""


class ScorerFactory(Protocol):
    """Launches the scorers of one run."""

    calls: Calls

    def launch(self, scorer_index: int) -> ScorerHandle:
        """Return a scorer, one of an earlier run where there is one."""

    def keep(self, scorer_index: int, scorer: ScorerHandle) -> bool:
        """Keep a scorer without a call in flight for a later run. Return whether it is kept."""
