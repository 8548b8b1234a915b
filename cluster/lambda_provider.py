"""Lambda Cloud as a node provider of Ray's autoscaler: `provider: {type: external, module: <this class>}`.

Owns what Ray asks of a provider, on the machine of `ray up` and on the cluster's head. HTTP is lambda_api.py's, launching
lambda_launch.py's, the listing lambda_fleet.py's, what changes in the tags lambda_tags.py's.
Invariant: an instance carries its cluster's name from its launch on, in Lambda's own tags; by these alone it is found,
counted and ended, so that nothing is lost with a file or a machine.
Thread-safe: everything that changes is behind the parts' own locks.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UNINITIALIZED,
    STATUS_UP_TO_DATE,
    STATUS_UPDATE_FAILED,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_FILE_MOUNTS_CONTENTS,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_RUNTIME_CONFIG,
    TAG_RAY_USER_NODE_TYPE,
)

from rollout_ray.cluster.lambda_api import (
    GONE,
    KEY_FILE,
    NO_CAPACITY,
    NO_SUCH_OBJECT,
    Instance,
    LambdaClient,
    LambdaError,
    api_key,
    check_key_for_head,
)
from rollout_ray.cluster.lambda_config import (
    ProviderSettings,
    check_cluster_name,
    missing_mounts,
    node_settings,
    provider_settings,
)
from rollout_ray.cluster.lambda_fleet import LambdaFleet
from rollout_ray.cluster.lambda_launch import TAG_LAUNCH, Backoff, Launcher
from rollout_ray.cluster.lambda_pace import Pace
from rollout_ray.cluster.lambda_tags import TagStore
from rollout_ray.core.errors import CloudError, ConfigError

log = logging.getLogger(__name__)

MUTABLE_TAGS = frozenset({TAG_RAY_NODE_STATUS, TAG_RAY_RUNTIME_CONFIG, TAG_RAY_FILE_MOUNTS_CONTENTS})
# Request intervals, which are about a second.
CAPACITY_FIRST, CAPACITY_MOST = 60, 600
SETUP_FIRST, SETUP_MOST = 300, 3600
MOST_UNHEALTHY, MOST_BOOTING = 120, 1800
QUIET, MOST_ENDING = 15, 600
# The autoscaler asks a second time for what has not been launched 600 s after it asked, and would get both. A try that
# begins last may take a minute and a half.
MOST_LAUNCHING_S = 300.0
MOUNTS = "_file_mounts"  # key of the provider's block


def client_of(settings: ProviderSettings) -> LambdaClient:
    """Return a client with the account's key. Raise CloudError if there is none."""
    pace = Pace(settings.state / "pace.json", settings.request_interval_s, settings.launch_interval_s)
    return LambdaClient(api_key(settings.api_key_file), pace, settings.api_url, settings.request_timeout_s)


