"""Everything that this package uses of Ray without Ray having promised to keep it.

Each function says what no public call of Ray does. A test looks the names up in the sources of the lowest and the highest
Ray that pyproject.toml allows.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ray._private import ray_constants, utils
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import state
from ray._private.utils import get_num_cpus
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

# What starts the processes of a local Ray that no run uses: its autoscaler, the one that sends logs to a driver, and the
# web server of the dashboard. With them Ray's start takes 1.4 s more of CPU time, and a command of 400 trajectories on
# two cores takes 11.5 s instead of 10.5.
NEEDLESS = ("start_monitor", "start_log_monitor", "start_api_server")


@contextmanager
def for_this_machine_alone() -> Iterator[None]:
    """Make a Ray that starts meanwhile listen on the loopback address only, without the processes of NEEDLESS.

    By default each of its processes listens on every address of the machine, except on macOS and Windows.
    """
    theirs = {name: method for name in NEEDLESS if (method := getattr(Node, name, None))}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name in theirs:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        for name, method in theirs.items():
            setattr(Node, name, method)


@contextmanager
def without_signal_handlers() -> Iterator[None]:
    """Keep a Ray that starts meanwhile from handling SIGTERM: its handler ends the process, and a run could not save."""
    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


def address_of(name: str) -> str:
    """Return the address host:port of a cluster.

    Raises:
        ConnectionError: `name` is "auto", and no cluster was started on this machine.
    """
    address: str = canonicalize_bootstrap_address(name)
    return address


def ask_cluster(address: str) -> None:
    """Connect to the cluster as a client does, and disconnect.

    Raises:
        ConnectionError: No cluster is there.
        ray.exceptions.AuthenticationError: It wants its token.
        ray.exceptions.RpcError: Something else answers.
    """
    GcsClient(address=address_of(address))


def read_auth_mode_again() -> None:
    """Make Ray read RAY_AUTH_MODE and the token again. It has read the one when it was imported and keeps the other."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def cpus_of_this_machine() -> int:
    """Return the number of CPUs that a local Ray will offer."""
    return int(get_num_cpus())


def is_pending(actor: Any) -> bool:
    """Return whether the process of an actor has not begun: it waits for resources, or Ray is starting it."""
    return bool(state.actor_table(actor._actor_id.hex()).get("State") in ("DEPENDENCIES_UNREADY", "PENDING_CREATION"))


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that Ray was told to drain, because they are idle or will be reclaimed."""
    return frozenset(state.get_draining_nodes())


def check_cluster_config(config: Mapping[str, Any]) -> None:
    """Apply Ray's schema and rules for a cluster's YAML, as `ray up` does. Raises whatever Ray raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # Ray warns of mounts that are files
        validate_config(prepare_config(copy.deepcopy(dict(config))))
