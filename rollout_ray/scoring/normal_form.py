"""The normal form of an answer as it was written: exact for plain numbers, tidied text for anything else.

Owns the spellings of a value (separators, equations that end in it), what is a list or a hedge, and the form in which
answers count as the same. It does not find answers in texts (answers.py) and judges nothing (grading.py). Every regular
expression here is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from rollout_ray.scoring.numbers import NUMBER, canonical, exact_value, simple_fractions
from rollout_ray.scoring.units import FUNCTION, UNIT, date, reads_as_quantity, scaled, without_closing_unit

SNIPPET_CHARS = 300  # longest answer that is looked at; a final answer longer than this is not one


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer: `text` in normal form; `number` its exact value where it is a plain number.

    `percent` says that a percent sign was dropped from `number`; `several` that the text lists more than one value;
    `equation` is the whole of `x = text`, where the answer was written so; `choice` the letter of a multiple choice that
    the text begins with or consists of, as in `(B) 12`.
    """

    text: str
    number: Fraction | None = None
    percent: bool = False
    several: bool = False
    equation: str | None = None
    choice: str | None = None


BOX = re.compile(r"\\(?:boxed|fbox)[ ]?\{")
_HEDGE = re.compile(r"\b(?:or|and)\b", re.IGNORECASE)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_LONG_WORD = re.compile(r"(?<![A-Za-z\\])(?!and\b)[A-Za-z]{3,30}")
_NEXT_WORD = re.compile(r"\s?([A-Za-z]{2,30})")
_PARTED = re.compile(r"[,;/]\s?$")
_BRACKETING = re.compile(r"\b(?:either|between)\b", re.IGNORECASE)
_ONLY_SEPARATORS = re.compile(r"^[\s,;&]*(?:\band\b[\s,;&]*)?$", re.IGNORECASE)
_RANGE = re.compile(r"^\s*(?:–|—|to)\s*$")
_RANGE_OR_MINUS = re.compile(r"^\s*(?:-|–|—|to)\s*$")
_RELATION = re.compile(r"[<>≤≥≠]|!=|\\(?:leq?|geq?|lt|gt|neq?|leqslant|geqslant|in)(?![a-zA-Z])")

_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,300}")
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_INVISIBLE = dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xAD, 0))
_PLAIN_SIGNS = {0x2212: "-", 0x2044: "/", 0x066C: ",", 0x2019: "'"}
_SPECIAL_TOKEN = re.compile(r"(?<=\S)\s{0,3}<\|[^|<>]{1,40}\|>.*\Z|<\|[^|<>]{1,40}\|>", re.DOTALL)  # what follows is cut
_ANY_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])(?:\s(?=[\d{]))?")
_PART = r"(?:\{([^{}]{1,200})\}|(\d|[a-zA-Z]|\\(?:pi|alpha|beta|theta|phi|lambda|omega)(?![a-zA-Z])))"
_SHORT_FRACTION = re.compile(rf"\\frac\s?{_PART}\s?{_PART}")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf)|mbox|operatorname)\s?\{([^{}]{0,200})\}")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|!\s?)|\\q?quad\b|\\(?:left|right)(?![a-zA-Z])|[$€£¥₹~]|\\\$|\{,\}(?=\d)")
_SPACES = frozenset(("~", "\\ ", "\\quad", "\\qquad"))
_PERCENT = re.compile(r"\\%|(?<=[\d} ])[ ]{0,3}(?:percent(?:age)?|per cent|pct)\b", re.IGNORECASE)
_DEGREE = re.compile(r"(?:\^\s?\{?\s?(?:\\circ|°)\s?\}?|°)(?:\s?[CF]\b)?")
_TAG = re.compile(r"</?(?:answer|number)>", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"^<([^<>]{1,100})>(?![^\s.,;%])")  # of `Answer: <number>`, copied with its brackets
_REASON = re.compile(r"(?<=\S)(?:,? because|, since)\b.*$", re.IGNORECASE)
_WORDS_ASIDE = re.compile(r" \([A-Za-z -]{3,60}\)$")  # 7 (seven)
_ASIDE = re.compile(r"^([^()]{1,200}) ?\(([^()]{2,200})\)$")  # 120 minutes (2 hours)
_NO_ASIDE = re.compile(r"\b(?:or|maybe|perhaps|possibly|not|mod|base)\b|^(?:and|plus|minus)\b", re.IGNORECASE)
_FRAME = "*`\"'≈ "


def normalise(raw: str, prose: bool = False) -> Answer | None:
    """The normal form of an answer as it was written; None for what is empty, too long or hedged.

    In `prose` a closing exclamation mark is one (elsewhere it is a factorial), `3-5` is a range (elsewhere a
    difference), an aside or a reason at the end goes, `and` between values that are no plain numbers is a hedge (elsewhere
    a list), and what a sentence says the answer `is` counts.

    A plain number loses separators, currency, units and trailing zeros and gets an exact value. Anything else keeps its
    text, tidied, for a symbolic comparison.
    """
    text = tidy(raw)
    if prose:
        text = _without_asides(text)
    text = scaled(text)
    if not text or len(text) > SNIPPET_CHARS:
        return None
    answer, choice = _read(text, prose), _choice(text)
    if answer is None and choice:  # (B) 5 or 6
        answer = Answer(text, several=True)
    return replace(answer, choice=choice) if answer and answer.choice != choice else answer


