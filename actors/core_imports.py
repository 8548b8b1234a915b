"""What the fork server of core_process.py imports, so that a process forked from it has vLLM's engine; no more."""

from __future__ import annotations

from actors.importing import uncollected

with uncollected():
    import vllm.v1.engine.core  # noqa: F401

    import actors.worker  # noqa: F401
