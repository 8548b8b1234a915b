"""Find the GPUs of machines with the driver's own command, nvidia-smi.

Without that command, a machine's GPUs are unknown.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from rollout_ray.sizing.hardware import Gpu

log = logging.getLogger(__name__)

COMMAND = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
TIMEOUT_S = 30.0  # time limit of the command on one machine


def start_query() -> None:
    """Query this machine's GPUs in the background. The command takes 1.3 s on a host with H200s."""
    _query_once()


def local_gpus() -> list[Gpu]:
    """Return this machine's GPUs, or an empty list if they are unknown. A process queries once."""
    return _query_once().result()


def alike() -> bool:
    """Return whether all known GPUs of this machine are of one kind."""
    return len({gpu.name for gpu in local_gpus()}) <= 1


@cache
def _query_once() -> Future[list[Gpu]]:
    return ThreadPoolExecutor(1, "query-gpus").submit(_query)


def _query() -> list[Gpu]:
    try:
        answer = subprocess.run(COMMAND, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
        rows = [line.rsplit(",", 1) for line in answer.splitlines() if line.strip()]
        return [Gpu(name.strip(), int(mib) / 1024) for name, mib in rows]
    except FileNotFoundError:  # a machine without an NVIDIA driver, such as a laptop
        return []
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.info("nvidia-smi reports no GPUs (%s)", error)
        return []


def smallest(gpus: Iterable[Gpu | None]) -> Gpu | None:
    """Return the known GPU with the least memory."""
    return min((gpu for gpu in gpus if gpu), key=lambda gpu: gpu.memory_gib, default=None)


def _smallest_here() -> Gpu | None:
    return smallest(local_gpus())


def smallest_on_nodes(nodes: Sequence[str]) -> Gpu | None:
    """Return the GPU with the least memory on the nodes with these Ray ids, or None if unknown."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    query = ray.remote(num_cpus=0, max_retries=0)(_smallest_here)
    calls = [
        query.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
        if node != here
    ]
    found = [_smallest_here()] if here in nodes else []
    for call in calls:
        try:
            found.append(ray.get(call, timeout=2 * TIMEOUT_S))
        except ray.exceptions.RayError as error:  # the node has gone, or Ray cannot start a process there
            log.info("A node's GPUs are unknown (%s)", type(error).__name__)
            found.append(None)
    return smallest(found)
