"""Launch an engine: everything that it needs to start, as one frozen value that can be pickled, and its backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.actors.backend import Backend
from rollout_ray.actors.engine.keepalive import Keepalive
from rollout_ray.core.redaction import without_secrets
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.sizing.hardware import EngineLimits, usual_limits

# Variables of the driver that an engine on another node needs too, by the beginnings of their names.
FORWARDED = ("NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_", "VLLM_", "HF_HOME", "HF_HUB_")
# A variable with one of these words in its name belongs to one host or process, such as VLLM_HOST_IP. An engine takes it
# from its own node, where the node's Ray was started with it.
OF_ONE_HOST = frozenset(("HOST", "HOSTID", "IP", "IPS", "PORT", "RANK", "RPC", "DP", "INDICES", "MAPPING"))


def forwarded_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the driver that its engines get: no secrets, and none that belong to one host."""
    named = {name: value for name, value in variables.items() if name.startswith(FORWARDED)}
    return without_secrets({name: value for name, value in named.items() if not OF_ONE_HOST.intersection(name.split("_"))})


@dataclass(frozen=True)
class LaunchSpec:
    """What the driver tells a new engine.

    Attributes:
        name: The engine's name, such as engine-0.
        run: The resolved run; its policy has the weights that the engine loads.
        gpus: GPUs of the engine; 0 runs it on the CPU.
        threads: CPU threads of an engine without GPUs.
        limits: Batch size and memory share.
        environment: Variables that the engine's process gets from the driver.
        log_file: File for the engine's output; None leaves the output to Ray.
        keepalive: Ends an engine of a named pool that no job uses; None for other engines.
        note: What a named pool stores with the engine for later jobs.
        server: Address of a server on the driver's machine that forks engines; None if there is none.
    """

    name: str
    run: ResolvedRun
    gpus: int
    threads: int
    limits: EngineLimits
    environment: Mapping[str, str] = field(default_factory=dict)
    log_file: str | None = None
    keepalive: Keepalive | None = None
    note: Any = None
    server: str | None = None

    @classmethod
    def of(cls, run: ResolvedRun, *, gpus: int, threads: int, name: str = "engine-0") -> LaunchSpec:
        """Return the spec of an engine that stands alone, with the limits of the config or the usual ones."""
        return cls(name, run, gpus, threads, usual_limits(run.config.engine, gpus))


def load_backend(spec: LaunchSpec) -> Backend:
    """Load the backend that the config names. The import of vLLM takes seconds."""
    if spec.run.config.engine.backend == "simulated":
        from rollout_ray.actors.simulated import SimulatedBackend

        return SimulatedBackend(spec)
    from rollout_ray.actors.vllm_backend.backend import VllmBackend

    return VllmBackend(spec)
