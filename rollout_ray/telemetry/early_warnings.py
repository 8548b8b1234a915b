"""Warn early about a run that goes wrong, from its first scored trajectories.

Reads sums, never rows. Each warning is given once.
"""

from __future__ import annotations

from collections.abc import Iterator

from rollout_ray.telemetry.error_reasons import errors_sentence
from rollout_ray.telemetry.summary import Summary

ENOUGH = 32  # trajectories before the first warning
TRUNCATED = 0.2  # share of outputs cut off at max_tokens


class EarlyWarnings:
    """Remembers the warnings that it gave."""

    def __init__(self) -> None:
        self._given: set[tuple[str, str]] = set()

    def news(self, summary: Summary) -> list[str]:
        """Return the new warnings for the run so far, each with cause and remedy."""
        news = []
        for kind, arm, text in _findings(summary):
            if (kind, arm) not in self._given:
                self._given.add((kind, arm))
                news.append(text)
        return news


def _findings(summary: Summary) -> Iterator[tuple[str, str, str]]:
    """Yield kind, arm (or "") and sentence of every warning that applies."""
    count = summary.trajectories
    if count < ENOUGH:
        return
    if summary.too_many_errors:
        sentence = errors_sentence(summary.error_rows, count, summary.errors)
        yield "errors", "", f"{sentence}; stop the run, and correct the data or the config"
    truncated = summary.finish_reason["length"]
    if truncated > TRUNCATED * count:
        yield (
            "truncated",
            "",
            f"{truncated / count:.0%} of {count} outputs were cut off at max_tokens; raise --max_tokens, or ask for "
            "shorter answers",
        )
    unanswered = summary.score_status["no_answer"]
    if unanswered == count:
        yield (
            "answers",
            "",
            f"no answer was found in any of {count} outputs; have the prompt ask for a last line 'Answer: <number>'",
        )
    if summary.null_rewards == count and not summary.too_many_errors:  # which explain it
        statuses = ", ".join(name for name, _ in summary.score_status.most_common(2))
        look = "look at the column error of a part in OUT/parts, or at the gold answers"
        if summary.reward_returned_none:
            look = "the reward function returned None: correct it, or stop the run"
        yield "rewards", "", f"all {count} rewards are null, with score status {statuses}; {look}"
    for name, arm in summary.arms.items():
        if arm.trajectories >= ENOUGH and arm.only_text is not None:
            yield (
                "identical",
                name,
                f"all {arm.trajectories} outputs of arm {name} are the same text; check the model, its chat template and "
                "the arm's prompt",
            )
