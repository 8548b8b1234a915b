"""Load other weights into engines that are up.

It neither chooses the weights (api/pool.py does) nor ends an engine that cannot load them (replica_set.py does).
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError

from rollout_ray.driver.failures import cause_of
from rollout_ray.driver.handle import Calls
from rollout_ray.driver.health import overdue
from rollout_ray.driver.lifecycle import ReplicaLifecycle
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.models.checkpoints import Policy

LOOK_S = 1.0

Failures = list[tuple[Replica, Exception]]


def load_weights(life: ReplicaLifecycle, policy: Policy, timeout_s: float) -> tuple[int, Failures]:
    """Load the weights into all engines at once. Engines that start load them once they are up.

    An engine that has no node yet is ended: the next run starts it with these weights.

    Returns:
        How many engines hold the weights now, and the other replicas, each with what its engine raised. An engine that
        takes longer than `timeout_s`, or whose start takes too long, is among these.
    """
    failed = _await_starts(life, timeout_s)
    without = [replica for replica, _ in failed]
    replicas = [r for r in life.replicas.values() if r.has_engine and r not in without]
    calls = {replica.engine.update_weights(policy): replica for replica in replicas}
    ended = life.engines.calls.wait(list(calls), timeout_s, len(calls))
    loaded = 0
    for call, replica in calls.items():
        error: Exception | None = TimeoutError(f"the weights were not loaded within {timeout_s:.0f} s")
        if call in ended:
            error = _error_of(life.engines.calls, call)
        if error:
            failed.append((replica, error))
        else:
            loaded += 1
    return loaded, failed


def _await_starts(life: ReplicaLifecycle, hang_s: float) -> Failures:
    """Wait for engines that start; return those that could not, each with what it raised."""
    calls = life.engines.calls
    starts = {r.call[0]: r for r in life.replicas.values() if r.is_pending and r.call}
    failed: Failures = []
    while starts:
        for call in calls.wait(list(starts), LOOK_S, len(starts)):
            replica = starts.pop(call)
            if error := _error_of(calls, call):
                failed.append((replica, error))
        for call, replica in list(starts.items()):
            life.look(replica)
            if replica.state is ReplicaState.WAITING:
                life.end(replica)
                del starts[call]
            elif error := overdue(replica, life.clock(), hang_s):
                failed.append((replica, error))
                del starts[call]
    return failed


def _error_of(calls: Calls, call: Any) -> Exception | None:
    """Return what a call that has ended raised."""
    try:
        calls.result(call)
    except RayError as error:
        return cause_of(error)
    return None
