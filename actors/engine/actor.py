"""The engine actor: what Ray and the driver see of an engine (engine.py).

Owns what an engine has to do with Ray: finished generations are returned for the scoring actors, the driver reads counts
only; one of a named pool ends once no job uses it. The engine itself is in a process that has imported vLLM already
(engine_process.py), or here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.engine import Engine, Exchange
from rollout_ray.actors.engine.keepalive import end_process
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.engine.logs import redirect_output
from rollout_ray.actors.engine.process import EngineProcess, Order, fork_engine, fork_engine_apart
from rollout_ray.actors.vllm_backend.arguments import environment as variables
from rollout_ray.actors.vllm_backend.arguments import has_own_process
from rollout_ray.core.import_path import library_first
from rollout_ray.core.records import Generated, RolloutRequest
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun


@dataclass(frozen=True)
class Card:
    """What a job that finds an engine of a named pool must know of it. `info` is None where it is not, or could not be,
    started; `note` is what the job that started it left for later ones."""

    info: BackendInfo | None
    policy: Policy
    log_file: str | None
    note: Any


class EngineActor:
    """One engine. The driver calls `start` once, `begin` for each run, and then `exchange` again and again, one call at a
    time; between two runs also `update_weights`."""

    def __init__(self, spec: LaunchSpec) -> None:
        os.environ.update(spec.environment)
        output = redirect_output(spec.log_file) if spec.log_file else None
        self._spec, self._policy = spec, spec.run.policy
        self._make = partial(Engine, spec, output)
        self._needs: dict[str, str] | None = None
        if spec.run.config.engine.backend == "vllm" and sys.platform == "linux":
            self._needs = variables(spec.run, gpus=spec.gpus, threads=spec.threads)
        self._cores_apart = has_own_process(spec.gpus)
        self._info: BackendInfo | None = None
        self._engine: Callable[..., Any] | None = None
        if spec.keepalive:
            spec.keepalive.watch(end_process)

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call it."""
        return self._spec.name

    def start(self) -> BackendInfo:
        """Loads the engine, once. Raises NoMemory where memory was short, else RuntimeError with the backend's words."""
        import ray

        if self._info is None:
            began = time.perf_counter()
            self._engine = self._made()
            waited = time.perf_counter() - began
            info: BackendInfo = self._call("start")
            self._info = replace(
                info,
                node=ray.get_runtime_context().get_node_id(),
                import_seconds=info.import_seconds + waited,
                phases={name: took + waited if name == "import" else took for name, took in info.phases.items()},
            )
        return self._info

    def _made(self) -> Callable[..., Any]:
        """The engine, as a function of the name of a method and its arguments."""
        if process := self._forked():
            return process.call
        engine = self._make()
        return lambda method, *arguments: getattr(engine, method)(*arguments)

    def _forked(self) -> EngineProcess | None:
        """The engine in a process of the driver's server; where that is not to be had, and the engine core has a process of
        its own, which is forked from such a process only, of another server. None where the engine is to be here."""
        if self._needs is None:
            return None
        order = Order(self._needs, {**os.environ, **self._needs}, os.getcwd(), library_first(sys.path), self._make)
        process = fork_engine(order, self._spec.server) if self._spec.server else None
        return process or (fork_engine_apart(order) if self._cores_apart else None)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._engine is None:
            raise RuntimeError(f"engine {self._spec.name} was given work before it was started")
        return self._engine(method, *arguments)

    def card(self) -> Card:
        """What another job must know before it takes this engine over."""
        return Card(self._info, self._policy, self._spec.log_file, self._spec.note)

    def begin(self, run: ResolvedRun) -> BackendInfo:
        """Takes up a run; whatever is left of an earlier one is dropped. Raises ConfigError where the engine cannot serve
        an arm, and what broke it, where it is broken."""
        self._call("begin", run)
        assert self._info is not None
        return self._info

    def drop(self) -> None:
        """Drops all that the present run still has here."""
        self._call("drop")

    def update_weights(self, policy: Policy) -> float:
        """Loads other weights of the same shape, and drops the present run; returns the seconds that it took. The engine is
        of no use where this raises."""
        seconds: float = self._call("update_weights", policy)
        self._policy = policy
        return seconds

    def exchange(
        self, num_scorers: int, requests: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int = 0
    ) -> tuple[Exchange | list[Generated] | None, ...]:
        """Engine.exchange, and then for each of `lanes` what it hands over, if that is anything: 1 + `lanes` returns.

        They belong to the caller: what this actor would put into the store itself would be lost with it.
        """
        told: Exchange
        done: dict[int, list[Generated]]
        told, done = self._call("exchange", requests, wait_s, coalesce_s, reclaim)
        return told, *map(done.get, range(num_scorers))
