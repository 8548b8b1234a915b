"""Read the two blocks of a cluster's YAML that belong to the Lambda provider: `provider` and each type's `node_config`.

It checks keys and types. Ray's schema checks the rest of the file, and check.py asks Lambda whether the names exist.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rollout_ray.cluster.lambda_api import API_URL, KEY_FILE
from rollout_ray.cluster.lambda_pace import LAUNCH_INTERVAL_S, REQUEST_INTERVAL_S
from rollout_ray.core.errors import ConfigError

FORMER_MODULE = "cluster.lambda_provider.LambdaNodeProvider"  # in the YAML of version 0.1.0
MODULE = "rollout_ray.cluster.lambda_provider.LambdaNodeProvider"
# A cluster's name begins its instances' names, which Lambda limits to 64 characters, and names a file.
CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
TOKEN_FILE = "~/.ray/auth_token"
RAYS_OWN_KEYS = {"type", "module", "use_internal_ips", "cache_stopped_nodes"}


@dataclass(frozen=True)
class ProviderSettings:
    """The `provider` block."""

    region: str
    ssh_key_name: str
    file_systems: tuple[str, ...] = ()
    image_family: str | None = None  # Lambda's latest image where unset
    api_key_file: str = KEY_FILE
    api_url: str = API_URL
    state_dir: str = "~/.lambda_cloud/ray"
    request_interval_s: float = REQUEST_INTERVAL_S
    launch_interval_s: float = LAUNCH_INTERVAL_S
    request_timeout_s: float = 30.0

    @property
    def state(self) -> Path:
        """The folder for the request times and the tags."""
        return Path(self.state_dir).expanduser()


@dataclass(frozen=True)
class NodeSettings:
    """A type's `node_config`."""

    instance_type: str
    fallback_instance_types: tuple[str, ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        """The instance types, the preferred one first."""
        return (self.instance_type, *self.fallback_instance_types)


Settings = TypeVar("Settings", ProviderSettings, NodeSettings)


def provider_settings(block: Mapping[str, Any]) -> ProviderSettings:
    """Return the `provider` block without keys that begin with an underscore. Raise ConfigError if it is wrong."""
    ours = {k: v for k, v in block.items() if k not in RAYS_OWN_KEYS and not k.startswith("_")}
    settings = _filled(ProviderSettings, ours, "provider")
    if min(settings.request_interval_s, settings.launch_interval_s, settings.request_timeout_s) <= 0:
        raise ConfigError("provider: an interval or time-out is not positive; leave it out for Lambda's own limits")
    return settings


def node_settings(block: Mapping[str, Any], place: str = "node_config") -> NodeSettings:
    """Return a `node_config` block. Raise ConfigError if it is wrong."""
    return _filled(NodeSettings, block, place)


def check_cluster_name(name: str) -> None:
    """Raise ConfigError if the cluster cannot have this name."""
    if not CLUSTER_NAME.fullmatch(name):
        raise ConfigError(f"cluster_name {name!r} cannot be used; take up to 40 letters, digits, - and _")


def missing_mounts(mounts: Mapping[str, str]) -> list[str]:
    """Return a sentence for each local file of `file_mounts` that does not exist.

    `ray up` would launch the head first and fail then.

    Args:
        mounts: Path on the node -> path on this machine.
    """
    sentences = []
    for local in mounts.values():
        path = os.path.expanduser(local)
        if os.path.exists(path):
            continue
        if path == os.path.expanduser(TOKEN_FILE):
            remedy = "make it with `ray get-auth-token --generate`"
        elif os.path.isabs(path):
            remedy = "put it there, or change file_mounts"
        else:
            remedy = "run this from the checkout's root"
        sentences.append(f"file_mounts: {local} does not exist; {remedy}")
    return sentences


def _filled(kind: type[Settings], values: Mapping[str, Any], place: str) -> Settings:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            raise ConfigError(
                f"{place}.{name} is not a key of the Lambda provider; "
                + (f"is {near[0]} meant?" if near else f"its keys are {', '.join(fields)}")
            )
    given = {}
    for name, field in fields.items():
        if name in values:
            given[name] = _converted(values[name], str(field.type), f"{place}.{name}")
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"{place}.{name} is missing; give it")
    return kind(**given)


def _converted(value: Any, kind: str, place: str) -> Any:
    if kind.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
            return tuple(value)
        raise ConfigError(f"{place} is no list of names; write [name, name]")
    if kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise ConfigError(f"{place} is no number; give seconds")
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{place} is no text; give a name")
