"""What an engine reports about itself: counters, and what it has in hand.

Owns the type that travels from an engine to the driver, and its sums. Who counts is the backend's business
(actors/vllm_backend/stats.py, actors/simulated.py); what follows from the counts is bounds.py's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

GAUGES = ("running", "waiting", "kv_use")
KV_FULL = 0.9  # share in use above which new requests wait for room


@dataclass
class EngineStats:
    """Counters since some moment, and three gauges of the present.

    `running` sequences are being decoded, `waiting` draws are with the engine and are not; `kv_use` is the share of the
    KV cache that is in use, in [0, 1]. Counters: decoding `steps`; `generated_tokens`; `prompt_tokens`, and those of them
    that the prefix cache had (`cached_tokens`); `preemptions` of a sequence for want of KV cache; `kv_bound_steps`, in
    which requests waited for KV cache although places were free; `idle_seconds` with nothing to decode.
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
        """The present gauges, and what was counted after `earlier`."""
        counted = {name: getattr(self, name) - getattr(earlier, name) for name in COUNTERS}
        return replace(self, **counted)

    def add(self, later: EngineStats) -> None:
        """Counts in what `later` counted, and takes over its gauges."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in GAUGES:
            setattr(self, name, getattr(later, name))

    @property
    def short_of_memory(self) -> bool:
        """Whether what waits does so for room in the KV cache."""
        return self.waiting > 0 and self.kv_use >= KV_FULL

    @property
    def mean_batch(self) -> float | None:
        """Tokens made a step, which without speculative decoding is the number of sequences decoded at once."""
        return self.generated_tokens / self.steps if self.steps else None

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of the prompt tokens that the prefix cache had."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


COUNTERS = tuple(f.name for f in fields(EngineStats) if f.name not in GAUGES)


class IdleClock:
    """Seconds in which there was nothing to do, the present pause included."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = time.monotonic()

    def busy(self) -> None:
        """Work has come."""
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def idle(self) -> None:
        """Nothing is left to do."""
        if self._since is None:
            self._since = time.monotonic()

    def seconds(self) -> float:
        since = self._since
        return self._seconds + (time.monotonic() - since if since is not None else 0.0)
