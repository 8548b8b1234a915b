"""Finds the final answer in a model's text and brings it to a normal form that can be compared exactly.

Owns the rules of what counts as an answer (markers, run-ons, hedging) and of when two plain numbers are one. It does
not judge symbolic equality (grading.py does, in child processes). Every regular expression here is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

SNIPPET_CHARS = 300  # longest answer that is looked at; a final answer longer than this is not one
TAIL_CHARS = 20_000  # the final answer is looked for in this much of the end of a text
_MAX_EXPONENT = 300  # beyond it a number such as 1e999999999 would fill the memory when written out


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer: `text` in normal form; `number` its exact value where it is a plain number.

    `percent` says that a percent sign was dropped from `number`; `several` that the text lists more than one value.
    """

    text: str
    number: Fraction | None = None
    percent: bool = False
    several: bool = False


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer of a text, None where it gives none, and the reasoning: what comes before the answer."""

    answer: Answer | None
    reasoning: str


_THINK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_RUN_ON = re.compile(r"^[ \t#*]*(?:Problem|Question)(?: \d{1,4})?[*]*:", re.MULTILINE)
_MARKER = re.compile(
    r"\\(?:boxed|fbox)[ ]?\{|####(?=\s{0,3}[^\sA-Za-z#])|<answer>"  # four hashes before a word are a heading
    r"|\bthe (?:final )?answer is\b:?|\b(?:final )?answer[*_]{0,2}[ ]?:",
    re.IGNORECASE,
)
_MARKER_OR_DIGIT = re.compile(rf"{_MARKER.pattern}|\d", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)[ ]?\{")
# A number as it stands in running text. The sign counts only where it does not follow a digit, word or bracket.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-+])?(?:\d{1,3}(?:,\d{3}){1,20}(?![\d,])|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{1,300})?"
    r"(?:[eE][-+]?\d{1,4}(?![\w.]))?(?:[ ]?/[ ]?\d{1,100}(?![\d.,]?\d))?"
)
_HEDGE = re.compile(r"\b(?:or|either|between|and)\b|\\text\{ ?(?:or|and) ?\}", re.IGNORECASE)
_ONLY_SEPARATORS = re.compile(r"^[\s,;&$]*$")
_RANGE = re.compile(r"^\s*(?:-|–|—|to)\s*$")


def extract_answer(text: str) -> Extraction:
    """Finds the final answer of a model's whole output.

    Thoughts are dropped, a run-on into another problem is cut, and the last marker wins (a box, ####, Answer:, the
    answer is, <answer>); without a marker it is the last number. A hedge, two different boxes on the last line, or a
    marker with nothing behind it is no answer.
    """
    whole = _without_run_on(text)
    said = _after_thoughts(whole)
    tail = said[-TAIL_CHARS:]
    marker = None
    for marker in _MARKER.finditer(tail):  # noqa: B007  (the last one is wanted)
        pass
    if marker is None:
        number = _last_number(tail)
        return Extraction(normalise(number, prose=True) if number else None, _strip_tags(whole).strip())
    begin = len(whole) - len(tail) + marker.start()
    reasoning = _strip_tags(whole[:begin]).rstrip().rstrip("*_").rstrip()
    return Extraction(_marked_answer(tail, marker), reasoning)


def _without_run_on(text: str) -> str:
    """Cuts where the model, having answered, starts another problem. A restatement at the start is no run-on."""
    begun = _MARKER_OR_DIGIT.search(text)
    header = _RUN_ON.search(text, begun.end()) if begun else None
    return text[: header.start()] if header else text


def _after_thoughts(text: str) -> str:
    """The text after the last closed thought; nothing where the last thought is never closed.

    What it returns is a suffix of `text`.
    """
    tags = list(_THINK.finditer(text))
    if not tags:
        return text
    last = tags[-1]
    return text[last.end() :] if last.group().startswith("</") else ""


def _strip_tags(text: str) -> str:
    return _THINK.sub("", text) if "<" in text else text


def _last_number(text: str) -> str | None:
    found = None
    for match in _NUMBER.finditer(text):
        if match.group():
            found = match.group()
    return found


def _marked_answer(tail: str, marker: re.Match[str]) -> Answer | None:
    behind = tail[marker.end() :]
    if marker.group().startswith("\\"):
        if _boxes_disagree(tail, marker.start()):
            return None
        content = _balanced(behind)
    elif marker.group().lower() == "<answer>":
        content = re.split(r"</answer>|\Z", behind, maxsplit=1, flags=re.IGNORECASE)[0]
    else:
        lines = (line.strip(" \t*_") for line in behind.splitlines())
        content = next((line for line in lines if line), None)
    if content is None or not content.strip() or len(content.strip()) > SNIPPET_CHARS:
        return None
    return normalise(content, prose=not marker.group().startswith("\\"))


def _balanced(text: str) -> str | None:
    """The text up to the brace that closes the one just opened; None where it is never closed."""
    depth = 1
    for position, char in enumerate(text[: 2 * SNIPPET_CHARS]):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:position]
    return None


def _boxes_disagree(tail: str, last_start: int) -> bool:
    line_start = tail.rfind("\n", 0, last_start) + 1
    contents = [_balanced(tail[box.end() :]) for box in _BOX.finditer(tail, line_start)]
    forms = {normalise(c) for c in contents if c is not None}
    return len(forms) > 1


_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_FRACTION_COMMAND = re.compile(r"\\[dt]?frac\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|mathbf|operatorname)\s?\{([^{}]{0,200})\}")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|!\s?)|\\q?quad\b|\\(?:left|right)(?![a-zA-Z])|[$€£¥₹]|\\\$|\{,\}(?=\d)")
_FRAME = "*`\"' "
_ASSIGNMENT = re.compile(r"^[a-zA-Z]\s{0,3}=\s{0,3}(?=\S)")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3}){1,100}|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{0,300})?"
_PLAIN = re.compile(rf"^([-+]?)\s?({_DECIMAL})(?:[eE]([-+]?\d{{1,4}}))?$")
_QUOTIENT = re.compile(r"^([-+]?)\s?(?:(\d{1,100})\s{1,3})?(\d{1,100})\s?/\s?(\d{1,100})$")
_TIMES_TEN = re.compile(rf"^([-+]?{_DECIMAL})\s?(?:x|×|\*|\\times|\\cdot)\s?10\s?\^\s?\{{?\s?([-+]?\d{{1,4}})\s?\}}?$")


def normalise(raw: str, prose: bool = False) -> Answer | None:
    """The normal form of an answer as it was written; None for what is empty, too long or hedged.

    In `prose` a closing exclamation mark is one; elsewhere it is a factorial.

    A plain number loses separators, currency, units and trailing zeros and gets an exact value. Anything else keeps its
    text, tidied, for a symbolic comparison.
    """
    text = _tidy(raw)
    if prose:
        text = text.rstrip("!")
    if not text or len(text) > SNIPPET_CHARS:
        return None
    if number := _number_form(text):
        return number
    if "=" in text and "\\" not in text:
        return normalise(text.rpartition("=")[2]) or Answer(text)
    matches = [m for m in _NUMBER.finditer(text) if m.group()]
    between = [text[a.end() : b.start()] for a, b in pairwise(matches)]
    if any(_HEDGE.search(gap) for gap in between):
        return None
    listed = any(_ONLY_SEPARATORS.match(gap) or _RANGE.match(gap) for gap in between)
    if matches and not listed and "\\" not in text and _reads_as_quantity(text, matches):
        return _number_form(matches[0].group()) or Answer(text)
    return Answer(text, several=listed)


def _reads_as_quantity(text: str, numbers: list[re.Match[str]]) -> bool:
    """Whether words surround one leading or single number: `72 clips in 2 months`, `a total of 72 dollars`."""
    words = _NUMBER.sub(" ", text)
    if re.search(r"[\^*+<>|(){}\[\]_~]", words):
        return False
    first = numbers[0]
    return bool(re.search(r"[^\W\d]{2}", words)) and (len(numbers) == 1 or first.start() == 0)


def _tidy(raw: str) -> str:
    """Unicode and LaTeX spellings brought to plain ones; what merely frames an answer taken off."""
    text = _THIN_SEPARATOR.sub("", _VULGAR.sub(" ", raw[: 4 * SNIPPET_CHARS]))
    text = unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2044: "/", 0x066C: ",", 0x2019: "'"})
    if box := _BOX.search(text):
        text = _balanced(text[box.end() :]) or text
    text = _SPACING.sub("", text)
    text = _TEXT_COMMAND.sub(lambda m: " " + m.group(1).strip() + " ", text)
    text = _FRACTION_COMMAND.sub(lambda m: f" {m.group(1) or m.group(2)}/{m.group(3) or m.group(4)} ", text)
    text = re.sub(r"\\%", "%", text)
    text = re.sub(r"\^\s?\{?\s?(?:\\circ|°)\s?\}?|°", "", text)
    text = " ".join(text.split())
    text = text.strip(_FRAME).rstrip(".,;:").strip(_FRAME)
    return _ASSIGNMENT.sub("", text)


def _number_form(text: str) -> Answer | None:
    """The answer of a text that is one plain number, with or without a percent sign; None for any other text."""
    percent = text.endswith("%")
    value = _value(text[:-1].rstrip() if percent else text)
    return None if value is None else Answer(_canonical(value), value, percent)


def _value(text: str) -> Fraction | None:
    if plain := _PLAIN.match(text):
        sign, digits, exponent = plain.groups()
        power = int(exponent or 0)
        if not digits or abs(power) > _MAX_EXPONENT:
            return None
        value = Fraction(digits.replace(",", "").rstrip(".") or "0") * Fraction(10) ** power
        return -value if sign == "-" else value
    if quotient := _QUOTIENT.match(text):
        sign, whole, top, bottom = quotient.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
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
