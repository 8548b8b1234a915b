"""Simulate an engine of known speed and known faults, for tests of scale and of failure.

It decodes nothing. A request takes as long as its length asks for, and its text and tokens follow from its seed.
Invariant: equal keys give equal texts on every engine.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence

from rollout_ray.actors.backend import BackendInfo, Finished
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.core.errors import Refused
from rollout_ray.core.records import Arm, Prompt, SampleSpec
from rollout_ray.models.paths import DEMO_FOLDER
from rollout_ray.models.prompt_report import PromptReport
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.telemetry.engine_stats import EngineStats

STEP_SECONDS = 0.01
VOCABULARY = 32_000


class SimulatedBackend:
    """Generates `sim_tokens_per_second` with a full batch, and less with a smaller one. Lengths are exponential."""

    def __init__(self, spec: LaunchSpec) -> None:
        simulated = spec.run.config.engine.simulated
        self._simulated = simulated
        max_num_seqs = spec.limits.max_num_seqs
        if max_num_seqs > simulated.sim_memory_seqs:
            raise MemoryError(f"the simulated engine has memory for {simulated.sim_memory_seqs} sequences")
        self._seconds_per_token = max_num_seqs / simulated.sim_tokens_per_second
        if spec.name == "engine-0":
            self._seconds_per_token *= simulated.sim_straggler
        self._info = BackendInfo(max_num_seqs, 0.0, simulated.sim_start_seconds, settings={"backend": "simulated"})
        self._waiting: deque[tuple[str, str, int, int]] = deque()  # key, text, tokens, tokens of the prompt
        self._running: list[tuple[float, str, str, int]] = []  # due time, key, text, tokens: a heap
        self._hangs = self._tokens = False
        self._stats = EngineStats()
        self._weights = spec.run.policy.path
        self._faults = random.Random(f"{spec.name} {os.getpid()}")
        time.sleep(simulated.sim_start_seconds)

    def info(self) -> BackendInfo:
        return self._info

    def check(self) -> None:
        """Raise nothing: a simulated engine that hangs does not know it."""

    def stats(self) -> EngineStats:
        """Return the counts. There is no prefix cache, and room for every sequence."""
        return self._stats

    def begin(self, run: ResolvedRun) -> PromptReport:
        """Say nothing of the prompts: a simulated engine needs only the requests of a run."""
        self._tokens = run.config.output.tokens
        return PromptReport()

    def update_weights(self, path: str) -> None:
        """Make other texts of the same keys from now on."""
        self._weights = path

    def encode(self, prompt: Prompt, arm: Arm) -> list[int]:
        """Return one token a word."""
        words = (prompt if isinstance(prompt, str) else " ".join(str(m["content"]) for m in prompt)).split()
        return list(range(len(words) + len((arm.system_prompt or "").split())))

    def opening(self, arm: Arm) -> str:
        """Return nothing: a simulated engine does not think."""
        return ""

    def add(self, key: str, tokens: list[int], spec: SampleSpec, seed: int) -> None:
        if self._faults.random() < self._simulated.sim_death_rate:
            print("the simulated engine dies as it was told to", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self._hangs = self._hangs or self._faults.random() < self._simulated.sim_hang_rate
        if self._faults.random() < self._simulated.sim_error_rate:
            raise Refused("the simulated engine refused the request")
        rng = random.Random(seed if self._weights == DEMO_FOLDER else f"{seed} {self._weights}")
        length = min(spec.arm.max_tokens, max(1, round(rng.expovariate(1 / self._simulated.sim_mean_tokens))))
        text = f"Step 1: think {'so ' * min(length, 50)}\nAnswer: {rng.randint(1, 9)}"
        self._waiting.append((key, text, length, len(tokens)))

    def step(self) -> list[Finished]:
        """Wait for the end of the next step, and return the requests that are due by then."""
        if self._hangs:
            threading.Event().wait()
        now = time.monotonic()
        while self._waiting and len(self._running) < self._info.max_num_seqs:
            key, text, length, prompt_tokens = self._waiting.popleft()
            self._stats.prompt_tokens += prompt_tokens
            heapq.heappush(self._running, (now + length * self._seconds_per_token, key, text, length))
        time.sleep(max(0.0, min(self._running[0][0] - now, STEP_SECONDS)))
        finished = []
        now = time.monotonic()
        while self._running and self._running[0][0] <= now:
            _, key, text, length = heapq.heappop(self._running)
            ids, logprobs = _tokens(text, length) if self._tokens else (None, None)
            finished.append(Finished(key, text, length, "stop", token_ids=ids, logprobs=logprobs))
            self._stats.generated_tokens += length
        self._stats.running, self._stats.waiting = len(self._running), len(self._waiting)
        self._stats.kv_use = len(self._running) / self._info.max_num_seqs
        return finished

    def read(self, finished: Sequence[Finished]) -> list[Finished]:
        """Return them as they are: they have their texts."""
        return list(finished)

    def abort(self, keys: Sequence[str]) -> None:
        gone = set(keys)
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in gone)
        self._running = [entry for entry in self._running if entry[1] not in gone]
        heapq.heapify(self._running)


def _tokens(text: str, length: int) -> tuple[array[int], array[float]]:
    """Return `length` token ids and log-probabilities that follow from the text."""
    rng = random.Random(text)
    ids = array("i", (rng.randrange(VOCABULARY) for _ in range(length)))
    return ids, array("f", (-rng.expovariate(2.0) for _ in range(length)))
