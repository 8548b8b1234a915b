"""Check whether a cluster's YAML can be launched, and what it would cost an hour: `rollout cluster check FILE`.

It compares the YAML with Ray's schema and with what Lambda offers now. It launches nothing and writes nothing.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollout_ray.cluster.lambda_api import LambdaClient, check_key_for_head
from rollout_ray.cluster.lambda_config import (
    FORMER_MODULE,
    MODULE,
    NodeSettings,
    ProviderSettings,
    check_cluster_name,
    missing_mounts,
    node_settings,
    provider_settings,
)
from rollout_ray.core.errors import ConfigError


def check_file(path: str) -> list[str]:
    """Return the lines of the summary.

    Raises:
        ConfigError: The YAML is wrong. The message names every fault.
        CloudError: Lambda does not answer, or there is no key.
    """
    config = _read(path)
    provider = config["provider"]
    if provider.get("type") == "local":
        _ray_accepts(path, config)
        _no_problems(path, missing_mounts(config.get("file_mounts", {})))
        workers = provider.get("worker_ips", [])
        return [
            f"cluster {config['cluster_name']}: head {provider.get('head_ip')}, {len(workers)} worker machines of your own"
        ]
    if provider.get("module") == FORMER_MODULE:
        raise ConfigError(f"provider.module is {FORMER_MODULE}, which has moved; write {MODULE}")
    if provider.get("type") != "external" or provider.get("module") != MODULE:
        raise ConfigError(f"{path} is for another provider. Give type local, or type external with module {MODULE}")
    check_cluster_name(str(config["cluster_name"]))
    settings = provider_settings(provider)
    missing = [name for name in ("available_node_types", "head_node_type", "auth") if name not in config]
    if missing:
        raise ConfigError(f"{path}: {', '.join(missing)} is missing; start from cluster/lambda.yaml")
    _ray_accepts(path, config)
    nodes = {
        name: node_settings(block["node_config"], f"available_node_types.{name}.node_config")
        for name, block in config["available_node_types"].items()
    }
    check_key_for_head(settings.api_key_file)
    from rollout_ray.cluster.lambda_provider import client_of

    offer = Offer.now(client_of(settings))
    problems = [*missing_mounts(config.get("file_mounts", {})), *_names(settings, offer)]
    problems += _private_key(config["auth"], settings, offer)
    for name, node in nodes.items():
        problems += _types(config, name, node, settings.region, offer)
    _no_problems(path, problems)
    return _summary(config, settings, nodes, offer)


def _no_problems(path: str, problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(f"{path} cannot be launched:\n  " + "\n  ".join(problems))


@dataclass(frozen=True)
class Offer:
    """The account's instance types, regions, file systems (`files`), and public SSH keys. All but regions are by name."""

    types: Mapping[str, Any]
    regions: Sequence[str]
    keys: Mapping[str, str]
    files: Mapping[str, Any]

    @classmethod
    def now(cls, client: LambdaClient) -> Offer:
        """Ask Lambda. Raise CloudError if it does not answer."""
        return cls(client.instance_types(), client.regions(), client.ssh_keys(), client.file_systems())

    def regions_of(self, kind: str) -> list[str]:
        """Return the regions that have the type at this moment."""
        return sorted(one["name"] for one in self.types[kind]["regions_with_capacity_available"])

    def dollars(self, kind: str) -> float:
        """Return the price of an hour."""
        return float(self.types[kind]["instance_type"]["price_cents_per_hour"]) / 100


def _read(path: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a cluster YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}; correct it there") from error
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
        raise ConfigError(f"{path} is no cluster YAML: cluster_name or provider is missing; start from cluster/lambda.yaml")
    return config


def _ray_accepts(path: str, config: dict[str, Any]) -> None:
    """Raise ConfigError if the file breaks Ray's own schema or rules."""
    from rollout_ray.ray_cluster.ray_internals import check_cluster_config  # imports Ray

    try:
        check_cluster_config(config)
    except Exception as error:  # of any class: it is about the file
        raise ConfigError(f"{path}: Ray does not accept it: {str(error).splitlines()[0]}; correct it there") from error


def _names(settings: ProviderSettings, offer: Offer) -> Iterator[str]:
    if settings.region not in offer.regions:
        yield f"provider.region: there is no region {settings.region}; take one of {', '.join(sorted(offer.regions))}"
    if settings.ssh_key_name not in offer.keys:
        yield (
            f"provider.ssh_key_name: the account has no SSH key {settings.ssh_key_name}; take one of "
            f"{', '.join(sorted(offer.keys)) or '(none)'}, or add it at https://cloud.lambda.ai/ssh-keys"
        )
    for name in settings.file_systems:
        if name not in offer.files:
            known = ", ".join(sorted(offer.files)) or "(none)"
            yield f"provider.file_systems: the account has no file system {name}; take one of {known}, or create it"
        elif (there := offer.files[name]["region"]["name"]) != settings.region:
            yield (
                f"provider.file_systems: {name} is in {there}, not in {settings.region}; change provider.region, or create "
                "one there"
            )


