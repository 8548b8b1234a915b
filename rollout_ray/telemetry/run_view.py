"""Hold the state of a run for display: engines, counts, and the time by phase.

The driver and the replica set write it. Progress, metrics and summary read it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.core.records import RolloutRequest
from rollout_ray.telemetry.bottleneck import EngineAccount, SessionAccount
from rollout_ray.telemetry.engine_stats import ArmCount, EngineStats
from rollout_ray.telemetry.summary import Summary

RATE_S = 5.0  # averaging time of the present speed
SAMPLE_S = 1.0  # interval of load events at first
SAMPLES = 100  # later, the interval is the age of the run divided by this
MOST_SAMPLED = 64  # engines that are recorded by name


@dataclass
class EngineView:
    """The state of one engine.

    Attributes:
        state: waiting (for a node), starting, running, idle, leaving, dead, retired or ended.
        samples: Delivered samples.
        tokens: Delivered tokens. `stats` also counts sequences in progress.
        places: Sequences that the engine decodes at once.
        rate: Present speed in tokens/s.
        partial_arms: Finished samples that are not delivered, because others of their chunks are in work; by arm.
    """

    state: str = "starting"
    unfinished: int = 0
    samples: int = 0
    tokens: int = 0
    places: int = 0
    restarts: int = 0
    peak_running: int = 0
    rate: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)
    partial_arms: Mapping[str, ArmCount] = field(default_factory=dict)
    starting_seconds: float = 0.0
    served_seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _reported_at: float = field(default_factory=time.monotonic)

    def enter(self, state: str, unfinished: int = 0) -> None:
        """Change the state of the engine."""
        now = time.monotonic()
        self._pass(now)
        if state == "starting" and self.state not in ("starting", "waiting"):
            self.restarts += 1
        if state in ("dead", "retired", "ended"):
            self.stats.running = self.stats.waiting = 0
            self.stats.kv_use = self.rate = 0.0
            self.partial_arms = {}
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
        """Add the statistics since the last report of the engine."""
        now = time.monotonic()
        seconds = now - self._reported_at
        self._reported_at = now
        if seconds > 0:
            weight = 1 - math.exp(-seconds / RATE_S)
            self.rate += weight * (stats.generated_tokens / seconds - self.rate)
        self.stats.add(stats)
        self.peak_running = max(self.peak_running, stats.running)

    def account(self, until: float) -> EngineAccount:
        """Return the figures of the engine up to `until` (monotonic clock), the time of the last output."""
        self._pass(time.monotonic())
        after = max(0.0, self._since - until)
        served = max(0.0, self.served_seconds - (after if self.state in ("running", "idle", "leaving") else 0.0))
        silent = max(0.0, until - self._reported_at) if self.state == "idle" else 0.0  # it reports only on request
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
    """The state of a run.

    Attributes:
        total: Questions of the run.
        before: Questions that earlier sessions saved.
        committed: Questions that this session saved.
        pending: Samples that no engine has yet.
        generated_samples: Samples that engines delivered.
        unscored: Samples that wait for a scorer.
        on_cpu: Whether the engines have no GPU.
        arm_names: The arm of each sample of a question, by sample index.
        delivered_arms: Delivered samples by arm.
        behind_seconds: Time in which engines got no work because the scorers were behind.
    """

    total: int
    before: int = 0
    committed: int = 0
    generated_samples: int = 0
    total_samples: int = 0
    pending: int = 0
    unscored: int = 0
    on_cpu: bool = False
    arm_names: Sequence[str] = ()
    engines: dict[str, EngineView] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    began: float = field(default_factory=time.monotonic)
    generation_began: float | None = None
    last_generated: float = 0.0
    behind_seconds: float = 0.0
    delivered_arms: dict[str, ArmCount] = field(default_factory=dict)
    _scoring_seconds: float = 0.0
    _scoring_since: float | None = None
    _sample_at: float = 0.0
    _sampled: tuple[dict[str, Any], dict[str, Any]] | None = None
    _behind_since: float | None = None
    _tail_began: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return the mean speed of this session."""
        if self.generation_began is None:
            return 0.0
        seconds = time.monotonic() - self.generation_began
        return sum(e.tokens for e in self.engines.values()) / seconds if seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Return the present speed in tokens/s."""
        return sum(engine.rate for engine in self.engines.values())

    @property
    def tokens(self) -> int:
        """Return the output tokens of this session, including those of sequences in progress."""
        return sum(engine.stats.generated_tokens for engine in self.engines.values())

    @property
    def ended_samples(self) -> int:
        """Return the finished samples, including those of questions that are not complete."""
        partial = (count.samples for engine in self.engines.values() for count in engine.partial_arms.values())
        return self.generated_samples + sum(partial)

    def arms(self) -> dict[str, ArmCount]:
        """Return the finished samples by arm, in the order of the run. Arms without any are left out."""
        counts = dict(self.delivered_arms)
        for engine in self.engines.values():
            for name, count in engine.partial_arms.items():
                counts[name] = counts.get(name, ArmCount()) + count
        order = dict.fromkeys((*self.arm_names, *counts))
        return {name: counts[name] for name in order if name in counts and counts[name].samples}

    def deliver(self, samples: int, arms: Mapping[str, ArmCount]) -> None:
        """Count samples that an engine delivered."""
        self.generated_samples += samples
        for name, count in arms.items():
            self.delivered_arms[name] = self.delivered_arms.get(name, ArmCount()) + count

    def lose(self, requests: Iterable[RolloutRequest]) -> None:
        """Take back delivered samples that are lost. Each takes the mean tokens of its arm with it."""
        for request in requests:
            self.generated_samples -= len(request)
            for name in self.arm_names[request.first : request.stop]:
                had = self.delivered_arms.get(name, ArmCount())
                if had.samples:
                    each = ArmCount(-1, -round(had.tokens / had.samples), -round(had.truncated / had.samples))
                    self.delivered_arms[name] = had + each

    def seconds_left(self) -> float | None:
        """Return the seconds until all samples are generated and scored, at the mean speeds. None while unknown."""
        if self.generation_began is None or not (ended := self.ended_samples):
            return None
        now = time.monotonic()
        drawing = (now - self.generation_began) * (self.total_samples - ended) / ended
        scored = self.generated_samples - self.unscored
        if not self.unscored:
            return drawing
        if not scored:
            return None if ended >= self.total_samples else drawing
        return max(drawing, self._scoring_seconds * (self.total_samples - scored) / scored)

    @property
    def restarts(self) -> int:
        return sum(engine.restarts for engine in self.engines.values())

    def watch(self, pending: int, unscored: int, behind: bool) -> None:
        """Record the queues, the begin of the tail, and the time in which the scorers are behind.

        Args:
            pending: Samples that no engine has yet.
            unscored: Samples that wait for a scorer.
            behind: Whether engines get no work because of the scorers.
        """
        now = time.monotonic()
        self.pending, self.unscored = pending, unscored
        if self._scoring_since is not None:
            self._scoring_seconds += now - self._scoring_since
        self._scoring_since = now if unscored else None
        if pending or any(engine.stats.waiting for engine in self.engines.values()):
            self._tail_began = None
        elif self._tail_began is None:
            self._tail_began = now
        if self._behind_since is not None:
            self.behind_seconds += now - self._behind_since
        self._behind_since = now if behind else None

    def sample(self) -> dict[str, Any] | None:
        """Return the load as fields of an event, or None if no event is due.

        Before the first token, an event is due only after a change.
        """
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
        tokens = self.tokens
        totals = {"questions": self.before + self.committed, "draws": self.ended_samples, "generated_tokens": tokens}
        earlier = self._sampled
        self._sampled = (totals, engines)
        if not tokens and earlier == self._sampled:
            return None
        return totals | ({"engines": engines} if len(engines) <= MOST_SAMPLED else {})

    def account(self) -> SessionAccount:
        """Return the time of the session by phase."""
        now = time.monotonic()
        first, last = self.generation_began, self.last_generated or now
        if first is None:
            return SessionAccount(starting_seconds=now - self.began)
        return SessionAccount(
            starting_seconds=first - self.began,
            generation_seconds=max(0.0, last - first),
            scoring_seconds=max(0.0, now - last),
            held_up_seconds=self.behind_seconds,
            tail_seconds=max(0.0, last - max(first, self._tail_began)) if self._tail_began is not None else 0.0,
            on_cpu=self.on_cpu,
            engines={name: engine.account(last) for name, engine in self.engines.items()},
        )
