"""One replica of the engine: its state, and the transitions that are legal.

Invariant: a replica is in one state, and only `Replica.enter` changes it. It holds a handle exactly in the states of
`_WITH_ENGINE`. What causes a transition stands in lifecycle.py and replica_set.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rollout_ray.driver.handle import EngineHandle
from rollout_ray.driver.memory_retry import MemoryRetry


class ReplicaState(Enum):
    """What a replica does. `shown` is what the display makes of it."""

    WAITING = "waiting"  # Ray has found no node for its engine yet
    STARTING = "starting"  # its engine loads
    LOADED = "loaded"  # its engine is up and serves no run
    BEGINNING = "beginning"  # its engine takes up the run
    IDLE = "idle"  # its engine serves the run and holds no sample
    RUNNING = "running"  # its engine holds samples
    DRAINING = "leaving"  # its node goes: its engine finishes what it has begun and gets no more
    REFUSED = "refused"  # its engine could not start, nor could any other so far
    DEAD = "dead"  # it has no engine and gets one next
    RETIRED = "retired"  # it gets no engine any more

    @property
    def shown(self) -> str | None:
        """Return the state of EngineView that this one appears as; None leaves the view as it is."""
        return _SHOWN.get(self, self.value)


_SHOWN = {ReplicaState.LOADED: None, ReplicaState.BEGINNING: "starting", ReplicaState.REFUSED: "dead"}

_S = ReplicaState
_NEXT: dict[ReplicaState, frozenset[ReplicaState]] = {
    _S.WAITING: frozenset({_S.WAITING, _S.STARTING, _S.DEAD}),
    _S.STARTING: frozenset({_S.STARTING, _S.WAITING, _S.LOADED, _S.DEAD}),
    _S.LOADED: frozenset({_S.LOADED, _S.BEGINNING, _S.DEAD}),
    _S.BEGINNING: frozenset({_S.LOADED, _S.IDLE, _S.DEAD}),
    _S.IDLE: frozenset({_S.IDLE, _S.RUNNING, _S.DRAINING, _S.LOADED, _S.DEAD}),
    _S.RUNNING: frozenset({_S.RUNNING, _S.IDLE, _S.DRAINING, _S.LOADED, _S.DEAD}),
    _S.DRAINING: frozenset({_S.DRAINING, _S.LOADED, _S.DEAD}),
    _S.DEAD: frozenset({_S.DEAD, _S.STARTING, _S.REFUSED, _S.RETIRED}),
    _S.REFUSED: frozenset({_S.DEAD, _S.STARTING, _S.RETIRED}),
    _S.RETIRED: frozenset(),
}
_WITH_ENGINE = frozenset(_S) - {_S.DEAD, _S.REFUSED, _S.RETIRED}
_PENDING = frozenset({_S.WAITING, _S.STARTING})
_SERVING = frozenset({_S.IDLE, _S.RUNNING, _S.DRAINING})


class IllegalTransition(RuntimeError):
    """A replica was to enter a state that its present one does not lead to: a defect of the driver."""


@dataclass(eq=False)
class Replica:
    """One replica, with or without an engine.

    Attributes:
        reservation: The resources that its engines use one after the other, as the factory gave them.
        call: The engine's call in flight: first its answer, then one payload for each scorer. Empty: none.
        log_file: Path of its last engine's output.
        node: Ray's id of its engine's node; empty while it is not known.
        error: What the start raised, in the state REFUSED.
        adopted: Its engine was up before the present run.
        deaths: Deaths in a row without a result.
        payloads: What its engines have handed over and no scorer has read yet.
        unfinished: Samples that its engine holds.
        steps: Decoding steps of its engine at its last answer.
        asked_at: When its engine was asked for (s, on the driver's clock).
        progress_at: When its engine last entered a phase or decoded (s, on the driver's clock).
    """

    name: str
    reservation: Any = None
    handle: EngineHandle | None = None
    call: Sequence[Any] = ()
    log_file: str | None = None
    node: str = ""
    error: Exception | None = None
    adopted: bool = False
    deaths: int = 0
    memory: MemoryRetry = field(default_factory=MemoryRetry)
    payloads: set[Any] = field(default_factory=set)
    unfinished: int = 0
    steps: int = 0
    asked_at: float = 0.0
    progress_at: float = 0.0
    _state: ReplicaState = ReplicaState.DEAD

    @property
    def state(self) -> ReplicaState:
        """Return the present state."""
        return self._state

    def enter(self, state: ReplicaState) -> None:
        """Enter a state.

        Raises:
            IllegalTransition: The present state does not lead there, or the handle contradicts it.
        """
        if state not in _NEXT[self._state]:
            raise IllegalTransition(f"{self.name} cannot go from {self._state.name} to {state.name}")
        if (self.handle is not None) != (state in _WITH_ENGINE):
            raise IllegalTransition(f"{self.name} cannot be {state.name} with the handle {self.handle}")
        self._state = state

    @property
    def engine(self) -> EngineHandle:
        """Return the handle of its engine."""
        assert self.handle is not None, f"{self.name} is {self._state.name} and has no engine"
        return self.handle

    @property
    def has_engine(self) -> bool:
        """Whether there is an engine, or one is on its way."""
        return self._state in _WITH_ENGINE

    @property
    def is_pending(self) -> bool:
        """Whether its engine has not loaded yet."""
        return self._state in _PENDING

    @property
    def has_loaded(self) -> bool:
        """Whether its engine is up."""
        return self.has_engine and not self.is_pending

    @property
    def serves(self) -> bool:
        """Whether its engine has taken up the present run."""
        return self._state in _SERVING

    @property
    def is_empty(self) -> bool:
        """Whether its engine holds nothing, and nothing that it handed over is unread."""
        return not self.call and not self.payloads

    def take_call(self) -> tuple[Any, list[Any]]:
        """Return the answer and the payloads of the call in flight, which the caller handles from now on."""
        answer, *payloads = self.call
        self.call = ()
        return answer, payloads
