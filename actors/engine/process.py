"""Fork engines from a server that has imported vLLM.

The driver's server imports vLLM (seconds) while Ray starts: one import for all engines, and none for a replacement.
On another node, an actor starts a server if the engine core needs a process of its own; actors have threads and cannot
fork one. Invariant: an engine ends with its actor, and a server with its owner and the last of its engines.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from rollout_ray.actors.engine.engine import Engine
from rollout_ray.actors.engine.out_of_memory import NoMemory, count_oom_kills
from rollout_ray.actors.vllm_backend.imports import compiled_modules, uncollected
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.import_path import library_first
from rollout_ray.core.temporary import temporary_folder
from rollout_ray.sizing.gpus import alike

_IMPORT = "from rollout_ray.actors.engine.process import _serve"
_PROGRAM = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {_IMPORT}; _serve({{}})"
_WAITING = 64  # engines that may ask while the server still imports
_END_S = 1.0  # a server is waited for, unless it has engines of a pool that goes on

_address: str | None = None  # of this process's server


class EngineLost(Exception):
    """The process of an engine has ended."""


@dataclass(frozen=True)
class Order:
    """What turns a process of the server into an engine.

    Attributes:
        needs: Variables with which the server must have imported vLLM.
        environment: All variables of the engine's process.
        folder: Its working directory.
        path: Its sys.path.
        engine: Makes the Engine.
    """

    needs: Mapping[str, str]
    environment: Mapping[str, str]
    folder: str
    path: list[str]
    engine: Callable[[], Engine]


class EngineProcess:
    """An Engine in a process of its own, which ends with this process. `server` ends with it."""

    def __init__(self, connection: Connection, server: ExitStack | None = None) -> None:
        self._connection, self._server = connection, server
        self._oom_kills = count_oom_kills()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the Engine.

        Raises:
            EngineLost: The process has ended.
            RuntimeError: The method raised an error that is not one of ours. Our own errors are raised as they are.
        """
        try:
            self._connection.send((method, arguments))
            returned, value = self._connection.recv()
        except (EOFError, OSError) as error:
            if count_oom_kills() > self._oom_kills:
                raise EngineLost("the machine or its container ran out of memory, and the engine was killed") from error
            raise EngineLost("the engine's process ended") from error
        if not returned:
            raise value
        return value


def fork_engine(order: Order, server: str) -> EngineProcess | None:
    """Fork an engine from the server at this address, once it has imported vLLM.

    Returns None if the server has exited, or imported vLLM with other variables than the engine needs.
    """
    connection = _ask(_reach(server), order)
    return EngineProcess(connection) if connection else None


def fork_engine_apart(order: Order) -> EngineProcess | None:
    """Fork an engine from a server that is started for it. Returns None if the server cannot import vLLM."""
    with ExitStack() as stack:
        address = stack.enter_context(forking(order.needs))
        link = _reach(address)
        shutil.rmtree(os.path.dirname(address))  # nobody else is to find it, and a process that is killed removes nothing
        connection = _ask(link, order)
        return EngineProcess(connection, stack.pop_all()) if connection else None


def _reach(server: str) -> socket.socket | None:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(server)
    except OSError:
        link.close()
        return None
    return link


def _ask(link: socket.socket | None, order: Order) -> Connection | None:
    """Ask a server for an engine. Returns the connection to it, or None if the server makes none."""
    if link is None:
        return None
    with link, suppress(EOFError, OSError):
        socket.send_fds(link, [b"\0"], [1, 2])
        connection = Connection(link.detach())
        connection.send(order)
        if connection.recv():
            return connection
        connection.close()
    return None


