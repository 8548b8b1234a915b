"""Read a snippet as an answer: a quantity, several values, an equation, a choice, or a text.

A number is proved to be a plain quantity (quantity.py); all else keeps its text and is compared as a whole (comparison.py).
It does not find answers in texts (extraction.py). Every regular expression here is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from rollout_ray.scoring.placement.sentence import first_clause, first_sentence, without_aside, without_comment
from rollout_ray.scoring.reading.answer import Answer, comparable
from rollout_ray.scoring.reading.equations import is_arithmetic, is_asked, is_name, sides
from rollout_ray.scoring.reading.expression_units import without_closing_unit
from rollout_ray.scoring.reading.numbers import canonical, without_recurring
from rollout_ray.scoring.reading.quantity import Quantity, money, read_quantity, stated_quantity, with_currency
from rollout_ray.scoring.reading.several import read_several
from rollout_ray.scoring.reading.tidy import SNIPPET_CHARS, tidy
from rollout_ray.scoring.reading.units import clock, date

_WORDS_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|boxed|[(\[])")
_RELATION = re.compile(
    r"[<>≤≥≠∈∀∃]|!=|\\(?:leq?|geq?|lt|gt|neq?|leqslant|geqslant|in|forall|exists|equiv|approx|to)(?![a-zA-Z])"
)
_RANGE = re.compile(r"\d\s?(?:–|—|to|-)\s?(?=[\d.])")
_BRACKETING = re.compile(r"\bbetween\b", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"^<([^<>]{1,100})>(?![^\s.,;%])")  # of `Answer: <number>`, copied with its brackets
_ASIDE = re.compile(r"^([^()]{1,200}?) ?\(([^()]{1,200})\)$")  # 120 minutes (2 hours)
_NO_ASIDE = re.compile(r"\b(?:or|maybe|perhaps|possibly|not|mod|base)\b|^(?:and|plus|minus)\b", re.IGNORECASE)
_FORMULA = re.compile(r"\b(?:sin|cos|tan|log|ln|exp|sqrt|mod)\b|[a-z]\s?[+*^]")
_YES_NO = re.compile(r"^(yes|no|true|false)(?:[,.;:!]|\s[-–—(])\s?(?=\S)", re.IGNORECASE)
_NUMBERS = r"(?:(?:any|all|some|real|arbitrary|integers?|positive|nonzero|constants?|numbers?)\s){0,4}"
_PARAMETER = re.compile(
    rf",?\s?\(?(?:for (?:any|some|all|every|each)|where|with|and)?\s?{_NUMBERS}([A-Za-z])\s?(?:\\in|∈|is an?|are|is any)\s?"
    r"(?:\\mathbb\s?\{?\s?[ZRNQ]\s?\}?|[ZRNQℤℝℕ]\b"
    r"|(?:arbitrary |real |any |positive )?(?:integers?|constants?|numbers?))\)?$"
    rf"|,?\s?\(?for (?:any|some|all|every|each)\s{_NUMBERS}([A-Za-z])\)?$"
)
_SUBJECT = re.compile(
    r"^(?:it|he|she|they|this|that|(?:the|an?) [A-Za-z]{1,20}(?: [A-Za-z]{1,20}){0,3}) (?:is|are|was|were|must be|will be)"
    r"(?: [a-z]{2,12}ing)? (?:an? |the |on )?(?=[A-Za-z]{2,20}$)",
    re.IGNORECASE,
)


def normalise(raw: str, prose: bool = False) -> Answer | None:
    """Return the normal form of an answer as it was written. Return None for a text that is empty or too long.

    In `prose` a sentence may surround the answer, a closing exclamation mark is one (elsewhere it is a factorial), and
    `3-5` is a range (elsewhere a difference).
    """
    if len(raw) < 100 and raw.isascii() and raw.isdecimal():  # nearly every answer of GSM8K
        return Answer(str(int(raw)), Fraction(int(raw)))
    text = tidy(first_clause(raw).rstrip("! ") if prose else raw)
    if not text or len(text) > SNIPPET_CHARS:
        return None
    if "." in text:
        text = without_recurring(text)
    if found := _quantity(text, raw):
        return found
    if prose:
        text = _without_frame(first_sentence(text))
    text, parameters = _without_parameters(text)
    if not text:
        return None
    letter, chosen = _choice(text)
    answer = _read(text, prose, raw)
    if letter or parameters:
        answer = replace(answer, choice=letter, chosen=chosen, parameters=parameters)
    return answer


def _quantity(text: str, raw: str = "") -> Answer | None:
    """Return the answer of a text that is a plain quantity, or a time or date."""
    if time := clock(text) or date(text):
        return Answer(time)
    found = read_quantity(text) or (money(raw) if raw else None)
    if found is None:
        return None
    formula = len(found.unit) == 1 and found.unit.isalpha() and "\\" in raw and not _WORDS_COMMAND.search(raw)
    answer = _of_quantity(with_currency(raw, found) if raw else found)
    return replace(answer, text=text, weak=True) if formula or found.weak else answer


def _of_quantity(found: Quantity) -> Answer:
    return Answer(canonical(found.value), found.value, found.percent, found.unit, found.weak)


def _without_frame(text: str) -> str:
    """Return a sentence without a placeholder's brackets around its number, its comment, and an aside at its end."""
    text = without_aside(without_comment(text))
    if copied := _PLACEHOLDER.match(text):
        inner = copied.group(1)
        if read_quantity(tidy(inner)) or ("," not in inner and len(re.findall(r"\d[\d.,]*", text)) < 2):
            text = tidy(inner + text[copied.end() :])
    return text.strip()


