r"""Measure one engine without Ray under several settings of actors/vllm_backend/arguments.py.

    python -m rollout_ray.jobs.benchmark.settings RUN.json --variant now '{}' \
        --variant eager '{"engine": {"enforce_eager": true}}'

A variant is JSON with `engine` (fields of the config's engine section) and `environment` (variables). Each runs in its
own process on its own GPU, `--at-once` of them at a time, and gets all requests at the start, like bare vLLM.
The output has one JSON line a variant: seconds of import, load and generation, tokens/s, and vLLM's counters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.backend import VllmBackend
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import sample_specs, sampling_seed
from rollout_ray.data.question_set import load_questions
from rollout_ray.models.resolved_run import resolve


def measure(workload: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one engine in this process over the whole workload."""
    values = workload["config"]
    config = RunConfig.model_validate({**values, "engine": {**values.get("engine", {}), **engine}})
    began = time.perf_counter()
    run = resolve(config)
    backend = VllmBackend(LaunchSpec.of(run, gpus=workload["gpus"], threads=os.cpu_count() or 1))
    ready = time.perf_counter()
    backend.begin(run)
    samples = sample_specs(run.arms)
    waiting = 0
    for question in load_questions(config.data.dataset, config.data).questions():
        prompts = {d.arm.prompt_variant: backend.encode(question.prompt, d.arm) for d in samples}
        for number, spec in enumerate(samples):
            seed = sampling_seed(config.sampling.seed, question.question_id, spec.arm.name, spec.sample)
            backend.add(f"{question.question_id}.{number}", prompts[spec.arm.prompt_variant], spec, seed)
            waiting += 1
    handed_in = time.perf_counter()
    tokens = steps = 0
    while waiting:
        finished = backend.read(backend.step())
        steps += 1
        waiting -= len(finished)
        tokens += sum(one.num_tokens for one in finished)
    seconds = time.perf_counter() - handed_in
    info = backend.info()
    backend.close()
    return {
        "import": round(info.import_seconds, 1),
        "load": round(info.load_seconds, 1),
        "start": round(ready - began, 1),
        "hand_in": round(handed_in - ready, 1),
        "generation": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "steps": steps,
    }


def run_variant(workload: str, name: str, variant: dict[str, Any], gpu: int | None, timeout_s: float) -> dict[str, Any]:
    """Return a variant's figures from a new process, or the end of its log if it fails."""
    environment = {**os.environ, **{k: str(v) for k, v in variant.get("environment", {}).items()}}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    log = Path(f"{workload}.{name}.log")
    words = [
        sys.executable,
        "-m",
        "rollout_ray.jobs.benchmark.settings",
        workload,
        "--measure",
        json.dumps(variant.get("engine", {})),
    ]
    with log.open("w") as stderr:
        try:
            done = subprocess.run(
                words, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return {"variant": name, "failed": f"took longer than {timeout_s:g} s"}
    if done.returncode:
        return {"variant": name, "failed": log.read_text()[-600:]}
    return {"variant": name, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark.settings", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("workload", help="JSON with a run's config and gpus (GPUs an engine)")
    parser.add_argument("--variant", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--at-once", type=int, default=1, help="variants at a time, each on its own GPUs")
    parser.add_argument("--timeout", type=float, default=300, help="time limit of one variant in seconds")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    workload = json.loads(Path(args.workload).read_text())
    if args.measure is not None:
        print(json.dumps(measure(workload, json.loads(args.measure))))
        return
    free_gpus: Queue[int | None] = Queue()
    for number in range(args.at_once):
        free_gpus.put(number if workload["gpus"] else None)

    def run(name: str, text: str) -> None:
        gpu = free_gpus.get()
        print(json.dumps(run_variant(args.workload, name, json.loads(text), gpu, args.timeout)), flush=True)
        free_gpus.put(gpu)

    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda words: run(*words), args.variant))


if __name__ == "__main__":
    main()