@contextmanager
def forking(needs: Mapping[str, str]) -> Iterator[str]:
    """Run a server that imports vLLM with the variables that engines will need. Yields its address.

    After the block it takes no more engines, and exits once its engines have ended.
    """
    global _address
    folder = temporary_folder("rollout-", "/tmp")  # a socket's path must be short; no other user may enter
    address = os.path.join(folder, "engines")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(_WAITING)
        # -P: until sys.path is set, `-c` alone would import the user's own json.py from the working directory.
        python = [sys.executable, "-P", "-c"]
        process = subprocess.Popen(
            [*python, _PROGRAM.format(listener.fileno()), json.dumps(library_first(sys.path))],
            env={**os.environ, **compiled_modules(), **needs},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # by whose end the server learns that this process has ended
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of the reach of a Ctrl-C at the terminal
        )
    earlier, _address = _address, address
    try:
        yield address
    finally:
        _address = earlier
        shutil.rmtree(folder, ignore_errors=True)
        process.terminate()  # which ends one that still imports, and no other
        assert process.stdin
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def server_here() -> str | None:
    """Return the address of this process's server, or None if it is of no use.

    vLLM looks at a GPU during its import, so all GPUs of the machine must be alike.
    """
    return _address if _address and alike() else None


def _serve(fd: int) -> None:
    """Run the server, which listens at the socket `fd`. It has one thread, because it forks."""
    with uncollected():
        import vllm.v1.engine.llm_engine  # noqa: F401

        import rollout_ray.actors.vllm_backend.backend
        import rollout_ray.actors.vllm_backend.worker  # noqa: F401
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _Server(socket.socket(fileno=fd), sys.stdin.fileno()).run()


class _Server:
    """The server after the import.

    It keeps an end of the socket of each engine. The socket tells it that an actor ended, and tells the actor that the
    engine ended.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener, self._owner = listener, owner  # the latter a pipe whose other end closes with who started it
        self._engines: dict[int, tuple[socket.socket, ForkProcess]] = {}  # by the numbers of their sockets and sentinels
        self._context, self._poll = multiprocessing.get_context("fork"), select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(owner, select.POLLIN)

    def run(self) -> None:
        """Serve until the owner and all engines have ended."""
        address, owned = self._listener.getsockname(), True
        while owned or self._engines:
            for number, _ in self._poll.poll():
                if number == self._owner:
                    owned = False
                    self._poll.unregister(number)
                    self._poll.unregister(self._listener)
                    self._listener.close()
                    shutil.rmtree(os.path.dirname(address), ignore_errors=True)
                elif owned and number == self._listener.fileno():
                    self._fork()
                else:
                    self._ended(number)

    def _fork(self) -> None:
        link, _ = self._listener.accept()
        open_here = [self._listener, *{other for other, _ in self._engines.values()}]
        process = self._context.Process(target=_forked, args=(open_here, link), name="engine")
        process.start()
        self._poll.register(link, 0)  # that its other end was closed is told unasked
        self._poll.register(process.sentinel, select.POLLIN)
        self._engines[link.fileno()] = self._engines[process.sentinel] = link, process

    def _ended(self, number: int) -> None:
        """Handle the end of an actor or an engine. If both end at once, the socket comes first."""
        link, process = self._engines.pop(number)
        self._poll.unregister(number)
        if number != process.sentinel:
            process.kill()
            return
        process.join()
        if self._engines.pop(link.fileno(), None):
            self._poll.unregister(link)
        link.close()


def _forked(open_here: Sequence[socket.socket], link: socket.socket) -> None:
    """Run an engine in a process of the server. Its output goes where the output of its actor goes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for one in open_here:
        one.close()
    _, outputs, _, _ = socket.recv_fds(link, 1, 2)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    connection = Connection(link.detach())
    os.register_at_fork(after_in_child=connection.close)  # or the engine's own processes would seem to be the engine
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
    """End this process once the other end of its socket is closed. The server may have ended before."""
    poll = select.poll()
    poll.register(fd, 0)  # that it was closed is told unasked
    poll.poll()
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent: our own as it is, of others only the words."""
    if isinstance(error, (RolloutError, NoMemory)) or type(error) is RuntimeError:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
