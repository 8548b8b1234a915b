"""Write the workload of all systems: equal prompts, sampling parameters, lengths and engine limits.

One JSON file has everything, so that a reference need not import rollout_ray. No engine starts here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rollout_ray.actors.engine.launch import FORWARDED, LaunchSpec
from rollout_ray.actors.vllm_backend.arguments import engine_arguments, environment
from rollout_ray.config.arms import chat_messages
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import SampleSpec, sample_specs, sampling_seed
from rollout_ray.models.resolved_run import ResolvedRun, resolve

# Arguments for a reference with vLLM's own choices: the model, and on the CPU the limits without which vLLM fails.
NEEDED = ("model", "load_format", "max_model_len")
NEEDED_ON_CPU = (
    "enforce_eager",
    "enable_chunked_prefill",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "distributed_executor_backend",
)


@dataclass(frozen=True)
class Job:
    """The measured job. `questions` is a parquet with prompt and gold_answer.

    Each question runs under the eight arms with `tokens` output tokens each, on `replicas` engines
    with `gpus` GPUs each (0: on the CPU).
    """

    questions: str
    limit: int | None
    model_path: str
    load_format: str
    tokens: int
    gpus: int
    replicas: int
    eager_questions: int


def write_workload(path: Path, job: Job) -> dict[str, Any]:
    """Write the workload as JSON and return it.

    Its keys:
    config: Our config.
    engine: vLLM's EngineArgs as ours would choose them.
    engine_needed: The arguments that vLLM's own choices start from.
    environment, environment_shared: Variables for the only engine, or for one of several.
    forwarded: Prefixes of the variables that every engine must have.
    questions, eager_questions, arms, replicas, bare_replicas, gpus (an engine), tokens: Numbers.
    requests: One a trajectory, all of a question together.
    """
    values = {
        "data": {"dataset": job.questions, "limit": job.limit},
        "model": {"model_path": job.model_path},
        "engine": {"load_format": job.load_format, "tensor_parallel_size": max(1, job.gpus)},
        "sampling": {"max_tokens": job.tokens, "ignore_eos": True},
        "resources": {"replicas": job.replicas},
    }
    config = RunConfig.model_validate(values)
    prompts = pq.read_table(job.questions).column("prompt").to_pylist()[: job.limit]
    run = resolve(config)
    samples = sample_specs(run.arms)
    cores = os.cpu_count() or 1
    engine = engine_arguments(LaunchSpec.of(run, gpus=job.gpus, threads=cores))
    for name in ("worker_cls", "disable_log_stats"):  # our own monitoring of an engine
        del engine[name]
    workload = {
        "config": values,
        "engine": engine,
        "engine_needed": {k: engine[k] for k in NEEDED + (() if job.gpus else NEEDED_ON_CPU) if k in engine},
        "environment": _reference_environment(run, job.gpus, cores),
        "environment_shared": _reference_environment(run, job.gpus, max(1, cores // job.replicas)),
        "forwarded": FORWARDED,
        "eager_questions": min(job.eager_questions, len(prompts)),
        "questions": len(prompts),
        "arms": len(samples),
        "replicas": job.replicas,
        "bare_replicas": job.replicas if job.gpus else 1,  # on the CPU one engine with all cores is the ceiling
        "gpus": job.gpus,
        "tokens": job.tokens,
        "requests": _requests(config, prompts, samples),
    }
    path.write_text(json.dumps(workload))
    return workload


def _requests(config: RunConfig, prompts: Sequence[Any], samples: Sequence[SampleSpec]) -> list[dict[str, Any]]:
    return [
        {
            "question": number,
            "arm": spec.arm.name,
            "messages": [dict(m) for m in chat_messages(prompt, spec.arm.system_prompt)],
            "sampling": {
                "temperature": spec.arm.temperature,
                "top_p": spec.arm.top_p,
                "max_tokens": config.sampling.max_tokens,
                "ignore_eos": True,
                "seed": sampling_seed(config.sampling.seed, str(number), spec.arm.name, spec.sample),
            },
        }
        for number, prompt in enumerate(prompts)
        for spec in samples
    ]


def _reference_environment(run: ResolvedRun, gpus: int, threads: int) -> dict[str, str]:
    """Return the variables that ours would set, except those for an engine's start, which vLLM chooses here."""
    variables = environment(run, gpus=gpus, threads=threads)
    if gpus:
        for ours in ("VLLM_ENABLE_STARTUP_PLAN", "VLLM_WORKER_MULTIPROC_METHOD", "OMP_NUM_THREADS"):
            variables.pop(ours, None)
    return variables
