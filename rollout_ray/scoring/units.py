r"""The words that may stand around a number: units, scales such as million, dates.

Owns which words are units and what reads as a quantity. It brings no answer to its normal form (normal_form.py). Every
regular expression here is linear in the text.
"""

from __future__ import annotations

import calendar
import re

from rollout_ray.scoring.numbers import NUMBER, canonical, exact_value

UNIT = re.compile(
    r"[cmkd]?m|[km]?g|ml|hrs?|mins?|secs?|lbs?|oz|ft|in|yd|mi|mph|kph|am|pm|deg|th|st|nd|rd", re.IGNORECASE
)  # glued to a number or behind it
# The secant needs an argument: 18 sec is a time.
FUNCTION = re.compile(
    r"(?<![a-z])(?:(?:arc)?(?:(?:sin|cos|tan|cot|csc)h?|sech|sec(?=\s?(?:[\d(\\^]|[a-z](?![a-z]))))|ln|log|exp|sqrt|abs|pi)"
    r"(?![a-z])"
)
_POWER = r"(?:\s?\^\s?\{?\s?-?[1-3]\s?\}?)"
_NAME = (
    r"(?:(?:sq\.?|square|cu\.?|cubic) )?(?:[cmkd]?m|in|inch(?:es)?|ft|foot|feet|yd|yards?|mi|miles?|units?"
    r"|(?:centi|milli|kilo)?met(?:er|re)s?|[km]?g|(?:kilo)?grams?|lbs?|oz|m?[lL]|lit(?:er|re)s?|m?s|secs?|seconds?|mins?"
    r"|minutes?|h|hrs?|hours?|days?|mph|k?Hz|k?Pa|k?J|k?N|k?W|k?V|mol|rad|deg|degrees)"
)
_UNITS = rf"{_NAME}{_POWER}?(?:\s?[/ ]\s?{_NAME}{_POWER}?)?"
_TEXT_UNIT = re.compile(rf"\s{{0,3}}\\(?:text(?:rm)?|mathrm|mbox)\s?\{{\s{{0,3}}{_UNITS}\s{{0,3}}\}}{_POWER}?\.?\s{{0,3}}$")
_PLAIN_UNIT = re.compile(rf"\s{{1,3}}(?=[A-Za-z]{{2}}){_NAME}{_POWER}?\.?\s{{0,3}}$")
_VALUE_END = re.compile(r"(?:[\d})π]|\\pi|\d[a-z])$")
_IRRATIONAL = re.compile(r"(?:[-+\d./ (){}√π]|\\(?:pi|sqrt|frac)(?![a-zA-Z])){0,300}")
_SHORT_UNIT = re.compile(
    rf"(?<=\d) (?:(?:m|L|g){_POWER}?$"
    rf"|(?:[cmk]?m|mi|ft|[km]?g|m?L|J|N|W)/(?:s|sec|min|h|hr|[ck]?m|k?g|m?L){_POWER}?(?![\w^]))"
)
_UNIT_POWER = re.compile(
    r"(?<![a-zA-Z])(units?|feet|inch(?:es)?|met(?:er|re)s?|[mckd]?m|ft|in|yd|mi)\s?\^\s?\{?\s?[23]\s?\}?"
)
_OPERATOR = re.compile(r"[\^*+<>|(){}\[\]_~√×·⋅±÷]")
_OF_THE_DAY = re.compile(r"\d ?: ?\d")
_GLUED = re.compile(r"\d([^\W\d_]{1,30})")
_LETTERS = re.compile(r"[^\W\d_]{2,300}")
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(
    r"(?<![\w.,/])((?:\d{1,9} )?\d{1,9}/\d{1,9}|\d{1,3}(?:,\d{3}){1,9}|\d{1,30}(?:\.\d{1,30})?)\s?"
    r"(thousand|million|billion|trillion)s?\b",
    re.IGNORECASE,
)
_MONTH = (
    r"(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_DATE = re.compile(
    rf"(?<![A-Za-z\d])(?:{_MONTH}\.? (\d{{1,4}})(?:st|nd|rd|th)?|(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH})"
    r"(?:,? (\d{4}))?(?=[.,;)]|$)"
)


def reads_as_quantity(text: str, numbers: list[re.Match[str]]) -> bool:
    """Whether words surround one leading or single number: `72 clips in 2 months`, `a total of 72 dollars`.

    Letters glued to a number are a unit (`12cm`) or a long word; else they are factors (`3xy`).
    """
    plain = _UNIT_POWER.sub(r"\1", _SHORT_UNIT.sub(" units", text))
    words = NUMBER.sub(" ", plain)
    if _OPERATOR.search(words) or FUNCTION.search(plain) or _OF_THE_DAY.search(text) or _DATE.search(text):
        return False
    if any(len(word) < 4 and not UNIT.fullmatch(word) for word in _GLUED.findall(plain)):
        return False
    named = any(len(word) > 2 or UNIT.fullmatch(word) for word in _LETTERS.findall(words))
    return named and (len(numbers) == 1 or numbers[0].start() == 0)


def without_closing_unit(text: str) -> str:
    r"""A LaTeX text without a unit that closes it: `45 \text{ m}^2`, `36\pi\text{ cm}`, and after a root or pi `2√3 cm`."""
    if unit := _TEXT_UNIT.search(text):
        value = text[: unit.start()].rpartition("=")[2]
        if _VALUE_END.search(value) and not re.search(r"\\(?:text|mathrm|mbox)", value):
            return text[: unit.start()]
    elif unit := _PLAIN_UNIT.search(text):
        value = text[: unit.start()].rpartition("=")[2]
        if _VALUE_END.search(value) and re.search(r"[√π\\]", value) and _IRRATIONAL.fullmatch(value):
            return text[: unit.start()]
    return text


def scaled(text: str) -> str:
    """The text with `1.5 million` written as 1500000."""
    return _SCALED.sub(_product, text)


def _product(match: re.Match[str]) -> str:
    value = exact_value(match.group(1))
    return match.group() if value is None else canonical(value * 10 ** _SCALES[match.group(2).lower()])


def date(text: str) -> str | None:
    """A text that is a date, in one spelling: `20th of June` as June 20; None for any other text."""
    if not (match := _DATE.fullmatch(text)):
        return None
    month, day, day_first, month_last, year = match.groups()
    name = next(name for name in calendar.month_name[1:] if name.startswith((month or month_last)[:3]))
    return f"{name} {int(day or day_first)}" + (f", {year}" if year else "")
