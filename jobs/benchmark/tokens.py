r"""Measure what it costs to store token ids and log-probabilities: pairs of engines, without and with them.

    python -m rollout_ray.jobs.benchmark.tokens 7b --load-format dummy --pairs 3 --json tokens.json
    python -m rollout_ray.jobs.benchmark.tokens rollout_ray/demo_model --gpus 0 --requests 256 --batch 64

Each engine is a new process, and the order within a pair alternates. An engine decodes once to warm up. The CPU seconds
are of the engine's own process: all of its work on the CPU; on a GPU, the part beside vLLM's core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.backend import VllmBackend
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import sample_specs
from rollout_ray.jobs.benchmark.one_engine import engine_parser, token_prompt
from rollout_ray.models.resolved_run import ResolvedRun, resolve

SETTINGS = ("without", "with")
PROMPT_TOKENS = 64


def config_of(args: argparse.Namespace, setting: str) -> RunConfig:
    """Return the config of one engine. All outputs have `args.tokens` tokens."""
    return RunConfig.model_validate(
        {
            "model": {"model_path": args.model},
            "engine": {"max_num_seqs": args.batch, "max_model_len": 512, "load_format": args.load_format},
            "arms": {"arm_list": [{"name": "a", "temperature": 1.0}]},
            "sampling": {"max_tokens": args.tokens, "ignore_eos": True},
            "output": {"tokens": setting == "with"},
        }
    )


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Start one engine in this process, and return its speed and its CPU seconds."""
    run = resolve(config_of(args, args.measure))
    backend = VllmBackend(LaunchSpec.of(run, gpus=args.gpus, threads=os.cpu_count() or 1))
    backend.begin(run)
    decode(backend, run, "warm", args.batch)
    began, cpu_began = time.perf_counter(), time.process_time()
    tokens = decode(backend, run, "measured", args.requests)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    backend.close()
    return {"tokens_per_second": tokens / seconds, "cpu_seconds": cpu_seconds}


def decode(backend: VllmBackend, run: ResolvedRun, name: str, requests: int) -> int:
    """Decode that many requests, with a batch and a bit at the backend, as an engine supplies it. Return their tokens."""
    spec = sample_specs(run.arms)[0]
    most = backend.info().max_num_seqs * 9 // 8 + 1
    tokens = added = done = 0
    while done < requests:
        for number in range(added, min(requests, done + most)):
            backend.add(f"{name}.{number}", token_prompt(number, PROMPT_TOKENS), spec, number)
            added += 1
        finished = backend.step()
        done += len(finished)
        tokens += sum(one.num_tokens for one in finished)
    return tokens


def run_setting(setting: str, words: list[str], timeout_s: float) -> dict[str, float]:
    """Return the figures of a new process. Raises RuntimeError with the end of its log if it fails."""
    command = [sys.executable, "-m", "rollout_ray.jobs.benchmark.tokens", *words, "--measure", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def arguments() -> argparse.ArgumentParser:
    parser = engine_parser("tokens", __doc__)
    parser.add_argument("--batch", type=int, default=1024, help="sequences at once (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=4000, help="requests that are measured (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=220, help="tokens of each output (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of engines (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="time limit of one process in seconds")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    figures: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    for pair in range(args.pairs):
        for setting in SETTINGS if pair % 2 == 0 else reversed(SETTINGS):
            figures[setting].append(run_setting(setting, sys.argv[1:], args.timeout))
            print(json.dumps({setting: figures[setting][-1]}), flush=True)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1))
    Console(width=120).print(table(figures))


def table(figures: dict[str, list[dict[str, float]]]) -> Table:
    """Return a table with a row a pair, and one of the medians."""
    made = Table("pair", "tokens/s without", "with", "ratio", "CPU s without", "with", "ratio")
    rows: list[list[float]] = []
    for without, stored in zip(figures["without"], figures["with"], strict=True):
        row = []
        for name in ("tokens_per_second", "cpu_seconds"):
            row += [without[name], stored[name], stored[name] / without[name]]
        rows.append(row)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    for label, row in [*((str(number), row) for number, row in enumerate(rows, 1)), ("median", medians)]:
        made.add_row(label, *(f"{value:,.3f}" if value < 100 else f"{value:,.0f}" for value in row))
    return made


if __name__ == "__main__":
    main()
