"""What the fork server of core_process.py imports, so that a process forked from it has vLLM's engine; no more."""

from __future__ import annotations

import gc

# Collecting garbage while five thousand modules load costs a fifth of the import; what is frozen stays shared by the forks.
gc.disable()

import vllm.v1.engine.core  # noqa: E402, F401

import actors.worker  # noqa: E402, F401

gc.freeze()
gc.enable()
