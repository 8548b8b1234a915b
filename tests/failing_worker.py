"""Fail as a worker does whose GPU does: in the middle of a run, with an error of its own."""

from __future__ import annotations

from typing import Any

from rollout_ray.actors.vllm_backend.worker import Worker


class FailingWorker(Worker):
    steps = 0

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        FailingWorker.steps += 1
        if FailingWorker.steps == 20:
            raise RuntimeError("an illegal memory access was encountered")
        return super().execute_model(*args, **kwargs)
