"""Define the statistics that an engine reports to the driver.

The backends count (actors/vllm_backend/stats.py, actors/simulated.py). bottleneck.py draws conclusions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

GAUGES = ("running", "waiting", "kv_use")
KV_FULL = 0.9  # share in use above which new requests wait for room


@dataclass
class EngineStats:
    """Three gauges of the present, and counters since some moment.

    Attributes:
        running: Sequences that are being decoded (gauge).
        waiting: Samples that the engine holds and does not decode yet (gauge).
        kv_use: Share of the KV cache in use, in [0, 1] (gauge).
        steps: Decoding steps.
        generated_tokens: Output tokens.
        prompt_tokens: Prompt tokens.
        cached_tokens: Prompt tokens found in the prefix cache.
        preemptions: Sequences preempted for lack of KV cache.
        kv_bound_steps: Steps in which requests waited for KV cache although places were free.
        idle_seconds: Seconds without anything to decode.
    """

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    steps: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    kv_bound_steps: int = 0
    idle_seconds: float = 0.0

    def since(self, earlier: EngineStats) -> EngineStats:
        """Return the present gauges, and the counts after `earlier`."""
        counted = {name: getattr(self, name) - getattr(earlier, name) for name in COUNTERS}
        return replace(self, **counted)

    def add(self, later: EngineStats) -> None:
        """Add the counts of `later`, and take its gauges."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in GAUGES:
            setattr(self, name, getattr(later, name))

    @property
    def short_of_memory(self) -> bool:
        """Return whether requests wait for room in the KV cache."""
        return self.waiting > 0 and self.kv_use >= KV_FULL

    @property
    def mean_batch(self) -> float | None:
        """Return the tokens per step: the mean batch size, without speculative decoding."""
        return self.generated_tokens / self.steps if self.steps else None

    @property
    def cache_hit_rate(self) -> float | None:
        """Return the share of prompt tokens found in the prefix cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Finished samples of one arm, with their output tokens; `truncated` of them ended at max_tokens."""

    samples: int = 0
    tokens: int = 0
    truncated: int = 0

    def __add__(self, other: ArmCount) -> ArmCount:
        return ArmCount(self.samples + other.samples, self.tokens + other.tokens, self.truncated + other.truncated)


COUNTERS = tuple(f.name for f in fields(EngineStats) if f.name not in GAUGES)


class IdleClock:
    """Measures the seconds without work, including the present pause."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = time.monotonic()

    def busy(self) -> None:
        """Note that there is work."""
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def idle(self) -> None:
        """Note that no work is left."""
        if self._since is None:
            self._since = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds without work so far."""
        since = self._since
        return self._seconds + (time.monotonic() - since if since is not None else 0.0)
