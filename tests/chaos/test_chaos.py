"""The short form of `make chaos`, in namespaces of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.conftest import ROOT, clean_environment, run_alone


def printed(words: str, **variables: str) -> str:
    """What that module of tests.chaos prints, which must end well."""
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), **variables}
    done = run_alone(f"{sys.executable} -m {words}", ROOT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_row_is_lost_or_doubled_under_fire() -> None:
    told = printed("tests.chaos --short", CHAOS_ALONE="1")
    assert re.search(r"3 runs, 11 kills, (\d+) rows expected, \1 found, 0 missing, 0\s+duplicates", told), told


def test_a_node_that_is_drained_is_left_in_time(tmp_path: Path) -> None:
    assert "moved ['engine-" in printed(f"tests.chaos.drain {tmp_path}")


def test_what_is_lost_with_a_node_is_drawn_again(tmp_path: Path) -> None:
    assert "payloads lost" in printed(f"tests.chaos.lost_node {tmp_path}")
