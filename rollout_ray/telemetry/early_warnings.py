"""Early warnings: what the first scored trajectories of a run say is wrong with it, while it can still be stopped.

Owns the thresholds and the sentences. It sees sums, never a row, and says each thing once.
"""

from __future__ import annotations

from collections.abc import Iterator

from rollout_ray.telemetry.summary import Summary

ENOUGH = 32  # trajectories before anything is said
TRUNCATED = 0.2  # share of outputs cut off at max_tokens


class EarlyWarnings:
    """Remembers what it has said."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def news(self, summary: Summary) -> list[str]:
        """Sentences, one of cause and one of remedy, that hold for the run so far and have not been said."""
        news = []
        for kind, arm, text in _findings(summary):
            if (kind, arm) not in self._said:
                self._said.add((kind, arm))
                news.append(text)
        return news


def _findings(summary: Summary) -> Iterator[tuple[str, str, str]]:
    """(kind, arm or nothing, sentence)."""
    count = summary.trajectories
    if count < ENOUGH:
        return
    truncated = summary.finish_reason["length"]
    if truncated > TRUNCATED * count:
        yield (
            "truncated",
            "",
            f"{truncated / count:.0%} of {count} outputs were cut off at max_tokens; raise --max_tokens, or ask for "
            "shorter answers",
        )
    unread = summary.score_status["no_answer"]
    if unread == count:
        yield (
            "answers",
            "",
            f"no answer was found in any of {count} outputs; have the prompt ask for a last line 'Answer: <number>'",
        )
    if summary.null_rewards == count:
        statuses = ", ".join(name for name, _ in summary.score_status.most_common(2))
        yield (
            "rewards",
            "",
            f"all {count} rewards are null, with score status {statuses}; look at the column error of a part in OUT/parts, "
            "or at the gold answers",
        )
    for name, arm in summary.arms.items():
        if arm.trajectories >= ENOUGH and arm.only_text is not None:
            yield (
                "identical",
                name,
                f"all {arm.trajectories} outputs of arm {name} are the same text; check the model, its chat template and "
                "the arm's prompt",
            )
