"""Run vLLM's LLM class alone: all requests at once, or in the two ways of the seeds' scripts.

With several replicas, processes run side by side. The module does not import rollout_ray.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout_ray.jobs.benchmark.account import Account
from rollout_ray.jobs.benchmark.prompts import token_prompts

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

Workload = dict[str, Any]
QUESTIONS_A_BATCH = 16  # of eight arms: 128 requests


def bare(workload: Workload, output: str) -> Account:
    """Run all requests at once with the engine arguments that ours would choose. This is the ceiling."""
    return _all_at_once(workload, workload["engine"], output)


def bare_defaults(workload: Workload, output: str) -> Account:
    """Run all requests at once with vLLM's own choices."""
    engine = {**workload["engine_needed"], "tensor_parallel_size": max(1, workload["gpus"])}
    return _all_at_once(workload, engine, output)


def seeds_eager(workload: Workload, output: str) -> Account:
    """Run like the seeds' first script on a share of the questions.

    It runs one question's arms at a time, eager, with max_model_len 8192.
    """
    engine = _seeds_engine(workload) | {"max_model_len": 8192, "enforce_eager": True}
    return _in_turn(workload, engine, output, workload["requests"][: workload["eager_questions"] * workload["arms"]], 1)


def seeds_batches(workload: Workload, output: str) -> Account:
    """Run like the seeds' second script: 16 questions' arms at a time, each batch awaited.

    The engine arguments are the script's, except for swap_space, which vLLM no longer has.
    """
    engine = _seeds_engine(workload) | {"max_model_len": 2048, "gpu_memory_utilization": 0.95, "max_num_seqs": 256}
    if workload["gpus"]:
        engine |= {"enforce_eager": False, "enable_chunked_prefill": True}
    return _in_turn(workload, engine, output, workload["requests"], QUESTIONS_A_BATCH)


def _seeds_engine(workload: Workload) -> dict[str, Any]:
    """Return engine arguments with one engine over all GPUs, like the seeds."""
    gpus = workload["gpus"] * workload["replicas"]
    return {**workload["engine_needed"], "dtype": "bfloat16", "tensor_parallel_size": max(1, gpus)}


def _in_turn(
    workload: Workload, engine: dict[str, Any], output: str, requests: list[dict[str, Any]], questions: int
) -> Account:
    """Run text prompts, `questions` at a time, and wait for each batch."""
    os.environ.update(workload["environment"])
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    limit = AutoConfig.from_pretrained(engine["model"]).max_position_embeddings
    engine["max_model_len"] = min(engine["max_model_len"], limit)
    if "max_num_batched_tokens" in engine:  # on the CPU a whole prompt must fit into one step
        engine["max_num_batched_tokens"] = max(engine["max_num_batched_tokens"], engine["max_model_len"])
    llm = LLM(**engine)
    ready = time.monotonic()
    tokenizer = llm.get_tokenizer()
    size = questions * workload["arms"]
    texts: list[str] = []
    lengths: list[int] = []
    began = time.monotonic()
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        prompts = [tokenizer.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True) for r in batch]
        outputs = llm.generate(prompts, [SamplingParams(**r["sampling"]) for r in batch], use_tqdm=False)
        texts += [o.outputs[0].text for o in outputs]
        lengths += [len(o.outputs[0].token_ids) for o in outputs]
    ended = time.monotonic()
    _write(requests, texts, lengths, output)
    return Account([ready], began, ended, time.monotonic())


def _all_at_once(workload: Workload, engine: dict[str, Any], output: str) -> Account:
    """Run one engine, or several processes side by side that start generating together."""
    if workload["bare_replicas"] == 1:
        return _generate(workload["environment"], engine, workload["requests"], output)
    return _side_by_side(workload, engine, output, workload["bare_replicas"])


def _side_by_side(workload: Workload, engine: dict[str, Any], output: str, replicas: int) -> Account:
    """Run `replicas` processes with their own GPUs and deal the requests out in turn.

    Generation lasts from the moment that all are ready to the last answer.
    """
    import pandas as pd

    context = multiprocessing.get_context("spawn")
    together, accounts = context.Barrier(replicas), context.SimpleQueue()
    devices = _devices(workload["gpus"], replicas)
    shares = [_Share(i, replicas, f"{output}.{i}", devices[i]) for i in range(replicas)]
    processes = [
        context.Process(target=_one_of_several, args=(workload, engine, share, together, accounts)) for share in shares
    ]
    for process in processes:
        process.start()
    running = list(processes)
    while running:
        wait([process.sentinel for process in running])
        if failed := [process.exitcode for process in running if process.exitcode]:
            together.abort()
            raise RuntimeError(f"An engine ended with exit code {failed[0]}")
        running = [process for process in running if process.exitcode is None]
    received = [accounts.get() for _ in processes]
    ended = time.monotonic()
    pd.concat([pd.read_parquet(share.output) for share in shares], ignore_index=True).to_parquet(output)
    merging = time.monotonic() - ended
    # The processes' end does not count, like with one process.
    written = max(account.written for account in received) + merging
    ready = [moment for account in received for moment in account.ready]
    return Account(ready, min(a.began for a in received), max(a.ended for a in received), written)


@dataclass(frozen=True)
class _Share:
    """One process's part of the requests: every `of`-th one, from `number` on."""

    number: int
    of: int
    output: str
    devices: str | None


def _one_of_several(workload: Workload, engine: dict[str, Any], share: _Share, together: Barrier, accounts: Any) -> None:
    variables = dict(workload["environment_shared"])
    if share.devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = share.devices
    requests = workload["requests"][share.number :: share.of]
    accounts.put(_generate(variables, engine, requests, share.output, together))


def _devices(gpus: int, replicas: int) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES for each replica, or None on the CPU."""
    if not gpus:
        return [None] * replicas
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus * replicas)]
    return [",".join(names[i * gpus : (i + 1) * gpus]) for i in range(replicas)]


def _generate(
    variables: dict[str, str],
    engine: dict[str, Any],
    requests: list[dict[str, Any]],
    output: str,
    together: Barrier | None = None,
) -> Account:
    """Run one engine with all requests at once, as token ids made beforehand."""
    os.environ.update(variables)
    from vllm import LLM, SamplingParams

    llm = LLM(**engine)
    ready = time.monotonic()
    prompts = [{"prompt_token_ids": p} for p in token_prompts(llm.get_tokenizer(), requests)]
    parameters = [SamplingParams(**r["sampling"]) for r in requests]
    if together:
        together.wait()
    began = time.monotonic()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    ended = time.monotonic()
    _write(requests, [o.outputs[0].text for o in outputs], [len(o.outputs[0].token_ids) for o in outputs], output)
    return Account([ready], began, ended, time.monotonic())


def _write(requests: list[dict[str, Any]], texts: list[str], lengths: list[int], output: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"question": [r["question"] for r in requests], "arm": [r["arm"] for r in requests]})
    frame.assign(text=texts, num_tokens=lengths).to_parquet(Path(output))
