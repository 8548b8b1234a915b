"""How fast engines may be expected to be: from the data sheet of a GPU, or from what a run has measured.

Owns the arithmetic and says where each figure comes from. It measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.models.model_size import ModelSize
from rollout_ray.sizing.hardware import Kind

GPU_START_S = 35.0  # an engine's start with what it compiles in the cache: 26 to 41 s on H200 hosts
# Shares of the data sheet that a 7B model reaches on an H200 (vLLM 0.26, 1,024 sequences, profiled): a decoding step takes
# 32 ms, of which 51% multiply matrices and 33% read keys and values.
COMPUTE_SHARE, READ_SHARE = 0.7, 0.9
TAIL_LOST = 0.25
STEP_S = 0.001  # of a step that no GPU work hides
# An all-reduce of the tensor parallel ranks, fitted to a 7B on 2 and 8 H200s without NVLink multicast.
REDUCE_S_PER_RANK, REDUCE_BYTES_PER_S = 30e-6, 100e9


@dataclass(frozen=True)
class Rates:
    """What is expected of the engines: `tokens_per_second` of output of one replica with a full batch (None: not known),
    seconds until the first of them can decode, seconds at the end of a run with ever fewer sequences, and mean output
    tokens by arm (an arm that is missing: not known). `source` says in words where it comes from."""

    tokens_per_second: float | None
    start_seconds: float
    tail_seconds: float
    source: str
    mean_tokens: Mapping[str, float] = field(default_factory=dict)
    bytes_per_trajectory: float | None = None


def from_data_sheet(
    size: ModelSize, kind: Kind, degree: int, sequences: int, prompt_tokens: float, output_tokens: float
) -> Rates:
    """Of a replica over `degree` GPUs that decodes `sequences` at once, each of so many prompt and output tokens on an
    average: the weights and the keys and values are read once a step (with more ranks than heads of them, their copies
    too), every token costs two operations a weight, and the ranks sum up twice a layer (a roofline, Williams, Waterman and
    Patterson, CACM 2009, with the shares that are reached)."""
    flops = degree * kind.tflops * 1e12 * COMPUTE_SHARE
    read = degree * kind.bandwidth * 1e12 * READ_SHARE
    copies = degree / min(degree, size.kv_heads)
    held = copies * sequences * (prompt_tokens + output_tokens / 2) * size.kv_bytes_per_token
    step = STEP_S + (size.weight_bytes + held) / read + 2 * size.active_parameters * sequences / flops
    if degree > 1:
        summed = 2 * sequences * size.hidden * 2 * (degree - 1) / degree
        step += 2 * size.layers * (REDUCE_S_PER_RANK * degree + summed / REDUCE_BYTES_PER_S)
    prefill = 2 * size.active_parameters * prompt_tokens / flops
    rate = output_tokens / (output_tokens * step / sequences + prefill)
    return Rates(rate, GPU_START_S, output_tokens * step / 2, f"the data sheet of {kind.name} (within a third)")


def from_run(finished: Mapping[str, Any], bytes_per_trajectory: float | None, source: str) -> Rates | None:
    """Of the summary in the `finished` event of a run; None where that run has generated nothing."""
    account = finished.get("account") or {}
    engines = (account.get("engines") or {}).values()
    generation, tail = account.get("generation_seconds") or 0.0, account.get("tail_seconds") or 0.0
    tokens = sum(engine["generated_tokens"] for engine in engines)
    served = sum(engine["decoding_seconds"] + engine["idle_seconds"] for engine in engines)
    if not (tokens and generation and served):
        return None
    # Over the tail the batch empties: half of that time is lost where speed follows the batch, none where it does not.
    lost = TAIL_LOST * tail
    busy = served * (1 - lost / generation)
    mean = {name: arm["mean_tokens"] for name, arm in finished["arms"].items() if arm["trajectories"]}
    return Rates(tokens / busy, account["starting_seconds"], lost, source, mean, bytes_per_trajectory)
