"""Decide how many engines a run asks for, from the nodes that are up and those that Ray's autoscaler may add.

It requests no node. The autoscaler adds nodes for placement groups that wait for resources; the driver makes one for each
engine, and they end with the job. `request_resources` would hold for the whole cluster and outlive a killed driver.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import model_size
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Node, Placement, choose_placement, live_nodes
from rollout_ray.sizing.gpus import smallest, smallest_on_nodes
from rollout_ray.sizing.hardware import Gpu, parse_gpus

log = logging.getLogger(__name__)

HEAD = "node:__internal_head__"  # a resource that only the head has


def placed(run: ResolvedRun, samples: int | None = None) -> Placement:
    """Return how many engines to run on the nodes that are up and those that may come.

    If `resources.replicas` is unset and nodes may come, each engine must get a full batch. The engines then fill whole
    nodes. A run uses every node that is up in any case.

    Args:
        run: The resolved run.
        samples: Trajectories that are left to draw, or None if not known.

    Raises:
        PlacementError: The largest possible cluster cannot hold the engines that the config asks for.
    """
    cfg = run.config
    nodes = [node for node in ray.nodes() if node["Alive"]]
    up = live_nodes(nodes)
    config = _autoscaling_config(nodes)
    coming = nodes_to_come(config)
    gpu, model = None, None
    if cfg.engine.backend == "vllm" and any(node.gpus for node in (*up, *coming)):
        with_gpus = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
        known = [smallest_on_nodes(with_gpus) if with_gpus else None, gpu_to_come(config)]
        gpu = smallest(known)
        model = model_size(run) if gpu else None
    if not coming:
        return choose_placement(up, run, gpu, model)
    at_most = [*live_nodes([node for node in nodes if HEAD in node["Resources"]]), *coming]
    placement = choose_placement(at_most, run, gpu, model)
    if placement.replicas > (capacity := _capacity(at_most, placement.gpus)):
        raise PlacementError(
            f"{placement.replicas} engines were asked for and the autoscaler's nodes hold {capacity} at most; lower "
            "--replicas, or raise max_workers"
        )
    if cfg.resources.replicas is None and samples is not None:
        batch = placement.limits.max_num_seqs
        of_a_node = max(1, _capacity(coming[:1], placement.gpus))  # a node costs the same however much of it is used
        worth = max(_capacity(up, placement.gpus), math.ceil(samples / batch / of_a_node) * of_a_node)
        placement = replace(placement, replicas=min(placement.replicas, worth))
    return replace(
        placement,
        scales=True,
        cpus=placement.cpus or 1,  # the autoscaler adds no node for an engine that books nothing
        note=f"as nodes join, {placement.note}; {len(up)} node(s) are up now, the autoscaler has the head and up to "
        f"{len(coming)} more",
    )


def _capacity(nodes: Sequence[Node], gpus: int) -> int:
    """Return how many engines fit, of `gpus` GPUs each, or of one core if `gpus` is 0."""
    return sum(node.gpus // gpus if gpus else node.cpus for node in nodes)


def nodes_to_come(config: Mapping[str, Any] | None) -> list[Node]:
    """Return every node that the autoscaler may add, without the head. Return none if there is no autoscaler.

    Nodes with the most GPUs come first, because `max_workers` limits all types together.
    """
    if config is None:
        return []
    most = int(config.get("max_workers", 0))
    coming: list[Node] = []
    kinds = config["available_node_types"]
    for name, kind in sorted(kinds.items(), key=lambda item: -_amount(item[1], "GPU")):
        count = int(kind.get("max_workers", 0 if name == config.get("head_node_type") else most))
        node = Node(_amount(kind, "CPU"), _amount(kind, "GPU"))
        coming += [node] * min(count, most - len(coming))
    return coming


def gpu_to_come(config: Mapping[str, Any] | None) -> Gpu | None:
    """Return the smallest GPU of the nodes to come, or None if no node type names its GPU.

    Ray's ways to name it are the label ray.io/accelerator-type and the resource accelerator_type:NAME.
    """
    found = []
    for kind in config["available_node_types"].values() if config else ():
        marked = [name.partition(":")[2] for name in kind.get("resources") or {} if name.startswith("accelerator_type:")]
        for name in (*marked, (kind.get("labels") or {}).get("ray.io/accelerator-type", "")):
            with suppress(PlacementError):
                found.append(parse_gpus(f"1x{name}")[-1])
    return smallest(Gpu(kind.name, kind.memory_gib) for kind in found)


def _amount(kind: Mapping[str, Any], resource: str) -> int:
    return int((kind.get("resources") or {}).get(resource, 0))


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """Return the strategy for actors that must not keep an idle node up: they run on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _autoscaling_config(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the autoscaler's config, or None if the cluster has no autoscaler.

    Ray tells clients neither whether nodes may be added nor how many, so a task reads the config on the head.
    """
    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    head = next(node["NodeID"] for node in nodes if HEAD in node["Resources"])
    if head == context.get_node_id():
        return read_config(port)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    config: dict[str, Any] | None = ray.get(
        ray.remote(read_config).options(num_cpus=0, scheduling_strategy=there).remote(port)
    )
    return config


def read_config(port: str) -> dict[str, Any] | None:
    """Return the settings for the number of nodes of the autoscaler on this machine that serves the Ray at `port`.

    Return None if there is no such autoscaler.
    """
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        path = options.get("--autoscaling-config")
        if path is None or options.get("--gcs-address", "").rpartition(":")[2] != port:
            continue
        try:
            whole = yaml.safe_load(Path(path).expanduser().read_text())
        except OSError as error:
            log.warning("the autoscaler's config cannot be read (%s): only the nodes that are up are used", error)
            return None
        kinds = whole.get("available_node_types", {})
        return {
            "max_workers": whole.get("max_workers", 0),
            "head_node_type": whole.get("head_node_type"),
            "available_node_types": {
                name: {key: kind[key] for key in ("resources", "labels", "max_workers") if key in kind}
                for name, kind in kinds.items()
            },
        }
    return None
