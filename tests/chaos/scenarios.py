"""Define chaos runs: questions, command, victims, and the check of the result.

A scenario runs in its own namespaces (see __main__.py), so it sees only its own Ray processes.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import sample_specs, sampling_seed
from tests.conftest import ROOT, clean_environment, demo_rows, free_port
from tests.processes import ENGINES, SCORERS

ENGINE = "engine"
SCORER = "scorer"
GRADER = "grader child"
DRIVER = "driver"
RAYLET = "raylet"
# Substrings of the processes' command lines.
TITLES = {
    ENGINE: ENGINES,
    SCORER: SCORERS,
    GRADER: ("rollout_ray.scoring.sympy_worker",),
    RAYLET: ("/raylet/raylet",),
}


@dataclass(frozen=True)
class Scenario:
    """One run: `kills` random victims die, at intervals of `pause_s` (from, to) seconds."""

    name: str
    victims: tuple[str, ...]
    kills: int
    pause_s: tuple[float, float] = (0.5, 2.5)
    questions: int = 200
    # A batch of 32 at this rate takes a second for a sample, so a kill costs little.
    flags: tuple[str, ...] = ("--backend", "simulated", "--sim_tokens_per_second", "3500", "--max_num_seqs", "32")
    raylets: int = 0  # workers of a cluster that the driver joins; 0: the driver starts its own Ray


@dataclass
class Outcome:
    """The result of a run. `lost_s` is its time beyond an undisturbed run."""

    name: str
    expected: int
    found: int = 0
    missing: int = 0
    duplicates: int = 0
    wrong_seeds: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    drivers: int = 0
    seconds: float = 0.0
    lost_s: float = 0.0

    @property
    def whole(self) -> bool:
        return self.found == self.expected and not (self.missing or self.duplicates or self.wrong_seeds)


def write_questions(path: Path, count: int) -> None:
    """Write questions. Every eighth has a gold that needs a grader process, the others a plain number."""
    rows = demo_rows(count)
    golds = [r["gold_answer"] if i % 8 else f"\\sqrt{{{i + 2}}}" for i, r in enumerate(rows)]
    ids = [f"q{i}" for i in range(count)]
    columns = {"question_id": ids, "prompt": [r["prompt"] for r in rows], "gold_answer": golds}
    pq.write_table(pa.table(columns), path)


class Cluster:
    """A head and some raylets on this machine. A new raylet replaces each killed one."""

    def __init__(self, raylets: int, cpus: int, *head: str) -> None:
        """Start the cluster.

        Args:
            head: Extra words for the head's `ray start`.
        """
        self.address = f"127.0.0.1:{free_port()}"
        self._cpus = cpus
        self._hosts = 1
        port = self.address.rpartition(":")[2]
        self._start("127.0.0.1", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", *head)
        for _ in range(raylets):
            self.add()

    def add(self) -> None:
        """Start a raylet at its own address. A driver joins the raylet at its own address, which is the head's."""
        self._hosts += 1
        self._start(f"127.0.0.{self._hosts}", f"--address={self.address}", f"--num-cpus={self._cpus}")

    def workers(self) -> list[psutil.Process]:
        """Return the raylets except the head's, which is the oldest."""
        return sorted(found(TITLES[RAYLET]), key=lambda p: p.create_time())[1:]

    def _start(self, host: str, *words: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", f"--node-ip-address={host}", *words]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=120)


def found(titles: Sequence[str]) -> list[psutil.Process]:
    """Return this namespace's processes with one of `titles` in their command line."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(title in line for title in titles) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def play(scenario: Scenario, folder: Path, rng: random.Random) -> Outcome:
    """Run a scenario, and start the command again after each kill of its driver.

    Raises:
        RuntimeError: The command failed although nobody killed it.
    """
    data, out = folder / f"{scenario.questions}.parquet", folder / scenario.name.replace(" ", "-")
    write_questions(data, scenario.questions)
    flags = [*scenario.flags, "--flush_seconds", "1", "--max_engine_deaths", "100"]
    cluster = Cluster(scenario.raylets, cpus=1) if scenario.raylets else None
    if cluster:
        flags += ["--ray_address", cluster.address]
    command = [sys.executable, "-m", "rollout_ray.run", "--dataset", str(data), "--output_dir", str(out), *flags]
    outcome = Outcome(scenario.name, 0)
    began = time.monotonic()
    while True:
        outcome.drivers += 1
        with (out.with_suffix(f".{outcome.drivers}.log")).open("w") as log:
            driver = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=log, stderr=log)
            killed = _under_fire(scenario, driver, out, cluster, outcome, rng)
        if driver.returncode == 0:
            break
        if not killed:
            end = Path(log.name).read_text()[-3000:]
            raise RuntimeError(f"{scenario.name} failed with exit code {driver.returncode}: {end}")
    outcome.seconds = time.monotonic() - began
    check(outcome, RunConfig.model_validate({}), data, out)
    return outcome


def _under_fire(
    scenario: Scenario,
    driver: subprocess.Popen[bytes],
    out: Path,
    cluster: Cluster | None,
    outcome: Outcome,
    rng: random.Random,
) -> bool:
    """Kill until the scenario has no kills left or the driver has ended. Return whether the driver was killed."""
    while sum(outcome.kills.values()) < scenario.kills:
        try:
            driver.wait(rng.uniform(*scenario.pause_s))
            return False
        except subprocess.TimeoutExpired:
            victim = rng.choice(scenario.victims)
        if victim == DRIVER:
            if not any((out / "parts").glob("*.parquet")):
                continue  # the run has hardly begun
            driver.kill()
            driver.wait()
        else:
            candidates = cluster.workers() if cluster and victim == RAYLET else found(TITLES[victim])
            if not candidates:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(candidates).kill()
        outcome.kills[victim] = outcome.kills.get(victim, 0) + 1
        if victim == RAYLET and cluster:
            cluster.add()
        if victim == DRIVER:
            return True
    driver.wait()
    return False


def check(outcome: Outcome, cfg: RunConfig, data: Path, out: Path) -> None:
    """Compare the merged file with the expected rows, computed here from questions and arms."""
    due = {
        (question_id, draw.arm.name, draw.sample): sampling_seed(cfg.sampling.seed, question_id, draw.arm.name, draw.sample)
        for question_id in pq.read_table(data).column("question_id").to_pylist()
        for draw in sample_specs(resolve_arms(cfg))
    }
    seen: dict[Any, int] = {}
    rows: list[dict[str, Any]] = pq.read_table(out / "merged.parquet", columns=["question_id", "trajectories"]).to_pylist()
    outcome.expected = len(due)
    for row in rows:
        for trajectory in row["trajectories"]:
            key = (row["question_id"], trajectory["arm"], trajectory["sample"])
            outcome.found += 1
            outcome.duplicates += key in seen
            seen[key] = trajectory["seed"]
            outcome.wrong_seeds += due.get(key) != trajectory["seed"]
            # A row without a text has an error, and a row without a reward has an unknown grade.
            outcome.missing += trajectory["finish_reason"] != "stop" and not trajectory["error"]
            outcome.missing += trajectory["reward"] is None and trajectory["score_status"] not in ("timeout", "error")
    outcome.missing += len(due.keys() - seen.keys())


def environment() -> dict[str, str]:
    return clean_environment() | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
