"""The engine actor: Ray's side of an engine.

It returns finished generations for the scoring actors; the driver reads only counts.
An actor of a named pool ends once no job uses it. The engine (engine.py) runs in a forked process, or in this one.
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
from rollout_ray.actors.engine.engine import Engine
from rollout_ray.actors.engine.exchange import Exchange
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
    """What a job must know of an engine of a named pool that it finds.

    Attributes:
        info: None if the engine has not started.
        note: What the job that started the engine left for later jobs.
    """

    info: BackendInfo | None
    policy: Policy
    log_file: str | None
    note: Any


class EngineActor:
    """One engine.

    The driver calls `start` once, `begin` for each run, and then `exchange` again and again, one call at a time. Between
    two runs it may call `update_weights`.
    """

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
        """Return the name in Ray's dashboard and logs."""
        return self._spec.name

    def start(self) -> BackendInfo:
        """Load the engine, once. Raises NoMemory if memory was short, else RuntimeError with the backend's words."""
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
        """Return the engine as a function of a method's name and its arguments."""
        if process := self._forked():
            return process.call
        engine = self._make()
        return lambda method, *arguments: getattr(engine, method)(*arguments)

    def _forked(self) -> EngineProcess | None:
        """Return the engine in a process of the driver's server, or else of a server of its own.

        Only an engine core with a process of its own needs a server of its own. Returns None if the engine belongs in
        this process.
        """
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
        """Return what another job must know before it takes this engine over."""
        return Card(self._info, self._policy, self._spec.log_file, self._spec.note)

    def begin(self, run: ResolvedRun) -> BackendInfo:
        """Take up a run, and drop what is left of an earlier one.

        Raises:
            ConfigError: The engine cannot serve an arm. A broken engine raises what broke it.
        """
        report = self._call("begin", run)
        assert self._info is not None
        return replace(self._info, prompts=report)

    def drop(self, num_scorers: int = 0) -> tuple[Any, ...]:
        """Drop everything of the present run. Return what finished of it, as `exchange` does.

        The first return has the scorer indexes of which something finished.
        """
        finished: dict[int, list[Generated]] = self._call("drop")
        return frozenset(finished), *map(finished.get, range(num_scorers))

    def update_weights(self, policy: Policy) -> float:
        """Load other weights of the same shape, drop the present run, and return the seconds that it took.

        An error leaves the engine broken.
        """
        seconds: float = self._call("update_weights", policy)
        self._policy = policy
        return seconds

    def exchange(
        self, num_scorers: int, requests: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int = 0
    ) -> tuple[Exchange | list[Generated] | None, ...]:
        """Call Engine.exchange; return its report and then, for each scorer, the generations or None.

        These 1 + `num_scorers` returns belong to the caller. What this actor puts into the store itself is lost with it.
        """
        told: Exchange
        done: dict[int, list[Generated]]
        told, done = self._call("exchange", requests, wait_s, coalesce_s, reclaim)
        return told, *map(done.get, range(num_scorers))
