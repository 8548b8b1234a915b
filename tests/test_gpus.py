"""What is made of the answer of the GPUs' driver. Its command is a script here, since the machine may have no GPU; each
look is in a process of its own, which looks once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG_S, ROOT, clean_environment

LOOK = (
    "import json; from rollout_ray.sizing.gpus import all_here;"
    " print(json.dumps([[gpu.name, gpu.memory_gib] for gpu in all_here()]))"
)


def look(folder: Path, script: str, code: str = LOOK) -> str:
    """What `code` prints where nvidia-smi is this shell script."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=environment, cwd=folder, text=True, stdout=-1, timeout=HANG_S, check=True).stdout


def test_each_gpu_has_its_name_and_memory(tmp_path: Path) -> None:
    rows = "NVIDIA H200, 143771\\nNVIDIA GeForce RTX 4090, 24564\\n"
    assert json.loads(look(tmp_path, f"printf '{rows}'")) == [
        ["NVIDIA H200", 143771 / 1024],
        ["NVIDIA GeForce RTX 4090", 24564 / 1024],
    ]


@pytest.mark.parametrize("script", ["exit 9", "echo 'Failed to initialize NVML: Unknown Error'", "echo 'GPU, [N/A]'", ""])
def test_gpus_that_cannot_be_told_are_none(tmp_path: Path, script: str) -> None:
    assert json.loads(look(tmp_path, script)) == []


def test_a_look_ahead_does_not_wait_and_is_the_only_one(tmp_path: Path) -> None:
    """The command answers only once what called for it has gone on."""
    os.mkfifo(tmp_path / "went_on")
    code = """
from rollout_ray.sizing.gpus import all_here, look_ahead
look_ahead()
open("went_on", "w").close()
print(len(all_here()), len(all_here()))
"""
    answer = look(tmp_path, "cat went_on; echo look >> looks; echo 'NVIDIA H200, 143771'", code)
    assert answer == "1 1\n" and (tmp_path / "looks").read_text() == "look\n"
