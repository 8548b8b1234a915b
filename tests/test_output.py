"""A run goes on when its output cannot be shown, and stops in one way for every signal that asks it to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rollout_ray.core.interrupts import deferred_stops, stop_by_signals
from rollout_ray.data.prepare import prepare_demo
from tests.conftest import HANG_S, ROOT, await_that, clean_environment
from tests.processes import children

RUN = f"{sys.executable} -m rollout_ray.run --dataset q.parquet --arm_set greedy --backend simulated --output_dir run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare_demo(3, 1, tmp_path / "q.parquet")
    return tmp_path


def shell(script: str, folder: Path) -> subprocess.Popen[str]:
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", "-c", script], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("where", ["2>&1 | head -n 1", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_what_cannot_be_shown_changes_no_run(folder: Path, where: str) -> None:
    process = shell(f"set -o pipefail; {RUN} {where}", folder)
    process.communicate(timeout=HANG_S)
    assert process.returncode == 0 and (folder / "run" / "merged.parquet").exists()


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("--version", 0), ("verify run", 6), ("--nonsense", 2)])
def test_a_command_keeps_its_own_exit_code(folder: Path, words: str, code: int) -> None:
    process = shell(f"{sys.executable} -m rollout_ray.run {words} >/dev/full 2>/dev/full", folder)
    process.communicate(timeout=HANG_S)
    assert process.returncode == code


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_ray_starts_stops_the_run(folder: Path, number: signal.Signals) -> None:
    process = shell(f"exec {RUN}", folder)
    await_that(lambda: children(psutil.Process(process.pid), "gcs_server", recursive=True))
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 130 and "the same command" in stderr


def test_a_deferred_signal_arrives_after_the_block() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    done = []
    try:
        stop_by_signals()
        with pytest.raises(KeyboardInterrupt), deferred_stops():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            done.append("the block")
        assert done == ["the block"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
