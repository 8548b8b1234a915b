"""The engine slots of a run: starts engines, notices that one hangs, and replaces, shrinks, moves or retires it.

The only place that starts an engine again; Ray restarts none of our actors, and vLLM none of its processes. What an
engine had in hand is the scheduler's (driver.py returns it to the queue); this module never sees a question.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.backend import BackendInfo
from actors.engine import EngineActor, Exchange
from actors.logs import last_lines
from actors.memory import MOST_STEPS, NoMemory, smaller
from actors.placement import Placement, release, reserve
from rollout_ray.config import RunConfig
from rollout_ray.errors import EngineError
from rollout_ray.ledger import EventLog, RunDirectory
from rollout_ray.progress import EngineView
from rollout_ray.records import Arm, RolloutRequest
from rollout_ray.redaction import without_secrets

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # an engine answers at least this often
COALESCE_S = 0.1  # finished pieces gather this long before they are handed over
LOG_LINES = 6
# Variables of the driver's environment that an engine on another node needs too, but for secrets.
FORWARDED = ("NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_", "VLLM_", "HF_HOME", "HF_HUB_")


@dataclass
class Slot:
    """One engine slot. `call` is its start or exchange in flight, None while it is idle.

    `deaths` counts those since a piece was last delivered, `shrunk` the steps down in memory; `refused` is what its
    start raised, while it waits for another engine to show that starting is possible at all; `leaving` is set while its
    node is being drained.
    """

    name: str
    actor: Any
    call: Any
    room: Any
    started: bool = False
    deaths: int = 0
    shrunk: int = 0
    keep_share: bool = False
    refused: Exception | None = None
    node: str = ""
    leaving: bool = False
    steps: int = 0
    progress_at: float = field(default_factory=time.monotonic)


class Fleet:
    """All engine slots. A slot that dies is filled again up to `max_engine_deaths` times in a row without a result."""

    def __init__(
        self,
        cfg: RunConfig,
        arms: Sequence[Arm],
        placement: Placement,
        views: Mapping[str, EngineView],
        run: RunDirectory,
        events: EventLog,
    ) -> None:
        self._cfg, self._arms, self._placement = cfg, tuple(arms), placement
        self._views, self._run, self._events = views, run, events
        self.deaths = 0
        self.slots: dict[str, Slot] = {}
        for name in views:
            self.slots[name] = self._fill(Slot(name, None, None, reserve(placement)))

    def _fill(self, slot: Slot) -> Slot:
        """Starts an engine in the slot, on a fresh actor."""
        options: dict[str, Any] = {"num_cpus": self._placement.cpus, "num_gpus": self._placement.gpus}
        if slot.room is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(slot.room, placement_group_bundle_index=0)
        forwarded = without_secrets({k: v for k, v in os.environ.items() if k.startswith(FORWARDED)})
        cfg = self._cfg
        if slot.shrunk:
            cfg = self._smaller(slot)
        slot.actor = (
            ray.remote(EngineActor)
            .options(**options)
            .remote(slot.name, cfg, self._arms, self._placement.gpus, self._placement.threads, forwarded, self._log(slot))
        )
        slot.call, slot.started, slot.refused, slot.node, slot.leaving = slot.actor.start.remote(), False, None, "", False
        self._views[slot.name].state, self._views[slot.name].unfinished = "starting", 0
        return slot

    def _log(self, slot: Slot) -> str | None:
        return self._run.path(f"logs/{slot.name}.log") if self._run.is_local else None

    # What engines say

    def calls(self) -> dict[Any, Slot]:
        return {slot.call: slot for slot in self.slots.values() if slot.call is not None}

    def started(self, slot: Slot, info: BackendInfo) -> None:
        """The slot's engine is ready. Slots whose start was refused are tried again: it can be done."""
        slot.started, slot.node, slot.steps, slot.progress_at = True, info.node, 0, time.monotonic()
        self._views[slot.name].state = "idle"
        self._events.write("engine_started", engine=slot.name, shrunk=slot.shrunk, **vars(info))
        for other in list(self.slots.values()):
            if other.refused is not None:
                self._died_once(other, other.refused)

    def exchange(self, slot: Slot, work: Sequence[RolloutRequest], unfinished: int, recalled: int) -> None:
        """Hands `work` to an engine that holds `unfinished` draws with it, and asks for what it has finished and for
        `recalled` draws that it has not begun."""
        view = self._views[slot.name]
        if not view.unfinished:  # it was idle until now
            slot.progress_at = time.monotonic()
        view.unfinished, view.state = unfinished, "running" if unfinished else "idle"
        if unfinished:
            slot.call = slot.actor.exchange.remote(work, HEARTBEAT_S, COALESCE_S, recalled)

    def answered(self, slot: Slot, exchange: Exchange) -> None:
        """Notes whether the engine still decodes."""
        if exchange.steps > slot.steps or not exchange.unfinished:
            slot.steps, slot.progress_at = exchange.steps, time.monotonic()
        if exchange.pieces:
            slot.deaths = 0

    def hanging(self) -> list[tuple[Slot, Exception]]:
        """Engines with requests at hand that have not decoded a step for `engine_hang_seconds`."""
        limit, now = self._cfg.resources.engine_hang_seconds, time.monotonic()
        return [
            (slot, TimeoutError(f"no decoding step for {now - slot.progress_at:.0f} s"))
            for slot in self.slots.values()
            if slot.started and slot.call is not None and now - slot.progress_at > limit
        ]

    # Deaths

    def died(self, slot: Slot, error: Exception) -> None:
        """The slot's engine died, hangs, or refused to start: fills the slot again, or retires it.

        Raises EngineError with the engine's last words where no engine is left.
        """
        slot.call = None
        started, words = slot.started, self._last_words(slot, error)
        self._views[slot.name].state = "dead"
        self._events.write("engine_died", engine=slot.name, started=started, error=words)
        ray.kill(slot.actor)
        if isinstance(error, NoMemory) and slot.shrunk < MOST_STEPS:
            self._shrink(slot, error)
        elif not started and not _was_killed(error) and not any(s.started for s in self.slots.values()):
            slot.refused = error
            if all(s.refused is not None for s in self.slots.values()):
                raise EngineError(f"{slot.name} could not start: {words}")
        else:
            self._died_once(slot, error)

    def _died_once(self, slot: Slot, error: Exception) -> None:
        self.deaths += 1
        if slot.deaths < self._cfg.resources.max_engine_deaths:
            log.warning("%s died and is started again: %s", slot.name, reason_of(error))
            slot.deaths += 1
            self._fill(slot)
            return
        words = self._last_words(slot, error)
        log.warning("%s died once too often and is retired: %s", slot.name, words)
        self._events.write("engine_retired", engine=slot.name, error=words)
        self._views[slot.name].state = "retired"
        del self.slots[slot.name]
        release(slot.room)
        if not self.slots:
            raise EngineError(f"every engine died; the last one, {slot.name}: {words}")

    def _shrink(self, slot: Slot, error: NoMemory) -> None:
        slot.shrunk += 1
        slot.keep_share = error.keep_share
        less = self._smaller(slot).engine
        settings = {"max_num_seqs": less.max_num_seqs, "gpu_memory_utilization": less.gpu_memory_utilization}
        log.warning(
            "%s could not allocate its memory and is tried again with %s: %s",
            slot.name, ", ".join(f"{k} {v}" for k, v in settings.items()), reason_of(error),
        )  # fmt: skip
        self._events.write("engine_shrunk", engine=slot.name, error=str(error), **settings)
        self._fill(slot)

    def _smaller(self, slot: Slot) -> RunConfig:
        return smaller(self._cfg, slot.shrunk, gpus=self._placement.gpus, keep_share=slot.keep_share)

    def _last_words(self, slot: Slot, error: Exception) -> str:
        """The error and, where a process ended without a word of its own, the end of its log."""
        words, path = reason_of(error), self._log(slot)
        lines = last_lines(path, LOG_LINES) if path and _was_killed(error) else []
        return f"{words}; the end of {path}: {' | '.join(lines)}" if lines else words

    # Leaving

    def leave(self, nodes: frozenset[str]) -> list[str]:
        """Engines on `nodes`, which are being drained, get no more work; returns the names of those newly told."""
        told = [s for s in self.slots.values() if s.started and s.node in nodes and not s.leaving]
        for slot in told:
            slot.leaving = True
        return [slot.name for slot in told]

    def move_left(self) -> list[str]:
        """Starts the engines that have left, with nothing in hand any more, elsewhere; returns their names."""
        moved = [s for s in self.slots.values() if s.leaving and s.call is None]
        for slot in moved:
            ray.kill(slot.actor)
            release(slot.room)
            slot.room = reserve(self._placement)
            self._fill(slot)
        return [slot.name for slot in moved]

    def close(self) -> None:
        """Ends every engine and gives the reservations back: the cluster may outlive the run."""
        for slot in self.slots.values():
            ray.kill(slot.actor)
            release(slot.room)


def _was_killed(error: Exception) -> bool:
    """Whether a process ended under the engine, as against an exception that it raised."""
    return isinstance(error, (ray.exceptions.RayActorError, TimeoutError))


def reason_of(error: Exception) -> str:
    """An error on one line. Ray's reports of a death run over many; those that say why are kept."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayActorError):
        why = [line for line in lines if not line.startswith(("class_name", "actor_id", "pid", "namespace", "ip", "name"))]
        return " ".join(why).partition(" Some common causes")[0][:600]
    return " ".join(lines)[:600] or type(error).__name__
