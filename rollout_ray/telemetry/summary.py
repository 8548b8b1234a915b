"""Summarize a run: counts, accuracy and reward by arm, and speed.

Reads scored rows as the merge yields them. Computes no score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rollout_ray.core.records import TOKEN_COLUMNS
from rollout_ray.core.redaction import escape_controls, shorten
from rollout_ray.telemetry.arm_summary import ArmSummary, by_arm
from rollout_ray.telemetry.bottleneck import SessionAccount, account_lines
from rollout_ray.telemetry.error_reasons import TOO_MANY, add_reasons, count_reasons, errors_sentence

if TYPE_CHECKING:
    from rich.table import Table

GRADED = ("correct", "incorrect", "no_answer")  # statuses of a known grade
ARM_HEADINGS = ("arm", "trajectories", "accuracy", "mean reward", "mean tokens", "truncated")


@dataclass
class Summary:
    """A run in numbers. Counts cover the whole run; seconds and speed cover this session.

    Attributes:
        tokens: Output tokens.
        errors: Trajectories without an output, or whose grade or reward failed, by reason.
        failures: Trajectories whose grade or reward failed, by reason.
        unrewarded: Trajectories without a reward, by score status.
        bad_golds: Questions with a gold answer that the grader cannot read.
        bad_gold: One such gold answer.
        generation_seconds: From the first accepted request to the last output.
        account: Figures of the engines, and time by phase.
        bound_by: One sentence on the phase that took the time.
        reward_rule: One sentence on what is paid.
    """

    questions: int = 0
    trajectories: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    arms: dict[str, ArmSummary] = field(default_factory=dict)
    score_status: Counter[str] = field(default_factory=Counter)
    finish_reason: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    unrewarded: Counter[str] = field(default_factory=Counter)
    bad_golds: int = 0
    bad_gold: str = ""
    s_wm_sum: float = 0.0
    total_seconds: float = 0.0
    generation_seconds: float = 0.0
    session_tokens: int = 0
    engine_deaths: int = 0
    account: SessionAccount = field(default_factory=SessionAccount)
    bound_by: str = ""
    reward_rule: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Return the output tokens per second of this session, or None if it generated nothing."""
        return self.session_tokens / self.generation_seconds if self.generation_seconds and self.session_tokens else None

    @property
    def reward_returned_none(self) -> bool:
        """Return whether a custom reward gave no reward for a known grade."""
        return any(status in self.unrewarded for status in GRADED)

    @property
    def error_rows(self) -> int:
        """Return how many trajectories have no output, or could not be graded for an error."""
        return max(self.finish_reason["error"], self.score_status["error"])

    @property
    def too_many_errors(self) -> bool:
        """Return whether the run is of no use: more than half of its trajectories are errors that a rescore leaves."""
        ungraded = self.score_status["error"] - self.failures.total()
        return max(self.finish_reason["error"], ungraded) > TOO_MANY * self.trajectories

    @property
    def null_rewards(self) -> int:
        return self.trajectories - sum(arm.rewarded for arm in self.arms.values())

    def add(self, rows: pa.Table, gold_of: Callable[[int], object] | None = None) -> None:
        """Add rows of PART_SCHEMA.

        Args:
            rows: The rows.
            gold_of: Returns the gold answer of a row by its number. None: no example of a bad one is kept.
        """
        self.questions += rows.num_rows
        self.s_wm_sum += pc.sum(rows.column("s_wm")).as_py() or 0.0
        lists = rows.column("trajectories").combine_chunks()
        flat = pa.Table.from_struct_array(lists.flatten())
        flat = flat.drop_columns([name for name in flat.column_names if name in TOKEN_COLUMNS])  # what follows copies rows
        self.trajectories += flat.num_rows
        self.prompt_tokens += pc.sum(flat.column("num_prompt_tokens")).as_py() or 0
        self.score_status.update(flat.column("score_status").to_pylist())
        self.finish_reason.update(flat.column("finish_reason").to_pylist())
        add_reasons(self.errors, count_reasons(flat.column("error").to_pylist()))
        scoring = flat.column("error").filter(pc.not_equal(flat.column("finish_reason"), "error"))
        add_reasons(self.failures, count_reasons(scoring.to_pylist()))
        self.unrewarded.update(flat.column("score_status").filter(pc.is_null(flat.column("reward"))).to_pylist())
        bad = pc.unique(pc.list_parent_indices(lists).filter(pc.equal(flat.column("score_status"), "bad_gold")))
        self.bad_golds += len(bad)
        if len(bad) and gold_of and not self.bad_gold:
            self.bad_gold = repr(shorten(str(gold_of(bad[0].as_py())), 60))
        for arm, new in by_arm(flat):
            self.arms.setdefault(arm, ArmSummary()).combine(new)
            self.tokens += new.tokens

    def combine(self, other: Summary) -> None:
        """Add the counts of `other`. Seconds do not change."""
        self.questions += other.questions
        self.trajectories += other.trajectories
        self.tokens += other.tokens
        self.prompt_tokens += other.prompt_tokens
        self.s_wm_sum += other.s_wm_sum
        self.score_status.update(other.score_status)
        self.finish_reason.update(other.finish_reason)
        add_reasons(self.errors, other.errors)
        add_reasons(self.failures, other.failures)
        self.unrewarded.update(other.unrewarded)
        self.bad_golds += other.bad_golds
        self.bad_gold = self.bad_gold or other.bad_gold
        for name, theirs in other.arms.items():
            self.arms.setdefault(name, ArmSummary()).combine(theirs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, including the ratios."""
        arms = {
            name: {
                "trajectories": arm.trajectories,
                "accuracy": arm.accuracy,
                "mean_reward": arm.mean_reward,
                "mean_tokens": arm.mean_tokens,
                "truncated": arm.truncated,
            }
            for name, arm in self.arms.items()
        }
        counted = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **counted,
            "arms": arms,
            "account": self.account.to_dict(),
            "score_status": dict(self.score_status),
            "finish_reason": dict(self.finish_reason),
            "errors": dict(self.errors),
            "failures": dict(self.failures),
            "unrewarded": dict(self.unrewarded),
            "tokens_per_second": self.tokens_per_second,
            "null_rewards": self.null_rewards,
        }


def summary_table(summary: Summary) -> Table:
    """Return the summary by arm as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{summary.questions} questions, {summary.trajectories} trajectories")
    table.add_column(ARM_HEADINGS[0])
    for heading in ARM_HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for name, arm in summary.arms.items():
        table.add_row(Text(escape_controls(name)), *arm_cells(arm))
    return table


def arm_cells(arm: ArmSummary) -> tuple[str, ...]:
    """Return the cells of an arm for ARM_HEADINGS, without its name."""
    return (
        str(arm.trajectories),
        _percent(arm.accuracy),
        _number(arm.mean_reward),
        f"{arm.mean_tokens:.0f}",
        str(arm.truncated),
    )


def summary_lines(summary: Summary) -> list[str]:
    """Return the rest of the summary as sentences."""
    lines = [
        "score status: " + _counts(summary.score_status),
        "finish reason: " + _counts(summary.finish_reason),
    ]
    if summary.error_rows:
        lines.append(errors_sentence(summary.error_rows, summary.trajectories, summary.errors))
    if unrewarded := summary.unrewarded:
        unknown = f"the grade is unknown ({_counts(unrewarded)})"
        why = "the reward function returned None" if summary.reward_returned_none else unknown
        lines.append(f"{unrewarded.total()} trajectories have no reward: {why}")
    if summary.bad_golds:
        example = f", such as {summary.bad_gold}" if summary.bad_gold else ""
        lines.append(f"{summary.bad_golds} of {summary.questions} gold answers cannot be read{example}")
    if summary.tokens_per_second:
        lines.append(
            f"{summary.session_tokens} output tokens in {summary.generation_seconds:.1f} s of generation "
            f"({summary.tokens_per_second:,.0f} tokens/s); {summary.total_seconds:.1f} s in all"
        )
        lines += account_lines(summary.account)
    if summary.bound_by:
        lines.append(summary.bound_by)
    return lines


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
