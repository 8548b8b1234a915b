"""The workload that every system gets: the same prompts, sampling parameters, fixed output lengths and engine limits.

Owns what is equal between the systems, written to one JSON file so that a reference need not load rollout_ray to read
it. It starts no engine.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rollout_ray.actors.engine.launch import FORWARDED, LaunchSpec
from rollout_ray.actors.vllm_backend.arguments import engine_arguments, environment
from rollout_ray.config.arms import chat_messages
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import sample_specs, sampling_seed
from rollout_ray.models.resolved_run import ResolvedRun, resolve

# What a reference with vLLM's own choices is still told: the model, and on the CPU the limits without which it fails.
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
    """What is measured: `questions` (a parquet with prompt and gold_answer) under the eight arms, `tokens` output tokens
    each; `replicas` engines of `gpus` GPUs (0: on the CPU)."""

    questions: str
    limit: int | None
    model_path: str
    load_format: str
    tokens: int
    gpus: int
    replicas: int
    eager_questions: int


def write_workload(path: Path, job: Job) -> dict[str, Any]:
    """Writes the workload's JSON and returns it.

    Its keys: config (ours), engine (vLLM's EngineArgs as ours would choose them), engine_needed (those that vLLM's own
    choices start from), environment and environment_shared (for one engine on the machine, and for one of several),
    forwarded (beginnings of the names of variables that every engine must have), questions and eager_questions (how
    many), arms, replicas and bare_replicas, gpus (an engine's), tokens, and requests: one a trajectory, a question's
    next to each other.
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
    requests = [
        {
            "question": number,
            "arm": spec.arm.name,
            "messages": [dict(m) for m in chat_messages(prompt, spec.arm.system_prompt)],
            "sampling": {
                "temperature": spec.arm.temperature,
                "top_p": spec.arm.top_p,
                "max_tokens": job.tokens,
                "ignore_eos": True,
                "seed": sampling_seed(config.sampling.seed, str(number), spec.arm.name, spec.sample),
            },
        }
        for number, prompt in enumerate(prompts)
        for spec in samples
    ]
    cores = os.cpu_count() or 1
    engine = engine_arguments(LaunchSpec.of(run, gpus=job.gpus, threads=cores))
    for name in ("worker_cls", "disable_log_stats"):  # what we watch an engine by
        del engine[name]
    workload = {
        "config": values,
        "engine": engine,
        "engine_needed": {k: engine[k] for k in NEEDED + (() if job.gpus else NEEDED_ON_CPU) if k in engine},
        "environment": _of_a_reference(run, job.gpus, cores),
        "environment_shared": _of_a_reference(run, job.gpus, max(1, cores // job.replicas)),
        "forwarded": FORWARDED,
        "eager_questions": min(job.eager_questions, len(prompts)),
        "questions": len(prompts),
        "arms": len(samples),
        "replicas": job.replicas,
        "bare_replicas": job.replicas if job.gpus else 1,  # on the CPU one engine with all cores is the ceiling
        "gpus": job.gpus,
        "tokens": job.tokens,
        "requests": requests,
    }
    path.write_text(json.dumps(workload))
    return workload


def _of_a_reference(run: ResolvedRun, gpus: int, threads: int) -> dict[str, str]:
    """The variables that ours would set, but for those that say how an engine starts: that is vLLM's to choose here."""
    variables = environment(run, gpus=gpus, threads=threads)
    if gpus:
        for ours in ("VLLM_ENABLE_STARTUP_PLAN", "VLLM_WORKER_MULTIPROC_METHOD", "OMP_NUM_THREADS"):
            variables.pop(ours, None)
    return variables