def _without_asides(text: str) -> str:
    """A sentence without a placeholder's brackets around its number, a reason, and an aside behind a whole quantity."""
    text = _REASON.sub("", text.rstrip("!"))
    text = _WORDS_ASIDE.sub(lambda aside: aside.group() if FUNCTION.search(aside.group()) else "", text)
    if copied := _PLACEHOLDER.match(text):
        inner = copied.group(1)
        if _number_form(tidy(inner)) or ("," not in inner and len(_numbers(text)) < 2):
            text = tidy(inner + text[copied.end() :])
    if (aside := _ASIDE.match(text)) and re.search("[A-Za-z]{2}", aside.group(2)):
        no_aside = _NO_ASIDE.search(aside.group(2)) or FUNCTION.search(aside.group(2))
        quantity = None if no_aside else normalise(aside.group(1), prose=True)
        if quantity and quantity.number is not None:
            return aside.group(1).strip()
    return text


def _read(text: str, prose: bool) -> Answer | None:
    """The answer of a tidied text; None where it hedges."""
    if number := _number_form(text):
        return number
    if day := date(text):
        return Answer(day)
    if "=" in text and not _RELATION.search(text) and len(sides := _sides(text)) > 1:
        return _of_equation(text, sides, prose)
    plain = simple_fractions(text)
    numbers = _numbers(plain)
    between = [plain[a.end() : b.start()] for a, b in pairwise(numbers)]
    range_sign = _RANGE_OR_MINUS if prose else _RANGE
    listed = any(_ONLY_SEPARATORS.match(gap) or range_sign.match(gap) for gap in between) or _counts_alike(plain, numbers)
    values = not prose and not _LONG_WORD.search(text) and not _RELATION.search(text)  # an "and" between them is a list
    hedged = any((_OR if values else _HEDGE).search(gap) and not _ONLY_SEPARATORS.match(gap) for gap in between)
    if hedged or (between and _BRACKETING.search(plain)):
        return None
    if mixed := _MIXED_WITH_UNIT.match(plain):
        return _number_form(mixed.group(1)) or Answer(text)
    several = listed or (values and any(map(_HEDGE.search, between)))
    if numbers and not several and "\\" not in plain:
        if reads_as_quantity(plain, numbers):
            return _quantity(plain, numbers[0]) or Answer(text)
        if prose and " is " in plain and (said := _number_form(tidy(plain.rpartition(" is ")[2]))):
            return said
    return Answer(_comma_list(text) if several else text, several=several)


def _numbers(text: str) -> list[re.Match[str]]:
    return [match for match in NUMBER.finditer(text) if match.group()]


def _counts_alike(text: str, numbers: list[re.Match[str]]) -> bool:
    """Whether numbers of the same are listed: `17 eggs, 18 eggs`, `9 for Tom; 18 for Jane`."""
    ends = [*(following.start() for following in numbers[1:]), len(text)]
    gaps = [text[number.end() : end] for number, end in zip(numbers, ends, strict=False)]  # without numbers none
    words = {word and word.group(1).casefold().rstrip("s") for word in map(_NEXT_WORD.match, gaps)}
    return len(gaps) > 1 and len(words) == 1 and None not in words and all(map(_PARTED.search, gaps[:-1]))


_CHOICE = re.compile(
    r"^(?:(?:\(([A-J])\)(?![\w(^*/+=-])|([A-J])(?:[).:](?= )|\)?$))|(?:option|choice)\s?\(?([A-J])\b\)?)"
    r"(?!\s?(?:,|/|&|and|or)\s?\(?[A-J]\b)",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?<![A-Za-z])([A-J])\)")


def _choice(text: str) -> str | None:
    """The letter of a choice that a text begins with or consists of: `B) 12`, `(B)`, `Option B`; not `A mitochondrion`,
    nor of several choices."""
    match = _CHOICE.match(text)
    if match is None or len(set(_BRACKETED.findall(text))) > 1:
        return None
    return next(letter for letter in match.groups() if letter).upper()


_CLOCK = re.compile(r"(\d{1,2}(?::\d{2}){1,2})([ap])\.?m\.?", re.IGNORECASE)


def comparable(text: str) -> str:
    """An answer's text without what does not tell answers apart: spaces, the brackets of a choice, the case of words,
    and how am and pm are written. Two answers of the same text in this form count as the same."""
    text = "".join(text.split())
    if len(text) in (2, 3) and text[-1] == ")" and (len(text) == 2 or text[0] == "("):
        text = text[-2]
    if clock := _CLOCK.fullmatch(text):
        return f"{clock.group(1)}{clock.group(2).lower()}m"
    return text.casefold() if text.isalpha() else text


