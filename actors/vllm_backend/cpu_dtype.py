"""Choose the type of weights and activations of an engine on the CPU, where the config says auto."""

from __future__ import annotations

import os
from typing import Any

from rollout_ray.actors.vllm_backend.page_cache import memory_bytes
from rollout_ray.config.schema import RunConfig
from rollout_ray.models.model_size import quantization_of, size_of


def cpu_dtype(config: RunConfig, written: dict[str, Any], threads: int) -> str:
    """Return float32 where this processor decodes faster with it, else the config's type.

    A processor without AVX-512 has no 16-bit arithmetic, so each value is converted before each use. On two such cores
    (EPYC 7003) the shipped model decodes 900 tokens/s in bfloat16 and 2,680 in float32.

    Args:
        config: The run's config.
        written: The checkpoint's config.json.
        threads: CPU threads of the engine. Float32 weights may take half of the memory that belongs to these cores.
    """
    asked = config.engine.dtype
    quantized = "quantization" in config.engine.extra or quantization_of(written) is not None
    if asked != "auto" or quantized or not _lacks_avx512():
        return asked
    size = size_of(written, config, dtype="float32")
    cores = len(os.sched_getaffinity(0))
    if size is None or size.weight_bytes > memory_bytes() * min(1.0, threads / cores) / 2:
        return asked
    return "float32"


def _lacks_avx512() -> bool:
    import torch

    return bool(torch.backends.cpu.get_cpu_capability() == "AVX2")
