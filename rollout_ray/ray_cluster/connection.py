"""The connection to Ray: a named cluster, the Ray that the caller started, or a local one for the length of a run.

Owns what a local Ray consists of, and the checks that turn Ray's minutes of retries into a sentence. It places nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import RolloutError
from rollout_ray.models.paths import cluster_address
from rollout_ray.ray_cluster.auth import MODE, check_token, has_token

# What starts the processes of a local Ray that no run has a use for: its autoscaler, what passes logs on to a driver that
# wants none, and the web server of a dashboard that is off, which asks the network whether it is in a cloud. With them
# Ray's start takes 1.4 s more of CPU time, and a command of 400 trajectories on two cores 11.5 s instead of 10.5.
NEEDLESS = ("start_monitor", "start_log_monitor", "start_api_server")


@contextmanager
def connected(cfg: RunConfig) -> Iterator[None]:
    """Connects to the cluster that is named, else starts a local Ray and ends it afterwards.

    Raises RolloutError where no cluster answers or it refuses the client, and where a local Ray does not come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        yield
        return
    mode = os.environ.get(MODE)
    try:
        _connect(cluster_address(cfg))
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        _set_auth_mode(mode)  # a local Ray would leave its own, which the next cluster need not have


def _connect(address: str | None) -> None:
    if address:
        remedy = "check --ray_address"
        if address == "auto":
            remedy = "start one with `ray start --head`, or leave out --ray_address"
        address = _found(address, remedy)
        _check_reachable(address, remedy)
        check_token()
        if has_token() and os.environ.get(MODE) != "disabled":
            _set_auth_mode(None)
            if _wants_token(address, remedy):
                _set_auth_mode("token")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with nullcontext() if address else _for_this_machine_alone():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ray.exceptions.RpcError) as error:
        raise RolloutError(
            f"the Ray cluster at {address} takes no client: {str(error).rstrip('.')}; check that it is up, and that the "
            "head's token is in ~/.ray/auth_token"
        ) from error
    except Exception as error:
        if address or type(error) is not Exception:  # Ray gives its own node 30 s, and says so with a bare Exception
            raise
        raise RolloutError(
            f"Ray could not be started on this machine: {error} Close what else is busy here and run the same command again"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would end the process without saving


@contextmanager
def _for_this_machine_alone() -> Iterator[None]:
    """What Ray starts meanwhile keeps to the loopback address and leaves out NEEDLESS; it has a parameter for neither.

    Each of its processes would listen on every address of the machine, but where it takes in no other machines (as on macOS
    and Windows).
    """
    theirs = {name: method for name in NEEDLESS if (method := getattr(Node, name, None))}
    reachable, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    for name in theirs:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        for name, method in theirs.items():
            setattr(Node, name, method)


def _found(address: str, remedy: str) -> str:
    """What `auto` stands for: as Ray has it, RAY_ADDRESS, else the cluster that was last started on this machine. It may
    have ended since."""
    if address != "auto":
        return address
    if (named := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        return named
    try:
        found: str = canonicalize_bootstrap_address(address)
    except ConnectionError as error:
        raise RolloutError(f"no Ray cluster runs on this machine; {remedy}") from error
    return found


def _check_reachable(address: str, remedy: str) -> None:
    """Ray itself would try a wrong address for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RolloutError(f"no Ray cluster answers at {address}: {error}; {remedy}") from error


def _set_auth_mode(mode: str | None) -> None:
    """None: no token is used, and Ray may choose otherwise for a cluster that it starts."""
    if mode == os.environ.get(MODE):
        return
    if mode is None:
        del os.environ[MODE]
    else:
        os.environ[MODE] = mode
    Config.initialize("")  # Ray has read the environment when it was imported
    AuthenticationTokenLoader.instance().reset_cache()  # and keeps a token that it has used


def _wants_token(address: str, remedy: str) -> bool:
    """Whether the cluster refuses a client without its token. One that asks for none must be given none: its processes
    could not call ours, and every actor would die before it began."""
    if address.startswith("ray://"):
        return True
    try:
        with suppress(ConnectionError), _stderr_closed():  # where there is none is said when it is connected to
            GcsClient(address=canonicalize_bootstrap_address(address))
    except ray.exceptions.AuthenticationError:
        return True
    except ray.exceptions.RpcError as error:
        raise RolloutError(f"no Ray cluster answers at {address}, though something else does; {remedy}") from error
    return False


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """For what Ray says of a refusal that is expected: it writes past Python."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
