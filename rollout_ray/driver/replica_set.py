"""The engine slots: starts engines, notices that one hangs, and replaces, shrinks, moves or retires it.

The only place that starts an engine again; Ray restarts none of our actors, and vLLM none of its processes. What an
engine had in hand is the scheduler's (driver.py returns it to the queue); this module never sees a question. A fleet
serves one run after the other: it is attached to each, and whatever is left of an earlier one is dropped then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.engine import Exchange
from rollout_ray.actors.engine.logs import last_lines
from rollout_ray.actors.engine.out_of_memory import MOST_STEPS, NoMemory, smaller
from rollout_ray.core.errors import EngineError
from rollout_ray.core.records import RolloutRequest
from rollout_ray.driver.named_pool import Found, NamedPool
from rollout_ray.driver.replica import Replica, end, reason_of, start, was_killed
from rollout_ray.driver.weights import load_weights
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Placement, release, reserve
from rollout_ray.ray_cluster.ray_internals import is_pending
from rollout_ray.sizing.hardware import EngineLimits
from rollout_ray.storage.event_log import EventLog
from rollout_ray.telemetry.run_view import EngineView

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # an engine answers at least this often
COALESCE_S = 0.1  # finished pieces gather this long before they are handed over
LOG_LINES = 6


class ReplicaSet:
    """All engine slots. A slot that dies is filled again up to `max_engine_deaths` times in a row without a result.

    `policy` is the weights that the engines hold, at first those of `run`; `logs` the folder for their output; a `tenancy`
    has engines of a named pool, those that were `found` among them.
    """

    def __init__(
        self,
        run: ResolvedRun,
        placement: Placement,
        logs: str | None,
        named_pool: NamedPool | None = None,
        found: Mapping[str, Found] | None = None,
    ) -> None:
        self._launched, self._cfg = run, run.config
        self.placement, self.policy, self._logs, self._named_pool = placement, run.policy, logs, named_pool
        self._num_scorers = 1
        self._run = run
        self._views: Mapping[str, EngineView] = {}
        self._events: EventLog | None = None
        self._news: list[tuple[str, dict[str, Any]]] = []
        self.deaths = 0
        self.replicas: dict[str, Replica] = {}
        if found and len(found) < placement.replicas:
            self._check_weights()
        for number in range(placement.replicas):
            name = f"engine-{number}"
            self.replicas[name] = self._adopt(name, found[name]) if found and name in found else self._new(name)

    def _new(self, name: str) -> Replica:
        # A named pool's engine holds its room itself: what Ray booked for a group of its own would outlive it.
        return self._fill(Replica(name, None if self._named_pool else reserve(self.placement)))

    def _adopt(self, name: str, found: Found) -> Replica:
        return Replica(name, actor=found.actor, log=found.card.log_file, started=True, node=found.info.node)

    # Runs

    def attach(self, run: ResolvedRun, num_scorers: int, views: Mapping[str, EngineView], events: EventLog) -> None:
        """Serves this run of so many lanes from now on. Slots that stand empty are filled; the others' engines take the
        run up, whatever they had in hand. Engines that died meanwhile are found out by that."""
        self._run, self._num_scorers, self._views, self._events = run, num_scorers, views, events
        self.deaths = 0
        for event, fields in self._news:
            events.write(event, **fields)
        self._news.clear()
        for name in views:
            replica = self.replicas.get(name)
            if replica is None:
                self.add(name)
                continue
            replica.deaths, replica.begun, replica.adopted, replica.leaving = 0, False, replica.started, False
            if replica.refused is not None or replica.actor is None:
                self._refill(replica)
            elif replica.started:
                self._begin(replica)
            elif not replica.call:
                replica.call = [replica.actor.start.remote()]

    def add(self, name: str) -> None:
        """Starts an engine in a slot of its own."""
        self._check_weights()
        self.replicas[name] = self._new(name)

    def let_go(self, replica: Replica, state: str) -> None:
        """Ends the slot and what is in it, and gives its room back."""
        end(replica)
        del self.replicas[replica.name]
        release(replica.placement_group)
        self._show(replica, state)

    def detach(self) -> None:
        """Serves no run any more; its engines drop what they have of it."""
        for replica in self.replicas.values():
            if replica.begun and replica.actor is not None:
                replica.actor.drop.remote()
            replica.begun = False
        self._views, self._events = {}, None

    def _fill(self, replica: Replica) -> Replica:
        """Starts an engine in the slot, on a fresh actor."""
        placement = replace(self.placement, limits=self._limits(replica))
        start(replica, replace(self._launched, policy=self.policy), placement, self._logs, self._named_pool)
        self._show(replica, "starting")
        return replica

    def _refill(self, replica: Replica) -> None:
        self._check_weights()
        self._fill(replica)

    def _check_weights(self) -> None:
        """An engine that is started later than others must get the same weights as they have."""
        if self.policy.changed_on_disk():
            raise EngineError(
                f"the weights in {self.policy.path} are others than those that the engines were started with, so that no "
                "engine can be started again; keep a checkpoint's folder as it is while it is in use"
            )

    def _begin(self, replica: Replica) -> None:
        replica.progress_at, replica.steps = time.monotonic(), 0
        replica.call = [replica.actor.begin.remote(self._run)]
        self._show(replica, "starting")

    def _show(self, replica: Replica, state: str, unfinished: int = 0) -> None:
        if replica.name in self._views:
            self._views[replica.name].enter(state, unfinished)

    def _note(self, event: str, **fields: Any) -> None:
        """To the run's events; what happens between two runs stands in the next one's."""
        if self._events:
            self._events.write(event, **fields)
        else:
            self._news.append((event, fields))

    # What engines say

    def calls(self) -> dict[Any, Replica]:
        """The answers that engines owe, and whose each is."""
        return {replica.call[0]: replica for replica in self.replicas.values() if replica.call}

    def started(self, replica: Replica, info: BackendInfo) -> None:
        """The slot's engine has loaded, and takes up the run. Slots whose start was refused are tried again: it can be
        done."""
        replica.started, replica.node = True, info.node
        seconds = time.monotonic() - replica.asked_at
        process = seconds - info.import_seconds - info.load_seconds  # what Ray took to place the actor and start it
        phases = {name: round(took, 2) for name, took in {"process": process, **info.phases}.items()}
        self._note(
            "engine_started",
            **{
                "engine": replica.name,
                "shrunk": replica.shrunk,
                **vars(info),
                "seconds": round(seconds, 2),
                "phases": phases,
            },
        )
        self._begin(replica)
        for other in list(self.replicas.values()):
            if other.refused is not None:
                self._died_once(other, other.refused)

    def begun(self, replica: Replica, info: BackendInfo) -> None:
        """The slot's engine has taken up the run."""
        replica.begun, replica.node, replica.progress_at = True, info.node, time.monotonic()
        self._show(replica, "idle")
        if replica.adopted:
            self._note(
                "engine_adopted", engine=replica.name, policy_version=self.policy.version, max_num_seqs=info.max_num_seqs
            )

    def exchange(
        self, replica: Replica, work: Sequence[RolloutRequest], unfinished: int, reclaim: int, *, soon: bool = False
    ) -> None:
        """Hands `work` to an engine that holds `unfinished` draws with it, and asks for what it has finished and for
        `recalled` draws that it has not begun; `soon` even where that is nothing."""
        if not self._views[replica.name].unfinished:  # it was idle until now
            replica.progress_at = time.monotonic()
        self._show(replica, "running" if unfinished else "idle", unfinished)
        if unfinished:
            wait_s = COALESCE_S if soon else HEARTBEAT_S
            exchange = replica.actor.exchange.options(num_returns=1 + self._num_scorers)
            replica.call = exchange.remote(self._num_scorers, work, wait_s, COALESCE_S, reclaim)

    def answered(self, replica: Replica, exchange: Exchange) -> None:
        """Notes whether the engine still decodes."""
        if exchange.steps > replica.steps or not exchange.unfinished:
            replica.steps, replica.progress_at = exchange.steps, time.monotonic()
        if exchange.chunks:
            replica.deaths = 0

    def hanging(self) -> list[tuple[Replica, Exception]]:
        """Engines with requests at hand that have not decoded a step for `engine_hang_seconds`."""
        limit, now = self._cfg.resources.engine_hang_seconds, time.monotonic()
        return [
            (replica, TimeoutError(f"no decoding step for {now - replica.progress_at:.0f} s"))
            for replica in self.replicas.values()
            if replica.started and replica.call and now - replica.progress_at > limit
        ]

    # Deaths

    def died(self, replica: Replica, error: Exception) -> None:
        """The slot's engine died, hangs, or refused to start: fills the slot again, or retires it.

        Raises EngineError with the engine's last words where no engine is left.
        """
        started, words = replica.started, self._last_words(replica, error)
        self._show(replica, "dead")
        self._note("engine_died", engine=replica.name, started=started, error=words)
        end(replica)
        if isinstance(error, NoMemory) and replica.shrunk < MOST_STEPS:
            self._shrink(replica, error)
        elif (
            not started and not was_killed(error) and not any(s.started for s in self.replicas.values() if s is not replica)
        ):
            replica.refused = error
            if all(s.refused is not None for s in self.replicas.values() if s.placed or not self.placement.scales):
                raise EngineError(f"{replica.name} could not start: {words}")
        else:
            self._died_once(replica, error)

    def _died_once(self, replica: Replica, error: Exception) -> None:
        self.deaths += 1
        if replica.deaths < self._cfg.resources.max_engine_deaths:
            log.warning("%s died and is started again: %s", replica.name, reason_of(error))
            replica.deaths += 1
            self._refill(replica)
            return
        words = self._last_words(replica, error)
        log.warning("%s died once too often and is retired: %s", replica.name, words)
        self._note("engine_retired", engine=replica.name, error=words)
        self.let_go(replica, "retired")
        if not self.replicas:
            raise EngineError(f"every engine died; the last one, {replica.name}: {words}")
        refused = [(other, other.refused) for other in self.replicas.values() if other.refused is not None]
        if len(refused) == len(self.replicas):
            words = self._last_words(*refused[0])
            raise EngineError(f"{refused[0][0].name} could not start, and every other engine died: {words}")

    def _shrink(self, replica: Replica, error: NoMemory) -> None:
        replica.shrunk += 1
        replica.keep_share = error.keep_share
        less = self._limits(replica)
        settings = {"max_num_seqs": less.max_num_seqs, "gpu_memory_utilization": less.gpu_memory_utilization}
        log.warning(
            "%s could not allocate its memory and is tried again with %s: %s",
            replica.name, ", ".join(f"{k} {v}" for k, v in settings.items()), reason_of(error),
        )  # fmt: skip
        self._note("engine_shrunk", engine=replica.name, error=str(error), **settings)
        self._refill(replica)

    def _limits(self, replica: Replica) -> EngineLimits:
        limits = self.placement.limits
        return smaller(limits, replica.shrunk, keep_share=replica.keep_share) if replica.shrunk else limits

    def _last_words(self, replica: Replica, error: Exception) -> str:
        """The error and, where a process ended without a word of its own, the end of its log."""
        words, path = reason_of(error), replica.log
        lines = last_lines(path, LOG_LINES) if path and was_killed(error) else []
        return f"{words}; the end of {path}: {' | '.join(lines)}" if lines else words

    # Leaving

    def leave(self, nodes: frozenset[str]) -> list[str]:
        """Engines on `nodes`, which are being drained, get no more work, and those that still start there do not go on;
        returns the names of those newly told."""
        told = [s for s in self.replicas.values() if s.node in nodes and not s.leaving]
        for replica in told:
            replica.leaving = True
            if not replica.begun:
                replica.call = ()
        return [replica.name for replica in told]

    def move_left(self) -> list[str]:
        """Starts the engines that have left, with nothing in hand or unread any more, elsewhere; returns the names of
        those that had begun."""
        moved = [s for s in self.replicas.values() if s.leaving and s.empty]
        names = [replica.name for replica in moved if replica.begun]
        for replica in moved:
            end(replica)
            release(replica.placement_group)
            replica.placement_group = None if self._named_pool else reserve(self.placement)
            self._refill(replica)
        return names

    def end_pending(self) -> None:
        """Ends the engines that have no process yet: of a named pool no later job takes those over, and they would ask for
        a node for nobody."""
        for replica in self.replicas.values():
            if not replica.started and replica.actor is not None and is_pending(replica.actor):
                end(replica)

    def close(self) -> None:
        """Ends every engine and gives the reservations back: the cluster may outlive the run."""
        for replica in self.replicas.values():
            end(replica)
            release(replica.placement_group)
        self.replicas.clear()

    # Weights

    def update_weights(self, policy: Policy) -> float:
        """Loads other weights of the same shape into every engine, between two runs; returns the seconds that it took.

        An engine that cannot load them is ended, and started anew with them for the next run. Raises EngineError where
        none can: then the old weights stay in use.
        """
        began = time.monotonic()
        try:
            loaded, failed = load_weights(list(self.replicas.values()), policy, self._cfg.resources.engine_hang_seconds)
        except BaseException:
            # Which engines hold which weights is not known now.
            for replica in self.replicas.values():
                end(replica)
            raise
        for replica, error in failed:
            self._note("engine_died", engine=replica.name, started=replica.started, error=reason_of(error))
            end(replica)
        refused = [reason_of(error) for _, error in failed if not isinstance(error, ray.exceptions.RayActorError)]
        if refused and not loaded:
            raise EngineError(
                f"no engine could load the weights in {policy.path}: {refused[-1]}; the old weights stay in use"
            )
        self.policy = policy
        seconds = time.monotonic() - began
        self._note(
            "weights_updated", path=policy.path, policy_version=policy.version, engines=loaded, seconds=round(seconds, 3)
        )
        return seconds
