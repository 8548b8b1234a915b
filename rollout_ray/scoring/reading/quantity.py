r"""Prove that a text is a plain quantity: one number, at most one unit or counted noun, and nothing else.

What is not proved stays a text and is compared as a whole (comparison.py). Units come from pint (units.py); a counted noun
is proved by its shape. Every regular expression is linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rollout_ray.scoring.reading.number_words import CHANGING_WORDS, spoken_number, words_of
from rollout_ray.scoring.reading.numbers import DECIMAL, NUMBER, exact_value, simple_fractions
from rollout_ray.scoring.reading.units import currency, read_unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value, and the unit as written. A `weak` unit is a bare letter glued to the number: `3m` may be 3 times m."""

    value: Fraction
    percent: bool = False
    unit: str = ""
    weak: bool = False


_NUMBER_AT_START = re.compile(
    rf"[-+]?\s?(?:\d{{1,30}} {{1,3}}(?:and )?\d{{1,30}}/\d{{1,30}}(?!\d)|{DECIMAL}(?:[eE][-+]?\d{{1,4}}(?![\w.]))?"
    r"(?: ?(?:x|×|\*|\\times|\\cdot) ?10 ?\^ ?\{? ?[-+]?\d{1,4} ?\}?)?(?: ?/ ?\d{1,100}(?![\d.,]?\d))?)"
)
_SCALED = re.compile(r"\s?(thousand|million|billion|trillion)s?\b\s?", re.IGNORECASE)
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MONEY = re.compile(r"^(?:\$(?![^$]*\$)|\\\(?\$|\$\s?\\\$|[€£¥₹])\s?(?=-?[\d.])")
_LEAD = re.compile(r"^(?:(?:a total of|in total|exactly|about|approximately|roughly|just|only)\s)", re.IGNORECASE)
_BEHIND_UNIT = re.compile(
    r" (?:old|long|tall|wide|high|deep|away|left|remaining|total|altogether|in total|in all|each|apart|more|today|now)$"
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]{0,29}(?: [A-Za-z][A-Za-z'-]{0,29}){0,4}")
_PER = re.compile(r"(?:per |/ ?|an? |each |every )(hour|day|week|month|year|minute|second|person|student|[a-z]{3,12})")
_PLURALS = frozenset(words_of("people children men women mice geese feet teeth sheep fish deer dice"))
_OPERATOR = re.compile(r"[\^*+<>≤≥≠|(){}\[\]_~√×·⋅±÷=:]")
_TOKENS = re.compile(r"[A-Za-z]{1,30}(?:'[a-z]{1,2})?")
# A number behind these words is no answer; the words of the second list behind a number make it none.
_BEFORE_NO_ANSWER = frozenset(
    words_of("to but by of from until till before after within beyond past with for in at on and")
)
_HEDGING = frozenset(
    words_of("or either maybe perhaps possibly not no never than times but wrong incorrect minus plus out off if")
)
_MODIFIER = re.compile(r" (?:at|in|over|during|from|on|with|using|by (?=[a-z]{2,20}ing\b)) ?")
_NEXT_PART = re.compile(r"(?:,? and |, ?| )(?=\d)")


def read_quantity(text: str) -> Quantity | None:
    """Return the quantity that a tidied text is as a whole. Return None for any other text."""
    plain = simple_fractions(text).strip() if "\\" in text else text
    plain = _LEAD.sub("", plain)
    if (whole := exact_value(plain)) is not None:
        return Quantity(whole)
    match = _NUMBER_AT_START.match(plain)
    if match is None or not any(char.isdigit() for char in match.group()):
        return _spoken(plain)
    value = exact_value(" ".join(match.group().replace("and ", "").split()))
    if value is None:
        return None
    rest = plain[match.end() :]
    if scaled := _SCALED.match(rest):
        value, rest = value * 10 ** _SCALES[scaled.group(1).lower()], " " + rest[scaled.end() :]
    percent = rest.lstrip().startswith("%")
    if percent:
        return None if rest.strip() != "%" else Quantity(value, True)
    if found := _with_unit(value, rest):
        return found
    return _compound(plain) or _spoken(plain)


def _spoken(text: str) -> Quantity | None:
    """Return a quantity whose number is written in words: `eighteen eggs`, `3 dozen`, `negative 5`."""
    spoken = spoken_number(text) if len(text) < 100 else None
    if spoken is None:
        return None
    value, rest = spoken
    if rest in ("percent", "%", "per cent"):
        return Quantity(value, percent=True)
    return _with_unit(value, " " + rest)


def _with_unit(value: Fraction, rest: str) -> Quantity | None:
    """Return a quantity where `rest`, the text behind the number, is nothing or one unit."""
    glued = bool(rest) and not rest[0].isspace()
    unit = rest.strip(" .")
    if not unit:
        return Quantity(value)
    if unit in ("th", "st", "nd", "rd"):
        return Quantity(value)
    if per := _PER.fullmatch(unit):
        return Quantity(value, unit=f"per {per.group(1)}")
    if len(unit) == 1 and unit.isalpha() and unit.isascii():
        return Quantity(value, unit=unit, weak=glued) if read_unit(unit) else None
    for _ in range(3):
        if read_unit(unit) or (is_noun(unit, value) and not (glued and unit.isascii() and len(unit) < 4)):
            return Quantity(value, unit=unit)
        shorter = _BEHIND_UNIT.sub("", unit)
        if shorter == unit:
            break
        unit = shorter
    return None


def is_noun(phrase: str, value: Fraction) -> bool:
    """Return whether a phrase has the shape of a counted noun: up to five words, the last of one a plural.

    No word of it may be one that changes a number (`3 dozen`, `15 squared`, `at least`).
    """
    if not phrase.isascii():  # 元, a counter word of one letter
        return len(phrase) == 1 and "\u3400" <= phrase <= "\u9fff" and phrase not in "万亿千百十半倍分角"
    phrase = phrase.replace("(s)", "s")
    if not _WORDS.fullmatch(phrase):
        return False
    words = phrase.lower().split()
    if any(word in CHANGING_WORDS or word in ("and", "to", "by", "r") for word in words):
        return False
    head = words[words.index("of") - 1] if "of" in words[1:] else words[-1]
    plural = (len(head) > 3 and head.endswith("s") and not head.endswith(("ss", "us", "is"))) or head in _PLURALS
    return plural or (value == 1 and len(head) > 2)


def _compound(text: str) -> Quantity | None:
    """Return the sum of `2 hours and 30 minutes`: parts of one dimension, each unit smaller than the one before."""
    parts = _NEXT_PART.split(text)
    if not 1 < len(parts) < 5:
        return None
    read = []
    for part in parts:
        match = _NUMBER_AT_START.match(part)
        value = exact_value(match.group().strip()) if match else None
        unit = read_unit(part[match.end() :]) if match else None
        if value is None or unit is None or not unit.scale or unit.offset:
            return None
        read.append((value, unit, part[match.end() :].strip() if match else ""))
    first = read[0][1]
    scales = [unit.scale for _, unit, _ in read]
    if any(unit.dimension != first.dimension for _, unit, _ in read) or sorted(set(scales), reverse=True) != scales:
        return None
    return Quantity(sum((value * unit.scale for value, unit, _ in read), Fraction(0)) / first.scale, unit=read[0][2])


def with_currency(raw: str, found: Quantity) -> Quantity:
    """Return the quantity with the unit of the currency sign that its raw text begins with."""
    sign = _MONEY.match(raw.strip()) if not found.percent else None
    if sign is None or (found.unit and not found.unit.startswith("per ")):
        return found
    money_unit = currency(sign.group().strip(" \\(")[-1])
    return replace(found, unit=f"{money_unit} {found.unit}".strip())


def money(raw: str) -> Quantity | None:
    """Return the amount of a text that begins with a currency sign and ends in a word about it: `$70,000 profit`."""
    text = raw.strip()
    sign = _MONEY.match(text)
    match = _NUMBER_AT_START.match(text, sign.end()) if sign else None
    if sign is None or match is None or not re.fullmatch(r" [a-z]{3,20}(?: [a-z]{2,20})?\.?", text[match.end() :]):
        return None
    if any(word in CHANGING_WORDS or word in _HEDGING for word in text[match.end() :].strip(" .").split()):
        return None
    value = exact_value(match.group().strip())
    return None if value is None else Quantity(value, unit=currency(sign.group().strip(" \\(")[-1]))


def stated_quantity(text: str) -> Quantity | None:
    """Return the quantity of a sentence with one number: `Natalia sold 72 clips altogether`.

    No word may change the number. Where the sentence has more numbers, they must stand in a modifier behind the counted
    noun: `18 eggs at 2 dollars each`.
    """
    numbers = [match for match in NUMBER.finditer(text) if match.group()]
    if not text.isascii() and (found := _among_signs(text)):
        return found
    if not numbers or "\\" in text:
        return None
    if len(numbers) > 1:
        for modifier in _MODIFIER.finditer(text, numbers[0].end(), numbers[1].start()):
            head = text[: modifier.start()]
            found = read_quantity(head) or stated_quantity(head)
            if found and (found.unit or modifier.group().strip() == "by"):
                return found
        return None
    number = numbers[0]
    ahead, behind = text[: number.start()], text[number.end() :]
    if _OPERATOR.search(ahead + behind) or (ahead and ahead[-1].isalpha()):
        return None
    words = [word.lower() for word in _TOKENS.findall(ahead)]
    words_behind = [word.lower() for word in _TOKENS.findall(behind)]
    if any(word in CHANGING_WORDS or word.endswith("n't") for word in words):
        return None
    if words and words[-1] in _BEFORE_NO_ANSWER and not ahead.rstrip().lower().endswith("total of"):
        return None
    if any(word in _HEDGING or word.endswith("n't") for word in words_behind):
        return None
    value = exact_value(number.group())
    return None if value is None else _with_longest_unit(value, behind)


_SIGNS = re.compile(r"[\u3001-\u30ff\u3400-\u9fff\uff00-\uffef]|[\s().,:-]")


def _among_signs(text: str) -> Quantity | None:
    """Return the one number of a Chinese or Japanese sentence without Latin letters and words that change a number."""
    plain = simple_fractions(text) if "\\" in text else text
    numbers = [match for match in NUMBER.finditer(plain) if match.group()]
    if len(numbers) != 1 or any(sign in plain for sign in "万亿千百十半倍分角不非"):
        return None
    around = plain[: numbers[0].start()] + plain[numbers[0].end() :]
    value = exact_value(numbers[0].group().strip())
    return Quantity(value) if value is not None and not _SIGNS.sub("", around) else None


_TAIL = re.compile(
    r"(?:in|at|on|for|from|after|before|during|over|every|each|altogether|total|left|remaining|with|by|of|that|which|who|more"
    r"|together|away|ago|as|between|among|today|now|were|was|sold|made|\w{2,15}ed|to \w{2,15})\b",
    re.IGNORECASE,
)


def _with_longest_unit(value: Fraction, behind: str) -> Quantity | None:
    """Return a quantity with the longest unit or noun that the text behind its number begins with."""
    if behind.lstrip().startswith("%"):
        return Quantity(value, percent=True) if _is_harmless(behind.lstrip(" %")) else None
    if behind and behind[0].isalpha():
        glued, _, tail = behind.partition(" ")
        return _with_unit(value, glued) if _is_harmless(tail) else None
    words = behind.rstrip(".").split()
    for count in range(min(len(words), 4), 0, -1):
        phrase = " ".join(words[:count])
        if len(phrase) > 1 and (read_unit(phrase) or is_noun(phrase, value)):
            tail = " ".join(words[count:])
            return Quantity(value, unit=phrase) if _is_harmless(tail) else None
    return Quantity(value) if _is_harmless(" ".join(words)) else None


def _is_harmless(tail: str) -> bool:
    """Return whether the words behind a quantity leave it as it is."""
    words = tail.lower().split()
    return not words or (bool(_TAIL.match(tail)) and words[0] not in CHANGING_WORDS - {"over", "more"})
