"""One system a process: `python -m jobs.benchmark.systems NAME WORKLOAD.json OUTPUT.parquet`.

Each reads the workload (see workload.py), generates, writes a parquet and prints one JSON line with its own account of
the time: seconds from the process's start to the engine's readiness, and seconds of generation, where it can tell.
The references load nothing of rollout_ray, as their users would not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

BEGAN = time.perf_counter()


def bare(workload: dict[str, Any], output: str) -> dict[str, float]:
    """vLLM's LLM class over all requests at once, with the engine arguments that ours would choose."""
    os.environ.update(workload["environment"])
    import pandas as pd
    from vllm import LLM, SamplingParams

    llm = LLM(**workload["engine"])
    ready = time.perf_counter()
    requests = workload["requests"]
    prompts = _token_prompts(llm.get_tokenizer(), requests)
    parameters = [SamplingParams(**r["sampling"]) for r in requests]
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], parameters, use_tqdm=False)
    ended = time.perf_counter()
    frame = pd.DataFrame({"question": [r["question"] for r in requests], "arm": [r["arm"] for r in requests]})
    frame["text"] = [o.outputs[0].text for o in outputs]
    frame["num_tokens"] = [len(o.outputs[0].token_ids) for o in outputs]
    frame.to_parquet(output)
    return {"ready": ready - BEGAN, "generation": ended - began}


def ray_data(workload: dict[str, Any], output: str) -> dict[str, float]:
    """ray.data.llm, tuned: equal engine limits, small batches and many blocks, a fixed pool of engines, its templating,
    tokenizing and detokenizing stages off."""
    variables = workload["environment_shared"]
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **variables})
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    from transformers import AutoTokenizer

    engine = dict(workload["engine"])
    model = engine.pop("model")
    engine.pop("distributed_executor_backend")
    # Each engine books a core, and so does each stage around it; on a small machine they share.
    ray.init("local", num_cpus=max(8, os.cpu_count() or 1), log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine,
            batch_size=8,
            concurrency=(workload["replicas"], workload["replicas"]),
            max_concurrent_batches=32,
            max_tasks_in_flight_per_actor=64,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config=None if workload["gpus"] else {"bundles": [{"CPU": 1, "GPU": 0}]},
            log_engine_metrics=False,
            runtime_env={"env_vars": variables},
        ),
        postprocess=lambda row: {
            "question": row["question"],
            "arm": row["arm"],
            "text": row["generated_text"],
            "num_tokens": row["num_generated_tokens"],
        },
    )
    requests = workload["requests"]
    prompts = _token_prompts(AutoTokenizer.from_pretrained(model), requests)
    rows = [
        {"question": r["question"], "arm": r["arm"], "prompt": "", "tokenized_prompt": p, "sampling_params": r["sampling"]}
        for r, p in zip(requests, prompts, strict=True)
    ]
    data = ray.data.from_items(rows).repartition(max(1, len(rows) // 8))
    processor(data).to_pandas().to_parquet(output)
    ray.shutdown()
    return {}


def ours(workload: dict[str, Any], output: str) -> dict[str, float]:
    """rollout_ray's `collect`; it grades and rewards besides."""
    from rollout_ray import RunConfig, collect

    run = f"{output}.run"
    config = RunConfig.model_validate({**workload["config"], "output": {"output_dir": run}})
    rollouts = collect(None, config)
    os.replace(rollouts.path, output)
    with open(f"{run}/events.jsonl") as stream:
        events = [json.loads(line) for line in stream]
    started = max(e["time"] for e in events if e["event"] == "engine_started")
    process_start = time.time() - (time.perf_counter() - BEGAN)
    return {"ready": started - process_start, "generation": rollouts.summary.generation_seconds}


def _token_prompts(tokenizer: Any, requests: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of every request's conversation; equal conversations are tokenized once."""
    known: dict[str, list[int]] = {}
    for request in requests:
        key = json.dumps(request["messages"])
        if key not in known:
            known[key] = tokenizer.apply_chat_template(
                request["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
    return [known[json.dumps(request["messages"])] for request in requests]


SYSTEMS: dict[str, Any] = {"bare": bare, "ray_data": ray_data, "ours": ours}


if __name__ == "__main__":
    name, path, target = sys.argv[1:]
    with open(path) as stream:
        print(json.dumps(SYSTEMS[name](json.load(stream), target)))
