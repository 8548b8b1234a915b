"""Carry out what becomes of a replica whose engine died: less memory, another engine, a pause, or retirement.

health.py judges, lifecycle.py starts and ends engines. The limits are those of the present run, also in a pool.
"""

from __future__ import annotations

import logging

from rollout_ray.config.schema import ResourcesConfig
from rollout_ray.core.errors import EngineError
from rollout_ray.driver.failures import last_words, reason_of
from rollout_ray.driver.health import ProgressWatch, Verdict, judge
from rollout_ray.driver.lifecycle import ReplicaLifecycle
from rollout_ray.driver.replica import Replica, ReplicaState

log = logging.getLogger(__name__)


class Recovery:
    """Replaces and retires the engines of one replica set. `deaths` counts those of the present run."""

    def __init__(self, life: ReplicaLifecycle, resources: ResourcesConfig) -> None:
        self.deaths = 0
        self._life, self._resources = life, resources
        self._watch = ProgressWatch(life.clock)

    def begin_run(self, resources: ResourcesConfig) -> None:
        """Apply the limits of a run from now on."""
        self.deaths, self._resources = 0, resources
        self._watch.restart()

    def hanging(self) -> list[tuple[Replica, Exception]]:
        """Return the replicas whose engine hangs, each with the error that says so. Call it about once a heartbeat."""
        return self._watch.hanging(self._life.replicas.values(), self._resources, self._life.engines.calls)

    def died(self, replica: Replica, error: Exception) -> None:
        """End an engine that died, hangs or could not start; replace it or retire its replica.

        Raises:
            EngineError: No engine is left; the text has the engine's last words.
        """
        words = last_words(error, replica.log_file)
        self._life.note("engine_died", engine=replica.name, started=replica.has_loaded, error=words)
        others_loaded = any(other.has_loaded for other in self._life.replicas.values() if other is not replica)
        verdict = judge(replica, error, others_loaded, self._resources.max_engine_deaths)
        self._life.end(replica)
        if verdict is Verdict.LESS_MEMORY:
            self._restart_with_less_memory(replica, error)
        elif verdict is Verdict.REFUSE:
            replica.error = error
            self._life.enter(replica, ReplicaState.REFUSED)
            self._check_any_can_start(replica, words)
        elif verdict is Verdict.RESTART:
            self._restart(replica, error)
        else:
            self._retire(replica, error)

    def repeat_refused(self) -> None:
        """Start the refused engines again, since another one has shown that a start is possible."""
        for replica in list(self._life.replicas.values()):
            if replica.state is not ReplicaState.REFUSED:
                continue
            assert replica.error is not None
            if judge(replica, replica.error, True, self._resources.max_engine_deaths) is Verdict.RETIRE:
                self._retire(replica, replica.error)
            else:
                self._restart(replica, replica.error)

    def _check_any_can_start(self, replica: Replica, words: str) -> None:
        """Raise EngineError if every engine was refused, but for those that wait for a node that may come."""
        scales = self._life.engines.placement.scales
        counted = [o for o in self._life.replicas.values() if o.state is not ReplicaState.WAITING or not scales]
        if all(other.state is ReplicaState.REFUSED for other in counted):
            raise EngineError(f"{replica.name} could not start: {words}")

    def _restart(self, replica: Replica, error: Exception) -> None:
        self.deaths += 1
        replica.deaths += 1
        log.warning("%s died and is started again: %s", replica.name, reason_of(error))
        self._life.restart(replica)

    def _restart_with_less_memory(self, replica: Replica, error: Exception) -> None:
        replica.memory = replica.memory.after(error)
        less = replica.memory.reduce(self._life.engines.placement.limits)
        settings = {"max_num_seqs": less.max_num_seqs, "gpu_memory_utilization": less.gpu_memory_utilization}
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        log.warning(
            "%s could not allocate its memory and is started again with %s: %s", replica.name, shown, reason_of(error)
        )
        self._life.note("engine_shrunk", engine=replica.name, error=str(error), **settings)
        self._life.restart(replica)

    def _retire(self, replica: Replica, error: Exception) -> None:
        self.deaths += 1
        words = last_words(error, replica.log_file)
        log.warning("%s died once too often and is retired: %s", replica.name, words)
        self._life.note("engine_retired", engine=replica.name, error=words)
        self._life.let_go(replica, "retired")
        others = list(self._life.replicas.values())
        if not others:
            raise EngineError(f"every engine died; the last one, {replica.name}: {words}")
        if all(other.state is ReplicaState.REFUSED for other in others):
            assert others[0].error is not None
            words = last_words(others[0].error, others[0].log_file)
            raise EngineError(f"{others[0].name} could not start, and every other engine died: {words}")
