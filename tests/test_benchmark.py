"""The benchmark in miniature: it runs every system for real and its table names them."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT, clean_environment


def test_three_systems_on_one_small_workload(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from rollout_ray.prepare import prepare_demo

    prepare_demo(3, 1, tmp_path / "q.parquet")
    words = ["--questions", str(tmp_path / "q.parquet"), "--tokens", "4", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.benchmark", *words],
        cwd=ROOT,
        env=clean_environment() | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 trajectories of 4 tokens" in done.stdout
    for system in ("bare", "ray_data", "ours"):
        assert re.search(rf"{system} .*\d+\.\d .*\d\.\d\d \(", done.stdout), done.stdout
