"""The driver's state as others may look at it: engines, counts, and where the time of a session goes.

Owns these figures and their clocks. The driver and the fleet write them; progress, metrics and the summary read them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.telemetry.bottleneck import EngineAccount, SessionAccount
from rollout_ray.telemetry.engine_stats import EngineStats
from rollout_ray.telemetry.summary import Summary

RATE_S = 5.0  # over which the present speed of an engine is averaged
SAMPLE_S, SAMPLES = 1.0, 100  # a run notes its load every second, later every hundredth of its age
MOST_SAMPLED = 64  # engines that are noted one by one


@dataclass
class EngineView:
    """What the driver knows of one engine. `state` is waiting (for a node), starting, running, idle, leaving, dead, retired
    or ended; `tokens` and `draws` have been delivered, `stats` also counts what is still being decoded; `rate` is in
    tokens/s."""

    state: str = "starting"
    unfinished: int = 0
    samples: int = 0
    tokens: int = 0
    places: int = 0
    restarts: int = 0
    peak_running: int = 0
    rate: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)
    starting_seconds: float = 0.0
    served_seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _reported_at: float = field(default_factory=time.monotonic)

    def enter(self, state: str, unfinished: int = 0) -> None:
        """The engine is in this state from now on."""
        now = time.monotonic()
        self._pass(now)
        if state == "starting" and self.state not in ("starting", "waiting"):
            self.restarts += 1
        if state in ("dead", "retired", "ended"):
            self.stats.running = self.stats.waiting = 0
            self.stats.kv_use = self.rate = 0.0
        if state == "idle":
            self.rate = 0.0
        if self.state == "starting":
            self._reported_at = now
        self.state, self.unfinished = state, unfinished

    def _pass(self, now: float) -> None:
        if self.state == "starting":
            self.starting_seconds += now - self._since
        elif self.state in ("running", "idle", "leaving"):
            self.served_seconds += now - self._since
        self._since = now

    def record_stats(self, stats: EngineStats) -> None:
        """The engine has reported what it did since its last report."""
        now = time.monotonic()
        seconds, self._reported_at = now - self._reported_at, now
        if seconds > 0:
            weight = 1 - math.exp(-seconds / RATE_S)
            self.rate += weight * (stats.generated_tokens / seconds - self.rate)
        self.stats.add(stats)
        self.peak_running = max(self.peak_running, stats.running)

    def account(self, until: float) -> EngineAccount:
        """What the engine did, up to the moment `until` (monotonic clock) at which the last generation came."""
        self._pass(time.monotonic())
        after = max(0.0, self._since - until)
        served = max(0.0, self.served_seconds - (after if self.state in ("running", "idle", "leaving") else 0.0))
        silent = max(0.0, until - self._reported_at) if self.state == "idle" else 0.0  # it reports only when it is asked
        idle = min(served, self.stats.idle_seconds + silent)
        stats = self.stats
        busy = served - idle
        return EngineAccount(
            starting_seconds=self.starting_seconds,
            decoding_seconds=busy,
            idle_seconds=idle,
            generated_tokens=stats.generated_tokens,
            tokens_per_second=stats.generated_tokens / busy if busy > 0 else 0.0,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            preemptions=stats.preemptions,
            steps=stats.steps,
            kv_bound_steps=stats.kv_bound_steps,
            mean_batch=stats.mean_batch or 0.0,
            peak_running=self.peak_running,
            max_num_seqs=self.places,
            restarts=self.restarts,
        )


@dataclass
class RunView:
    """The driver's state, for people. Counts of questions; `before` were done by an earlier session. `pending` draws are
    with no engine yet, `unscored` with a scorer."""

    total: int
    before: int = 0
    committed: int = 0
    generated_samples: int = 0
    total_samples: int = 0
    pending: int = 0
    unscored: int = 0
    engines: dict[str, EngineView] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    began: float = field(default_factory=time.monotonic)
    generation_began: float | None = None
    last_generated: float = 0.0
    behind_seconds: float = 0.0
    _sample_at: float = 0.0
    _sampled: tuple[dict[str, Any], dict[str, Any]] | None = None
    _behind_since: float | None = None
    _ebb: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Mean of this session so far."""
        if self.generation_began is None:
            return 0.0
        seconds = time.monotonic() - self.generation_began
        return sum(e.tokens for e in self.engines.values()) / seconds if seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Tokens/s at present."""
        return sum(engine.rate for engine in self.engines.values())

    def seconds_left(self) -> float | None:
        """Until everything is drawn, at this session's mean speed; None while that is not known."""
        if self.generation_began is None or not self.generated_samples or not self.last_generated:
            return None
        seconds = time.monotonic() - self.generation_began
        return seconds * (self.total_samples - self.generated_samples) / self.generated_samples

    @property
    def restarts(self) -> int:
        return sum(engine.restarts for engine in self.engines.values())

    def watch(self, pending: int, unscored: int, behind: bool) -> None:
        """Notes since when every draw has been begun, and for how long engines got nothing new because the scorers are
        `behind`."""
        now = time.monotonic()
        self.pending, self.unscored = pending, unscored
        if pending or any(engine.stats.waiting for engine in self.engines.values()):
            self._ebb = None
        elif self._ebb is None:
            self._ebb = now
        if self._behind_since is not None:
            self.behind_seconds += now - self._behind_since
        self._behind_since = now if behind else None

    def sample(self) -> dict[str, Any] | None:
        """The load, as fields of an event, where it is time for one, and until the first token where something has
        changed: questions saved, draws made, and by engine the state, the sequences decoded, those that wait, the tokens
        made so far and the share of the KV cache in use."""
        now = time.monotonic()
        if now < self._sample_at:
            return None
        self._sample_at = now + max(SAMPLE_S, (now - self.began) / SAMPLES)
        engines = {
            name: {
                "state": engine.state,
                "running": engine.stats.running,
                "waiting": engine.stats.waiting,
                "generated_tokens": engine.stats.generated_tokens,
                "kv_use": round(engine.stats.kv_use, 3),
            }
            for name, engine in self.engines.items()
        }
        tokens = sum(engine.stats.generated_tokens for engine in self.engines.values())
        totals = {"questions": self.before + self.committed, "draws": self.generated_samples, "generated_tokens": tokens}
        earlier, self._sampled = self._sampled, (totals, engines)
        if not tokens and earlier == self._sampled:
            return None
        return totals | ({"engines": engines} if len(engines) <= MOST_SAMPLED else {})

    def account(self) -> SessionAccount:
        """Where the session's time went."""
        now = time.monotonic()
        first, last = self.generation_began, self.last_generated or now
        if first is None:
            return SessionAccount(starting_seconds=now - self.began)
        return SessionAccount(
            starting_seconds=first - self.began,
            generation_seconds=max(0.0, last - first),
            scoring_seconds=max(0.0, now - last),
            held_up_seconds=self.behind_seconds,
            tail_seconds=max(0.0, last - max(first, self._ebb)) if self._ebb is not None else 0.0,
            engines={name: engine.account(last) for name, engine in self.engines.items()},
        )
