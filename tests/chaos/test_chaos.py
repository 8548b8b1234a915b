"""The short form of `make chaos`, in namespaces of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.conftest import ROOT, clean_environment, run_alone


def test_no_row_is_lost_or_doubled_under_fire() -> None:
    environment = clean_environment() | {"CHAOS_ALONE": "1", "PYTHONPATH": str(ROOT)}
    done = run_alone(f"{sys.executable} -m tests.chaos --short", ROOT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"3 runs, 11 kills, (\d+) rows expected, \1 found, 0 missing, 0\s+duplicates", done.stdout), (
        done.stdout
    )


def test_a_node_that_is_drained_is_left_in_time(tmp_path: Path) -> None:
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = run_alone(f"{sys.executable} -m tests.chaos.drain {tmp_path}", ROOT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "moved ['engine-" in done.stdout


def test_what_is_lost_with_a_node_is_drawn_again(tmp_path: Path) -> None:
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = run_alone(f"{sys.executable} -m tests.chaos.lost_node {tmp_path}", ROOT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "payloads lost" in done.stdout
