"""What a run will take before it is started: trajectories, engines, memory, time, money and disk, with what is in its way.

Owns that arithmetic and its lines for people. It looks at nothing: planning.py brings the facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Arm
from rollout_ray.core.redaction import escape_controls
from rollout_ray.sizing.hardware import Layout
from rollout_ray.sizing.throughput import Rates

ASSUMED_SHARE = 0.5  # of max_tokens, where nothing is known of the outputs' length
BYTES_PER_TOKEN = 1.6  # of a trajectory's text, reasoning and answer in compressed parquet
COMMITTED_PER_S = 6000.0  # trajectories that are scored, written and merged (2 cores, one scorer)


@dataclass(frozen=True)
class Prompts:
    """Lengths in tokens of `counted` prompts with their arms' system prompts, in order of size; `too_long` of them leave no
    room for an output. `exact` is unset where they were guessed from the characters."""

    lengths: Sequence[int]
    counted: int
    too_long: int
    longest_allowed: int
    exact: bool = True

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths) if self.lengths else 0.0

    def quantile(self, share: float) -> int:
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))] if self.lengths else 0


@dataclass(frozen=True)
class Plan:
    """What a run will take. Seconds, GPU-hours, dollars and the speed are None where they are not known; `unknown_gpu` is
    the name of a GPU without a data sheet here."""

    name: str
    questions: int
    graded: bool
    arms: Sequence[Arm]
    prompts: Prompts
    engines: int
    gpus: int
    placed: str
    layout: Layout | None
    rates: Rates | None
    output_tokens: float
    assumed: bool
    part_files: int
    disk_bytes: float
    price_per_hour: float | None
    unknown_gpu: str | None = None

    @property
    def samples(self) -> int:
        return sum(arm.samples for arm in self.arms)

    @property
    def trajectories(self) -> int:
        return self.questions * self.samples

    @property
    def tokens_per_second(self) -> float | None:
        """Of all engines together."""
        rate = self.rates.tokens_per_second if self.rates else None
        return rate * self.engines if rate else None

    @property
    def generation_seconds(self) -> float | None:
        if not self.tokens_per_second or not self.rates:
            return None
        return self.trajectories * self.output_tokens / self.tokens_per_second + self.rates.tail_seconds

    @property
    def seconds(self) -> float | None:
        """From the command to the merged file."""
        generation = self.generation_seconds
        if generation is None or not self.rates:
            return None
        return self.rates.start_seconds + max(generation, self.trajectories / COMMITTED_PER_S) + self._merging()

    @property
    def gpu_hours(self) -> float | None:
        return self.seconds * self.gpus / 3600 if self.seconds is not None and self.gpus else None

    @property
    def dollars(self) -> float | None:
        return self.seconds / 3600 * self.price_per_hour if self.seconds is not None and self.price_per_hour else None

    def _merging(self) -> float:
        return 1 + 2 * self.trajectories / 100_000

    def lines(self) -> list[str]:
        """The plan for people, one fact a line."""
        prompts, arms = self.prompts, ", ".join(escape_controls(arm.name) for arm in self.arms[:12])
        counted = f"{prompts.counted:,} prompts {'tokenized' if prompts.exact else 'guessed by their characters'}"
        lines = [
            f"questions   {self.questions:,} in {escape_controls(self.name)}",
            f"arms        {len(self.arms)}: {arms}; {self.samples} draws a question, {self.trajectories:,} trajectories",
            f"prompts     {prompts.quantile(0)} to {prompts.quantile(1)} tokens, median {prompts.quantile(0.5)}, 95% below "
            f"{prompts.quantile(0.95)} ({counted})",
            f"engines     {self.placed}",
        ]
        if self.layout and self.layout.kv_tokens is not None:
            lines.append(f"memory      {self.layout.reason}")
        if self.layout:
            engine = self.layout.engine
            lines.append(
                f"batch       {engine.max_num_seqs} sequences, at most {engine.max_num_batched_tokens} tokens a step"
            )
        how = "assumed: half of max_tokens" if self.assumed else "measured"
        lines.append(f"output      {self.output_tokens:,.0f} tokens on an average ({how})")
        return lines + self._cost_lines()

    def _cost_lines(self) -> list[str]:
        speed, seconds = self.tokens_per_second, self.seconds
        lines = []
        if self.rates and speed and seconds is not None and self.generation_seconds is not None:
            lines.append(f"speed       {speed:,.0f} output tokens a second, by {self.rates.source}")
            lines.append(
                f"time        {_duration(seconds)}: starting {_duration(self.rates.start_seconds)}, generation "
                f"{_duration(self.generation_seconds)}, merging {_duration(self._merging())}"
            )
        else:
            what = self.unknown_gpu or "the CPU or for a model that is not here"
            lines.append(f"speed       not known for {what}: measure it with --probe")
        if self.gpu_hours is not None:
            lines.append(f"GPU-hours   {self.gpu_hours:.2f}")
        if self.dollars is not None:
            lines.append(f"cost        ${self.dollars:,.2f} at ${self.price_per_hour:,.2f} an hour")
        lines.append(
            f"files       about {self.part_files} part file(s) and one merged file, {_size(self.disk_bytes)} in all"
        )
        return lines

    def warnings(self) -> list[str]:
        """What will go wrong, each with what to do about it."""
        found = []
        if not self.graded:
            found.append("there is no gold answer, so nothing will be graded; name its column with --gold_key")
        if self.prompts.too_long:
            found.append(
                f"{self.prompts.too_long} of {self.prompts.counted} prompts have {self.prompts.longest_allowed} tokens or "
                "more and will be error rows; raise --max_model_len"
            )
        longest, limit = self.prompts.quantile(0.99), self.prompts.longest_allowed
        most = max(arm.max_tokens for arm in self.arms)
        if longest < limit < longest + most:
            found.append(
                f"one prompt in a hundred has {longest} tokens or more, so that fewer than max_tokens {most} fit behind "
                "it; raise --max_model_len or lower --max_tokens"
            )
        if self.layout and self.layout.unknown:
            found.append(
                f"{self.layout.unknown} is not known here, so that one GPU a replica is assumed; give "
                "--tensor_parallel_size, or download its config.json"
            )
        tokens = self.trajectories * self.output_tokens
        places = self.engines * ((self.layout.engine.max_num_seqs if self.layout else None) or 1)
        if self.layout and tokens and self.trajectories < places / 2:
            found.append(
                f"{self.trajectories:,} trajectories fill {self.trajectories / places:.0%} of the engines' places; fewer "
                "--replicas would do"
            )
        return found


def expected_output(arms: Sequence[Arm], rates: Rates | None) -> tuple[float, bool]:
    """Mean output tokens of a trajectory, and whether a part of it is assumed."""
    known = rates.mean_tokens if rates else {}
    total = sum(arm.samples * known.get(arm.name, ASSUMED_SHARE * arm.max_tokens) for arm in arms)
    return total / sum(arm.samples for arm in arms), any(arm.name not in known for arm in arms)


def files_of(cfg: RunConfig, questions: int, num_scorers: int, generation_seconds: float | None) -> int:
    """How many part files a run leaves: one for each part_rows questions or flush_seconds of a scorer, whichever is
    sooner."""
    by_rows = math.ceil(questions / cfg.output.part_rows)
    by_time = math.ceil((generation_seconds or 0) / cfg.output.flush_seconds) * num_scorers
    return max(num_scorers if questions else 0, min(questions, max(by_rows, by_time)))


def disk_of(trajectories: int, output_tokens: float, prompt_tokens: float, rates: Rates | None) -> float:
    """Bytes of parts and merged file together; by an earlier run's where it is known."""
    each = rates.bytes_per_trajectory if rates else None
    return 2 * trajectories * (each or BYTES_PER_TOKEN * output_tokens + prompt_tokens / 8 + 40)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
