"""From a laptop to a fleet and back: what the run of end_to_end.py must leave behind, and what it must not."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cluster.end_to_end import ARMS, QUESTIONS
from tests.conftest import ROOT, Command, clean_environment


def left_behind(folder: Path) -> Iterator[str]:
    """Processes that work in the folder or hold a mount in it, in whatever namespace."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_text(errors="replace") + (process / "mountinfo").read_text(errors="replace")
        except OSError:  # it has ended, or is about to
            continue
        if str(folder) in text:
            yield f"{process.name}: {(process / 'cmdline').read_bytes()!r}"


# The first test repeats the scenario where it failed; the others do not do so again.
played_before = pytest.mark.flaky(reruns=0)


@pytest.fixture(scope="module")
def played(checkout: Path, tmp_path_factory: pytest.TempPathFactory, run_alone: Command) -> tuple[dict[str, Any], Path]:
    """The report of the whole scenario, played once, and its folder."""
    if os.geteuid() != 0:
        pytest.skip("pretend instances need root")
    if missing := [name for name in ("sshd", "ssh", "rsync") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]:
        pytest.skip(f"{', '.join(missing)} is not installed (make test does that on Debian)")
    folder = tmp_path_factory.mktemp("fleet")
    folder.chmod(0o755)
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = run_alone(f"python -m tests.cluster.end_to_end {checkout} {folder}", ROOT, environment, unshared=["--mount"])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text()), folder


def test_no_row_is_missing_or_doubled(played: tuple[dict[str, Any], Path]) -> None:
    report, folder = played
    merged = pq.read_table(folder / "state" / "shared" / "runs" / "fleet" / "merged.parquet")
    asked = pq.read_table(folder / "state" / "shared" / "questions.parquet").num_rows
    ids = Counter(merged["question_id"].to_pylist())
    draws = Counter(len({(t["arm"], t["sample"]) for t in row}) for row in merged["trajectories"].to_pylist())
    print(f"rows missing {asked - len(ids)}, duplicates {sum(ids.values()) - len(ids)}")
    assert asked == merged.num_rows == len(ids) == QUESTIONS and draws == {ARMS: QUESTIONS}
    assert "succeeded" in report["job status"]


@played_before
def test_nodes_come_are_replaced_and_go(played: tuple[dict[str, Any], Path]) -> None:
    report, _ = played
    assert report["alive after up"] == 1, "a worker was launched before any work"
    assert "Autoscaler status" in report["ray status"]
    assert report["launches"] >= 3, "head and two workers"
    assert report["alive after down"] == []
    assert "Exception occurred when stopping the cluster Ray runtime" not in report["down"]


@played_before
def test_the_key_is_nowhere_but_where_it_was_put(played: tuple[dict[str, Any], Path]) -> None:
    """In files of every machine and of the shared file system, and in every process' environment and command line."""
    report, _ = played
    assert report["key while running"] == ["head", "laptop"]
    assert report["key after the run"] == ["head", "laptop"]
    assert report["key after down"] == ["laptop"]


@played_before
def test_no_process_namespace_or_mount_is_left(played: tuple[dict[str, Any], Path]) -> None:
    assert list(left_behind(played[1])) == []
