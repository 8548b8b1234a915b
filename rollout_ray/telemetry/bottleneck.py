"""Find the phase that bounded a run, and say it in one sentence.

Pure: reads the figures of engines and phases, and no clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FEW = 0.5  # share of places in use at the peak; below it, the run had too few requests
CPU_BATCH = 32  # sequences of an engine that keep a CPU's cores busy: more at once do not speed it up
LONG_TAIL = 1 / 3  # share of the generation after the last sample began
HELD_UP = 0.2  # share of the generation in which engines got no work because scorers were behind
KV_BOUND = 0.2  # share of the steps in which requests waited for the KV cache
MOST_LINES = 8


@dataclass(frozen=True)
class EngineAccount:
    """Figures of one replica in a session, restarts included.

    Attributes:
        idle_seconds: Time without anything to decode, after the start and during the generation.
        tokens_per_second: Generated tokens over `decoding_seconds`.
        mean_batch: Tokens per step.
    """

    starting_seconds: float = 0.0
    decoding_seconds: float = 0.0
    idle_seconds: float = 0.0
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    kv_bound_steps: int = 0
    mean_batch: float = 0.0
    peak_running: int = 0
    max_num_seqs: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class SessionAccount:
    """Seconds of a session by phase.

    Attributes:
        starting_seconds: Until the first engine could decode.
        generation_seconds: From then until the last output.
        scoring_seconds: From then until the last question was committed.
        held_up_seconds: Part of the generation in which engines got no work because the scorers were behind.
        tail_seconds: Part of the generation after the last sample began.
        engines: Figures by engine name.
        on_cpu: Whether the engines have no GPU.
    """

    starting_seconds: float = 0.0
    generation_seconds: float = 0.0
    scoring_seconds: float = 0.0
    held_up_seconds: float = 0.0
    tail_seconds: float = 0.0
    engines: dict[str, EngineAccount] = field(default_factory=dict)
    on_cpu: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with seconds to the millisecond and totals over the engines."""
        values: dict[str, Any] = _rounded(asdict(self))
        totals = {"cache_hit_rate": self.cache_hit_rate, "mean_batch": self.mean_batch}
        values |= _rounded(totals)
        return values | {"preemptions": self.preemptions}

    @property
    def preemptions(self) -> int:
        return sum(engine.preemptions for engine in self.engines.values())

    @property
    def cache_hit_rate(self) -> float | None:
        """Return the share of prompt tokens found in prefix caches, or None without prompts."""
        asked = sum(engine.prompt_tokens for engine in self.engines.values())
        return sum(engine.cached_tokens for engine in self.engines.values()) / asked if asked else None

    @property
    def mean_batch(self) -> float | None:
        """Return the tokens per step over all engines, or None without steps."""
        steps = sum(engine.steps for engine in self.engines.values())
        return sum(engine.generated_tokens for engine in self.engines.values()) / steps if steps else None

    @property
    def idle_share(self) -> float:
        """Return the idle share of the time of started engines during the generation."""
        idle = sum(engine.idle_seconds for engine in self.engines.values())
        served = idle + sum(engine.decoding_seconds for engine in self.engines.values())
        return idle / served if served else 0.0


def bound_by(account: SessionAccount, total_seconds: float) -> str:
    """Return one sentence on the phase that took the time, and a remedy.

    Args:
        account: Figures of the session.
        total_seconds: Duration of the run.
    """
    starting = account.starting_seconds
    generation = account.generation_seconds
    scoring = account.scoring_seconds
    rest = max(0.0, total_seconds - starting - generation - scoring)
    longest = max(starting, generation, scoring, rest)
    share = f"{longest:.1f} of {total_seconds:.1f} s"
    if not account.engines or longest == rest:
        return f"Bounded by reading the input and merging the output: {share}."
    if longest == starting:
        return f"Bounded by starting the engines: {share}; a pool, or more questions a run, spreads that."
    if longest == scoring:
        return f"Bounded by scoring: {share} after the last output had come; more --scorers shorten it."
    return _generation_bound(account)


def _generation_bound(account: SessionAccount) -> str:
    generation = account.generation_seconds
    engines = account.engines.values()
    places = sum(engine.max_num_seqs for engine in engines)
    peak = sum(engine.peak_running for engine in engines)
    steps = sum(engine.steps for engine in engines)
    waited = sum(engine.kv_bound_steps for engine in engines) / steps if steps else 0.0
    if waited > KV_BOUND:
        return (
            f"Bounded by KV cache: requests waited for room in it during {waited:.0%} of the decoding steps, with "
            f"{account.preemptions} preemptions; more memory for it, or shorter outputs, would help."
        )
    if account.held_up_seconds > HELD_UP * generation:
        return (
            f"Bounded by scoring: engines got no new work for {account.held_up_seconds:.1f} of {generation:.1f} s of "
            "generation, because the scorers were behind; more --scorers would help."
        )
    enough = FEW * places
    if account.on_cpu:
        enough = min(enough, CPU_BATCH * len(engines))
    if peak < enough:
        return (
            f"Bounded by too few requests: at the fullest {peak} of {places} places were in use, so the engines were "
            "never at full speed; fewer engines, or more questions a run, would use them better."
        )
    if account.tail_seconds > LONG_TAIL * generation:
        return (
            f"Bounded by the tail: for the last {account.tail_seconds:.1f} of {generation:.1f} s of generation every "
            f"sample had begun and the run waited for the longest; engines idled {account.idle_share:.0%} of their time."
        )
    batch = account.mean_batch or 0.0
    return (
        f"Bounded by decoding: the engines decoded for {1 - account.idle_share:.0%} of their time, {batch:.0f} sequences "
        f"at once on average; more or faster {'cores' if account.on_cpu else 'GPUs'} would shorten it."
    )


def account_lines(account: SessionAccount) -> list[str]:
    """Return printed lines: one per engine, at most MOST_LINES, and one for all engines."""
    lines = [
        f"{name}: {e.tokens_per_second:,.0f} tokens/s, starting {e.starting_seconds:.1f} s, decoding "
        f"{e.decoding_seconds:.1f} s, idle {e.idle_seconds:.1f} s"
        for name, e in list(account.engines.items())[:MOST_LINES]
    ]
    if (more := len(account.engines) - MOST_LINES) > 0:
        lines.append(f"and {more} more engines, which stand in events.jsonl")
    hits, batch = account.cache_hit_rate, account.mean_batch
    if hits is not None and batch is not None:
        lines.append(f"prefix cache hits {hits:.0%}, mean batch {batch:.0f}, preemptions {account.preemptions}")
    return lines


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return value
