"""Run the reference ray.data.llm, as documented and tuned, without importing rollout_ray.

Its rows tell durations but no moments. The phases therefore come from its engines' log lines, one
at the end of each start and of each batch.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rollout_ray.jobs.benchmark.account import Account
from rollout_ray.jobs.benchmark.prompts import token_prompts

Workload = dict[str, Any]
Row = dict[str, Any]
BATCH = 8
DOCUMENTED_BATCH = 64

READY = "Max pending requests is set to"
BATCH_DONE = re.compile(r"Elapsed time for batch \w+ with size \d+: ([\d.]+)")


def with_defaults(workload: Workload, output: str) -> Account:
    """Run the documentation's example: messages in, all five stages, its engine arguments and batch size."""
    import ray

    engine = {**workload["engine_needed"], "dtype": workload["engine"]["dtype"]}
    if workload["gpus"]:
        engine |= {"enable_prefix_caching": True, "enable_chunked_prefill": True, "max_num_batched_tokens": 4096}
        engine |= {"tensor_parallel_size": workload["gpus"]}
    logs = _start_ray(workload)
    rows = [
        {"question": r["question"], "arm": r["arm"], "messages": r["messages"], "sampling_params": r["sampling"]}
        for r in workload["requests"]
    ]
    processor = _processor(workload, engine, batch_size=DOCUMENTED_BATCH, concurrency=workload["replicas"])
    return _run(processor(ray.data.from_items(rows)), output, logs)


def tuned(workload: Workload, output: str) -> Account:
    """Run with our engine limits, small batches, many blocks, a fixed pool, and text stages disabled."""
    import ray
    from transformers import AutoTokenizer

    logs = _start_ray(workload)
    processor = _processor(
        workload,
        workload["engine"],
        batch_size=BATCH,
        concurrency=(workload["replicas"], workload["replicas"]),
        # Enough batches for the engine's sequences, and a queue behind them.
        max_concurrent_batches=max(32, workload["engine"]["max_num_seqs"] // BATCH),
        max_tasks_in_flight_per_actor=max(64, workload["engine"]["max_num_seqs"] // BATCH * 5 // 4),
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    requests = workload["requests"]
    prompts = token_prompts(AutoTokenizer.from_pretrained(workload["engine"]["model"]), requests)
    rows = [
        {"question": r["question"], "arm": r["arm"], "prompt": "", "tokenized_prompt": p, "sampling_params": r["sampling"]}
        for r, p in zip(requests, prompts, strict=True)
    ]
    return _run(processor(ray.data.from_items(rows).repartition(max(1, len(rows) // BATCH))), output, logs)


def _start_ray(workload: Workload) -> Path:
    """Start a local Ray for this run and return the folder of its logs."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **workload["environment_shared"]})
    import ray

    # Each engine and each stage books a core. On a small machine they share cores.
    context = ray.init(
        "local",
        num_cpus=max(8, os.cpu_count() or 1),
        log_to_driver=False,
        include_dashboard=False,
        logging_config=ray.LoggingConfig(encoding="JSON", log_level="INFO"),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    return Path(context.address_info["session_dir"]) / "logs"


def _processor(workload: Workload, engine: dict[str, Any], **options: Any) -> Callable[[Any], Any]:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = {k: v for k, v in engine.items() if k not in ("model", "distributed_executor_backend")}
    forwarded = {k: v for k, v in os.environ.items() if k.startswith(tuple(workload["forwarded"]))}
    config = vLLMEngineProcessorConfig(
        model_source=workload["engine"]["model"],
        engine_kwargs=engine,
        placement_group_config=None if workload["gpus"] else {"bundles": [{"CPU": 1, "GPU": 0}]},
        log_engine_metrics=False,  # its wrapper of vLLM's metrics fails with some versions
        runtime_env={"env_vars": {**forwarded, **workload["environment_shared"]}},
        **options,
    )
    return build_processor(config, postprocess=_result)  # type: ignore[no-any-return]


def _result(row: Row) -> Row:
    return {
        "question": row["question"],
        "arm": row["arm"],
        "text": row["generated_text"],
        "num_tokens": row["num_generated_tokens"],
    }


def _run(answers: Any, output: str, logs: Path) -> Account:
    import ray

    answers.to_pandas().to_parquet(output)
    written = time.monotonic()
    ray.shutdown()
    ready, batches = [], []
    for moment, message in _messages(logs):
        if message.startswith(READY):
            ready.append(moment)
        elif done := BATCH_DONE.search(message):
            batches.append((moment - float(done[1]), moment))
    if not (ready and batches):
        raise RuntimeError(f"The logs in {logs} have no line about a ready engine, or none about a finished batch")
    return Account(ready, min(began for began, _ in batches), max(ended for _, ended in batches), written)


def _messages(logs: Path) -> Iterator[tuple[float, str]]:
    """Yield the workers' log lines with their moments on the monotonic clock."""
    since = time.monotonic() - time.time()
    for path in logs.glob("worker-*.err"):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{") and "timestamp_ns" in line:
                entry = json.loads(line)
                yield entry["timestamp_ns"] / 1e9 + since, entry["message"]
