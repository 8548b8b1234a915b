"""CPU limits of symbolic comparisons: what counts, what is swallowed, and the process that starts slowly."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_ray.scoring.cpu_limit import CALLS_PER_TASK, CpuLimit, OutOfTimeError
from tests.conftest import ROOT


def burn(seconds: float) -> bool:
    """Use CPU time."""
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass
    return True


@pytest.fixture
def limit() -> Iterator[CpuLimit]:
    """A limit inside of a task."""
    one = CpuLimit(0.1)
    with one.task():
        yield one


def test_after_a_task_nothing_ends_the_process() -> None:
    with CpuLimit(0.1).task():
        assert signal.getitimer(signal.ITIMER_VIRTUAL) > (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_time_in_which_a_process_does_not_run_does_not_count(limit: CpuLimit) -> None:
    assert limit.call(lambda: time.sleep(0.3)) is None


def test_a_call_that_computes_too_long_is_out_of_time(limit: CpuLimit) -> None:
    with pytest.raises(OutOfTimeError):
        limit.call(burn, 10)
    assert limit.call(burn, 0) is True


def test_a_swallowed_alarm_leaves_only_a_yes(limit: CpuLimit) -> None:
    def swallow(found: bool) -> bool:
        with contextlib.suppress(OutOfTimeError):
            burn(10)
        return found

    assert limit.call(swallow, True) is True
    with pytest.raises(OutOfTimeError):
        limit.call(swallow, False)


def test_a_task_of_many_calls_ends(limit: CpuLimit) -> None:
    with pytest.raises(OutOfTimeError):
        for _ in range(2 * CALLS_PER_TASK):
            limit.call(burn, 0.06)


def test_the_worker_starts_whatever_the_limit_of_a_grade_and_prints_to_a_file(tmp_path: Path) -> None:
    """The first comparison of a slow machine takes longer than a grade may."""
    script = (
        "import sys, time\nfrom rollout_ray.scoring import sympy_worker\n"
        "first = sympy_worker.equal_at_points\n"
        "def slow(*sides):\n    begun = time.process_time()\n"
        "    while time.process_time() - begun < 1.2: pass\n"
        "    sympy_worker.equal_at_points = first\n    return first(*sides)\n"
        "sympy_worker.equal_at_points = slow\n"
        "sys.argv = ['', '1', '1024']\nsympy_worker.main()\n"
    )
    task = b'["values", ["\\\\sqrt{12}"], ["2\\\\sqrt{3}"], [[null]]]\n'
    with open(tmp_path / "output", "wb") as output:
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, input=task, stdout=output, check=True)
    assert (tmp_path / "output").read_text() == '"ready"\n"correct"\n'
