"""Looks at the GPUs of the machines, through the command of their driver (nvidia-smi).

Owns only the looking. A machine without that command has GPUs of a kind that is not known.
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
LONGEST_S = 30.0  # that one machine may take to answer


def look_ahead() -> None:
    """Has this machine's GPUs looked at while the caller goes on: the command takes a host of H200s 1.3 s."""
    _look_once()


def all_here() -> list[Gpu]:
    """The GPUs of this machine; none where they cannot be told. A process looks once."""
    return _look_once().result()


def alike() -> bool:
    """Whether the GPUs of this machine are all of one kind, as far as can be told."""
    return len({gpu.name for gpu in all_here()}) <= 1


@cache
def _look_once() -> Future[list[Gpu]]:
    return ThreadPoolExecutor(1, "look at the GPUs").submit(_look)


def _look() -> list[Gpu]:
    try:
        answer = subprocess.run(COMMAND, capture_output=True, text=True, timeout=LONGEST_S, check=True).stdout
        rows = [line.rsplit(",", 1) for line in answer.splitlines() if line.strip()]
        return [Gpu(name.strip(), int(mib) / 1024) for name, mib in rows]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.info("the GPUs could not be looked at (%s)", error)
        return []


def smallest(gpus: Iterable[Gpu | None]) -> Gpu | None:
    """The one with the least memory of those that are known."""
    return min((gpu for gpu in gpus if gpu), key=lambda gpu: gpu.memory_gib, default=None)


def _smallest_here() -> Gpu | None:
    return smallest(all_here())


def smallest_of(nodes: Sequence[str]) -> Gpu | None:
    """The GPU with the least memory of the nodes with these Ray ids; None where it cannot be told."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0, max_retries=0)(_smallest_here)
    calls = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
        if node != here
    ]
    found = [_smallest_here()] if here in nodes else []
    for call in calls:
        try:
            found.append(ray.get(call, timeout=2 * LONGEST_S))
        except ray.exceptions.RayError as error:  # the node has gone, or Ray cannot start a process there
            log.info("a node's GPUs could not be looked at (%s)", type(error).__name__)
            found.append(None)
    return smallest(found)
