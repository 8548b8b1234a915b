"""Start, ask and replace a process that compares answers symbolically (sympy_worker.py).

The process limits its own CPU time. This side limits its memory, and the time for which it may be silent.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
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
STARTS = 6  # something else, such as the kernel for want of memory, may kill a process while it starts
MEMORY_CHECK_SECONDS = 0.1


def silent_seconds(timeout_s: int) -> int:
    """Return for how long a process may be silent: on a busy machine its CPU limits take longer by the clock."""
    return 10 * timeout_s + 2


class Child:
    """One grading process and the pipe to it. A process that had to be killed is replaced."""

    def __init__(self, timeout_s: int, memory_mib: int) -> None:
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Start the process.

        Raises:
            GradingError: It did not start.
        """
        self._running()

    def compare(self, task: str) -> Verdict:
        """Return the verdict of the process on a task (a line of JSON).

        It is timeout where the process exceeds its CPU time or is silent for too long, and error where it exceeds its
        memory. Where the process dies otherwise, a second one gets the task: the cause may lie outside.

        Raises:
            GradingError: No process can be started.
        """
        for _ in range(2):
            process = self._running()
            reply = self._ask(process, task.encode() + b"\n")
            if isinstance(reply, bytes) and (verdict := _read_verdict(reply)):
                return verdict
            self.kill()
            if reply in ("timeout", "error"):
                return reply
            if process.returncode == -signal.SIGVTALRM:  # the kernel, by cpu_limit.py
                return "timeout"
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
                    f"The process that compares answers did not start in {STARTS} attempts. Run `{words}` to see why. "
                    "If it lacks memory, raise scoring.grader_memory_mib."
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
        return self._await_line(process, silent_seconds(self._timeout_s))

    def _await_line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | Literal["timeout", "error"] | None:
        """Return the next line of the process. Return None where it died, error where it grows too large."""
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
        """End the process if there is one."""
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
    """Return the verdict of a whole line. Return None for half a line, which a process leaves that dies as it writes."""
    try:
        verdict = json.loads(reply)
    except ValueError:
        return None
    return verdict if isinstance(verdict, str) and verdict in VERDICTS else None  # type: ignore[return-value]


def _resident_mib(pid: int) -> float:
    """Return the memory of a process in MiB. Return 0 where the system has no /proc."""
    try:
        with open(f"/proc/{pid}/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return 0.0
