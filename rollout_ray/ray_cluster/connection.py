"""Connect a run to Ray: to a named cluster, to the Ray that the caller started, or to a local one that ends with the run.

Checks the address and the token first, because Ray itself retries for minutes. It places no engine.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import ray

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.interrupts import deferred_stops
from rollout_ray.models.paths import cluster_address
from rollout_ray.ray_cluster import ray_internals
from rollout_ray.ray_cluster.auth import MODE, check_token, has_token
from rollout_ray.ray_cluster.private_session import private_session


class _Shared:
    """The connection of this process that its runs and pools share. The last of them ends it.

    Attributes:
        users: How many runs and pools use it; 0: there is none, or it is the caller's.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.address: str | None = None
        self._stack = ExitStack()

    def open(self, address: str | None, named_by: str) -> None:
        """Connect to the cluster at `address`, which a flag or variable names, or start a local Ray."""
        with ExitStack() as stack:
            # A local Ray leaves its own mode, and the next cluster may have another.
            stack.callback(_set_auth_mode, os.environ.get(MODE))
            folder = None if address else stack.enter_context(private_session())
            _connect(address, folder, _remedy(address, named_by))
            stack.callback(ray.shutdown)
            self._stack = stack.pop_all()
        self.address = address

    def close(self) -> None:
        """End the connection."""
        self._stack.close()


_shared = _Shared()


@contextmanager
def connected(cfg: RunConfig) -> Iterator[None]:
    """Connect to the named cluster, or start a local Ray and end it afterwards.

    Runs of several threads share a connection. A connection of the caller stays as it is.

    Raises:
        RolloutError: No cluster answers, the cluster refuses the client, the local Ray does not start, or another thread
            of this process uses another cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(cfg)
    with _shared.lock:
        if ours := _shared.users > 0 or not ray.is_initialized():
            if not _shared.users:
                _shared.open(address, "--ray_address" if cfg.resources.ray_address else "RAY_ADDRESS")
            elif _shared.address != address:
                raise RolloutError(
                    f"this process uses {_shared.address or 'a Ray of its own'} for another run, and the run asks for "
                    f"{address or 'a Ray of its own'}; wait for the end of the other run, or use another process"
                )
            _shared.users += 1
    try:
        yield
    finally:
        with _shared.lock:
            _shared.users -= ours
            if ours and not _shared.users:
                _shared.close()


def _remedy(address: str | None, named_by: str) -> str:
    """Return what to do about an address without a cluster."""
    if named_by == "RAY_ADDRESS":
        return "correct the variable RAY_ADDRESS, or unset it: the run then starts a Ray of its own"
    return "start one with `ray start --head`, or leave out --ray_address" if address == "auto" else "check --ray_address"


def _connect(address: str | None, folder: str | None, remedy: str) -> None:
    """Connect to the cluster at `address`, or start a local Ray whose sessions lie in `folder`."""
    if address:
        address = _checked_address(address, remedy)
    alone = nullcontext() if address else ray_internals.for_this_machine_alone()
    try:
        with deferred_stops(), ray_internals.without_signal_handlers(), alone:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
    except (ConnectionError, ray.exceptions.RpcError) as error:
        raise RolloutError(
            f"the Ray cluster at {address} refuses this client: {str(error).rstrip('.')}; check that the cluster is up, "
            "and that the head's token is in ~/.ray/auth_token"
        ) from error
    except (OSError, ValueError) as error:
        if address:
            raise
        raise RolloutError(
            f"Ray could not be started on this machine: {str(error).rstrip('.')}; make room on the disk of {folder}, set "
            "RAY_TMPDIR to another one, or give the machine or container more memory"
        ) from error
    except Exception as error:
        if address or type(error) is not Exception:  # Ray waits 30 s for its own node, and then raises a bare Exception
            raise
        raise RolloutError(
            f"Ray could not be started on this machine: {error} Close other busy programs and run the same command again"
        ) from error


def _checked_address(address: str, remedy: str) -> str:
    """Return the address as host:port, after setting whether this process uses the token."""
    address = _found(address, remedy)
    _check_reachable(address, remedy)
    check_token()
    if has_token() and os.environ.get(MODE) != "disabled":
        _set_auth_mode(None)
        if _wants_token(address, remedy):
            _set_auth_mode("token")
    return address


def _found(address: str, remedy: str) -> str:
    """Return what `auto` stands for in Ray: RAY_ADDRESS, or the cluster that was last started on this machine.

    That cluster may have ended since.
    """
    if address != "auto":
        return address
    if (named := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        return named
    try:
        return ray_internals.address_of(address)
    except ConnectionError as error:
        raise RolloutError(f"no Ray cluster runs on this machine; {remedy}") from error


def _check_reachable(address: str, remedy: str) -> None:
    """Raise RolloutError if nothing listens at the address. Ray itself would try it for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise RolloutError(f"{address} is no address of a Ray cluster, such as 10.0.0.1:6379; {remedy}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RolloutError(f"no Ray cluster answers at {address}: {error}; {remedy}") from error


def _set_auth_mode(mode: str | None) -> None:
    """Set RAY_AUTH_MODE. None uses no token, and lets Ray choose for a cluster that it starts."""
    if mode == os.environ.get(MODE):
        return
    if mode is None:
        del os.environ[MODE]
    else:
        os.environ[MODE] = mode
    ray_internals.read_auth_mode_again()


def _wants_token(address: str, remedy: str) -> bool:
    """Return whether the cluster refuses a client without its token.

    A cluster that wants no token must get none: its processes could not call ours, and every actor would die at once.
    """
    if address.startswith("ray://"):
        return True
    try:
        with suppress(ConnectionError), _stderr_closed():  # a missing cluster is reported when the run connects
            ray_internals.ask_cluster(address)
    except ray.exceptions.AuthenticationError:
        return True
    except ray.exceptions.RpcError as error:
        raise RolloutError(f"no Ray cluster answers at {address}, though something else does; {remedy}") from error
    return False


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Hide Ray's report of a refusal that we expect. It writes past Python to the file descriptor."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
