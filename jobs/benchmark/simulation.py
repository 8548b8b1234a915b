"""Simulate a run on many engines with the real scheduler and long-tailed lengths.

The driver is one server that takes a fixed time for each answer of an engine.
simulated_engine.py models the engines; driver/scheduler.py makes every decision.
"""

from __future__ import annotations

import heapq
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rollout_ray.core.records import Question
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.replica_set import COALESCE_S
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.jobs.benchmark.simulated_engine import ALONE, SEQUENCE_S, STEP_S, SimulatedEngine, Workload


class _Run:
    """The driver: one server that takes the engines' answers in order."""

    def __init__(self, work: Workload, driver_s: float, seed: int) -> None:
        self.work, self._driver_s = work, driver_s
        self.lengths = work.lengths(seed)
        self.ends: array[float] = array("d")
        self.speeds = [*work.speeds, *[1.0] * (work.engines - len(work.speeds))]
        self.starts = [*work.starts, *[0.0] * (work.engines - len(work.starts))]
        self.engines = [
            SimulatedEngine(f"e{i}", work, speed, self.lengths, self.ends) for i, speed in enumerate(self.speeds)
        ]
        questions = (Question(str(i), "", None) for i in range(work.questions))
        self.scheduler = Scheduler(questions, work.questions, work.samples, expected_engines=work.engines)
        self._due = [(start, i) for i, start in enumerate(self.starts)]
        self._idle: set[int] = set()
        self.handouts = self.returned_samples = self.answers = self.delivered = 0
        self.scheduler_s = 0.0

    def play(self) -> None:
        heapq.heapify(self._due)
        free_at = 0.0
        while self._due:
            at, number = heapq.heappop(self._due)
            free_at = max(at, free_at) + self._driver_s
            self._answer(number, free_at)
            if self.scheduler.pending:
                for other in list(self._idle):
                    self._exchange(other, free_at)

    def _answer(self, number: int, now: float) -> None:
        engine, scheduler = self.engines[number], self.scheduler
        unfinished = engine.unfinished
        chunks, engine.done = engine.done, []
        returned, engine.returned = engine.returned, []
        engine.finished_since = 0
        self.answers += 1
        began = time.process_time()
        if not engine.started:
            engine.started, engine.now = True, now
            scheduler.add_engine(engine.name, self.work.places)
        self.returned_samples += scheduler.return_samples(engine.name, returned)
        self.delivered += sum(map(len, scheduler.complete(engine.name, chunks)))
        self.scheduler_s += time.process_time() - began
        self._exchange(number, now, unfinished)

    def _exchange(self, number: int, now: float, unfinished: int = 0) -> None:
        engine = self.engines[number]
        began = time.process_time()
        handed = self.scheduler.assign(engine.name, unfinished, now)
        reclaim = self.scheduler.to_reclaim(engine.name)
        engine.wait_s = COALESCE_S if self.scheduler.asks_soon(engine.name) else HEARTBEAT_S
        self.scheduler_s += time.process_time() - began
        self.handouts += len(handed)
        engine.run(now)
        for chunk in handed:
            engine.take(chunk.ordinal, chunk.first, chunk.stop)
        if not handed and not unfinished:
            self._idle.add(number)
            return
        self._idle.discard(number)
        engine.return_samples(reclaim)
        engine.run(math.inf)
        heapq.heappush(self._due, (engine.now, number))


@dataclass(frozen=True)
class Outcome:
    """Figures of a simulated run. Times are seconds.

    bound: Least time of any order: all tokens at the full rate, or the longest sample alone.
    begun: Moment at which the last sample began.
    unused: Share of the usable capacity that was free until then.
    tail: Time from the first engine's end to the last one's.
    tail_idle: Mean share of the tail that an engine idles.
    idle: Mean share of the time since its start that an engine idles.
    scheduler_us: The scheduler's CPU time a sample, in microseconds.
    """

    seconds: float
    bound: float
    begun: float
    unused: float
    tail: float
    tail_idle: float
    idle: float
    handouts: int
    returned_samples: int
    answers: int
    scheduler_us: float


def simulate(work: Workload, *, driver_s: float = 0.0005, seed: int = 0) -> Outcome:
    """Simulate the workload to its end.

    Raises:
        RuntimeError: A sample was lost.
    """
    run = _Run(work, driver_s, seed)
    run.play()
    samples, engines = len(run.lengths), run.engines
    if not samples == run.delivered == len(run.ends) or not run.scheduler.finished:
        raise RuntimeError(f"Of {samples} samples, {len(run.ends)} were generated and {run.delivered} delivered")
    ends = np.frombuffer(run.ends)
    seconds, begun = float(ends.max()), max(engine.last_begin for engine in engines)
    filled = sum(engine.place_seconds for engine in engines) - float(np.maximum(ends - begun, 0).sum())
    fillable = min(work.most_running, samples / work.engines) * sum(max(0.0, begun - start) for start in run.starts)
    idle_at = np.array([max(engine.last_end, start) for engine, start in zip(engines, run.starts, strict=True)])
    tail = seconds - min(seconds, float(idle_at.min()))
    there = sum(max(0.0, seconds - start) for start in run.starts)
    longest = int(run.lengths.max()) / ALONE / max(run.speeds)
    return Outcome(
        seconds=seconds,
        bound=max(longest, _least_seconds(run.speeds, run.starts, work.most_running, int(run.lengths.sum(dtype=np.int64)))),
        begun=begun,
        unused=max(0.0, 1 - filled / fillable) if fillable else 0.0,
        tail=tail,
        tail_idle=float(np.maximum(seconds - idle_at, 0).mean()) / tail if tail else 0.0,
        idle=1 - sum(engine.busy for engine in engines) / there,
        handouts=run.handouts,
        returned_samples=run.returned_samples,
        answers=run.answers,
        scheduler_us=1e6 * run.scheduler_s / samples,
    )


def _least_seconds(speeds: Sequence[float], starts: Sequence[float], running: int, tokens: int) -> float:
    """Return the time at which always-full engines with these starts have made so many tokens."""
    rate = made = before = 0.0
    full = running / (STEP_S + running * SEQUENCE_S)
    for start, speed in sorted(zip(starts, speeds, strict=True)):
        if rate and made + rate * (start - before) >= tokens:
            break
        made += rate * (start - before)
        before = start
        rate += speed * full
    return before + (tokens - made) / rate
