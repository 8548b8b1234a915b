"""Launch one instance for each call that returns, even if an answer of Lambda is lost.

Each try has a mark in its tags. After a lost answer, the listings of a minute are searched for the mark.
Invariant: no second try begins before that search. If it does not find the mark, the launch is given up. The provider of
the same machine terminates an instance of such a launch that appears later.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from rollout_ray.cluster.lambda_api import NO_CAPACITY, NOT_KNOWN, QUOTA_USED_UP, Instance, LambdaClient, LambdaError
from rollout_ray.cluster.lambda_fleet import LambdaFleet
from rollout_ray.cluster.lambda_tags import TagStore

log = logging.getLogger(__name__)

TAG_LAUNCH = "rollout-launch"
TRIES = 4
LOOKS, LOOK_EVERY = 15, 4  # listings after a lost answer, and request intervals between them: a minute
TYPE_FULL = frozenset({NO_CAPACITY, QUOTA_USED_UP})


class Backoff:
    """Remember how long to leave a thing alone: `first_s` seconds after a failure, doubled after each further one."""

    def __init__(self, first_s: float, most_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._now = now
        self._lock = threading.Lock()
        self._until: dict[Hashable, tuple[float, float]] = {}  # when it ends, how long it was

    def failed(self, thing: Hashable) -> float:
        """Note a failure. Return for how many seconds the thing is now left alone."""
        with self._lock:
            _, last = self._until.get(thing, (0.0, 0.0))
            seconds = min(self._most_s, last * 2 or self._first_s)
            self._until[thing] = (self._now() + seconds, seconds)
            return seconds

    def worked(self, thing: Hashable) -> None:
        """Note a success, which ends the wait."""
        with self._lock:
            self._until.pop(thing, None)

    def seconds_left(self, thing: Hashable) -> float:
        """Return for how many seconds the thing is still left alone."""
        with self._lock:
            return max(0.0, self._until.get(thing, (0.0, 0.0))[0] - self._now())


class Launcher:
    """Launch instances of a cluster."""

    def __init__(
        self,
        client: LambdaClient,
        fleet: LambdaFleet,
        store: TagStore,
        capacity: Backoff,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._fleet = client, fleet
        self._store, self._capacity = store, capacity
        self._sleep = sleep
        self._codes: dict[str, str] = {}  # code of the last refusal, by type

    def launch(self, types: Sequence[str], body: Mapping[str, Any], tags: Mapping[str, str], until: float) -> Instance:
        """Launch one instance of the first type that is available.

        Args:
            types: Instance types, the preferred one first.
            body: Body of the call, without type and tags.
            tags: Tags of the instance.
            until: Time after which no try is repeated, by time.monotonic().

        Raises:
            LambdaError: Its code is QUOTA_USED_UP if the quota refuses every type, NO_CAPACITY if no type is available,
                and NOT_KNOWN if there may be an instance nevertheless.
        """
        refused: list[str] = []
        for kind in types:
            if left := self._capacity.seconds_left(kind):
                refused.append(f"{kind}: asked for again in {left:.0f} s")
                continue
            try:
                instance = self._launch_type(kind, body, tags, until)
            except LambdaError as error:
                if error.code not in TYPE_FULL:
                    raise
                self._codes[kind] = error.code
                refused.append(f"{kind}: {error.code}, asked for again in {self._capacity.failed(kind):.0f} s")
            else:
                self._capacity.worked(kind)
                return instance
        quota = all(self._codes[kind] == QUOTA_USED_UP for kind in types)
        code = QUOTA_USED_UP if quota else NO_CAPACITY
        raise LambdaError(f"launching in {body['region_name']}", code, "; ".join(refused))

    def _launch_type(self, kind: str, body: Mapping[str, Any], tags: Mapping[str, str], until: float) -> Instance:
        for attempt in range(TRIES):
            mark = uuid.uuid4().hex
            marked = {**tags, TAG_LAUNCH: mark}
            whole = {**body, "instance_type_name": kind, "tags": [{"key": k, "value": v} for k, v in marked.items()]}
            try:
                new_id = self._client.launch(whole, until)
            except LambdaError as error:
                if not error.uncertain:
                    raise
                found, why_not = self._found(mark)
                if found is not None:
                    log.warning("%s; the instance was launched all the same: %s", error, found.id)
                    return found
                self._store.give_up(mark)
                if why_not or attempt == TRIES - 1 or time.monotonic() > until:
                    what = f"launching {kind} in {body['region_name']}"
                    lost = f"{error.message} ({error.code}), and {why_not or 'no listing of a minute shows it'}"
                    raise LambdaError(what, NOT_KNOWN, lost) from error
                log.warning("%s; no instance carries its mark, so it is launched again", error)
                continue
            return Instance(new_id, "booting", name=str(body["name"]), instance_type=kind, tags=marked)
        raise AssertionError("unreachable")

    def _found(self, mark: str) -> tuple[Instance | None, str]:
        """Search the listings of a minute for a mark. Return the instance, or None and why a listing failed."""
        for _ in range(LOOKS):
            self._sleep(LOOK_EVERY * self._client.pace.request_s)
            try:
                live = self._fleet.live(fresh=True)
            except LambdaError as error:
                return None, f"listing instances failed: {error.message} ({error.code})"
            for one in live.values():
                if one.tags.get(TAG_LAUNCH) == mark:
                    return one, ""
        return None, ""
