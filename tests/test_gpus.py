"""Test how nvidia-smi's answer is read.

A shell script replaces the command, because the machine may have no GPU.
Each query runs in a new process, because a process queries once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG_S, ROOT, clean_environment

QUERY = (
    "import json; from rollout_ray.sizing.gpus import local_gpus;"
    " print(json.dumps([[gpu.name, gpu.memory_gib] for gpu in local_gpus()]))"
)


def query(folder: Path, script: str, code: str = QUERY) -> str:
    """Return what `code` prints if nvidia-smi is this shell script."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=environment, cwd=folder, text=True, stdout=-1, timeout=HANG_S, check=True).stdout


def test_each_gpu_has_its_name_and_memory(tmp_path: Path) -> None:
    rows = "NVIDIA H200, 143771\\nNVIDIA GeForce RTX 4090, 24564\\n"
    assert json.loads(query(tmp_path, f"printf '{rows}'")) == [
        ["NVIDIA H200", 143771 / 1024],
        ["NVIDIA GeForce RTX 4090", 24564 / 1024],
    ]


@pytest.mark.parametrize("script", ["exit 9", "echo 'Failed to initialize NVML: Unknown Error'", "echo 'GPU, [N/A]'", ""])
def test_unreadable_answers_give_no_gpus(tmp_path: Path, script: str) -> None:
    assert json.loads(query(tmp_path, script)) == []


def test_a_started_query_does_not_block_and_is_the_only_one(tmp_path: Path) -> None:
    """The command answers only after its caller has continued."""
    os.mkfifo(tmp_path / "went_on")
    code = """
from rollout_ray.sizing.gpus import local_gpus, start_query
start_query()
open("went_on", "w").close()
print(len(local_gpus()), len(local_gpus()))
"""
    answer = query(tmp_path, "cat went_on; echo query >> queries; echo 'NVIDIA H200, 143771'", code)
    assert answer == "1 1\n" and (tmp_path / "queries").read_text() == "query\n"
