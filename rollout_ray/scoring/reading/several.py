r"""Read the several values of an answer: a list, a tuple, a set of points, labelled values, both signs of `\pm`.

Each value is read by the function that is passed in (normal_form.py). Every regular expression is linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rollout_ray.scoring.reading.answer import Answer
from rollout_ray.scoring.reading.equations import labelled, sides
from rollout_ray.scoring.reading.lists import MAX_VALUES, both_signs, set_values, split_values, tuple_values, without_hedge

Read = Callable[[str], Answer | None]


def read_several(text: str, prose: bool, read: Read) -> Answer | None:
    r"""Return the answer of a list, a tuple, a set of points or `\pm`; None for a text that lists nothing."""
    if "\\begin" in text:
        return None
    ordered, points = tuple_values(text), set_values(text)
    parts = ordered or points
    by_or = False
    signs_free = [part for whole in (parts or [text]) for part in both_signs(whole)]
    if ordered and len(signs_free) > len(ordered):  # (\pm 1, 2) is two tuples
        return _of_values(text, both_signs(text), read)
    if parts is None:
        parts, by_or = split_values(text)
    if len(parts) > MAX_VALUES:
        return Answer(text, several=True)
    expanded = [part for whole in parts for part in both_signs(whole)]
    if ordered or points:
        return _of_values(text, expanded, read, ordered=bool(ordered))
    if len(expanded) < 2:
        return None
    hedged = any(without_hedge(part)[1] for part in expanded)
    expanded = [without_hedge(part)[0] for part in expanded]
    if prose and len(sides(expanded[0])) > 1 and not any(map(labelled, expanded[1:])) and not _is_short(expanded[1:]):
        return None  # f(x) = 2x, where x is
    return _of_values(text, expanded, read, by_or=by_or or hedged)


def _is_short(parts: list[str]) -> bool:
    return all(len(part.split()) < 4 for part in parts)


def _of_values(text: str, parts: list[str], read: Read, ordered: bool = False, by_or: bool = False) -> Answer | None:
    """Return the answer of a text with these parts. Return None if they are no values but clauses of a sentence."""
    labels, texts = _labels(parts)
    values = [answer for part in texts if (answer := read(part)) is not None]
    if len(values) < len(parts):
        return Answer(text, several=True)
    if not all(map(_is_value, values)):
        counted = sum(part[:1].isdigit() for part in parts)
        return Answer(text, several=True) if counted > 1 else None
    points = text.startswith(("\\{", "{"))
    forms = {(answer.text, answer.number, answer.unit): answer for answer in values}
    if not ordered and not points and (len(forms) == 1 or _all_same(values)):
        return values[0]
    if by_or and not labels:
        values = list(forms.values())
    joined = ", ".join(f"{answer.text} {answer.unit}".strip() for answer in values)
    shown = text if ordered or points or labels else joined
    return Answer(shown, several=True, values=tuple(values), labels=labels, ordered=ordered, by_or=by_or)


def _all_same(read: list[Answer]) -> bool:
    """Return whether all values are one number, some as a percentage: `3/4 or 75%`."""
    numbers = {answer.number / 100 if answer.percent and answer.number is not None else answer.number for answer in read}
    return len(read) > 1 and len(numbers) == 1 and None not in numbers and any(answer.percent for answer in read)


def _labels(parts: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels of `a = 1, b = 2` and the values; no labels where they are all the same (`x = 1 or x = 2`)."""
    pairs = [labelled(part) for part in parts]
    if any(pair is None for pair in pairs):
        first = pairs[0]
        if first and not any(pairs[1:]) and len(first[0]) == 1:
            return (), [first[1], *parts[1:]]  # x = 1, 2
        return (), parts
    found = [pair for pair in pairs if pair]
    names = tuple(name.replace(" ", "") for name, _ in found)
    if len(set(names)) == 1:
        return (), [value for _, value in found]
    if len(set(names)) < len(names):
        return (), parts
    return names, [value for _, value in found]


def _is_value(answer: Answer) -> bool:
    """Return whether an entry of a list is a value: a quantity, a formula, or at most three words."""
    if answer.number is not None or answer.values:
        return True
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,30}", answer.text)
    return len(words) <= (3 if not any(char.isdigit() for char in answer.text) else 2)
