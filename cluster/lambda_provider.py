"""Let Ray's autoscaler use Lambda Cloud: `provider: {type: external, module: <this class>}`.

It answers Ray on the machine of `ray up` and on the cluster's head, and is thread-safe.
Invariant: from its launch on, an instance has its cluster's name in Lambda's own tags. They alone find, count and
terminate it, so a lost file or machine loses no instance. The modules lambda_*.py beside this one do the work.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable
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
    KEY_FILE,
    NO_CAPACITY,
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
from rollout_ray.cluster.lambda_health import Health
from rollout_ray.cluster.lambda_launch import TAG_LAUNCH, Backoff, Launcher
from rollout_ray.cluster.lambda_pace import Pace
from rollout_ray.cluster.lambda_tags import TagStore
from rollout_ray.cluster.lambda_terminate import Terminator
from rollout_ray.core.errors import CloudError, ConfigError

log = logging.getLogger(__name__)

MUTABLE_TAGS = frozenset({TAG_RAY_NODE_STATUS, TAG_RAY_RUNTIME_CONFIG, TAG_RAY_FILE_MOUNTS_CONTENTS})
# Request intervals, which are about a second.
CAPACITY_FIRST, CAPACITY_MOST = 60, 600
SETUP_FIRST, SETUP_MOST = 300, 3600
# After 600 s without its nodes the autoscaler asks for them again, and would get both. The last try may take 90 s.
MOST_LAUNCHING_S = 300.0
MOUNTS = "_file_mounts"  # key of the provider's block


def client_of(settings: ProviderSettings) -> LambdaClient:
    """Return a client with the account's key. Raise CloudError if there is none."""
    pace = Pace(settings.state / "pace.json", settings.request_interval_s, settings.launch_interval_s)
    return LambdaClient(api_key(settings.api_key_file), pace, settings.api_url, settings.request_timeout_s)


class LambdaNodeProvider(NodeProvider):  # type: ignore[misc]
    """The nodes of one cluster. A node has the id of its instance."""

    def __init__(
        self, provider_config: dict[str, Any], cluster_name: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the settings. Send no request.

        Args:
            provider_config: The block `provider` of the cluster's YAML.
            cluster_name: The cluster's name.
            now: The clock, in seconds.

        Raises:
            ConfigError: The block or the name is wrong.
            CloudError: There is no API key.
        """
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
        self._terminator = Terminator(self._client, self._fleet, self._store)
        self._health = Health(self._store, unit, now)
        self._lock = threading.Lock()
        self._failed: set[str] = set()

    # Listing

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the live nodes that have these tags. Terminate nodes that must be replaced."""
        live = self._fleet.live()
        for one in self._health.to_be_replaced(live):
            try:
                self.terminate_nodes([one])
            except CloudError as error:  # the next call tries again
                log.warning("%s", error)
            else:
                del live[one]
        return [one for one in live if tag_filters.items() <= self.node_tags(one).items()]

    def is_running(self, node_id: str) -> bool:
        """Return whether the node is active and has its addresses."""
        one = self._fleet.one(node_id)
        return one is not None and one.status == "active" and bool(one.ip) and bool(one.private_ip)

    def is_terminated(self, node_id: str) -> bool:
        """Return whether the node is gone."""
        return self._fleet.one(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return the tags of the node: from its launch, and later ones from Ray."""
        one = self._fleet.known(node_id)
        launch_time = dict(one.tags) if one else {}
        launch_time.pop(TAG_LAUNCH, None)
        stored = self._store.tags(node_id)
        if one and TAG_RAY_NODE_STATUS not in stored:
            # Another machine sets this node up. Only a head's state matters here: whether it can be used.
            ready = one.status == "active" and one.tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD
            stored[TAG_RAY_NODE_STATUS] = STATUS_UP_TO_DATE if ready else STATUS_UNINITIALIZED
        return {**stored, **launch_time}

    def external_ip(self, node_id: str) -> str | None:
        """Return the node's public address, or None until it is known."""
        return self._address(node_id, "ip")

    def internal_ip(self, node_id: str) -> str | None:
        """Return the node's private address, or None until it is known."""
        return self._address(node_id, "private_ip")

    def _address(self, node_id: str, which: str) -> str | None:
        """Return an address. A node that is gone keeps its last one."""
        one = self._fleet.one(node_id) or self._fleet.known(node_id)
        return getattr(one, which) if one else None

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Store the tags that Ray may change, on this machine."""
        self._store.put(node_id, {k: v for k, v in tags.items() if k in MUTABLE_TAGS})
        self._note_setup(node_id, tags.get(TAG_RAY_NODE_STATUS))

    def _note_setup(self, node_id: str, status: str | None) -> None:
        """Count failed set-ups. A type whose nodes fail is launched less and less often, because each costs money."""
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
        """Launch `count` instances, one after the other. Return {id: {}} of the launched ones.

        Raises:
            NodeLaunchException: An instance could not be launched. Those before it stay, and their tags count them.
            ConfigError: A file for the head does not exist.
            CloudError: The cluster has a head already.
        """
        settings = node_settings(node_config)
        kind = tags.get(TAG_RAY_NODE_KIND, "")
        type_name = tags.get(TAG_RAY_USER_NODE_TYPE)
        if left := self._setup.seconds_left(type_name):
            raise NodeLaunchException(
                "SetupFailed",
                f"the last node of type {type_name} failed in its set-up; the next try is in {left:.0f} s",
                None,
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
        """Return the body of a launch call, without type and tags."""
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

    # Terminating

    def terminate_node(self, node_id: str) -> None:
        """Terminate one node. Raises CloudError if that fails."""
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """Terminate the nodes.

        Raises:
            CloudError: Some could not be terminated. The message names them.
        """
        self._terminator.terminate(node_ids)

    def cleanup_cluster_resources(self) -> None:
        """Wait until every instance has ended and none has appeared for a while. `ray down` calls this last.

        The head's autoscaler may launch until its machine is off, and such an instance may be listed late.

        Raises:
            SystemExit: An instance is left, or may be left. Ray would go on after another exception.
        """
        try:
            self._terminator.terminate_all()
        except CloudError as error:
            sys.exit(f"it is not known whether anything of cluster {self.cluster_name} is left: {error}")

    # The YAML

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Add the path of the key's file to the config. Never add the key, because Ray keeps the result in /tmp.

        Every command of Ray calls this unless that file holds the result. So `create_node` checks the files that are to
        be mounted, and this only passes on their paths.

        Raises:
            ConfigError: The YAML is wrong.
            CloudError: The key's file is missing, or others may read it.
        """
        check_cluster_name(cluster_config["cluster_name"])
        settings = provider_settings(cluster_config["provider"])
        check_key_for_head(settings.api_key_file)
        mounts = {**cluster_config.get("file_mounts", {}), KEY_FILE: settings.api_key_file}
        cluster_config["file_mounts"] = mounts
        cluster_config["provider"][MOUNTS] = dict(mounts)
        return cluster_config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the config for the head, where the key lies at its usual place. No worker gets the key."""
        cluster_config["file_mounts"].pop(KEY_FILE, None)
        cluster_config["provider"].pop(MOUNTS, None)
        cluster_config["provider"]["api_key_file"] = KEY_FILE
        return cluster_config
