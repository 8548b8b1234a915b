"""Runs one system in a cold process of its own and takes its figures: seconds of each phase, tokens, GPU utilisation.

Owns the clock, the time limit, the end of every process that a system started, and the check that its file is whole.
What a system does is systems.py's. All moments are of the monotonic clock, which the processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rollout_ray.jobs.benchmark.gpu import Gpus, Sample, mean_busy

SAMPLE_S = 0.5
RELEASE_S = 60.0
LAST_WORDS = 3000  # characters
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class SystemFailed(Exception):
    """A system ended with an error, exceeded its time, or wrote too little."""


def measure(
    name: str, workload: Path, output: Path, *, timeout_s: float, expected: int, gpus: Gpus | None, caches: Path | None
) -> dict[str, Any]:
    """One run of a system in a new process. Raises SystemFailed; its log is `output` with the suffix .log.

    `caches` is a folder for what the system compiles; None: the machine's usual places, with what is there already.

    The figures, in seconds: start (process start to the first engine that could accept a request), start_last (to the
    last one), generation (first request handed in to last answer), total (process start to parquet written), process
    (to its end). Then trajectories, tokens (output tokens), tokens_per_second (of generation), total_tokens_per_second,
    tokens_per_engine_second (each engine's generation counted from its own start, which need not be the others'), and
    gpu_generation and gpu_run: mean percent busy of each GPU in use, None where it cannot be told; and phases, see Account.
    """
    if gpus:
        gpus.await_release(RELEASE_S)
    began = time.monotonic()
    samples = _run(name, workload, output, timeout_s, gpus, {n: str(caches / n) for n in CACHES} if caches else {})
    process = time.monotonic() - began
    account = json.loads(output.with_suffix(".json").read_text())
    trajectories, tokens = _counted(output, expected, json.loads(workload.read_text())["tokens"])
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


def _run(
    name: str, workload: Path, output: Path, timeout_s: float, gpus: Gpus | None, variables: dict[str, str]
) -> list[Sample]:
    """Waits for the system's process and watches the GPUs meanwhile."""
    samples: list[Sample] = []
    deadline = time.monotonic() + timeout_s
    with output.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rollout_ray.jobs.benchmark.systems", name, str(workload), str(output)],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_S)
                if gpus:
                    samples.append(gpus.sample())
                if time.monotonic() > deadline:
                    raise SystemFailed(f"{name} took longer than {timeout_s:.0f} s")
        finally:
            _end_session(process)
    if process.returncode:
        raise SystemFailed(f"{name} ended with exit code {process.returncode}")
    return samples


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends what the system left running, itself included; it has a session, and so a process group, of its own."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # Ray ends its own processes on it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _counted(output: Path, expected: int, length: int) -> tuple[int, int]:
    """Trajectories and output tokens of the file. Raises SystemFailed where one is missing, doubled or too short."""
    table = pq.read_table(output)
    if "trajectories" in table.column_names:
        rows = [(q, t["arm"], t["num_tokens"]) for q, ts in enumerate(table["trajectories"].to_pylist()) for t in ts]
    else:
        rows = list(zip(*(table[name].to_pylist() for name in ("question", "arm", "num_tokens")), strict=True))
    if len({(question, arm) for question, arm, _ in rows}) != expected or len(rows) != expected:
        raise SystemFailed(f"{output.stem} wrote {len(rows)} trajectories and not the {expected} that were asked for")
    if wrong := [tokens for _, _, tokens in rows if tokens != length]:
        raise SystemFailed(f"{output.stem} wrote {len(wrong)} trajectories of other than {length} tokens")
    return len(rows), len(rows) * length


def last_words(output: Path) -> str:
    """The end of a system's log."""
    log = output.with_suffix(".log")
    return log.read_text(errors="replace")[-LAST_WORDS:] if log.exists() else ""
