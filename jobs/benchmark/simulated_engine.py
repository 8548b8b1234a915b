"""Simulate one engine: when it decodes which samples.

An engine decodes up to `places` sequences at once, and a step over n of them takes STEP_S + n * SEQUENCE_S.
One sequence alone makes 150 tokens a second, and 1,024 make 25,000. vLLM does the same with a 7B model in bf16 on an
H200: 24,061 measured over a whole run. Prompts cost nothing. Engines answer like actors/engine/engine.py.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.supply import batch_share, num_to_submit
from rollout_ray.core.records import ChunkKey, Cut
from rollout_ray.data.question_set import PASSES
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.replica_set import COALESCE_S

PLACES = 1024
ALONE, FULL = 150.0, 25_000.0  # tokens/s of one sequence, and of PLACES at once
SEQUENCE_S = (PLACES / FULL - 1 / ALONE) / (PLACES - 1)
STEP_S = 1 / ALONE - SEQUENCE_S
LONGEST = 4096  # tokens of the longest output

Lengths = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Workload:
    """The questions, their samples and the engines.

    Lengths are lognormal with `mean` and `sigma`, then clipped at LONGEST.

    by_question: Share of the log lengths' variance that all samples of a question have in common.
    long_first: Questions come by an earlier run's mean lengths (data/question_set.py).
    speeds, starts: Speed and start in seconds of the first engines. Others have speed 1 and start at 0.
    fits: Sequences that the KV cache holds, if fewer than `places`.
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
        """Return the tokens of each sample, [questions * samples], in the order of the hand-outs."""
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


class SimulatedEngine:
    """One engine. Its clock runs ahead to its next answer, because nothing outside changes it before."""

    def __init__(self, name: str, work: Workload, speed: float, lengths: Lengths, ends: array[float]) -> None:
        self.name = name
        self.speed = speed
        self.started = False
        self.now = self.busy = self.place_seconds = self.last_begin = self.last_end = 0.0
        self.done: list[ChunkKey] = []
        self.returned: list[Cut] = []
        self.finished_since = 0
        self.wait_s = HEARTBEAT_S
        self._most_running, self._many = work.most_running, batch_share(work.places)
        self._given = 0  # samples that the backend has and has not finished
        self._info = BackendInfo(work.places, 0.0, 0.0, core_apart=True)
        self._position = 0.0  # steps since the start
        self._waiting: deque[tuple[int, list[int]]] = deque()  # (tokens, chunk as [ordinal, first, stop, unfinished])
        self._running: list[tuple[float, list[int]]] = []  # heap of (last step, chunk)
        self._chunks: dict[ChunkKey, list[int]] = {}
        self._lengths = lengths
        self._samples = work.samples
        self._ends = ends

    @property
    def unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def take(self, ordinal: int, first: int, stop: int) -> None:
        """Add the samples `first` to `stop - 1` of a question."""
        chunk = self._chunks[ordinal, first] = [ordinal, first, stop, stop - first]
        begin = ordinal * self._samples
        self._waiting.extend((tokens, chunk) for tokens in self._lengths[begin + first : begin + stop].tolist())
        self._begin()

    def return_samples(self, wanted: int) -> None:
        """Return up to `wanted` of the last samples that have not begun."""
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
        """Decode until a moment, or until an answer is due if the moment is infinite."""
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
