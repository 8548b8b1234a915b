"""Find engines that hang, and decide what becomes of a replica whose engine died.

It only judges: replica_set.py ends and starts engines. The driver's own pauses (Ctrl-Z, a stalled disk) never count
against an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto

from rollout_ray.config.schema import ResourcesConfig
from rollout_ray.driver.failures import StartTimedOut, was_killed
from rollout_ray.driver.handle import Calls
from rollout_ray.driver.replica import Replica, ReplicaState

HEARTBEAT_S = 1.0  # an engine answers, and the driver looks at the engines, at least this often
# A start hangs after this long, or after engine_hang_seconds where that is longer. 140 GB of weights from network
# storage take half an hour, and engines of one machine compile one after the other.
START_LIMIT_S = 3600.0


class Verdict(Enum):
    """What becomes of a replica whose engine died."""

    LESS_MEMORY = auto()  # start again and ask for less
    REFUSE = auto()  # wait until another engine shows that a start is possible
    RESTART = auto()
    RETIRE = auto()


def judge(replica: Replica, error: Exception, others_loaded: bool, max_deaths: int) -> Verdict:
    """Return what becomes of a replica.

    Args:
        replica: As it was when its engine died.
        error: What its engine died of, or what its start raised.
        others_loaded: Whether another replica's engine is up.
        max_deaths: Deaths in a row without a result after which the replica still gets an engine.
    """
    if replica.memory.allows(error):
        return Verdict.LESS_MEMORY
    if replica.is_pending and not was_killed(error) and not others_loaded:
        return Verdict.REFUSE
    return Verdict.RESTART if replica.deaths < max_deaths else Verdict.RETIRE


class ProgressWatch:
    """Measures for how long engines have made no progress while the driver was awake."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at = clock()

    def restart(self) -> None:
        """Begin to watch. The time before this call is not a pause of the driver."""
        self._looked_at = self._clock()

    def hanging(
        self, replicas: Iterable[Replica], resources: ResourcesConfig, calls: Calls
    ) -> list[tuple[Replica, Exception]]:
        """Return the replicas whose engine hangs, each with the error that says so. Call it about once a heartbeat."""
        replicas, now = list(replicas), self._clock()
        paused = now - self._looked_at - 2 * HEARTBEAT_S
        self._looked_at = now
        hanging = []
        for replica in replicas:
            if paused > 0:  # the engine may have been stopped with the driver
                replica.progress_at = min(now, replica.progress_at + paused)
            error = overdue(replica, now, resources.engine_hang_seconds)
            if error and not calls.wait([replica.call[0]], 0.0):  # else its answer waits for the driver
                hanging.append((replica, error))
        return hanging


def overdue(replica: Replica, now: float, hang_s: float) -> Exception | None:
    """Return the error of a replica whose engine takes too long for the call in flight; None: it does not."""
    if not replica.call:
        return None
    silent = now - replica.progress_at
    if replica.has_loaded:
        return TimeoutError(f"no decoding step for {silent:.0f} s") if silent > hang_s else None
    limit = max(START_LIMIT_S, hang_s)
    if replica.state is not ReplicaState.STARTING or silent <= limit:
        return None
    return StartTimedOut(
        f"the engine did not load within {limit:.0f} s; read its log, and set engine_hang_seconds higher if the weights "
        "take longer to load"
    )
