"""A discrete-event simulation of a run on many engines, with the real scheduler and long-tailed lengths.

An engine decodes up to `places` sequences at once, and a decoding step over n of them takes STEP_S + n * SEQUENCE_S:
one sequence alone makes 150 tokens a second, 1,024 make 25,000, as vLLM does with a 7B model in bf16 on an H200 (24,061
measured over a whole run; alone, a step reads the weights once). Prompts cost nothing here. Engines answer as
actors/engine/engine.py does; the driver is one server that takes so long for each answer. Owns the model of time, and
nothing of what goes where: that is rollout_ray/driver/scheduler.py's.
"""

from __future__ import annotations

import heapq
import math
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.engine import eighth, num_to_submit
from rollout_ray.core.records import ChunkKey, Cut, Question
from rollout_ray.data.question_set import PASSES
from rollout_ray.driver.replica_set import COALESCE_S, HEARTBEAT_S
from rollout_ray.driver.scheduler import Scheduler

PLACES = 1024
ALONE, FULL = 150.0, 25_000.0  # tokens/s of one sequence, and of PLACES at once
SEQUENCE_S = (PLACES / FULL - 1 / ALONE) / (PLACES - 1)
STEP_S = 1 / ALONE - SEQUENCE_S
LONGEST = 4096  # tokens

Lengths = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Workload:
    """What is asked of which engines. Lengths are lognormal with `mean` and `sigma` before they are clipped at LONGEST;
    `by_question` is the share of the variance of their logarithm that all draws of a question have in common.
    `long_first`: in turns by the mean lengths of an earlier run (questions.py). `speeds` and `starts` (s) are those of
    the first engines; the others have speed 1 and start at 0. `fits` sequences find room in the KV cache, where those are
    fewer than `places`.
    """

    questions: int
    samples: int
    engines: int = 8
    places: int = PLACES
    mean: float = 220.0
    sigma: float = 1.0
    by_question: float = 0.5
    long_first: bool = False
    speeds: tuple[float, ...] = ()
    starts: tuple[float, ...] = ()
    fits: int | None = None

    @property
    def most_running(self) -> int:
        return min(self.places, self.fits or self.places)

    def lengths(self, seed: int) -> Lengths:
        """Tokens of each draw, [questions * draws], in the order in which the questions are handed out."""
        rng = np.random.default_rng(seed)
        shared = rng.standard_normal((self.questions, 1), np.float32) * np.float32(math.sqrt(self.by_question))

        def run() -> Lengths:
            own = rng.standard_normal((self.questions, self.samples), np.float32)
            own *= np.float32(math.sqrt(1 - self.by_question))
            raw = np.exp(math.log(self.mean) - self.sigma**2 / 2 + self.sigma * (shared + own))
            whole: Lengths = np.clip(np.rint(raw), 1, LONGEST).astype(np.int16)
            return whole

        tokens = run()
        if self.long_first:
            expected = -run().mean(axis=1)
            passes = PASSES * np.argsort(np.argsort(expected)) // self.questions
            tokens = tokens[np.argsort(passes, kind="stable")]
        return tokens.reshape(-1)


