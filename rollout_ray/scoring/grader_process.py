"""Ask a process that compares answers symbolically (sympy_worker.py), and replace one that ends.

The process limits its own CPU time. child_process.py limits its memory, and the time for which it may be silent.
"""

from __future__ import annotations

import json
import signal
from typing import Literal

from rollout_ray.core.errors import GradingError
from rollout_ray.scoring.child_process import ChildProcess, command

Verdict = Literal["correct", "incorrect", "bad_gold", "timeout", "error"]
VERDICTS: frozenset[str] = frozenset(("correct", "incorrect", "bad_gold", "timeout", "error"))
START_SECONDS = 60.0
STARTS = 6  # something else, such as the kernel for want of memory, may kill a process while it starts
WORKER = "rollout_ray.scoring.sympy_worker"


def silent_seconds(timeout_s: int) -> int:
    """Return for how long a process may be silent: on a busy machine its CPU limits take longer by the clock."""
    return 10 * timeout_s + 2


class Child:
    """One grading process. A process that had to be killed is replaced."""

    def __init__(self, timeout_s: int, memory_mib: int) -> None:
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        self._arguments = [str(timeout_s), str(memory_mib)]
        self._process: ChildProcess | None = None

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
            process.send(task.encode() + b"\n", silent_seconds(self._timeout_s))
            reply = process.line(silent_seconds(self._timeout_s))
            if isinstance(reply, bytes) and (verdict := _read_verdict(reply)):
                return verdict
            self.kill()
            if reply == "too large":
                return "error"
            if reply == "late" or process.exit_signal == signal.SIGVTALRM:  # the kernel, by cpu_limit.py
                return "timeout"
        return "error"

    def _running(self) -> ChildProcess:
        if self._process is None:
            for _ in range(STARTS):
                self._process = ChildProcess(
                    WORKER, self._arguments, self._memory_mib, environment={"OMP_NUM_THREADS": "1"}, quiet=True
                )
                if self._process.line(START_SECONDS) == _READY:
                    break
                self.kill()
            else:
                raise GradingError(
                    f"The process that compares answers did not start in {STARTS} attempts. Run "
                    f"`{' '.join(command(WORKER, self._arguments))}` to see why. "
                    "If it lacks memory, raise scoring.grader_memory_mib."
                )
        return self._process

    def kill(self) -> None:
        """End the process if there is one."""
        if self._process:
            self._process.kill()
            self._process = None


_READY = b'"ready"'


def _read_verdict(reply: bytes) -> Verdict | None:
    """Return the verdict of a whole line. Return None for half a line, which a process leaves that dies as it writes."""
    try:
        verdict = json.loads(reply)
    except ValueError:
        return None
    return verdict if isinstance(verdict, str) and verdict in VERDICTS else None  # type: ignore[return-value]
