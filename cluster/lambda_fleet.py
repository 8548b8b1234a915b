"""List the instances of one cluster, from a cache of a few seconds.

Launches and terminations that a listing does not show yet correct it. All threads of the autoscaler read the cache. One at
a time asks Lambda, and the others go on reading. This module launches and terminates nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable

from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from rollout_ray.cluster.lambda_api import ENDED, GONE, Instance, LambdaClient, LambdaError

log = logging.getLogger(__name__)

MOST_AGE = 5  # request intervals for which a listing is used
SETTLE = 60  # request intervals for which a listing may not show a launch or a termination


class LambdaFleet:
    """The instances whose tag names the cluster `name`."""

    def __init__(self, client: LambdaClient, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._client, self._name = client, name
        self._now = now
        self._most_age_s = MOST_AGE * client.pace.request_s
        self.settle_s = SETTLE * client.pace.request_s
        self._state, self._asking = threading.Lock(), threading.Lock()
        self._began = float("-inf")  # time of the request for the present listing
        self._listed: dict[str, Instance] = {}
        self._live: dict[str, Instance] = {}
        self._known: dict[str, Instance] = {}  # every instance ever seen, as last seen
        self._launched: dict[str, float] = {}  # id -> when, until a listing shows it
        self._ended: dict[str, float] = {}  # id -> when

    def live(self, fresh: bool = False) -> dict[str, Instance]:
        """Return the instances that are booting, active or unhealthy, by id.

        Args:
            fresh: Use only a listing that begins after this call.

        Raises:
            LambdaError: Lambda does not answer.
        """
        self._look(fresh)
        with self._state:
            return dict(self._live)

    def one(self, instance_id: str) -> Instance | None:
        """Return the instance if it is live. While Lambda does not answer, the last listing counts."""
        try:
            self._look(fresh=False)
        except LambdaError as error:
            log.warning("%s; the last listing is used", error)
        with self._state:
            return self._live.get(instance_id)

    def still_listed(self) -> dict[str, Instance]:
        """Return the instances that Lambda does not call ended. Some may be about to end. Raises LambdaError."""
        self._look(fresh=True)
        with self._state:
            return {one.id: one for one in self._listed.values() if one.status not in ENDED}

    def known(self, instance_id: str) -> Instance | None:
        """Return the instance as last seen, which may be long ago. Send no request."""
        with self._state:
            return self._known.get(instance_id)

    def launched(self, instance: Instance) -> None:
        """Note an instance that listings may not show yet."""
        with self._state:
            self._launched[instance.id] = self._now()
            self._known[instance.id] = self._live[instance.id] = instance

    def ended(self, ids: Iterable[str]) -> None:
        """Note instances that listings may still show as alive."""
        with self._state:
            for one in ids:
                self._ended[one] = self._now()
                self._launched.pop(one, None)
                self._live.pop(one, None)

    def _look(self, fresh: bool) -> None:
        asked = self._now()
        if self._is_current(asked, fresh):
            return
        with self._asking:
            if self._is_current(asked, fresh):  # another thread asked in the meantime
                return
            began = self._now()
            listed = self._client.instances()
            with self._state:
                self._take(listed, began)

    def _is_current(self, asked: float, fresh: bool) -> bool:
        with self._state:
            return self._began >= (asked if fresh else asked - self._most_age_s)

    def _take(self, listed: Iterable[Instance], began: float) -> None:
        current: dict[str, Instance] = {}
        for one in listed:
            before = self._known.get(one.id)
            tags = {**(before.tags if before else {}), **one.tags}  # an answer need not repeat them all
            if tags.get(TAG_RAY_CLUSTER_NAME) == self._name:
                current[one.id] = dataclasses.replace(one, tags=tags)
                self._launched.pop(one.id, None)
        self._listed = dict(current)
        for one_id, when in list(self._launched.items()):
            if began - when < self.settle_s:
                current[one_id] = self._known[one_id]
            else:
                del self._launched[one_id]
        gone = {k: dataclasses.replace(v, status="terminated") for k, v in self._known.items() if k not in current}
        self._known |= gone | current
        # An instance that is still listed long after its termination is alive. The caller must terminate it again.
        self._ended = {k: when for k, when in self._ended.items() if began - when < self.settle_s}
        self._live = {k: v for k, v in current.items() if v.status not in GONE and k not in self._ended}
        self._began = began
