"""Call the user's functions in a process of their own, and replace it when it hangs, grows or dies.

Invariant: a call that ends its process costs that call; calls that were under way beside it are made again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rollout_ray.core.errors import ConfigError, GradingError
from rollout_ray.core.records import Question
from rollout_ray.scoring.child_process import ChildProcess, Silence
from rollout_ray.scoring.custom_reward import RewardSource, packed
from rollout_ray.scoring.user_code.conventions import Signature

WORKER = "rollout_ray.scoring.user_code.worker"
START_SECONDS = 600.0  # the user's modules may import a framework, or load a model
STARTS = 3
GRACE_SECONDS = 2.0  # beyond the limit of a call, within which the process itself says that it is late
ASYNC_CALLS = 64
ASYNC_RETRIES = 2
BACK_OFF_SECONDS = 0.5  # before the first retry; it doubles


@dataclass(frozen=True)
class Limits:
    """Bounds on calls.

    Attributes:
        timeout_s: Seconds of one call.
        memory_mib: Memory of the process.
        in_flight: Calls at a time. None: ASYNC_CALLS of `async def`, one of any other function.
        retries: How often a failed call is made again. None: ASYNC_RETRIES for `async def`, else never.
    """

    timeout_s: float = 120.0
    memory_mib: int = 4096
    in_flight: int | None = None
    retries: int | None = None


class Call(NamedTuple):
    """A call of function number `function` on a question and its trajectories."""

    function: int
    question: Question
    subject: Any


class Reply(NamedTuple):
    """What a function returned, or why there is nothing."""

    result: Any = None
    error: str | None = None
    late: bool = False


@dataclass
class _Pending:
    """A call that has no reply yet. `alone`: it may have ended the process, and is made without others beside it."""

    number: int
    call: Call
    failures: int = 0
    deaths: int = 0
    alone: bool = False
    not_before: float = 0.0
    deadline: float = field(default=0.0)


class UserProcess:
    """The process with the user's functions. The first use starts it. It is not thread-safe."""

    def __init__(self, sources: Sequence[RewardSource], limits: Limits) -> None:
        self._sources, self._limits = tuple(sources), limits
        self._process: ChildProcess | None = None
        self._signatures: list[Signature] | None = None

    def signatures(self) -> list[Signature]:
        """Return what the functions take. Starts the process.

        Raises:
            ConfigError: A function cannot be loaded.
            GradingError: The process does not start.
        """
        if self._signatures is None:
            self._running()
        assert self._signatures is not None
        return self._signatures

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """Return the reply to each call, in their order."""
        signatures = self.signatures()
        replies: list[Reply | None] = [None] * len(calls)
        waiting = deque(_Pending(number, call) for number, call in enumerate(calls))
        flying: dict[int, _Pending] = {}
        while waiting or flying:
            self._send(waiting, flying, signatures)
            for pending, reply in self._next_replies(waiting, flying):
                if reply.error is not None and self._retries(signatures[pending.call.function]) > pending.failures:
                    pending.not_before = time.monotonic() + BACK_OFF_SECONDS * 2**pending.failures
                    pending.failures += 1
                    waiting.append(pending)
                else:
                    replies[pending.number] = reply
        return [reply for reply in replies if reply is not None]

    def close(self) -> None:
        """End the process. It can be used again, and then starts anew."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _retries(self, signature: Signature) -> int:
        usual = ASYNC_RETRIES if signature.is_async else 0
        return usual if self._limits.retries is None else self._limits.retries

    def _most(self, signature: Signature) -> int:
        usual = ASYNC_CALLS if signature.is_async else 1
        return usual if self._limits.in_flight is None else self._limits.in_flight

    # Sending

    def _send(self, waiting: deque[_Pending], flying: dict[int, _Pending], signatures: Sequence[Signature]) -> None:
        """Send what may be under way beside the calls that are."""
        now = time.monotonic()
        for _ in range(len(waiting)):
            pending = waiting.popleft()
            blocking = not signatures[pending.call.function].is_async
            beside = sum(blocking != signatures[p.call.function].is_async for p in flying.values())
            free = beside < self._most(signatures[pending.call.function])
            if not free or now < pending.not_before or any(p.alone for p in flying.values()) or (pending.alone and flying):
                waiting.append(pending)
                continue
            process = self._running()  # a start does not count
            pending.deadline = time.monotonic() + self._limits.timeout_s + GRACE_SECONDS
            flying[pending.number] = pending
            process.send(_message((pending.number, *pending.call)), self._limits.timeout_s)

    # Replies

    def _next_replies(self, waiting: deque[_Pending], flying: dict[int, _Pending]) -> list[tuple[_Pending, Reply]]:
        """Return the calls that have ended since, each with its reply. Wait for one, or for a call that is due."""
        now = time.monotonic()
        due = [pending.deadline for pending in flying.values()] + [pending.not_before for pending in waiting]
        found = self._running().line(max(0.0, min([d for d in due if d > now], default=now) - now))
        if isinstance(found, bytes):
            reply = _read_reply(found)
            if reply is not None and (pending := flying.pop(reply[0], None)):
                return [(pending, self._worded(reply[1]))]
            found = "gone"  # what it wrote is no reply: something else writes to its pipe
        if found == "late" and all(pending.deadline > time.monotonic() for pending in flying.values()):
            return []
        return self._ended(found, waiting, flying)

    def _ended(self, why: Silence, waiting: deque[_Pending], flying: dict[int, _Pending]) -> list[tuple[_Pending, Reply]]:
        """End the process. Return the calls that ended it, and put the others back."""
        assert self._process
        self._process.kill()
        number, self._process = self._process.exit_signal, None
        now, several = time.monotonic(), len(flying) > 1
        ended = []
        for pending in list(flying.values()):
            del flying[pending.number]
            if why == "late" and pending.deadline <= now:
                ended.append((pending, self._worded(Reply(late=True))))
            elif why == "late":
                waiting.appendleft(pending)
            elif several or (why == "gone" and pending.deaths == 0):  # the cause may lie outside, or in another call
                pending.deaths += not several
                pending.alone = True
                waiting.appendleft(pending)
            else:
                ended.append((pending, Reply(error=self._death(why, number))))
        return ended

    def _worded(self, reply: Reply) -> Reply:
        if not reply.late:
            return reply
        return Reply(error=f"it did not return within {self._limits.timeout_s:g} s (scoring.call_timeout_s)", late=True)

    def _death(self, why: Silence, number: int | None) -> str:
        if why == "too large":
            return f"it used more than {self._limits.memory_mib} MiB of memory (scoring.function_memory_mib)"
        return f"its process ended{f' with signal {number}' if number else ''}"

    # The process

    def _running(self) -> ChildProcess:
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> ChildProcess:
        reason = ""
        for _ in range(STARTS):
            process = ChildProcess(WORKER, [], self._limits.memory_mib, environment=dict(os.environ), quiet=False)
            threads = 1 if self._limits.in_flight is None else self._limits.in_flight
            first = {"functions": self._sources, "threads": threads, "timeout_s": self._limits.timeout_s}
            process.send(_message(first), START_SECONDS)
            line = process.line(START_SECONDS)
            if isinstance(line, bytes):
                told = json.loads(line)
                if "refused" in told:
                    process.kill()
                    raise ConfigError(told["refused"])
                self._signatures = [Signature(**{**one, **_tuples(one)}) for one in told["functions"]]
                return process
            process.kill()
            reason = self._death(line, process.exit_signal)
        names = ", ".join(source.name for source in self._sources)
        raise ConfigError(
            f"the process with {names} does not start: {reason}. Import the module in Python to see why"
        ) from GradingError(reason)


def _message(value: Any) -> bytes:
    content = packed(value)
    return len(content).to_bytes(4, "big") + content


def _read_reply(line: bytes) -> tuple[int, Reply] | None:
    try:
        told = json.loads(line)
        return int(told["id"]), Reply(told.get("result"), told.get("error"), told.get("late", False))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _tuples(signature: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(signature[name]) for name in ("required", "optional")}
