"""Run the user's functions in a process of their own (`python -m` this module).

It reads calls from stdin and writes one JSON line a call to stdout, in the order in which they end. The parent
(process.py) ends it where it hangs or grows. What the functions print goes to stderr.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, BinaryIO

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import encodable, shorten
from rollout_ray.scoring.custom_reward import unpacked
from rollout_ray.scoring.user_code.conventions import RewardFunction

PR_SET_PDEATHSIG = 1
REASON_CHARS = 500
_dumps, _write = json.dumps, os.write  # kept: a function may replace them in their modules


def main() -> None:
    """Load the functions that the first message names, say what they take, and serve calls until the input ends."""
    end_with_parent(os.getppid())
    calls = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a function prints is no reply
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    message = read_message(calls)
    if message is None:
        return
    try:
        functions = [RewardFunction(source.load()) for source in message["functions"]]
    except ConfigError as error:
        _reply(replies, {"refused": str(error)})
        return
    _reply(replies, {"functions": [asdict(function.signature) for function in functions]})
    _Server(functions, replies, message["threads"], message["timeout_s"]).serve(calls)
    os._exit(0)  # threads that a function left behind do not hold the process


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Without Linux it ends at the end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent is gone")


def read_message(stream: BinaryIO) -> Any:
    """Return the next message: four bytes of length, then the pickle. Return None at the end."""
    size = stream.read(4)
    return unpacked(stream.read(int.from_bytes(size, "big"))) if len(size) == 4 else None


class _Server:
    """Serve calls: blocking functions on the main thread, where a function may use signals, or in several threads.

    An `async def` runs on an event loop in a thread of its own: the main thread has none, as asyncio.run needs it.
    """

    def __init__(self, functions: list[RewardFunction], replies: int, threads: int, timeout_s: float) -> None:
        self._functions, self._replies = functions, replies
        self._timeout_s = timeout_s
        self._blocking: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
        self._loop = asyncio.new_event_loop()
        self._turn = threading.Lock()
        if any(function.signature.is_async for function in functions):
            threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def serve(self, calls: BinaryIO) -> None:
        """Return when the input has ended."""
        threading.Thread(target=self._read, args=(calls,), daemon=True).start()
        while (call := self._blocking.get()) is not None:
            self._answer(*call)

    def _read(self, calls: BinaryIO) -> None:
        while (call := read_message(calls)) is not None:
            if self._functions[call[1]].signature.is_async:
                asyncio.run_coroutine_threadsafe(self._answer_async(*call), self._loop)
            elif self._threads is not None:
                self._threads.submit(self._answer, *call)
            else:
                self._blocking.put(call)
        self._blocking.put(None)

    def _answer(self, number: int, function: int, question: Any, subject: Any) -> None:
        called = self._functions[function]
        try:
            self._reply(number, result=called.finish(called.invoke(question, subject), subject))
        except BaseException as error:  # noqa: BLE001  (the row says so)
            self._reply(number, error=_words(error))

    async def _answer_async(self, number: int, function: int, question: Any, subject: Any) -> None:
        called = self._functions[function]
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                result = await _awaited(called.invoke(question, subject))
            self._reply(number, result=called.finish(result, subject))
        except BaseException as error:  # noqa: BLE001  (the row says so)
            if limit.expired():
                self._reply(number, late=True)
            else:
                self._reply(number, error=_words(error))

    def _reply(self, number: int, **told: Any) -> None:
        with self._turn:
            _reply(self._replies, {"id": number, **told})


def _words(error: BaseException) -> str:
    return encodable(shorten(repr(error), REASON_CHARS))


async def _awaited(result: Any) -> Any:
    return await (asyncio.gather(*result) if isinstance(result, list) else result)


def _reply(replies: int, reply: Any) -> None:
    content = memoryview(_dumps(reply).encode() + b"\n")
    while content:
        content = content[_write(replies, content) :]


if __name__ == "__main__":
    main()
