"""The normal form of an answer as it was written: exact for plain numbers, tidied text for anything else.

Owns the spellings of a value (units, separators, equations that end in it) and what is a list or a hedge. It does not
find answers in texts (answers.py) and compares nothing (grading.py). Every regular expression here is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

SNIPPET_CHARS = 300  # longest answer that is looked at; a final answer longer than this is not one
_MAX_EXPONENT = 300  # beyond it a number such as 1e999999999 would fill the memory when written out


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer: `text` in normal form; `number` its exact value where it is a plain number.

    `percent` says that a percent sign was dropped from `number`; `several` that the text lists more than one value;
    `equation` is the whole of `x = text`, where the answer was written so.
    """

    text: str
    number: Fraction | None = None
    percent: bool = False
    several: bool = False
    equation: str | None = None


# A number as it stands in running text. The sign counts only where it does not follow a digit, word or bracket.
NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-+])?(?:\d{1,3}(?:,\d{3}){1,20}(?![\d,])|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{1,300})?"
    r"(?:[eE][-+]?\d{1,4}(?![\w.]))?(?:[ ]?/[ ]?\d{1,100}(?![\d.,]?\d))?"
)
BOX = re.compile(r"\\(?:boxed|fbox)[ ]?\{")
_HEDGE = re.compile(r"\b(?:or|and)\b", re.IGNORECASE)
_BRACKETING = re.compile(r"\b(?:either|between)\b", re.IGNORECASE)
_ONLY_SEPARATORS = re.compile(r"^[\s,;&]*(?:\band\b[\s,;&]*)?$", re.IGNORECASE)
_RANGE = re.compile(r"^\s*(?:–|—|to)\s*$")
_RANGE_OR_MINUS = re.compile(r"^\s*(?:-|–|—|to)\s*$")
_RELATION = re.compile(r"[<>≤≥≠]|!=|\\(?:leq?|geq?|lt|gt|neq?|leqslant|geqslant|in)(?![a-zA-Z])")

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,300}")
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_INVISIBLE = dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xAD, 0))
_PLAIN_SIGNS = {0x2212: "-", 0x2044: "/", 0x066C: ",", 0x2019: "'"}
_SPECIAL_TOKEN = re.compile(r"(?<=\S)\s{0,3}<\|[^|<>]{1,40}\|>.*\Z|<\|[^|<>]{1,40}\|>", re.DOTALL)  # what follows is cut
_ANY_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])\s?(?=[\d{])")
_SHORT_FRACTION = re.compile(r"\\frac(?:\{([^{}]{1,200})\}|(\d))(?:\{([^{}]{1,200})\}|(\d))")
_SIMPLE_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf)|mbox|operatorname)\s?\{([^{}]{0,200})\}")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|!\s?)|\\q?quad\b|\\(?:left|right)(?![a-zA-Z])|[$€£¥₹~]|\\\$|\{,\}(?=\d)")
_SPACES = frozenset(("~", "\\ ", "\\quad", "\\qquad"))
_PERCENT = re.compile(r"\\%|(?<=[\d} ])[ ]{0,3}(?:percent(?:age)?|per cent|pct)\b", re.IGNORECASE)
_DEGREE = re.compile(r"(?:\^\s?\{?\s?(?:\\circ|°)\s?\}?|°)(?:\s?[CF]\b)?")
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_ASIDE = re.compile(r" \([A-Za-z -]{3,60}\)$")  # 7 (seven)
_FRAME = "*`\"'≈ "
_DECIMAL = r"(?:\d{1,3}(?:,\d{3}){1,100}|\d{1,3}(?: \d{3}){1,100}|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{0,300})?"
_PLAIN = re.compile(rf"^([-+]?)\s?({_DECIMAL})(?:[eE]([-+]?\d{{1,4}}))?$")
_QUOTIENT = re.compile(r"^([-+]?)\s?(?:(\d{1,3}(?: \d{3}){1,30}|\d{1,100})\s{1,3})?(\d{1,100})\s?/\s?(-?\d{1,100})$")
_TIMES_TEN = re.compile(rf"^([-+]?{_DECIMAL})\s?(?:x|×|\*|\\times|\\cdot)\s?10\s?\^\s?\{{?\s?([-+]?\d{{1,4}})\s?\}}?$")


