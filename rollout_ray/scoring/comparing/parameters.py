"""Rename a free parameter: `n\\pi` for the gold's `k\\pi`."""

from __future__ import annotations

import re
from dataclasses import replace

from rollout_ray.scoring.reading.answer import Answer

_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")


def renamed(gold: Answer, answer: Answer) -> Answer | None:
    """Return the answer with the gold's letter for a parameter, such as n for k in `n\\pi`. Return None if none is one."""
    ours, theirs = (_letters(side) for side in (gold, answer))
    stated = gold.parameters | answer.parameters
    periodic = all("\\pi" in side.text or "°" in side.text for side in (gold, answer)) and (ours | theirs) <= set("kmnt")
    if len(ours) != 1 or len(theirs) != 1 or ours == theirs or not (stated & (ours | theirs) or periodic):
        return None
    (wanted,), (letter,) = ours, theirs
    pattern = re.compile(rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])")
    values = tuple(replace(value, text=pattern.sub(wanted, value.text)) for value in answer.values)
    return replace(answer, text=pattern.sub(wanted, answer.text), values=values, parameters=frozenset())


def _letters(side: Answer) -> set[str]:
    texts = [value.text for value in side.values] or [side.text]
    return {letter for text in texts for letter in _LETTERS.findall(text)} - {"i", "e"}
