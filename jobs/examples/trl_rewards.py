"""Example of reward functions with TRL's signature: completions and columns come as lists."""

from __future__ import annotations

from typing import Any

MOST_WORDS = 200


def contains_gold(completions: list[str], gold_answer: list[str], **kwargs: Any) -> list[float]:
    """Return 1 for each completion that contains the gold answer, else 0."""
    return [float(gold in completion) for completion, gold in zip(completions, gold_answer, strict=True)]


def brevity(completions: list[str], **kwargs: Any) -> list[float]:
    """Return 1 for an empty completion, falling to 0 at MOST_WORDS words."""
    return [max(0.0, 1.0 - len(completion.split()) / MOST_WORDS) for completion in completions]
