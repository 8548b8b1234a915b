"""Estimate the speed of engines from a GPU's data sheet or from an earlier run.

Each estimate names its source. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.models.model_size import ModelSize
from rollout_ray.sizing.hardware import GpuKind

GPU_START_S = 35.0  # an engine's start with a warm compile cache: 26 to 41 s on H200 hosts
# Shares of the data sheet that a 7B model reaches on an H200 (profiled: vLLM 0.26, 1,024 sequences). A decoding step takes
# 32 ms: 51% is matrix multiplication and 33% reads keys and values.
COMPUTE_SHARE, READ_SHARE = 0.7, 0.9
TAIL_LOST = 0.25
# Work of vLLM's own process for a sequence in a step, which overlaps with the GPU. Assumed: it bounds small models only.
HOST_S_PER_SEQUENCE = 12e-6
STEP_S = 0.001  # part of a step during which the GPU waits
# Time of an all-reduce between tensor parallel ranks, fitted to a 7B on 2 and 8 H200s without NVLink multicast.
REDUCE_S_PER_RANK, REDUCE_BYTES_PER_S = 30e-6, 100e9


@dataclass(frozen=True)
class Rates:
    """Expected speed of the engines.

    tokens_per_second: Output of one replica with a full batch. None: unknown.
    start_seconds: Time until the first engine decodes.
    tail_seconds: Time lost at the end of a run, when batches shrink.
    source: Source of these figures, in words.
    mean_tokens: Mean output tokens by arm. A missing arm is unknown.
    caveat: How far the speed may be off, in a sentence. None: nothing to say.
    """

    tokens_per_second: float | None
    start_seconds: float
    tail_seconds: float
    source: str
    mean_tokens: Mapping[str, float] = field(default_factory=dict)
    bytes_per_trajectory: float | None = None
    caveat: str | None = None


def from_data_sheet(
    size: ModelSize, kind: GpuKind, degree: int, sequences: int, prompt_tokens: float, output_tokens: float
) -> Rates:
    """Estimate the speed of one replica with a roofline.

    A step reads the weights and all keys and values once. With more ranks than heads of keys and
    values, it also reads their copies. Every token costs two operations a weight, and the ranks
    reduce twice a layer. Source: Williams, Waterman and Patterson, CACM 2009, with measured shares.

    Args:
        degree: GPUs of the replica.
        sequences: Sequences decoded at once.
        prompt_tokens, output_tokens: Averages a sequence.
    """
    flops = degree * kind.tflops * 1e12 * COMPUTE_SHARE
    read = degree * kind.bandwidth * 1e12 * READ_SHARE
    copies = degree / min(degree, size.kv_heads)
    held = copies * sequences * (prompt_tokens + output_tokens / 2) * size.kv_bytes_per_token
    step = STEP_S + (size.weight_bytes + held) / read + 2 * size.active_parameters * sequences / flops
    if degree > 1:
        summed = 2 * sequences * size.hidden * 2 * (degree - 1) / degree
        step += 2 * size.layers * (REDUCE_S_PER_RANK * degree + summed / REDUCE_BYTES_PER_S)
    host = HOST_S_PER_SEQUENCE * sequences
    source = f"the data sheet of {kind.name} (within a third)"
    if host > step:
        step = host
        source = f"the data sheet of {kind.name}: at most, for the host bounds a model this small. Measure it with --probe"
    prefill = 2 * size.active_parameters * prompt_tokens / flops
    rate = output_tokens / (output_tokens * step / sequences + prefill)
    return Rates(rate, GPU_START_S, output_tokens * step / 2, source)


def from_run(finished: Mapping[str, Any], bytes_per_trajectory: float | None, source: str) -> Rates | None:
    """Return the rates of an earlier run, or None if it generated nothing.

    Args:
        finished: Summary in the run's `finished` event.
    """
    account = finished.get("account") or {}
    engines = (account.get("engines") or {}).values()
    generation, tail = account.get("generation_seconds") or 0.0, account.get("tail_seconds") or 0.0
    tokens = sum(engine["generated_tokens"] for engine in engines)
    served = sum(engine["decoding_seconds"] + engine["idle_seconds"] for engine in engines)
    if not (tokens and generation and served):
        return None
    # The batch shrinks during the tail. Half of that time is lost if speed follows the batch size, and none otherwise.
    lost = TAIL_LOST * tail
    busy = served * (1 - lost / generation)
    mean = {name: arm["mean_tokens"] for name, arm in finished["arms"].items() if arm["trajectories"]}
    return Rates(tokens / busy, account["starting_seconds"], lost, source, mean, bytes_per_trajectory)
