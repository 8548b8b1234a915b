"""Keep the engines of a named pool alive while a job uses them, and end them when none does.

While a job uses the pool, its KeepaliveActor lives under a fixed name. Ray gives a name to one actor only, and ends the
actor with its job. So the actor keeps other jobs out, and tells the engines that they are needed. It holds no state.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

NAMESPACE = "rollout_ray"
LOOK_S = 5.0  # an engine looks for the keepalive actor at least this often

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keepalive:
    """The name of the job's keepalive actor, and how many seconds an engine lives without it."""

    keepalive_actor: str
    idle_seconds: float

    def watch(self, end: Callable[[], None]) -> None:
        """Call `end`, in a thread of its own, once no job has used the pool for `idle_seconds`."""
        threading.Thread(target=self._watch, args=(end,), name="keepalive", daemon=True).start()

    def _watch(self, end: Callable[[], None]) -> None:
        import ray
        from ray.exceptions import RayError

        seen = time.monotonic()
        while time.monotonic() - seen <= self.idle_seconds:
            time.sleep(min(LOOK_S, self.idle_seconds / 4))
            try:
                ray.get_actor(self.keepalive_actor, namespace=NAMESPACE)
            except (ValueError, RayError):
                continue  # no job uses the pool now, or Ray cannot say
            seen = time.monotonic()
        log.warning("no job has used this pool for %g s: the engine ends", self.idle_seconds)
        end()


class KeepaliveActor:
    """Shows that a job uses a pool. It lives as long as the job, or until the job lets the pool go."""

    def __init__(self, process: int) -> None:
        self._owner = f"process {process} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"

    def owner(self) -> str:
        """Return which job it is, for a message."""
        return self._owner


def end_process() -> None:
    """End this process at once. Ray frees its resources."""
    os._exit(0)
