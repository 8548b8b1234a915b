"""End the process of vLLM's engine core together with the process that made it.

vLLM does not end it if its maker is killed, and its GPU would stay in use.
Workers of a replica over several GPUs end with the core by themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing import parent_process
from multiprocessing.context import BaseContext, ForkContext, ForkProcess, SpawnContext, SpawnProcess
from typing import TYPE_CHECKING

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess as _Process
else:
    _Process = object


class _EndsWithMaker(_Process):
    def run(self) -> None:
        maker = parent_process()
        assert maker is not None
        # Linux sends the signal: a thread of this process would not run while a CUDA kernel hangs.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != maker.pid:  # it has ended already
            os._exit(1)
        super().run()


class _Forked(_EndsWithMaker, ForkProcess):
    pass


class _Spawned(_EndsWithMaker, SpawnProcess):
    pass


class _ForkingCores(ForkContext):
    Process = _Forked


class _SpawningCores(SpawnContext):
    Process = _Spawned


def end_cores_with_this_process() -> None:
    """Apply this to every engine core that this thread has vLLM make from now on."""
    from vllm.v1.engine import utils

    chosen = utils.get_mp_context

    def context() -> BaseContext:
        return _ForkingCores() if chosen().get_start_method() == "fork" else _SpawningCores()

    utils.get_mp_context = context
