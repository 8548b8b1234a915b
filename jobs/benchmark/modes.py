r"""Compare the ways to run a model on one GPU: eager, CUDA graphs without a compiler, and compiled.

    python -m rollout_ray.jobs.benchmark.modes 7b --load-format dummy --json modes.json
    python -m rollout_ray.jobs.benchmark.modes 7b --load-format dummy --quantization fp8 --batches 32 1024

Each mode runs twice, each time in a new process: first with empty caches of its own (cold), then with what the first one
left there (warm). The table has the seconds of both starts and, warm, the decoded tokens/s at each batch size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.arguments import graph_sizes
from rollout_ray.actors.vllm_backend.backend import VllmBackend
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import sample_specs
from rollout_ray.jobs.benchmark.one_engine import engine_parser, token_prompt
from rollout_ray.models.resolved_run import resolve

BATCHES = (1, 8, 32, 128, 512, 1024)
PROMPT_TOKENS = 16  # few, so that the figure is of decoding
CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def modes(most: int) -> dict[str, dict[str, Any]]:
    """Return each mode's fields of the engine section. `most` sequences are decoded at once."""
    graphs = {"mode": 0, "cudagraph_mode": "FULL", "cudagraph_capture_sizes": graph_sizes(most)}
    return {
        "eager": {"enforce_eager": True},
        "graphs": {"enforce_eager": False, "extra": {"compilation_config": graphs}},
        "compiled": {"enforce_eager": False},
    }


def config_of(args: argparse.Namespace, mode: str) -> RunConfig:
    """Return the config of one mode: one greedy arm whose outputs all have `args.tokens` tokens."""
    most = max(args.batches)
    engine = modes(most)[mode]
    quantized = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if args.quantization == "fp8" else {}
    engine["extra"] = {**engine.get("extra", {}), **quantized}
    return RunConfig.model_validate(
        {
            "model": {"model_path": args.model},
            "engine": {**engine, "max_num_seqs": most, "max_model_len": 2048, "load_format": args.load_format},
            "arms": {"arm_set": "greedy"},
            "sampling": {"max_tokens": args.tokens, "ignore_eos": True},
        }
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start one engine in this process. Return its start in seconds by phase, and tokens/s by batch size."""
    began = time.perf_counter()
    run = resolve(config_of(args, args.measure))
    backend = VllmBackend(LaunchSpec.of(run, gpus=args.gpus, threads=os.cpu_count() or 1))
    figures: dict[str, Any] = {"start": time.perf_counter() - began, "phases": backend.info().phases}
    backend.begin(run)
    figures["tokens_per_second"] = {batch: decode(backend, run, batch, args.tokens) for batch in args.batches}
    backend.close()
    return figures


def decode(backend: VllmBackend, run: Any, batch: int, tokens: int) -> float:
    """Return the tokens/s of `batch` sequences that are decoded together."""
    spec = sample_specs(run.arms)[0]
    for number in range(batch):
        backend.add(f"{batch}.{number}", token_prompt(number, PROMPT_TOKENS), spec, number)
    began = time.perf_counter()
    waiting = batch
    while waiting:
        waiting -= len(backend.step())
    return batch * tokens / (time.perf_counter() - began)


def run_mode(mode: str, words: list[str], caches: Path, timeout_s: float) -> dict[str, Any]:
    """Return a mode's figures from a new process, or the end of its log under "failed"."""
    environment = {**os.environ, **{name: str(caches / name.lower()) for name in CACHES}}
    command = [sys.executable, "-m", "rollout_ray.jobs.benchmark.modes", *words, "--measure", mode]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout_s:g} s"}
    if done.returncode:
        return {"failed": done.stderr[-800:]}
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - began}


def arguments() -> argparse.ArgumentParser:
    parser = engine_parser("modes", __doc__)
    parser.add_argument("--quantization", choices=["none", "fp8"], default="none", help="of weights and KV cache")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each output (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=list(modes(1)), default=list(modes(1)))
    parser.add_argument("--timeout", type=float, default=300, help="time limit of one process in seconds")
    parser.add_argument("--measure", choices=list(modes(1)), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    table = Table("mode", "start cold, s", "start warm, s", *(f"tokens/s at {batch}" for batch in args.batches))
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for mode in args.modes:
            place = Path(folder) / mode
            figures[mode] = {when: run_mode(mode, sys.argv[1:], place, args.timeout) for when in ("cold", "warm")}
            warm = figures[mode]["warm"].get("tokens_per_second", {})
            starts = [f"{figures[mode][when].get('start', float('nan')):.1f}" for when in ("cold", "warm")]
            table.add_row(mode, *starts, *(f"{warm.get(str(batch), float('nan')):,.0f}" for batch in args.batches))
            print(json.dumps({mode: figures[mode]}), flush=True)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
