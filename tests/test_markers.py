"""A test without a marker starts nothing slow: `make check` is safe to run often."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests import markers
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "rollout_ray.run", "--dataset", "q.parquet"],
        [sys.executable, "-m", "rollout_ray.jobs.evaluate"],
        "ray start --head",
        ["/usr/lib/ray/core/src/ray/gcs/gcs_server", "--log_dir=x"],
        ["unshare", "--net", "true"],
    ],
    ids=str,
)
def test_a_slow_program_is_refused(command: list[str] | str) -> None:
    with pytest.raises(RuntimeError, match="Ask for one of the fixtures"):
        subprocess.Popen(command, shell=isinstance(command, str))
    assert markers.take_refusals()


def test_a_short_program_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", "print('rollout_ray.run')"], capture_output=True, check=True)
    assert done.stdout.split() == [b"rollout_ray.run"] and not markers.take_refusals()


def test_an_engine_is_refused() -> None:
    with pytest.raises(RuntimeError, match="imports vllm"):
        sys.audit("import", markers.ENGINE_MODULE, None, None, None, None)
    assert markers.take_refusals()


def test_with_a_fixture_that_says_so_it_may_start(programs: None, request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("process")
    sys.audit("subprocess.Popen", "ray", ["ray", "stop"], None, None)


def test_make_check_leaves_out_every_marker() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (expression,) = re.findall(r'pytest .*-m "not \((.*)\)"', makefile)
    assert set(expression.split(" or ")) == set(markers.MARKERS.values()) == set(markers.ORDER)


def test_before_a_commit_the_lint_of_make_check_runs(programs: None) -> None:
    assert "entry: make lint\n" in (ROOT / ".pre-commit-config.yaml").read_text()
    planned = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(step in planned for step in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "-m pytest"))