class LambdaNodeProvider(NodeProvider):  # type: ignore[misc]
    """The nodes of one cluster. The id of a node is that of its instance."""

    def __init__(
        self, provider_config: dict[str, Any], cluster_name: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(provider_config, cluster_name)
        check_cluster_name(cluster_name)
        self._settings = provider_settings(provider_config)
        self._client = client_of(self._settings)
        self._store = TagStore(self._settings.state / f"{cluster_name}.json")
        self._fleet = LambdaFleet(self._client, cluster_name)
        unit = self._client.pace.request_s
        self._setup = Backoff(SETUP_FIRST * unit, SETUP_MOST * unit)
        capacity = Backoff(CAPACITY_FIRST * unit, CAPACITY_MOST * unit)
        self._launcher = Launcher(self._client, self._fleet, self._store, capacity)
        self._now, self._lock = now, threading.Lock()
        self._sick_since: dict[str, tuple[str, float]] = {}
        self._failed: set[str] = set()

    # What there is

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        live = self._fleet.live()
        for one in self._to_be_replaced(live):
            try:
                self.terminate_nodes([one])
            except CloudError as error:  # asked again at the next look
                log.warning("%s", error)
            else:
                del live[one]
        return [one for one in live if tag_filters.items() <= self.node_tags(one).items()]

    def is_running(self, node_id: str) -> bool:
        one = self._fleet.one(node_id)
        return one is not None and one.status == "active" and bool(one.ip) and bool(one.private_ip)

    def is_terminated(self, node_id: str) -> bool:
        return self._fleet.one(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        one = self._fleet.known(node_id)
        launch_time = dict(one.tags) if one else {}
        launch_time.pop(TAG_LAUNCH, None)
        stored = self._store.tags(node_id)
        if one and TAG_RAY_NODE_STATUS not in stored:
            # Set up from another machine. Only a head's state matters there: whether it can be used.
            ready = one.status == "active" and one.tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD
            stored[TAG_RAY_NODE_STATUS] = STATUS_UP_TO_DATE if ready else STATUS_UNINITIALIZED
        return {**stored, **launch_time}

    def external_ip(self, node_id: str) -> str | None:
        return self._address(node_id, "ip")

    def internal_ip(self, node_id: str) -> str | None:
        return self._address(node_id, "private_ip")

    def _address(self, node_id: str, which: str) -> str | None:
        """Return the address, or None until it is known. A node that is gone keeps its last one."""
        one = self._fleet.one(node_id) or self._fleet.known(node_id)
        return getattr(one, which) if one else None

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._store.put(node_id, {k: v for k, v in tags.items() if k in MUTABLE_TAGS})
        self._note_setup(node_id, tags.get(TAG_RAY_NODE_STATUS))

    def _note_setup(self, node_id: str, status: str | None) -> None:
        """A type whose nodes fail in their set-up is not launched over and over again: each costs money."""
        kind = self.node_tags(node_id).get(TAG_RAY_USER_NODE_TYPE)
        if status == STATUS_UP_TO_DATE:
            self._setup.worked(kind)
        elif status == STATUS_UPDATE_FAILED:
            with self._lock:  # Ray repeats a set-up on the same node
                first = node_id not in self._failed
                self._failed.add(node_id)
            if first:
                seconds = self._setup.failed(kind)
                log.error("the set-up of %s failed: no further node of type %s for %.0f s", node_id, kind, seconds)

    # Launching

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch `count` instances, one after the other. Return {id: {}} of those launched.

        Raises NodeLaunchException where one of them could not be; the others stay, and are counted by their tags. Raises
        ConfigError, CloudError where a head could not be set up, or there is one.
        """
        settings = node_settings(node_config)
        kind = tags.get(TAG_RAY_NODE_KIND, "")
        type_name = tags.get(TAG_RAY_USER_NODE_TYPE)
        if left := self._setup.seconds_left(type_name):
            raise NodeLaunchException(
                "SetupFailed", f"the last node of type {type_name} failed in its set-up; tried again in {left:.0f} s", None
            )
        if kind == NODE_KIND_HEAD:
            self._check_head()
        fixed = {k: v for k, v in tags.items() if k not in MUTABLE_TAGS} | {TAG_RAY_CLUSTER_NAME: self.cluster_name}
        changing = {k: v for k, v in tags.items() if k in MUTABLE_TAGS}
        created: dict[str, Any] = {}
        until = time.monotonic() + MOST_LAUNCHING_S
        for _ in range(count):
            try:
                instance = self._launcher.launch(settings.types, self._body(kind), fixed, until)
            except LambdaError as error:
                category = "NoCapacity" if error.code == NO_CAPACITY else "LaunchFailed"
                raise NodeLaunchException(category, str(error), sys.exc_info()) from error
            if changing:
                self._store.put(instance.id, changing)
            self._fleet.launched(instance)
            log.info("launched %s (%s)", instance.id, instance.instance_type)
            created[instance.id] = {}
        return created

    def _body(self, kind: str) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "region_name": settings.region,
            "ssh_key_names": [settings.ssh_key_name],
            "name": f"{self.cluster_name}-{kind}-{uuid.uuid4().hex[:8]}",
        }
        if settings.file_systems:
            body["file_system_names"] = list(settings.file_systems)
        if settings.image_family:
            body["image"] = {"family": settings.image_family}
        return body

    def _check_head(self) -> None:
        """Raise ConfigError if a file for the head does not exist, and CloudError if there is a head already."""
        if missing := missing_mounts(self.provider_config.get(MOUNTS, {})):
            raise ConfigError("; ".join(missing))
        live = self._fleet.live(fresh=True)
        if heads := [one.id for one in live.values() if one.tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD]:
            raise CloudError(
                f"cluster {self.cluster_name} has a head already ({', '.join(heads)}); wait a minute and try again, or run "
                "ray down first"
            )

    # Ending

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """End the nodes. Afterwards raise CloudError if some could not be ended; it names them."""
        failed: dict[str, LambdaError] = {}
        for one, error in self._end(list(node_ids)).items():
            if error.code != NO_SUCH_OBJECT:
                failed[one] = error
        ended = [one for one in node_ids if one not in failed]
        self._fleet.ended(ended)
        self._store.forget(ended)
        if failed:
            raise CloudError(_not_ended(failed, str(next(iter(failed.values())))))

    def _end(self, ids: list[str]) -> dict[str, LambdaError]:
        """End the nodes with one call, or one by one if Lambda refuses that. Return what failed."""
        if not ids:
            return {}
        try:
            self._client.terminate(ids)
        except LambdaError as error:
            if len(ids) == 1 or error.uncertain or error.refused:
                return dict.fromkeys(ids, error)
            return {k: v for one in ids for k, v in self._end([one]).items()}
        return {}

    def cleanup_cluster_resources(self) -> None:
        """`ray down` calls this last. The head's autoscaler may launch until its machine is off, and such an instance may
        be listed late: looks on until all have ended and nothing has appeared for a while. What cannot be ended is named,
        and the exit code is 1 (Ray would go on after an exception)."""
        try:
            self._end_what_appears()
        except CloudError as error:
            sys.exit(f"it is not known whether anything of cluster {self.cluster_name} is left: {error}")

    def _end_what_appears(self) -> None:
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
                self.terminate_nodes(late)
                told |= dict.fromkeys(late, now)
            time.sleep(3 * self._client.pace.request_s)

    def _to_be_replaced(self, live: Mapping[str, Instance]) -> list[str]:
        """Workers that have been unhealthy or booting for too long, and late instances of launches that were given up.
        The autoscaler launches others where they are still wanted."""
        given_up, now, found = self._store.given_up(), self._now(), []
        limits = {"unhealthy": MOST_UNHEALTHY, "booting": MOST_BOOTING}
        with self._lock:
            for one in live.values():
                status, since = self._sick_since.get(one.id, ("", now))
                if status != one.status:
                    since = now
                self._sick_since[one.id] = (one.status, since)
                limit = limits.get(one.status, float("inf")) * self._client.pace.request_s
                if one.tags.get(TAG_LAUNCH) in given_up:
                    log.warning("%s is of a launch that was given up: it is ended", one.id)
                elif one.tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD or now - since <= limit:
                    continue
                else:
                    log.warning("%s has been %s for %.0f s: it is ended", one.id, one.status, now - since)
                found.append(one.id)
            self._sick_since = {k: v for k, v in self._sick_since.items() if k in live}
        return found

    # The YAML

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Adds the path of the key's file, never the key: Ray keeps the result in a file of /tmp. Raises CloudError,
        ConfigError.

        Every command of Ray's calls this, `ray down` too, and none when the result is in that file: whether the files to
        be mounted are here is therefore told when a head is to be launched, for which the provider is given their paths.
        """
        check_cluster_name(cluster_config["cluster_name"])
        settings = provider_settings(cluster_config["provider"])
        check_key_for_head(settings.api_key_file)
        mounts = {**cluster_config.get("file_mounts", {}), KEY_FILE: settings.api_key_file}
        cluster_config["file_mounts"] = mounts
        cluster_config["provider"][MOUNTS] = dict(mounts)
        return cluster_config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The config that the head reads: there the key lies at its usual place, and no worker is sent it."""
        cluster_config["file_mounts"].pop(KEY_FILE, None)
        cluster_config["provider"].pop(MOUNTS, None)
        cluster_config["provider"]["api_key_file"] = KEY_FILE
        return cluster_config


def _not_ended(ids: Mapping[str, object], why: str) -> str:
    return (
        f"could not end {', '.join(ids)}, which cost money until they are ended: {why}; run ray down again, or end them at "
        "https://cloud.lambda.ai/instances"
    )
