"""The command line as a process of its own: exit codes, stopping, resuming, exporting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import HANG_S, ROOT, Command, clean_environment

QUESTIONS = 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare_demo(QUESTIONS, 1, tmp_path / "q.parquet")
    return tmp_path / "q.parquet"


def simulated(data: Path, out: Path, speed: int = 1_000_000) -> list[str]:
    return [
        "--dataset", str(data), "--output_dir", str(out), "--backend", "simulated",
        "--sim_tokens_per_second", str(speed), "--flush_seconds", "0.3", "--replicas", "2",
    ]  # fmt: skip


def keys(out: Path) -> list[tuple[str, str, int, int]]:
    rows = pq.read_table(out / "merged.parquet").to_pylist()
    return [(r["question_id"], t["arm"], t["sample"], t["seed"]) for r in rows for t in r["trajectories"]]


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True), (signal.SIGKILL, False)],
)
def test_a_stopped_run_goes_on_with_the_same_command(
    data: Path, tmp_path: Path, number: signal.Signals, whole_group: bool, rollout_process: Command
) -> None:
    """Ctrl-C and a closed terminal reach the whole process group, a stopped job only the driver. kill -9 asks nobody."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        # Small batches spread the ends of the questions over 12 s.
        [sys.executable, "-m", "rollout_ray.run", *simulated(data, out, speed=4_000), "--max_num_seqs", "16"],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    parts = out / "parts"
    while not (parts.exists() and any(p.suffix == ".parquet" for p in parts.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if whole_group:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=HANG_S)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"of {QUESTIONS} questions in {out}; the same command goes on from there" in stderr
        assert "Traceback" not in stderr
    assert not (out / "merged.parquet").exists()
    again = rollout_process(*simulated(data, out))
    assert again.returncode == 0, again.stderr
    resumed = next(e for e in RunDirectory(str(out)).events() if e["event"] == "resumed")
    assert 0 < int(str(resumed["done"])) < QUESTIONS
    assert len(set(keys(out))) == len(keys(out)) == QUESTIONS * 8


def test_what_is_printed(data: Path, tmp_path: Path, rollout: Command, local_ray: None) -> None:
    done = rollout(*simulated(data, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert f"{QUESTIONS} questions, {QUESTIONS * 8} trajectories" in done.stdout
    assert "Reward: 1 for a correct answer" in done.stdout
    assert "score status: " in done.stdout and "finish reason: stop 480" in done.stdout
    assert done.stdout.rstrip().endswith(str(tmp_path / "run" / "merged.parquet"))
    assert "WARNING" not in done.stderr and "Traceback" not in done.stderr


def test_a_mistake_is_a_sentence_and_the_exit_code_of_the_process(tmp_path: Path, rollout_process: Command) -> None:
    """tests/mistakes.jsonl has the other mistakes."""
    done = rollout_process("--dataset", "nowhere.parquet", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("rollout: nowhere.parquet does not exist") and "Traceback" not in done.stderr


def test_export_and_prepare(data: Path, tmp_path: Path, rollout: Command, local_ray: None) -> None:
    assert rollout(*simulated(data, tmp_path / "run")).returncode == 0
    done = rollout("export", str(tmp_path / "run"), str(tmp_path / "run.jsonl"))
    assert (done.returncode, done.stdout) == (0, f"{QUESTIONS} questions in {tmp_path}/run.jsonl\n")
    first = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert list(first) == ["question", "gold_answer", "trajectories"]
    assert list(first["trajectories"][0]) == ["full_text", "answer", "reasoning", "num_tokens", "reward", "correct"]
    assert len(first["trajectories"]) == 8


def test_the_environment_configures_too(
    data: Path, tmp_path: Path, rollout: Command, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    monkeypatch.setenv("ROLLOUT_ARM_SET", "greedy")
    monkeypatch.setenv("ROLLOUT_LIMIT", "3")
    done = rollout(*simulated(data, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "3 questions, 3 trajectories" in done.stdout


def test_help_names_the_commands_and_every_flag(rollout: Command) -> None:
    done = rollout("--help")
    assert done.returncode == 0
    assert "rollout prepare gsm8k" in done.stdout and "--n_samples" in done.stdout and "exit codes" in done.stdout
