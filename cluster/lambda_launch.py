"""Launching one instance: exactly one for each call that returns, whatever happens to the answers on the way.

Owns the mark that each try carries, the search for it after an answer was lost, the types to fall back to, and for how
long a type without capacity is left alone.
Invariant: a try that may have happened is followed by another only after its mark was not found for `settle` listings.
One whose mark was not found, or could not be looked for, is given up: should its instance turn up later, the provider of
the machine that launched it ends it.
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
    """Which things are left alone for how long: `first_s` after a failure, twice as long after each further one."""

    def __init__(self, first_s: float, most_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._most_s, self._now = first_s, most_s, now
        self._lock = threading.Lock()
        self._until: dict[Hashable, tuple[float, float]] = {}  # when it ends, how long it was

    def failed(self, thing: Hashable) -> float:
        """Returns the seconds that it is left alone from now."""
        with self._lock:
            _, last = self._until.get(thing, (0.0, 0.0))
            seconds = min(self._most_s, last * 2 or self._first_s)
            self._until[thing] = (self._now() + seconds, seconds)
            return seconds

    def worked(self, thing: Hashable) -> None:
        with self._lock:
            self._until.pop(thing, None)

    def seconds_left(self, thing: Hashable) -> float:
        with self._lock:
            return max(0.0, self._until.get(thing, (0.0, 0.0))[0] - self._now())


class Launcher:
    """Launches instances of a cluster."""

    def __init__(
        self,
        client: LambdaClient,
        fleet: LambdaFleet,
        store: TagStore,
        capacity: Backoff,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._fleet, self._store, self._capacity, self._sleep = client, fleet, store, capacity, sleep
        self._codes: dict[str, str] = {}  # type -> why it was refused last

    def launch(self, types: Sequence[str], body: Mapping[str, Any], tags: Mapping[str, str], until: float) -> Instance:
        """Launches one instance of the first of `types` that can be had; `body` is the call's, without type and tags. No
        try is repeated after `until` (of time.monotonic).

        Raises LambdaError: with code QUOTA_USED_UP where every type was refused for the quota, NO_CAPACITY where no type
        can be had now for other reasons as well, NOT_KNOWN where there may be an instance nevertheless.
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
        """The instance with the mark; None where it is in none of the listings of a minute, or where a listing fails,
        and then why."""
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
