"""Runs every system on one workload, each cold in its own process, several times in turn; prints one table.

    python -m jobs.benchmark                                  # 50 questions x 8 arms x 64 tokens, the demo model
    python -m jobs.benchmark --questions gsm8k.parquet --repeats 3

Seconds are whole-process: start to parquet. The ratio is against bare vLLM of the same repeat; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jobs.benchmark.systems import SYSTEMS
from jobs.benchmark.workload import write_workload
from rollout_ray.prepare import prepare_demo


def run_system(name: str, workload: Path, output: Path, timeout_s: float) -> dict[str, float]:
    """Seconds of one cold run: total, and where the system tells them ready and generation. Raises RuntimeError where
    it fails."""
    log = output.with_suffix(".log")
    began = time.perf_counter()
    with log.open("w") as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.benchmark.systems", name, str(workload), str(output)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    total = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{name} failed with {done.returncode}; the end of its log: {log.read_text()[-2000:]}")
    account: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**account, "total": total}


def trajectories(output: Path) -> int:
    table = pq.read_table(output)
    if "trajectories" in table.column_names:
        return sum(map(len, table.column("trajectories").to_pylist()))
    return int(table.num_rows)


def report(runs: dict[str, list[dict[str, float]]], expected: int, tokens: int) -> Table:
    table = Table(title=f"{expected} trajectories of {tokens} tokens, seconds (median of {len(next(iter(runs.values())))})")
    for heading in ("system", "ready", "generation", "total", "total / bare"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for name, figures in runs.items():
        row = [name]
        for key in ("ready", "generation", "total"):
            values = [f[key] for f in figures if key in f]
            row.append(f"{statistics.median(values):.1f}" if values else "-")
        if "bare" in runs:
            ratios = [f["total"] / b["total"] for f, b in zip(figures, runs["bare"], strict=True)]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", help="parquet with prompt and gold_answer; default: 50 generated problems")
    parser.add_argument("--model-path", default="demo")
    parser.add_argument("--load-format", default="auto", help="'dummy' gives a checkpoint's shape random weights")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of every trajectory")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs an engine has")
    parser.add_argument("--replicas", type=int, default=2, help="engines of ours and of ray.data.llm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = Path(folder)
        questions = args.questions or str(place / "questions.parquet")
        if not args.questions:
            prepare_demo(50, 1, questions)
        requests = write_workload(
            place / "workload.json",
            questions=questions,
            model_path=args.model_path,
            load_format=args.load_format,
            tokens=args.tokens,
            gpus=args.gpus,
            replicas=args.replicas,
        )
        expected = len(requests)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.systems}
        for repeat in range(args.repeats):
            for name in args.systems:
                output = place / f"{name}-{repeat}.parquet"
                figures = run_system(name, place / "workload.json", output, args.timeout)
                found = trajectories(output)
                if found != expected:
                    raise RuntimeError(f"{name} wrote {found} of {expected} trajectories")
                runs[name].append(figures)
                print(f"repeat {repeat + 1}, {name}: {json.dumps(figures)}", flush=True)
        Console().print(report(runs, expected, args.tokens))


if __name__ == "__main__":
    main()
