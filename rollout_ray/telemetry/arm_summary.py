"""Sum up the trajectories of each arm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc


@dataclass
class ArmSummary:
    """Sums over the trajectories of one arm. Ratios are None if nothing was graded or rewarded.

    `only_text` is a digest of the output, if all outputs are the same text.
    """

    trajectories: int = 0
    tokens: int = 0
    graded: int = 0
    correct: int = 0
    rewarded: int = 0
    reward_sum: float = 0.0
    truncated: int = 0
    only_text: str | None = None

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.graded if self.graded else None

    @property
    def mean_reward(self) -> float | None:
        return self.reward_sum / self.rewarded if self.rewarded else None

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.trajectories if self.trajectories else 0.0

    def combine(self, other: ArmSummary) -> None:
        """Add the counts of `other`."""
        if not self.trajectories:
            self.only_text = other.only_text
        elif other.trajectories and self.only_text != other.only_text:
            self.only_text = None
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTERS = tuple(f.name for f in fields(ArmSummary) if f.name != "only_text")


def by_arm(flat: pa.Table) -> Iterator[tuple[str, ArmSummary]]:
    """Yield the sums over trajectories by arm."""
    truncated = pc.cast(pc.equal(flat.column("finish_reason"), "length"), pa.int64())
    sums = (
        flat.append_column("truncated", truncated)
        .append_column("right", pc.cast(flat.column("correct"), pa.int64()))
        .group_by("arm", use_threads=False)
        .aggregate(
            [
                ("num_tokens", "count"),
                ("num_tokens", "sum"),
                ("right", "count"),
                ("right", "sum"),
                ("reward", "count"),
                ("reward", "sum"),
                ("truncated", "sum"),
                ("num_tokens", "min"),
                ("num_tokens", "max"),
            ]
        )
    )
    for row in sums.to_pylist():
        one_length = row["num_tokens_min"] == row["num_tokens_max"]
        yield (
            row["arm"],
            ArmSummary(
                trajectories=row["num_tokens_count"],
                tokens=row["num_tokens_sum"],
                graded=row["right_count"],
                correct=row["right_sum"] or 0,
                rewarded=row["reward_count"],
                reward_sum=row["reward_sum"] or 0.0,
                truncated=row["truncated_sum"],
                only_text=_only_text(flat, row["arm"]) if one_length else None,
            ),
        )


def _only_text(flat: pa.Table, arm: str) -> str | None:
    """Return a digest of the text, if all trajectories of the arm in `flat` have the same text."""
    texts = pc.unique(flat.filter(pc.equal(flat.column("arm"), arm)).column("full_text"))
    return hashlib.blake2b(texts[0].as_py().encode(), digest_size=8).hexdigest() if len(texts) == 1 else None
