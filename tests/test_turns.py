"""Who compiles, with real processes and real locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rollout_ray.actors.vllm_backend.compile_lock import acquire_compile_lock
from tests.conftest import HANG_S, ROOT

TAKE = """
import sys
from rollout_ray.actors.vllm_backend.compile_lock import acquire_compile_lock
with acquire_compile_lock(sys.argv[1], "graph") as turn:
    print("leads" if turn.leads else "follows", flush=True)
    sys.stdin.readline()
"""


def take(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TAKE, str(cache)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_first_leads_and_the_others_follow_once_it_is_done(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert said(first) == "leads"
    second = take(tmp_path)
    assert not acquire_compile_lock(
        str(tmp_path), "graph", longest_wait_s=0.3
    ).leads  # nobody is done yet, and it waits no longer
    first.communicate("\n", timeout=HANG_S)
    assert said(second) == "follows"
    second.communicate("\n", timeout=HANG_S)
    assert not acquire_compile_lock(str(tmp_path), "graph").leads
    with acquire_compile_lock(str(tmp_path), "another graph") as other:
        assert other.leads


def test_a_killed_leader_is_followed_by_another(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert said(first) == "leads"
    second = take(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=HANG_S)
    assert said(second) == "leads"
    second.communicate("\n", timeout=HANG_S)


def test_a_leader_that_fails_leaves_no_mark(tmp_path: Path) -> None:
    try:
        with acquire_compile_lock(str(tmp_path), "graph"):
            raise MemoryError
    except MemoryError:
        pass
    assert acquire_compile_lock(str(tmp_path), "graph").leads


def test_the_lock_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with acquire_compile_lock(str(tmp_path), "graph"):
            pass
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "rollout_ray").iterdir()} == {0o664}