class _Engine:
    """One engine: when it decodes what. Its clock runs ahead to its next answer, since nothing from outside changes it
    before that."""

    def __init__(self, name: str, work: Workload, speed: float, lengths: Lengths, ends: array[float]) -> None:
        self.name, self.speed, self.started = name, speed, False
        self.now = self.busy = self.place_seconds = self.last_begin = self.last_end = 0.0
        self.done: list[ChunkKey] = []
        self.returned: list[Cut] = []
        self.finished_since = 0
        self.wait_s = HEARTBEAT_S
        self._most_running, self._many = work.most_running, eighth(work.places)
        self._given = 0  # draws that the backend has been given and has not ended
        self._info = BackendInfo(work.places, 0.0, 0.0, core_apart=True)
        self._position = 0.0  # steps since the start
        self._waiting: deque[tuple[int, list[int]]] = deque()  # (tokens, piece as [ordinal, first, stop, unfinished])
        self._running: list[tuple[float, list[int]]] = []  # (the step at which it ends, piece): a heap
        self._chunks: dict[ChunkKey, list[int]] = {}
        self._lengths, self._samples, self._ends = lengths, work.samples, ends

    @property
    def unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def take(self, ordinal: int, first: int, stop: int) -> None:
        """Adds the draws `first` .. `stop - 1` of a question."""
        chunk = self._chunks[ordinal, first] = [ordinal, first, stop, stop - first]
        begin = ordinal * self._samples
        self._waiting.extend((tokens, chunk) for tokens in self._lengths[begin + first : begin + stop].tolist())
        self._begin()

    def return_samples(self, wanted: int) -> None:
        """Gives up to `wanted` of the last draws back that are not begun yet."""
        cuts: dict[ChunkKey, int] = {}
        for _ in range(min(wanted, len(self._waiting))):
            _, chunk = self._waiting.pop()
            chunk[2] -= 1
            chunk[3] -= 1
            cuts[chunk[0], chunk[1]] = chunk[2]
        self._given = min(self._given, self.unfinished)
        for key in cuts:
            self._close(self._chunks[key])
        self.returned = list(cuts.items())

    def run(self, until: float) -> None:
        """Decodes until then; for ever means until an answer is due."""
        began, running = self.now, self._running
        while True:
            limit = began + (COALESCE_S if self.done else self.wait_s) if until == math.inf else until
            count = len(running)
            if self.now >= limit:
                return
            if until == math.inf and (not count or self.returned or self.finished_since >= self._many):
                return
            if not count:
                self.now = limit
                return
            step = (STEP_S + count * SEQUENCE_S) / self.speed
            seconds = min((running[0][0] - self._position) * step, limit - self.now)
            self.busy += seconds
            self.place_seconds += seconds * count
            self.now += seconds
            if self.now >= limit:
                self._position += seconds / step
                return
            self._end_next()

    def _end_next(self) -> None:
        self._position, chunk = heapq.heappop(self._running)
        self._ends.append(self.now)
        self.last_end = self.now
        self.finished_since += 1
        chunk[3] -= 1
        if not chunk[3]:
            self._close(chunk)
        self._given -= 1
        if self._waiting:
            self._begin()

    def _begin(self) -> None:
        waiting = self._given - len(self._running)
        short = waiting > 0 and self._most_running < self._info.max_num_seqs
        self._given += min(num_to_submit(self._info, self._given, waiting, short), self.unfinished - self._given)
        while self._waiting and len(self._running) < self._most_running:
            tokens, chunk = self._waiting.popleft()
            heapq.heappush(self._running, (self._position + tokens, chunk))
            self.last_begin = self.now

    def _close(self, chunk: Sequence[int]) -> None:
        ordinal, first, stop, unfinished = chunk
        if unfinished == 0:
            del self._chunks[ordinal, first]
            if stop > first:
                self.done.append((ordinal, first))


class _Run:
    """The driver's side: one server that takes the engines' answers in their order."""

    def __init__(self, work: Workload, driver_s: float, seed: int) -> None:
        self.work, self._driver_s = work, driver_s
        self.lengths = work.lengths(seed)
        self.ends: array[float] = array("d")
        self.speeds = [*work.speeds, *[1.0] * (work.engines - len(work.speeds))]
        self.starts = [*work.starts, *[0.0] * (work.engines - len(work.starts))]
        self.engines = [_Engine(f"e{i}", work, speed, self.lengths, self.ends) for i, speed in enumerate(self.speeds)]
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
        unfinished, chunks, returned = engine.unfinished, engine.done, engine.returned
        engine.done, engine.returned, engine.finished_since = [], [], 0
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
    """What a simulated run took, in seconds. `bound` is the least that any order could take: all tokens at the full
    rate, or the longest draw alone. `begun` is when the last draw was begun; until then the share `unused` of the places
    that the work could fill was free. `tail` is the time from the first engine's end to the last one's, `tail_idle` the
    share of it that an engine idles, `idle` that of its time since its start. `scheduler_us` is CPU time a draw."""

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
    """Plays the workload to its end. Raises RuntimeError where a draw was lost."""
    run = _Run(work, driver_s, seed)
    run.play()
    samples, engines = len(run.lengths), run.engines
    if not samples == run.delivered == len(run.ends) or not run.scheduler.finished:
        raise RuntimeError(f"{samples} draws were asked for, {len(run.ends)} made and {run.delivered} delivered")
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
    """When engines that start then, and always decode so many at once, have made that many tokens."""
    rate = made = before = 0.0
    full = running / (STEP_S + running * SEQUENCE_S)
    for start, speed in sorted(zip(starts, speeds, strict=True)):
        if rate and made + rate * (start - before) >= tokens:
            break
        made, before, rate = made + rate * (start - before), start, rate + speed * full
    return before + (tokens - made) / rate
