"""Processes that have imported vLLM already: a server on the driver's machine forks one for each engine that starts there.

vLLM takes seconds to import, and a Ray actor can only begin with it once Ray runs. The driver starts the server first; it
imports while Ray starts. That is one import, however many engines, and none for an engine that replaces another.

Owns how these processes begin, are called and end: an engine's with its actor, the server with the driver, however these
end. What an engine does is engine.py's; an engine that the server is no use for runs in its actor.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from actors.engine import Engine
from actors.importing import uncollected
from actors.memory import NoMemory
from rollout_ray.errors import RolloutError

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from actors.engine_process import _serve; _serve({})"
_WAITING = 64  # engines that may ask while the server still imports

_address: str | None = None  # of this process's server


class EngineLost(Exception):
    """The process of an engine has ended."""


@dataclass(frozen=True)
class Order:
    """What makes an engine of a process: what vLLM `needs` to have been imported with, the whole environment, the working
    directory, sys.path, and what makes the Engine."""

    needs: Mapping[str, str]
    environment: Mapping[str, str]
    folder: str
    path: list[str]
    engine: Callable[[], Engine]


class EngineProcess:
    """An Engine in a process of its own, which ends with this object's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def call(self, method: str, *arguments: Any) -> Any:
        """What that method of the Engine returns. Raises what it raises, as a RuntimeError where that is no error of ours,
        and EngineLost where the process has ended."""
        try:
            self._connection.send((method, arguments))
            returned, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineLost("the engine's process ended") from error
        if not returned:
            raise value
        return value


def fork_engine(order: Order, server: str) -> EngineProcess | None:
    """A process of the server at `server`, once that has imported; None where it has ended, or imported with other
    variables than the engine needs."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(server)
        socket.send_fds(link, [b"\0"], [1, 2])
        connection = Connection(link.detach())
        connection.send(order)
        return EngineProcess(connection) if connection.recv() else None
    except (EOFError, OSError):
        link.close()
        return None


@contextmanager
def forking(needs: Mapping[str, str]) -> Iterator[None]:
    """Has a server on this machine, which imports vLLM with the variables that engines will need."""
    global _address
    folder = tempfile.mkdtemp(prefix="rollout-", dir="/tmp")  # a socket's path must be short; no other user may enter
    address = os.path.join(folder, "engines")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(_WAITING)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(listener.fileno()), json.dumps([str(entry) for entry in sys.path])],
            env={**os.environ, **needs},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # by whose end the server learns that this process has ended
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of the reach of a Ctrl-C at the terminal
        )
    _address = address
    try:
        yield
    finally:
        _address = None
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def server_here() -> str | None:
    """The address of this process's server, where it has one."""
    return _address


def _serve(fd: int) -> None:
    """The whole life of the server, which listens at the socket `fd`. It has one thread, as what is forked must.

    It keeps an end of each engine's socket, so as to end the engine with its actor whatever that is at, and closes it with
    the engine, for the actor to know.
    """
    with uncollected():
        import vllm.v1.engine.llm_engine  # noqa: F401

        import actors.vllm_backend
        import actors.worker  # noqa: F401
    context, poll = multiprocessing.get_context("fork"), select.poll()
    listener, driver = socket.socket(fileno=fd), sys.stdin.fileno()
    poll.register(listener, select.POLLIN)
    poll.register(driver, select.POLLIN)
    engines: dict[int, tuple[socket.socket, ForkProcess]] = {}  # by the numbers of their sockets and of their sentinels
    while True:
        for number, _ in poll.poll():
            if number == driver:  # it has ended
                os._exit(0)
            if number == fd:
                link, _ = listener.accept()
                open_here = [listener, *(other for other, _ in engines.values())]
                process = context.Process(target=_forked, args=(open_here, link), name="engine")
                process.start()
                poll.register(link, 0)  # that its other end was closed is told unasked
                poll.register(process.sentinel, select.POLLIN)
                engines[link.fileno()] = engines[process.sentinel] = link, process
                continue
            link, process = engines.pop(number)  # of two that end at once the socket is told first, as it was registered
            poll.unregister(number)
            if number == process.sentinel:
                process.join()
                if link.fileno() in engines:
                    poll.unregister(link)
                    del engines[link.fileno()]
                link.close()
            else:
                process.kill()


def _forked(open_here: Sequence[socket.socket], link: socket.socket) -> None:
    """The whole life of a process of the server. What it prints goes where its actor's output goes."""
    for one in open_here:
        one.close()
    _, outputs, _, _ = socket.recv_fds(link, 1, 2)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    connection = Connection(link.detach())
    threading.Thread(target=_end_with, args=(connection.fileno(),), name="end with the actor", daemon=True).start()
    order: Order = connection.recv()
    fits = all(os.environ.get(name) == value for name, value in order.needs.items())
    connection.send(fits)
    if not fits:
        return
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    sys.path[:] = order.path
    engine = order.engine()
    with suppress(EOFError, ConnectionError):  # the actor has ended
        while True:
            method, arguments = connection.recv()
            try:
                answer = True, getattr(engine, method)(*arguments)
            except Exception as error:  # noqa: BLE001 - it is raised in the actor
                answer = False, _portable(error)
            connection.send(answer)


def _end_with(fd: int) -> None:
    """Ends this process once the other end of its socket is closed: the server may have ended before."""
    poll = select.poll()
    poll.register(fd, 0)  # that it was closed is told unasked
    poll.poll()
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """An error of ours itself; of another only its words, since not every class of error can be sent."""
    if isinstance(error, (RolloutError, NoMemory)) or type(error) is RuntimeError:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
