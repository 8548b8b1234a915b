"""Terminate the instances of one cluster, and make sure that none is left.

Invariant: an instance that could not be terminated is named, because it costs money.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence

from rollout_ray.cluster.lambda_api import GONE, NO_SUCH_OBJECT, LambdaClient, LambdaError
from rollout_ray.cluster.lambda_fleet import LambdaFleet
from rollout_ray.cluster.lambda_tags import TagStore
from rollout_ray.core.errors import CloudError

log = logging.getLogger(__name__)

# Request intervals, which are about a second.
QUIET, MOST_ENDING = 15, 600


class Terminator:
    """Terminate instances of a cluster."""

    def __init__(self, client: LambdaClient, fleet: LambdaFleet, store: TagStore) -> None:
        self._client, self._fleet = client, fleet
        self._store = store

    def terminate(self, ids: Sequence[str]) -> None:
        """Terminate instances. An instance that does not exist is no error.

        Raises:
            CloudError: Some could not be terminated. The message names them. The others are.
        """
        failed: dict[str, LambdaError] = {}
        for one, error in self._attempt(ids).items():
            if error.code != NO_SUCH_OBJECT:
                failed[one] = error
        ended = [one for one in ids if one not in failed]
        self._fleet.ended(ended)
        self._store.forget(ended)
        if failed:
            raise CloudError(_not_ended(failed, str(next(iter(failed.values())))))

    def _attempt(self, ids: Sequence[str]) -> dict[str, LambdaError]:
        """Terminate instances with one call, or one by one if Lambda refuses that. Return what failed."""
        if not ids:
            return {}
        try:
            self._client.terminate(ids)
        except LambdaError as error:
            if len(ids) == 1 or error.uncertain or error.refused:
                return dict.fromkeys(ids, error)
            return {k: v for one in ids for k, v in self._attempt([one]).items()}
        return {}

    def terminate_all(self) -> None:
        """Terminate every instance of the cluster, and each that appears, until none has appeared for a while.

        Raises:
            CloudError: Lambda does not answer, or an instance could not be terminated.
            SystemExit: Lambda was told to, and has not done it after MOST_ENDING request intervals.
        """
        began = quiet_since = time.monotonic()
        quiet_s, patience_s = QUIET * self._client.pace.request_s, MOST_ENDING * self._client.pace.request_s
        told: dict[str, float] = {}
        while (now := time.monotonic()) - quiet_since < quiet_s:
            listed = self._fleet.still_listed()
            left = {k: one for k, one in listed.items() if one.status not in GONE}
            if listed:
                quiet_since = time.monotonic()
            if listed and now - began > patience_s:
                sys.exit(_not_ended(left or listed, "Lambda was told to end them, and has not done it yet"))
            late = [one for one in left if now - told.get(one, float("-inf")) > quiet_s]
            if late:
                log.warning("ending %s", ", ".join(late))
                self.terminate(late)
                told |= dict.fromkeys(late, now)
            time.sleep(3 * self._client.pace.request_s)


def _not_ended(ids: Mapping[str, object], why: str) -> str:
    return (
        f"could not end {', '.join(ids)}, which cost money until they are ended: {why}; run ray down again, or end them at "
        "https://cloud.lambda.ai/instances"
    )
