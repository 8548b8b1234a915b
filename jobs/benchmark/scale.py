"""Measure driver, scorer and merge in a run of a million trajectories with simulated engines.

    python -m rollout_ray.jobs.benchmark.scale --questions 125000

The command line runs in its own process, watched through /proc (Linux). Memory is the resident set.
The driver's CPU time counts from the first engine's start to the beginning of the merge.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rollout_ray.data.prepare import prepare_demo

MIB = 2**20
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """Peak memory in bytes, times in seconds. `*_at` are moments, and `*_cpu` the driver's CPU time then."""

    driver: int = 0
    merge: int = 0
    scorers: dict[int, int] = field(default_factory=dict)
    cpu: float = 0.0
    drawing_at: float = 0.0
    drawing_cpu: float = 0.0
    merging_at: float = 0.0
    merging_cpu: float = 0.0


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / TICKS


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def scorer_pids(driver: int) -> list[int]:
    """Return the process ids of the scoring actors of this driver's Ray."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
            if line.startswith(("ray::scorer-", "ray::ScorerActor")) and parent(parent(int(pid))) == driver:
                found.append(int(pid))
        except OSError:
            continue
    return found


def watch(run: subprocess.Popen[bytes], out: Path) -> Figures:
    """Sample the processes until the run ends."""
    figures = Figures()
    while run.poll() is None:
        time.sleep(0.2)  # the sampling interval
        try:
            size, figures.cpu = resident(run.pid), cpu_seconds(run.pid)
        except OSError:
            break
        merging = any(out.glob(".merged.parquet.*.tmp"))
        if merging:
            figures.merge = max(figures.merge, size)
            if not figures.merging_at:
                figures.merging_at, figures.merging_cpu = time.time(), figures.cpu
        else:
            figures.driver = max(figures.driver, size)
        for pid in scorer_pids(run.pid):
            try:
                figures.scorers[pid] = max(figures.scorers.get(pid, 0), resident(pid))
            except OSError:
                continue
        events = out / "events.jsonl"
        if not figures.drawing_at and events.exists() and "engine_started" in events.read_text():
            figures.drawing_at, figures.drawing_cpu = time.time(), figures.cpu
    if run.wait():
        raise RuntimeError(f"The run failed with exit code {run.returncode}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark.scale", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--questions", type=int, default=125_000, help="questions under eight arms")
    parser.add_argument("--replicas", type=int, default=4, help="simulated engines with a million tokens a second each")
    parser.add_argument("--scorers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        data, out = Path(folder) / "questions.parquet", Path(folder) / "run"
        prepare_demo(args.questions, 1, data)
        words = ["--dataset", str(data), "--output_dir", str(out), "--backend", "simulated", "--quiet"]
        words += ["--sim_tokens_per_second", "1000000", "--replicas", str(args.replicas), "--scorers", str(args.scorers)]
        began = time.time()
        run = subprocess.Popen([sys.executable, "-m", "rollout_ray.run", *words])
        figures = watch(run, out)
        ended = time.time()
        finished = json.loads((out / "events.jsonl").read_text().splitlines()[-1])
    count = finished["summary"]["trajectories"]
    drawing = figures.merging_at - figures.drawing_at
    print(f"{count} trajectories, {args.replicas} simulated engines, {args.scorers} scorer(s), {os.cpu_count()} cores")
    print(f"{ended - began:.0f} s in all; {count / drawing:,.0f} trajectories/s drawn, scored and committed")
    merging, reporting = finished["time"] - figures.merging_at, ended - finished["time"]
    print(f"merge: {merging:.0f} s, {count / merging:,.0f} trajectories/s; report: {reporting:.0f} s")
    print(f"driver: {1e6 * (figures.merging_cpu - figures.drawing_cpu) / count:.1f} us of CPU a trajectory")
    peaks = [f"driver {figures.driver / MIB:.0f}", f"merge (in the driver) {figures.merge / MIB:.0f}"]
    peaks += [f"scorer {size / MIB:.0f}" for size in figures.scorers.values()]
    print(f"peak memory in MiB: {', '.join(peaks)}")


if __name__ == "__main__":
    main()
