"""Estimate what a run takes before it starts: trajectories, engines, memory, time, money and disk.

The module computes figures, warnings and their lines for people. api/plan.py collects the facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Arm
from rollout_ray.core.redaction import escape_controls, shorten
from rollout_ray.models.prompt_report import PromptReport
from rollout_ray.sizing.hardware import Layout
from rollout_ray.sizing.throughput import Rates

ASSUMED_SHARE = 0.5  # share of max_tokens that an output of unknown length is assumed to have
BYTES_PER_TOKEN = 1.6  # text, reasoning and answer in compressed parquet
COMMITTED_PER_S = 6000.0  # trajectories scored, written and merged (measured: 2 cores, one scorer)


@dataclass(frozen=True)
class Prompts:
    """Lengths of prompts in tokens, including their arms' system prompts.

    lengths: Lengths in ascending order.
    counted: Number of prompts.
    too_long: Prompts that leave no tokens for an output.
    report: How they are worded; empty if the tokenizer is not on this machine.
    exact: False if the lengths are estimated from characters.
    """

    lengths: Sequence[int]
    counted: int
    too_long: int
    longest_allowed: int
    report: PromptReport = field(default_factory=PromptReport)
    exact: bool = True

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths) if self.lengths else 0.0

    def quantile(self, share: float) -> int:
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))] if self.lengths else 0


@dataclass(frozen=True)
class Plan:
    """Estimate of a run. Seconds, GPU-hours, dollars and speed are None if unknown.

    unknown_gpu: Name of a GPU without a known data sheet.
    budget: The budget of the run as the user gave it.
    notices: Sentences about what the config asks for and its user hardly wants.
    """

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
    budget: str | None = None
    budget_seconds: float | None = None
    notices: Sequence[str] = ()

    @property
    def samples(self) -> int:
        return sum(arm.samples for arm in self.arms)

    @property
    def trajectories(self) -> int:
        return self.questions * self.samples

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens per second of all engines together."""
        rate = self.rates.tokens_per_second if self.rates else None
        return rate * self.engines if rate else None

    @property
    def generation_seconds(self) -> float | None:
        if not self.tokens_per_second or not self.rates:
            return None
        return self.trajectories * self.output_tokens / self.tokens_per_second + self.rates.tail_seconds

    @property
    def seconds(self) -> float | None:
        """Seconds from the command to the merged file."""
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
        """Return the plan for people, one fact a line."""
        prompts = self.prompts
        arms = ", ".join(escape_controls(arm.name) for arm in self.arms[:12])
        counted = f"{prompts.counted:,} prompts {'tokenized' if prompts.exact else 'estimated from their characters'}"
        lines = [
            f"questions   {self.questions:,} in {escape_controls(self.name)}",
            f"arms        {len(self.arms)}: {arms}; {self.samples} samples a question, {self.trajectories:,} trajectories",
            f"prompts     {prompts.quantile(0)} to {prompts.quantile(1)} tokens, median {prompts.quantile(0.5)}, 95% below "
            f"{prompts.quantile(0.95)} ({counted})",
            *(f"wording     {escape_controls(note)}" for note in prompts.report.notes),
            *(f"first       {escape_controls(shorten(repr(text), 200))}" for _, text in prompts.report.first[:1]),
            f"engines     {self.placed}",
        ]
        if self.layout and self.layout.kv_tokens is not None:
            lines.append(f"memory      {self.layout.reason}")
        if self.layout:
            limits = self.layout.limits
            lines.append(
                f"batch       {limits.max_num_seqs} sequences, at most {limits.max_num_batched_tokens} tokens a step"
            )
        how = "assumed: half of max_tokens" if self.assumed else "measured"
        lines.append(f"output      {self.output_tokens:,.0f} tokens on average ({how})")
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
            what = self.unknown_gpu or "the CPU or for a model without a local config"
            lines.append(f"speed       unknown for {what}: measure it with --probe")
        if self.gpu_hours is not None:
            lines.append(f"GPU-hours   {self.gpu_hours:.2f}")
        if self.budget_seconds is not None and seconds is not None and seconds <= self.budget_seconds:
            lines.append(f"budget      {self.budget} is enough")
        if self.dollars is not None:
            lines.append(f"cost        ${self.dollars:,.2f} at ${self.price_per_hour:,.2f} an hour")
        lines.append(
            f"files       about {self.part_files} part file(s) and one merged file, {_size(self.disk_bytes)} in all"
        )
        return lines

    def warnings(self) -> list[str]:
        """Return the problems of this plan, each with its remedy."""
        found = [*self.notices, *self.prompts.report.warnings]
        if not self.graded:
            found.append("The data has no gold answer, so nothing will be graded. Name its column with --gold_key.")
        if self.prompts.too_long:
            found.append(
                f"{self.prompts.too_long} of {self.prompts.counted} prompts have {self.prompts.longest_allowed} tokens or "
                "more and will be error rows. Raise --max_model_len."
            )
        longest, limit = self.prompts.quantile(0.99), self.prompts.longest_allowed
        most = max(arm.max_tokens for arm in self.arms)
        if longest < limit < longest + most:
            found.append(
                f"One prompt in a hundred has {longest} tokens or more, so fewer than max_tokens = {most} fit after it. "
                "Raise --max_model_len or lower --max_tokens."
            )
        if self.layout and self.layout.unknown:
            found.append(
                f"{self.layout.unknown} is unknown, so the plan assumes one GPU a replica. Give "
                "--tensor_parallel_size, or download the model's config.json."
            )
        if self.rates and self.rates.caveat:
            found.append(self.rates.caveat)
        found += self._budget_warnings()
        tokens = self.trajectories * self.output_tokens
        capacity = self.engines * (self.layout.limits.max_num_seqs if self.layout else 1)
        if self.layout and tokens and self.trajectories < capacity / 2:
            found.append(
                f"{self.trajectories:,} trajectories fill {self.trajectories / capacity:.0%} of the engines' batches. "
                "Use fewer --replicas."
            )
        return found

    def _budget_warnings(self) -> list[str]:
        limit = self.budget_seconds
        seconds, generation = self.seconds, self.generation_seconds
        if limit is None or (seconds is not None and seconds <= limit):
            return []
        if seconds is None or generation is None or not self.rates:
            return [
                f"Nobody can tell whether the budget of {self.budget} is enough: the speed is unknown. Measure it with "
                "--probe."
            ]
        share = max(0.0, min(1.0, (limit - self.rates.start_seconds) / generation))
        return [
            f"The budget of {self.budget} ends the run with about {int(share * self.questions):,} of {self.questions:,} "
            f"questions. The whole run takes {_duration(seconds)}; the same command goes on after the budget."
        ]


def expected_output(arms: Sequence[Arm], rates: Rates | None) -> tuple[float, bool]:
    """Return a trajectory's mean output tokens, and whether part of it is assumed."""
    known = rates.mean_tokens if rates else {}
    total = sum(arm.samples * known.get(arm.name, ASSUMED_SHARE * arm.max_tokens) for arm in arms)
    return total / sum(arm.samples for arm in arms), any(arm.name not in known for arm in arms)


def count_part_files(cfg: RunConfig, questions: int, num_scorers: int, generation_seconds: float | None) -> int:
    """Return the number of part files of a run.

    A scorer writes one after part_rows questions or after flush_seconds, whichever comes first.
    """
    by_rows = math.ceil(questions / cfg.output.part_rows)
    by_time = math.ceil((generation_seconds or 0) / cfg.output.flush_seconds) * num_scorers
    return max(num_scorers if questions else 0, min(questions, max(by_rows, by_time)))


def estimate_disk_bytes(trajectories: int, output_tokens: float, prompt_tokens: float, rates: Rates | None) -> float:
    """Return the bytes of all part files and the merged file, by an earlier run's figures if known."""
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
