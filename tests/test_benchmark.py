"""Run the benchmark in miniature: every system for real on the CPU, its table and its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.jobs.benchmark.gpu import Sample, mean_busy
from rollout_ray.jobs.benchmark.workload import Job, write_workload
from tests.conftest import HANG_S, ROOT, clean_environment


def module(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, words)],
        cwd=ROOT,
        env=clean_environment() | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.parquet"
    prepare_demo(40, 1, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, questions: Path) -> Path:
    """A small model with the 7B's architecture: no weights, a tokenizer trained on the questions."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    done = module("rollout_ray.jobs.benchmark.model", folder, "--questions", questions, "--shape", "tiny")
    assert done.returncode == 0 and "4000 tokens" in done.stdout, done.stderr
    return folder


# `make bench` runs all systems. Ray Data alone takes as long to start as these three together.
MEASURED = ("bare", "seeds_eager", "ours")


def test_the_systems_on_one_small_workload(tmp_path: Path, questions: Path, tiny: Path) -> None:
    words = ["--questions", questions, "--limit", 3, "--eager-questions", 2, "--tokens", 8, "--repeats", 1]
    words += ["--model-path", tiny, "--load-format", "dummy", "--replicas", 1, "--systems", *MEASURED]
    done = module("rollout_ray.jobs.benchmark", *words, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 questions x 8 arms = 24 trajectories of 8 tokens" in done.stdout
    for system in MEASURED:
        row = rf"{system} (?:\(2 of 3 questions\) )?.*(?:\d+\.\d .*){{3}}\d\.\d\d .*- / -"
        assert re.search(row, done.stdout), done.stdout
    record = json.loads((tmp_path / "figures.json").read_text())
    assert list(record["runs"]) == list(MEASURED) and record["workload"]["tokens"] == 8
    for system, (figures,) in record["runs"].items():
        trajectories = 16 if system == "seeds_eager" else 24
        assert (figures["trajectories"], figures["tokens"]) == (trajectories, trajectories * 8)
        assert 0 < figures["start"] <= figures["start_last"] < figures["total"] <= figures["process"]
        assert 0 < figures["generation"] <= figures["total"] - figures["start"]


def test_bare_engines_side_by_side_share_the_requests(tmp_path: Path, questions: Path, tiny: Path) -> None:
    """Several replicas on GPUs use this path. Here it runs on the CPU."""
    job = Job(str(questions), 3, str(tiny), "dummy", tokens=8, gpus=0, replicas=2, eager_questions=1)
    workload = write_workload(tmp_path / "workload.json", job)
    (tmp_path / "workload.json").write_text(json.dumps(workload | {"bare_replicas": 2}))
    done = module("rollout_ray.jobs.benchmark.systems", "bare", tmp_path / "workload.json", tmp_path / "out.parquet")
    assert done.returncode == 0, done.stderr
    frame = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert set(zip(frame["question"], frame["arm"], strict=True)) == {
        (request["question"], request["arm"]) for request in workload["requests"]
    }
    assert len(frame) == 24 and set(frame["num_tokens"]) == {8}
    account = json.loads((tmp_path / "out.json").read_text())
    assert len(account["ready"]) == 2 and max(account["ready"]) <= account["began"] < account["ended"]


def test_on_gpus_a_reference_starts_its_processes_as_vllm_does(tmp_path: Path, questions: Path, tiny: Path) -> None:
    """vLLM forks a process for the engine by default. With spawn it would import everything twice."""
    job = Job(str(questions), 3, str(tiny), "dummy", tokens=8, gpus=1, replicas=2, eager_questions=1)
    workload = write_workload(tmp_path / "workload.json", job)
    for variables in (workload["environment"], workload["environment_shared"]):
        assert not variables.keys() & {"VLLM_WORKER_MULTIPROC_METHOD", "VLLM_ENABLE_STARTUP_PLAN"}
        assert variables.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"


def test_a_system_that_fails_is_named_and_does_not_end_the_others(tmp_path: Path, questions: Path) -> None:
    words = ["--questions", questions, "--limit", 1, "--repeats", 1, "--model-path", "demo", "--load-format", "no_such"]
    done = module(
        "rollout_ray.jobs.benchmark", *words, "--systems", "bare", "seeds_eager", "--json", tmp_path / "figures.json"
    )
    assert done.returncode == 1
    assert "bare (1 of 1 failed)" in done.stdout and "seeds_eager (1 of 1 failed)" in done.stdout
    assert "no_such" in (tmp_path / "figures-bare-0.log").read_text()
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert runs["bare"] == [{"failed": "bare ended with exit code 1"}]


def test_a_system_that_takes_too_long_is_ended(tmp_path: Path, questions: Path) -> None:
    done = module(
        "rollout_ray.jobs.benchmark", "--questions", questions, "--repeats", 1, "--systems", "bare", "--timeout", 1
    )
    assert done.returncode == 1 and "bare took longer than 1 s" in done.stdout


def test_the_tail_is_simulated_for_any_number_of_engines(programs: None) -> None:
    done = module("rollout_ray.jobs.benchmark.tail", "--engines", 2, "--questions", 20, "--draws", 3)
    assert done.returncode == 0 and "20 x 3 on 2" in done.stdout, done.stderr


def test_gpus_without_work_do_not_count_as_idle() -> None:
    samples = [Sample(1.0, (0, 0)), Sample(2.0, (80, 0)), Sample(3.0, (100, 3)), Sample(4.0, (0, 0))]
    assert mean_busy(samples, 2.0, 3.0) == [90.0]
    assert mean_busy(samples, 0.0, 5.0) == [45.0]
    assert mean_busy(samples, 6.0, 7.0) is None and mean_busy([], 0.0, 1.0) is None
