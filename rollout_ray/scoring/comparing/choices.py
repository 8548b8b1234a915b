"""Compare multiple choices by their letters or by their texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rollout_ray.scoring.comparing.verdict import Decision, settled
from rollout_ray.scoring.normal_form import normalise
from rollout_ray.scoring.reading.answer import Answer, comparable

Decide = Callable[[Answer, Answer], Decision]


def compare_choices(gold: Answer, answer: Answer, decide: Decide) -> Decision | None:
    """Decide on a choice: by letter, by its text, or by both if both sides give both."""
    gold_letter, letter = _letter(gold), _letter(answer)
    if gold_letter and letter:
        texts = [comparable(a.chosen) for a in (gold, answer) if a.chosen]
        return settled(gold_letter == letter and len(set(texts)) < 2, "letters of a choice")
    if gold_letter and gold.chosen:
        return _chosen(gold.chosen, answer, decide) if not answer.several else None
    if gold_letter:
        return settled(False, "the gold is the letter of a choice") if answer.choice or answer.number is not None else None
    if letter and answer.chosen and not gold.several:
        return decide(gold, chosen) if (chosen := _as_answer(answer.chosen)) else None
    return None


def _chosen(chosen: str, answer: Answer, decide: Decide) -> Decision | None:
    gold = _as_answer(chosen)
    return decide(gold, answer) if gold else None


def _as_answer(text: str) -> Answer | None:
    found = normalise(text)
    return replace(found, choice=None, chosen="") if found else None


def _letter(side: Answer) -> str | None:
    if side.choice:
        return side.choice
    text = comparable(side.text).upper()
    return text if len(text) == 1 and "A" <= text <= "J" and side.equation is None else None
