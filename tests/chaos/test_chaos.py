"""Run the short form of `make chaos` in its own namespaces."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.conftest import ROOT, Command, clean_environment


def printed(run_alone: Command, words: str, **variables: str) -> str:
    """Return the output of a module of tests.chaos, which must succeed."""
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), **variables}
    done = run_alone(f"{sys.executable} -m {words}", ROOT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_row_is_lost_or_doubled_under_fire(run_alone: Command) -> None:
    output = printed(run_alone, "tests.chaos --short", CHAOS_ALONE="1")
    assert re.search(r"2 runs, 7 kills, (\d+) rows expected, \1 found, 0 missing, 0\s+duplicates", output), output


def test_engines_leave_a_draining_node_in_time(tmp_path: Path, run_alone: Command) -> None:
    assert "moved ['engine-" in printed(run_alone, f"tests.chaos.drain {tmp_path}")


def test_results_lost_with_a_node_are_generated_again(tmp_path: Path, run_alone: Command) -> None:
    assert "payloads lost" in printed(run_alone, f"tests.chaos.lost_node {tmp_path}")