def normalise(raw: str, prose: bool = False) -> Answer | None:
    """The normal form of an answer as it was written; None for what is empty, too long or hedged.

    In `prose` a closing exclamation mark is one (elsewhere it is a factorial), `3-5` is a range (elsewhere a
    difference), and what a sentence says the answer `is` counts.

    A plain number loses separators, currency, units and trailing zeros and gets an exact value. Anything else keeps its
    text, tidied, for a symbolic comparison.
    """
    text = tidy(raw)
    if prose:
        text = _ASIDE.sub("", text.rstrip("!"))
    if not text or len(text) > SNIPPET_CHARS:
        return None
    if number := _number_form(text):
        return number
    if "=" in text and not _RELATION.search(text) and len(sides := _sides(text)) > 1:
        return _of_equation(text, sides, prose)
    plain = simple_fractions(text)
    numbers = [m for m in NUMBER.finditer(plain) if m.group()]
    between = [plain[a.end() : b.start()] for a, b in pairwise(numbers)]
    range_sign = _RANGE_OR_MINUS if prose else _RANGE
    listed = any(_ONLY_SEPARATORS.match(gap) or range_sign.match(gap) for gap in between)
    hedged = any(_HEDGE.search(gap) and not _ONLY_SEPARATORS.match(gap) for gap in between)
    if hedged or (between and _BRACKETING.search(plain)):
        return None
    if mixed := _MIXED_WITH_UNIT.match(plain):
        return _number_form(mixed.group(1)) or Answer(text)
    if numbers and not listed and "\\" not in plain:
        if _reads_as_quantity(plain, numbers):
            return _quantity(plain, numbers[0]) or Answer(text)
        if prose and " is " in plain and (said := _number_form(tidy(plain.rpartition(" is ")[2]))):
            return said
    return Answer(_comma_list(text) if listed else text, several=listed)


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which no file of ours could hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def simple_fractions(text: str) -> str:
    r"""The text with every fraction of two integers (`\frac{3}{4}`, `\frac34`) written as 3/4."""
    return _SIMPLE_FRACTION.sub(lambda m: f" {m.group(1) or m.group(2)}/{m.group(3) or m.group(4)} ", text)


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
    text = _TEXT_COMMAND.sub(lambda m: " " + m.group(1).strip() + " ", text)
    text = _ANY_FRACTION.sub(r"\\frac", text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _DEGREE.sub("", _PERCENT.sub("%", text))
    text = " ".join(text.split())
    text = text.strip(_FRAME)
    return text if text.endswith("...") else text.rstrip(".,;:\\").strip(_FRAME)


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
    if any(len(word) < 3 and not _UNIT.fullmatch(word) for word in words):
        return False
    return bool(_ARITHMETIC.fullmatch(_TIMES.sub("*", _WORD.sub("", side))))


_MIXED_WITH_UNIT = re.compile(r"^([-+]?\d{1,30} {1,3}\d{1,30}/\d{1,30}) {1,3}[A-Za-z]{2,30}\b[A-Za-z .]{0,100}$")
_OF_THE_DAY = re.compile(r"\d ?: ?\d")
_FUNCTION = re.compile(r"(?<![a-z])(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|sqrt|abs|pi)(?![a-z])")
_UNIT_POWER = re.compile(
    r"(?<![a-zA-Z])(units?|feet|inch(?:es)?|met(?:er|re)s?|[mckd]?m|ft|in|yd|mi)\s?\^\s?\{?\s?[23]\s?\}?"
)
_GLUED = re.compile(r"\d([^\W\d_]{1,30})")
_LETTERS = re.compile(r"[^\W\d_]{2,300}")
_UNIT = re.compile(r"[cmkd]?m|[km]?g|ml|hrs?|mins?|sec|lbs?|oz|ft|in|yd|mi|mph|kph|am|pm|deg|th|st|nd|rd", re.IGNORECASE)


def _reads_as_quantity(text: str, numbers: list[re.Match[str]]) -> bool:
    """Whether words surround one leading or single number: `72 clips in 2 months`, `a total of 72 dollars`.

    Letters glued to a number are a unit (`12cm`) or a long word; else they are factors (`3xy`).
    """
    plain = _UNIT_POWER.sub(r"\1", text)
    words = NUMBER.sub(" ", plain)
    if re.search(r"[\^*+<>|(){}\[\]_~]", words) or _FUNCTION.search(words) or _OF_THE_DAY.search(text):
        return False
    if any(len(word) < 4 and not _UNIT.fullmatch(word) for word in _GLUED.findall(plain)):
        return False
    named = any(len(word) > 2 or _UNIT.fullmatch(word) for word in _LETTERS.findall(words))
    return named and (len(numbers) == 1 or numbers[0].start() == 0)


def _quantity(text: str, number: re.Match[str]) -> Answer | None:
    percent = text[number.end() :].lstrip().startswith("%")
    return _number_form(number.group() + "%" * percent)


def _comma_list(text: str) -> str:
    """`19, 46, and 82` and `19 and 46` as lists between commas."""
    return re.sub(r" ?,? ?\band\b,? ", ", ", text)


def _number_form(text: str) -> Answer | None:
    """The answer of a text that is one plain number, with or without a percent sign; None for any other text."""
    text = simple_fractions(text).strip() if "\\" in text else text
    percent = text.endswith("%")
    value = _value(" ".join(text.rstrip("%").split()) if percent else " ".join(text.split()))
    return None if value is None else Answer(_canonical(value), value, percent)


def _value(text: str) -> Fraction | None:
    if plain := _PLAIN.match(text):
        sign, digits, exponent = plain.groups()
        power = int(exponent or 0)
        if not digits or abs(power) > _MAX_EXPONENT:
            return None
        value = Fraction(digits.replace(",", "").replace(" ", "").rstrip(".") or "0") * Fraction(10) ** power
        return -value if sign == "-" else value
    if quotient := _QUOTIENT.match(text):
        sign, whole, top, bottom = quotient.groups()
        if int(bottom) == 0 or (whole and not int(top) < int(bottom)):
            return None
        value = int((whole or "0").replace(" ", "")) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if scientific := _TIMES_TEN.match(text):
        mantissa, power_text = _value(scientific.group(1)), scientific.group(2)
        if mantissa is not None and abs(int(power_text)) <= _MAX_EXPONENT:
            return mantissa * Fraction(10) ** int(power_text)
    return None


def _canonical(value: Fraction) -> str:
    """72, -0.5, 1/3: a terminating decimal where there is one, else a fraction in lowest terms."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    scaled = abs(value.numerator) * 10**places // value.denominator
    digits = str(scaled).rjust(places + 1, "0")
    whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
    return ("-" if value < 0 else "") + whole + (f".{part}" if part else "")
