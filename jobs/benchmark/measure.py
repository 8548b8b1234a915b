"""Run one system in a new process and measure it: seconds of each phase, tokens, GPU utilization.

The module enforces the time limit, ends every process that a system started, and checks that the
output is complete. All moments are from the monotonic clock, which processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rollout_ray.jobs.benchmark.gpu import Gpus, Sample, mean_busy

SAMPLE_S = 0.5
RELEASE_S = 60.0
LOG_END = 3000  # characters of a log that are shown
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class SystemFailed(Exception):
    """A system ended with an error, exceeded its time limit, or wrote incomplete output."""


@dataclass(frozen=True)
class Trial:
    """One run of one system.

    workload: JSON file from workload.py.
    output: Parquet to write. The system's log has the suffix .log.
    expected: Number of trajectories.
    gpus: GPUs to watch.
    caches: New folder for compiled code. None: the machine's usual folders with their content.
    """

    name: str
    workload: Path
    output: Path
    expected: int
    timeout_s: float
    gpus: Gpus | None
    caches: Path | None


def measure(trial: Trial) -> dict[str, Any]:
    """Run a system once in a new process and return its figures.

    Returns:
        Seconds: start (from process start until the first engine accepts a request), start_last
        (until the last one), generation (from first request to last answer), total (from process
        start to parquet written), process (to the process's end).
        Counts: trajectories, tokens (output tokens), tokens_per_second (of generation),
        total_tokens_per_second, tokens_per_engine_second (each engine from its own start).
        gpu_generation and gpu_run: mean percent busy of each GPU in use, or None. phases: see Account.

    Raises:
        SystemFailed: The run failed, took too long, or its output is incomplete.
    """
    if trial.gpus:
        trial.gpus.await_release(RELEASE_S)
    began = time.monotonic()
    samples = _run(trial)
    process = time.monotonic() - began
    account = json.loads(trial.output.with_suffix(".json").read_text())
    trajectories, tokens = _counted(trial)
    generation, total = account["ended"] - account["began"], account["written"] - began
    return {
        "start": min(account["ready"]) - began,
        "start_last": max(account["ready"]) - began,
        "generation": generation,
        "total": total,
        "process": process,
        "trajectories": trajectories,
        "tokens": tokens,
        "tokens_per_second": tokens / generation,
        "total_tokens_per_second": tokens / total,
        "tokens_per_engine_second": tokens / sum(account["ended"] - max(r, account["began"]) for r in account["ready"]),
        "gpu_generation": mean_busy(samples, account["began"], account["ended"]),
        "gpu_run": mean_busy(samples, began, account["written"]),
        "phases": account["phases"],
    }


def _run(trial: Trial) -> list[Sample]:
    """Wait for the system's process and sample the GPUs meanwhile."""
    samples: list[Sample] = []
    deadline = time.monotonic() + trial.timeout_s
    words = [sys.executable, "-m", "rollout_ray.jobs.benchmark.systems", trial.name]
    variables = {name: str(trial.caches / name) for name in CACHES} if trial.caches else {}
    with trial.output.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [*words, str(trial.workload), str(trial.output)],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_S)
                if trial.gpus:
                    samples.append(trial.gpus.sample())
                if time.monotonic() > deadline:
                    raise SystemFailed(f"{trial.name} took longer than {trial.timeout_s:.0f} s")
        finally:
            _end_session(process)
    if process.returncode:
        raise SystemFailed(f"{trial.name} ended with exit code {process.returncode}")
    return samples


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End all processes that the system left, in its own session and process group."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # Ray then ends its own processes
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _counted(trial: Trial) -> tuple[int, int]:
    """Return the trajectories and output tokens of the file.

    Raises:
        SystemFailed: A trajectory is missing, duplicated or too short.
    """
    length = json.loads(trial.workload.read_text())["tokens"]
    table = pq.read_table(trial.output)
    if "trajectories" in table.column_names:
        rows = [(q, t["arm"], t["num_tokens"]) for q, ts in enumerate(table["trajectories"].to_pylist()) for t in ts]
    else:
        rows = list(zip(*(table[name].to_pylist() for name in ("question", "arm", "num_tokens")), strict=True))
    if len({(question, arm) for question, arm, _ in rows}) != trial.expected or len(rows) != trial.expected:
        raise SystemFailed(f"{trial.output.stem} wrote {len(rows)} trajectories instead of {trial.expected}")
    if wrong := [tokens for _, _, tokens in rows if tokens != length]:
        raise SystemFailed(f"{trial.output.stem} wrote {len(wrong)} trajectories without exactly {length} tokens")
    return len(rows), len(rows) * length


def end_of_log(output: Path) -> str:
    """Return the end of a system's log."""
    log = output.with_suffix(".log")
    return log.read_text(errors="replace")[-LOG_END:] if log.exists() else ""