def votes(answers: Sequence[str | None]) -> list[str | None]:
    """Answers as they are counted against each other: each in its `comparable` form, None where there is none."""
    return [None if answer is None else comparable(answer) for answer in answers]


def balanced(text: str) -> str | None:
    """The text up to the brace that closes the one just opened; None where it is never closed."""
    depth = 1
    for position, char in enumerate(text[: 2 * SNIPPET_CHARS]):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:position]
    return None


def tidy(raw: str) -> str:
    """Unicode and LaTeX spellings brought to plain ones; what merely frames an answer taken off."""
    text = _TAG.sub(" ", _SPECIAL_TOKEN.sub("", raw[: 4 * SNIPPET_CHARS])).translate(_INVISIBLE)
    text = _THIN_SEPARATOR.sub("", _VULGAR.sub(" ", text))
    text = _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m.group()) + "}", text)
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN_SIGNS)
    if box := BOX.search(text):
        text = balanced(text[box.end() :]) or text
    text = _DELIMITERS.sub(" ", text)
    text = _SPACING.sub(lambda m: " " if m.group() in _SPACES else "", text)
    text = without_closing_unit(text)
    text = _TEXT_COMMAND.sub(lambda m: " " + m.group(1).strip() + " ", text)
    text = _ANY_FRACTION.sub(r"\\frac", text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _DEGREE.sub("", _PERCENT.sub("%", text))
    text = " ".join(text.split())
    text = text.strip(_FRAME)
    return text if text.endswith("...") else text.rstrip(".,;:\\。").strip(_FRAME)


_NAME = re.compile(r"\\?[A-Za-z]{1,30}(?:\^\{?-1\}?)?(?:_(?:\{[^{}]{1,20}\}|\w))?'{0,2}(?:\([a-z](?:, ?[a-z]){0,3}\))?:?")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,30}(?![A-Za-z])")
_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=\d)")
_COMMAND = re.compile(r"\\[a-zA-Z]{1,30}|[A-Za-z]{3,30}")
_ARITHMETIC = re.compile(r"(?:\\(?:times|cdot|div|frac|sqrt|approx)(?![a-zA-Z])|[^A-Za-z\\])*")


def _sides(text: str) -> list[str]:
    """The parts of a text between its equals signs, those inside braces (a sum's limits) apart."""
    sides, depth, begin = [], 0, 0
    for position, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == "=" and depth <= 0:
            sides.append(text[begin:position].strip())
            begin = position + 1
    return [*sides, text[begin:].strip()]


def _of_equation(text: str, sides: list[str], prose: bool) -> Answer | None:
    """`x = 5`, `12 * 6 = 72` and `2 = y` state a value, which is the answer; `2x + y = 1` is an answer of its own."""
    if _is_name(sides[-1]) and not any(_is_name(side) for side in sides[:-1]):
        sides.reverse()
    value = sides[-1]
    named = all(_is_name(side) for side in sides[:-1])
    if len(sides) == 2 and len(sides[0]) == 1 and sides[0] in _COMMAND.sub("", value):
        named = False  # x = x/2 + 5 does not say what x is
    if not value or not (named or all(_is_name(side) or _is_arithmetic(side) for side in sides)):
        return Answer(text, several="," in text, equation=text)
    answer = normalise(value, prose)
    return replace(answer, equation=text) if answer and len(sides) == 2 else answer


def _is_name(side: str) -> bool:
    """Whether a side only names a value: `x`, `f(x)`, `\\theta_1`, `(x, y)`, `total cost`."""
    if side.startswith("(") and side.endswith(")"):
        side = side[1:-1].replace(",", " ")
    return bool(side) and all(_NAME.fullmatch(word) for word in side.split())


def _is_arithmetic(side: str) -> bool:
    """Whether a side has no unknowns: numbers and operators, and words such as units."""
    words = _WORD.findall(side)
    if any(len(word) < 3 and not UNIT.fullmatch(word) for word in words):
        return False
    return bool(_ARITHMETIC.fullmatch(_TIMES.sub("*", _WORD.sub("", side))))


_MIXED_WITH_UNIT = re.compile(r"^([-+]?\d{1,30} {1,3}\d{1,30}/\d{1,30}) {1,3}[A-Za-z]{2,30}\b[A-Za-z .]{0,100}$")


def _quantity(text: str, number: re.Match[str]) -> Answer | None:
    percent = text[number.end() :].lstrip().startswith("%")
    return _number_form(number.group() + "%" * percent)


def _number_form(text: str) -> Answer | None:
    """The answer of a text that is one plain number, with or without a percent sign; None for any other text."""
    text = simple_fractions(text).strip() if "\\" in text else text
    percent = text.endswith("%")
    value = exact_value(" ".join(text.rstrip("%").split()) if percent else " ".join(text.split()))
    return None if value is None else Answer(canonical(value), value, percent)


def _comma_list(text: str) -> str:
    """`19, 46, and 82` and `19 and 46` as lists between commas."""
    return re.sub(r" ?,? ?\band\b,? ", ", ", text)
