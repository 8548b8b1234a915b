"""Find nodes that must be replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

from rollout_ray.cluster.lambda_api import Instance
from rollout_ray.cluster.lambda_launch import TAG_LAUNCH
from rollout_ray.cluster.lambda_tags import TagStore

log = logging.getLogger(__name__)

MOST_UNHEALTHY, MOST_BOOTING = 120, 1800  # request intervals, which are about a second


class Health:
    """Remember since when each node has been unhealthy or booting. It is thread-safe."""

    def __init__(self, store: TagStore, request_s: float, now: Callable[[], float]) -> None:
        self._store, self._now = store, now
        self._limits = {"unhealthy": MOST_UNHEALTHY * request_s, "booting": MOST_BOOTING * request_s}
        self._lock = threading.Lock()
        self._since: dict[str, tuple[str, float]] = {}  # status of each node, and its first time

    def to_be_replaced(self, live: Mapping[str, Instance]) -> list[str]:
        """Return workers that have been unhealthy or booting for too long, and late instances of abandoned launches.

        The autoscaler launches others if they are still wanted. A head stays.
        """
        given_up, now = self._store.given_up(), self._now()
        found = []
        with self._lock:
            for one in live.values():
                status, since = self._since.get(one.id, ("", now))
                if status != one.status:
                    since = now
                self._since[one.id] = (one.status, since)
                limit = self._limits.get(one.status, float("inf"))
                if one.tags.get(TAG_LAUNCH) in given_up:
                    log.warning("ending %s, because its launch was reported as failed", one.id)
                    found.append(one.id)
                elif one.tags.get(TAG_RAY_NODE_KIND) != NODE_KIND_HEAD and now - since > limit:
                    log.warning("ending %s, which has been %s for %.0f s", one.id, one.status, now - since)
                    found.append(one.id)
            self._since = {k: v for k, v in self._since.items() if k in live}
        return found
