"""The workload that every system gets: the same prompts, sampling parameters, fixed output lengths and engine limits.

Owns what is equal between the systems, written to one JSON file so that a reference need not load rollout_ray to read
it. It starts no engine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from actors.vllm_backend import engine_arguments, environment
from rollout_ray.arms import chat_messages, resolve_arms
from rollout_ray.config import RunConfig
from rollout_ray.records import draws_of, sampling_seed


def write_workload(
    path: Path, *, questions: str, model_path: str, load_format: str, tokens: int, gpus: int, replicas: int
) -> list[dict[str, Any]]:
    """Writes the workload's JSON and returns its requests, one dict a trajectory.

    `questions` is a parquet with prompt and gold_answer; every trajectory gets exactly `tokens` output tokens. Keys of
    the file: config (ours), engine (vLLM's EngineArgs), environment and environment_shared (for one engine on the
    machine, and for one of several), replicas, gpus (an engine's) and requests.
    """
    values = {
        "data": {"dataset": questions},
        "model": {"model_path": model_path},
        "engine": {"load_format": load_format, "tensor_parallel_size": max(1, gpus)},
        "sampling": {"max_tokens": tokens, "ignore_eos": True},
        "resources": {"replicas": replicas},
    }
    config = RunConfig.model_validate(values)
    requests = [
        {
            "question": number,
            "arm": draw.arm.name,
            "messages": [dict(m) for m in chat_messages(prompt, draw.arm.system_prompt)],
            "sampling": {
                "temperature": draw.arm.temperature,
                "top_p": draw.arm.top_p,
                "max_tokens": tokens,
                "ignore_eos": True,
                "seed": sampling_seed(config.sampling.seed, str(number), draw.arm.name, draw.sample),
            },
        }
        for number, prompt in enumerate(pq.read_table(questions).column("prompt").to_pylist())
        for draw in draws_of(resolve_arms(config))
    ]
    cores = os.cpu_count() or 1
    workload = {
        "config": values,
        "engine": engine_arguments(config, gpus=gpus),
        "environment": environment(config, gpus=gpus, threads=cores),
        "environment_shared": environment(config, gpus=gpus, threads=max(1, cores // replicas)),
        "replicas": replicas,
        "gpus": gpus,
        "requests": requests,
    }
    path.write_text(json.dumps(workload))
    return requests
