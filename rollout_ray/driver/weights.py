"""How engines that run get the weights of a policy: in place.

Owns neither the choice of a policy (pool.py) nor what becomes of an engine that cannot load it (fleet.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from rollout_ray.driver.replica import Replica, end, waits_for_placement
from rollout_ray.models.checkpoints import Policy

LOOK_S = 1.0


def load_weights(
    replicas: Sequence[Replica], policy: Policy, timeout_s: float
) -> tuple[int, list[tuple[Replica, Exception]]]:
    """Has all engines load the weights at once, those that still start once they have. Returns how many hold them now, and
    the others with what each raised, at its start too; one that takes longer than `timeout_s` is among those. An engine
    that has no room yet is ended: its slot is filled with these weights when it is used next."""
    failed = _await_starts({replica.call[0]: replica for replica in replicas if not replica.started and replica.call})
    without = [replica for replica, _ in failed]
    calls = {s.actor.update_weights.remote(policy): s for s in replicas if s.actor is not None and s not in without}
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    loaded = 0
    for call, replica in calls.items():
        if error := _error_of(call):
            failed.append((replica, error))
        else:
            loaded += 1
    return loaded, failed


def _await_starts(starts: dict[Any, Replica]) -> list[tuple[Replica, Exception]]:
    """Waits for engines that start; returns those that could not, each with what it raised."""
    failed = []
    while starts:
        ready, _ = ray.wait(list(starts), num_returns=len(starts), timeout=LOOK_S)
        for call in ready:
            replica = starts.pop(call)
            if error := _error_of(call):
                failed.append((replica, error))
        for call, replica in list(starts.items()):
            if waits_for_placement(replica):
                end(replica)
                del starts[call]
    return failed


def _error_of(call: Any) -> Exception | None:
    """What a call raised; a call that is still in flight has taken too long."""
    try:
        ray.get(call, timeout=0)
    except ray.exceptions.RayError as error:
        found: Exception = error
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
            found = error.cause
        return found
    return None
