"""The child processes in which answers are compared symbolically, as their parent sees them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from typing import Literal

from rollout_ray.core.errors import GradingError
from rollout_ray.core.import_path import library_first
from rollout_ray.core.redaction import without_secrets

Verdict = Literal["correct", "incorrect", "bad_gold", "timeout", "error"]
VERDICTS: frozenset[str] = frozenset(("correct", "incorrect", "bad_gold", "timeout", "error"))
START_SECONDS = 60.0
STARTS = 3
MEMORY_CHECK_SECONDS = 0.1


class Child:
    """One grading process and the pipe to it; respawned whenever it had to be killed."""

    def __init__(self, timeout_s: int, memory_mib: int) -> None:
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Starts the process. Raises GradingError where it cannot be started."""
        self._running()

    def compare(self, task: str) -> Verdict:
        """Ask the process for its verdict on a task (a line of JSON).

        A process that died, fell silent past all its alarms (timeout) or outgrew its memory (error) is replaced. A task
        at which it died is asked once more, since another may have been the cause.

        Raises GradingError where no process can be started.
        """
        for _ in range(2):
            process = self._running()
            reply = self._ask(process, task.encode() + b"\n")
            if isinstance(reply, bytes) and (verdict := _read_verdict(reply)):
                return verdict
            self.kill()
            if reply in ("timeout", "error"):
                return reply
        return "error"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            for _ in range(STARTS):
                self._process = self._start()
                if self._await_line(self._process, START_SECONDS) == _READY:
                    break
                self.kill()
            else:
                words = " ".join(self._command())
                raise GradingError(
                    f"the process that compares answers did not start in {STARTS} attempts; see what `{words}` prints, and "
                    "raise scoring.grader_memory_mib where memory is what it lacks"
                )
        return self._process

    def _command(self) -> list[str]:
        # -P: `-m` alone would import the user's own types.py from the working directory.
        worker = [sys.executable, "-P", "-m", "rollout_ray.scoring.sympy_worker"]
        return [*worker, str(self._timeout_s), str(self._memory_mib)]

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(library_first(sys.path))
        environment = without_secrets(os.environ) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command(), stdin=pipe, stdout=pipe, stderr=nothing, env=environment)

    def _ask(self, process: subprocess.Popen[bytes], line: bytes) -> bytes | Literal["timeout", "error"] | None:
        assert process.stdin
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._await_line(process, 4 * self._timeout_s + 2)

    def _await_line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | Literal["timeout", "error"] | None:
        """The process's next line; None where it died, timeout where it stays silent, error where it grows too large."""
        assert process.stdout
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if poll.poll(1000 * MEMORY_CHECK_SECONDS):
                return process.stdout.readline() or None
            if _resident_mib(process.pid) > self._memory_mib:
                return "error"
        return "timeout"

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin and self._process.stdout
            with contextlib.suppress(BrokenPipeError):  # of a line that the process did not live to read
                self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


_READY = b'"ready"\n'


def _read_verdict(reply: bytes) -> Verdict | None:
    """The verdict of a whole line; None for what a process left behind that died while writing it."""
    try:
        verdict = json.loads(reply)
    except ValueError:
        return None
    return verdict if isinstance(verdict, str) and verdict in VERDICTS else None  # type: ignore[return-value]


def _resident_mib(pid: int) -> float:
    """Memory of a process in MiB; 0 where the system has no /proc to tell."""
    try:
        with open(f"/proc/{pid}/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return 0.0