def _without_parameters(text: str) -> tuple[str, frozenset[str]]:
    """Return a text without the `for any integer k` at its end, and the letters that such words name."""
    letters = set()
    while match := _PARAMETER.search(text):
        if not text[: match.start()].strip():
            break
        letters.add(match.group(1) or match.group(2))
        text = text[: match.start()].rstrip(" ,;")
    return text, frozenset(letters)


def _read(text: str, prose: bool, raw: str) -> Answer:
    """Return the answer of a tidied text."""
    if found := _quantity(text, raw):
        return found
    if yes := _YES_NO.match(text):
        return Answer(yes.group(1))
    if (aside := _same_value_aside(text)) is not None:
        return aside
    if (
        not _RELATION.search(text)
        and not text.lower().startswith("between ")
        and (found := read_several(text, prose, normalise))
    ):
        return found
    if "=" in text and not _RELATION.search(text) and len(found_sides := sides(text)) > 1:
        return _of_equation(text, found_sides, prose)
    if _BRACKETING.search(text) or (prose and _RANGE.search(text) and "\\" not in text):
        return Answer(text, several=any(char.isdigit() for char in text))
    if prose and (stated := _stated(text)):
        return stated
    value, unit = without_closing_unit(text)
    if unit and value != text:
        return replace(_quantity(value) or Answer(value), unit=unit)
    return Answer(_SUBJECT.sub("", text) if prose else text)


def _stated(text: str) -> Answer | None:
    """Return the quantity that a sentence states, or what it says that something `is`."""
    if found := stated_quantity(text):
        return _of_quantity(found)
    if " is " in text or " are " in text:
        said = re.split(r" (?:is|are) ", text)[-1]
        return _quantity(tidy(said))
    return None


def _same_value_aside(text: str) -> Answer | None:
    """Return the first of two values, the second in brackets, where it is words about it: `120 minutes (2 hours)`."""
    aside = _ASIDE.match(text)
    if aside is None:
        return None
    value, again = _quantity(aside.group(1)), _quantity(aside.group(2))
    if value is None:
        return None
    if again is not None and value.number == again.number:
        return value
    words = re.search("[A-Za-z]{2}", aside.group(2)) and not _NO_ASIDE.search(aside.group(2))
    return (
        value if words and not re.search(r"\b(?:sin|cos|tan|log|ln|exp|sqrt|mod)\b|[a-z]\s?[+*^]", aside.group(2)) else None
    )


def _of_equation(text: str, found: list[str], prose: bool) -> Answer:
    """Return the answer of an equation: `x = 5`, `12 * 6 = 72` and `2 = y` state a value; `2x + y = 1` is one itself."""
    if is_name(found[-1]) and not any(is_name(side) for side in found[:-1]):
        found.reverse()
    value = found[-1]
    names = all(is_name(side) for side in found[:-1])
    if len(found) == 2 and len(found[0]) == 1 and found[0] in re.sub(r"\\[a-zA-Z]{1,30}|[A-Za-z]{3,30}", "", value):
        names = False  # x = x/2 + 5 does not say what x is
    asked = is_asked(found[0]) and all(is_arithmetic(side) for side in found[1:])
    if not value or not (names or asked or all(is_name(side) or is_arithmetic(side) for side in found)):
        return Answer(text, equation=text)
    answer = normalise(value, prose)
    if answer is None:
        return Answer(text, equation=text)
    whole = text if len(found) == 2 else f"{found[0]} = {value}"
    name = found[0] if names else ""
    return replace(answer, equation=whole, name=name, choice=None, chosen="") if len(found) == 2 or asked else answer


_CHOICE = re.compile(
    r"^(?:(?:\(([A-J])\)(?![\w(^*/+=-])|([A-J])(?:[).:](?= )|\)?$))|(?:option|choice)\s?\(?([A-J])\b\)?)"
    r"(?!\s?(?:,|/|&|and|or)\s?\(?[A-J]\b)",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?<![A-Za-z])([A-J])\)")


def _choice(text: str) -> tuple[str | None, str]:
    """Return the letter of a choice that a text begins with or consists of, and the text behind it."""
    match = _CHOICE.match(text)
    if match is None or len(set(_BRACKETED.findall(text))) > 1:
        return None, ""
    return next(letter for letter in match.groups() if letter).upper(), text[match.end() :].strip(" :.")


def votes(answers: Sequence[str | None]) -> list[str | None]:
    """Return answers as they are counted against each other: in `comparable` form, None where there is none."""
    return [None if answer is None else comparable(answer) for answer in answers]
