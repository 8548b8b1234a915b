"""The process that vLLM's engine core runs in, where it has one of its own: forked from a server that has imported vLLM.

Owns how that process is made, and that it ends with the actor. vLLM itself would start a new one (spawn), since a Ray
actor has threads that a fork must not copy; that one would import everything once more. The server has one thread, and
imports while the actor does. Workers of a replica on several GPUs are then forked from the engine core, as vLLM does by
itself outside of Ray.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

PRELOAD = "actors.core_imports"


class CoreProcess(ForkServerProcess):
    """A process that does not outlive the one that asked for it, however that ends; its parent is the server."""

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, name="end with the actor", daemon=True).start()
        super().run()


class CoreContext(ForkServerContext):
    """What vLLM makes its engine core's process with."""

    Process = CoreProcess


def start_server() -> None:
    """Starts the server, which takes the environment as it is now, and returns at once."""
    multiprocessing.set_forkserver_preload([PRELOAD])
    forkserver.ensure_running()


def fork_cores() -> None:
    """Has vLLM make its engine core's process with the server."""
    from vllm.v1.engine import utils

    utils.get_mp_context = CoreContext


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
