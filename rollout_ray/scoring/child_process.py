"""Start, ask, bound and end a process that works for this one: lines of bytes come back over a pipe.

The process may hang, grow or die; this side notices each, and kills it with everything that it started.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Literal

from rollout_ray.core.import_path import library_first
from rollout_ray.core.redaction import without_secrets

Silence = Literal["late", "too large", "gone"]  # why no line came
MEMORY_CHECK_SECONDS = 0.1
_READ_BYTES = 1 << 16
_POLL_MS = int(1000 * MEMORY_CHECK_SECONDS)


class ChildProcess:
    """One process, in a session of its own."""

    def __init__(
        self, module: str, arguments: Sequence[str], memory_mib: int, *, environment: Mapping[str, str], quiet: bool
    ) -> None:
        """Start `python -m module arguments`.

        Args:
            module: Module to run.
            arguments: Its arguments.
            memory_mib: Resident memory that the process may use.
            environment: Environment variables, beside those of this process that hold no secret.
            quiet: Whether what it prints is dropped.
        """
        self._memory_mib = memory_mib
        self._read = b""
        path = os.pathsep.join(library_first(sys.path))
        self._process = subprocess.Popen(
            command(module, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**without_secrets(os.environ), **environment, "PYTHONPATH": path},
            start_new_session=True,
            bufsize=0,
        )
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout
        return self._process.stdout

    @property
    def exit_signal(self) -> int | None:
        """Return the signal that ended the process, or None."""
        code = self._process.returncode
        return -code if code is not None and code < 0 else None

    def send(self, content: bytes, seconds: float) -> bool:
        """Send bytes. Return False if the process is gone, or does not read them in time."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._stdin, select.POLLOUT)
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                poll.poll(_POLL_MS)
            except BrokenPipeError:
                return False
        return True

    def line(self, seconds: float) -> bytes | Silence:
        """Return the next line, or why none came within the time."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if poll.poll(max(0, min(_POLL_MS, int(1000 * left) + 1))):
                if not (found := os.read(self._stdout.fileno(), _READ_BYTES)):
                    return "gone"
                self._read += found
            elif self._resident_mib() > self._memory_mib:
                return "too large"
            elif left <= 0:
                return "late"
        line, _, self._read = self._read.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process, and those of its session."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _resident_mib(self) -> float:
        """Return the memory of the process in MiB. Return 0 where the system has no /proc."""
        try:
            with open(f"/proc/{self._process.pid}/statm") as stream:
                return int(stream.read().split()[1]) * resource.getpagesize() / 2**20
        except OSError:
            return 0.0


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command of a process. -P: `-m` alone would import the user's own types.py from the working folder."""
    return [sys.executable, "-P", "-m", module, *arguments]
