"""Fakes behind the driver's interface (driver/handle.py): a clock, engines and scorers that do what a test says.

A call is an object of its own. It is in flight until the test answers it, and the test may have it raise.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray.exceptions import RayTaskError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.exchange import Exchange
from rollout_ray.core.records import ChunkKey, RolloutRequest
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.placement import Placement
from rollout_ray.sizing.hardware import EngineLimits
from rollout_ray.telemetry.engine_stats import EngineStats


class FakeClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class FakeCall:
    """One call: the method's name and arguments, and what it returns or raises once `answered`."""

    method: str
    arguments: tuple[Any, ...] = ()
    answered: bool = False
    value: Any = None

    def answer(self, value: Any) -> None:
        self.answered, self.value = True, value

    def fail(self, error: Exception) -> None:
        """An error of Ray's is raised as it is, any other as an actor's method raises it."""
        self.answer(error if isinstance(error, OSError | TimeoutError) else RayTaskError(self.method, str(error), error))

    def die(self, error: Exception) -> None:
        self.answer(error)


class FakeCalls:
    """Ends a wait at once. `advance` of the clock stands for the time that a wait takes."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def wait(self, calls: Sequence[Any], timeout_s: float, count: int = 1) -> list[Any]:
        ended = [call for call in calls if call.answered]
        if len(ended) < count:
            self._clock.advance(timeout_s)
        return ended

    def result(self, call: Any) -> Any:
        if isinstance(call.value, Exception):
            raise call.value
        return call.value

    def put(self, value: Any) -> Any:
        return ("payload", id(value))


class FakeEngine:
    """An engine whose calls wait for the test. `found_node` is its node, or None while it waits for one."""

    def __init__(self, name: str, limits: EngineLimits | None = None, policy: Policy | None = None) -> None:
        self.name = name
        self.limits = limits
        self.policy = policy
        self.log_file: str | None = None
        self.found_node: str | None = ""
        self.pending = False
        self.ended = False
        self.dropped = 0
        self.answer_drop: frozenset[int] | None = None  # the scorers that its finished samples are for
        self.calls: list[FakeCall] = []

    def _call(self, method: str, *arguments: Any) -> FakeCall:
        assert not self.ended, f"{method} on an engine that has ended"
        self.calls.append(FakeCall(method, arguments))
        return self.calls[-1]

    def node(self) -> str | None:
        assert not self.ended
        return self.found_node

    def is_pending(self) -> bool:
        assert not self.ended
        return self.pending

    def start(self) -> Any:
        return self._call("start")

    def begin(self, run: ResolvedRun) -> Any:
        return self._call("begin", run)

    def exchange(
        self, work: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int, num_scorers: int
    ) -> list[Any]:
        return [self._call("exchange", list(work), reclaim), *(("payload", self.name, i) for i in range(num_scorers))]

    def update_weights(self, policy: Policy) -> Any:
        return self._call("update_weights", policy)

    def drop(self, num_scorers: int = 0) -> list[Any]:
        self.dropped += 1
        call = self._call("drop")
        if self.answer_drop is not None:
            call.answer(self.answer_drop)
        return [call, *(("dropped", self.name, i) for i in range(num_scorers))]

    def end(self) -> None:
        self.ended = True


class FakeEngines:
    """A factory that keeps what it launched: `launched[name]` are the engines of a replica, oldest first."""

    def __init__(self, clock: FakeClock, replicas: int, *, scales: bool = False, gpus: int = 0) -> None:
        limits = EngineLimits(max_num_seqs=8, max_num_batched_tokens=None, gpu_memory_utilization=0.8)
        self.calls: Any = FakeCalls(clock)
        self.placement = Placement(replicas, gpus, 1, "fake engines", limits, scales=scales)
        self.launched: dict[str, list[FakeEngine]] = {}
        self.reserved: set[int] = set()
        self.waiting: set[str] = set()
        self._numbers = count()

    def reserve(self) -> Any:
        number = next(self._numbers)
        self.reserved.add(number)
        return number

    def release(self, reservation: Any) -> None:
        self.reserved.discard(reservation)

    def launch(self, name: str, run: ResolvedRun, limits: EngineLimits, reservation: Any) -> FakeEngine:
        assert reservation in self.reserved
        engine = FakeEngine(name, limits, run.policy)
        engine.found_node = None if name in self.waiting else ""
        self.launched.setdefault(name, []).append(engine)
        return engine

    def last(self, name: str) -> FakeEngine:
        return self.launched[name][-1]


class FakeScorer:
    """A scorer whose calls wait for the test."""

    def __init__(self) -> None:
        self.calls: list[FakeCall] = []
        self.cancelled: list[Any] = []
        self.ended = False

    def _call(self, method: str, *arguments: Any) -> FakeCall:
        assert not self.ended
        self.calls.append(FakeCall(method, arguments))
        return self.calls[-1]

    def begin(self) -> Any:
        return self._call("begin")

    def score(self, payload: Any, ordinals: Set[int]) -> Any:
        return self._call("score", payload, ordinals)

    def flush(self) -> Any:
        return self._call("flush")

    def save(self) -> Any:
        return self._call("save")

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)

    def end(self) -> None:
        self.ended = True


class FakeScorers:
    """A factory that keeps what it launched: `launched[index]` are the scorers of an index, oldest first."""

    def __init__(self, clock: FakeClock, *, keeps: bool = False) -> None:
        self.calls: Any = FakeCalls(clock)
        self.launched: dict[int, list[FakeScorer]] = {}
        self.kept: dict[int, Any] = {}
        self._keeps = keeps

    def launch(self, scorer_index: int) -> FakeScorer:
        scorer = FakeScorer()
        self.launched.setdefault(scorer_index, []).append(scorer)
        return scorer

    def keep(self, scorer_index: int, scorer: Any) -> bool:
        if self._keeps:
            self.kept[scorer_index] = scorer
        return self._keeps


@dataclass
class FakeEvents:
    """An event log in memory."""

    written: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def write(self, event: str, **fields: Any) -> None:
        self.written.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.written if name == event]


def backend_info(node: str = "node-a") -> BackendInfo:
    return BackendInfo(max_num_seqs=8, import_seconds=0.0, load_seconds=0.0, node=node)


def exchange_of(chunks: Sequence[ChunkKey] = (), unfinished: int = 0, steps: int = 1) -> Exchange:
    return Exchange(tuple(chunks), (), unfinished, 0, steps, EngineStats())