def _private_key(auth: Mapping[str, Any], settings: ProviderSettings, offer: Offer) -> Iterator[str]:
    """Check that the private key exists, that only its owner reads it, and that it fits the public key of instances."""
    file = Path(str(auth.get("ssh_private_key", ""))).expanduser()
    if not file.is_file():
        yield f"auth.ssh_private_key: {file} does not exist; give the private half of SSH key {settings.ssh_key_name}"
        return
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield f"auth.ssh_private_key: others may read {file}, and ssh refuses such a key; chmod 600 {file}"
        return
    command = ["ssh-keygen", "-y", "-P", "", "-f", str(file)]
    public = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if public.returncode:
        yield (
            f"auth.ssh_private_key: {file} is no private key without a passphrase, and the head needs one; make one with "
            "ssh-keygen -N ''"
        )
        return
    registered = offer.keys.get(settings.ssh_key_name, "").split()[:2]
    if registered and public.stdout.split()[:2] != registered:
        yield (f"auth.ssh_private_key: {file} is not the private half of SSH key {settings.ssh_key_name}; change either")


def _types(config: Mapping[str, Any], name: str, node: NodeSettings, region: str, offer: Offer) -> Iterator[str]:
    place = f"available_node_types.{name}"
    unknown = [kind for kind in node.types if kind not in offer.types]
    for kind in unknown:
        like = [one for one in sorted(offer.types) if one.split("_")[:2] == kind.split("_")[:2]] or sorted(offer.types)
        yield f"{place}: there is no instance type {kind}; take one of {', '.join(like)}"
    if unknown:
        return
    wanted = config["available_node_types"][name].get("resources", {})
    for kind in node.types:
        specs = offer.types[kind]["instance_type"]["specs"]
        for resource, has in (("GPU", specs["gpus"]), ("CPU", specs["vcpus"])):
            if wanted.get(resource, 0) > has:
                yield f"{place}: resources.{resource} is {wanted[resource]}, but a {kind} has {has}; write at most {has}"
    if name == config["head_node_type"] and not any(region in offer.regions_of(kind) for kind in node.types):
        places = {kind: ", ".join(offer.regions_of(kind)) or "nowhere" for kind in node.types}
        listed = "; ".join(f"{kind} is available in: {regions}" for kind, regions in places.items())
        yield f"{place}: {region} has no {' or '.join(node.types)} now, and nothing starts without the head ({listed})"


def _summary(
    config: Mapping[str, Any], settings: ProviderSettings, nodes: Mapping[str, NodeSettings], offer: Offer
) -> list[str]:
    lines = [f"cluster {config['cluster_name']} in {settings.region}, SSH key {settings.ssh_key_name}"]
    for name in settings.file_systems:
        lines.append(f"file system {name} at {offer.files[name]['mount_point']}")
    whole = int(config.get("max_workers", 0))
    least = 0.0
    most = 0.0
    workers: list[float] = []  # the price of each possible worker
    head = config["head_node_type"]
    for name in [head, *(name for name in nodes if name != head)]:
        block, prices = config["available_node_types"][name], [offer.dollars(kind) for kind in nodes[name].types]
        if name == head:
            lines.append(f"{name}: the head")
            least, most = least + min(prices), most + max(prices)
        else:
            low, high = int(block.get("min_workers", 0)), min(whole, int(block.get("max_workers", whole)))
            lines.append(f"{name}: {low} to {high} workers")
            least += low * min(prices)
            workers += [max(prices)] * high
        for kind in nodes[name].types:
            here = "available now" if settings.region in offer.regions_of(kind) else _elsewhere(offer.regions_of(kind))
            lines.append(f"  {kind}: ${offer.dollars(kind):.2f} an hour each, {here}")
    most += sum(sorted(workers, reverse=True)[:whole])
    lines.append(f"an hour costs ${least:.2f} when idle and ${most:.2f} at most (max_workers {whole})")
    lines.append(f"a worker ends after {config.get('idle_timeout_minutes')} idle minutes; the head costs until ray down")
    return lines


def _elsewhere(regions: Sequence[str]) -> str:
    return f"none now (available in {', '.join(regions)})" if regions else "none now in any region"
