r"""Read numbers that are written in words: `eighteen`, `negative 5`, `two-thirds`, `3 dozen`, `half of 12`.

It reads whole numbers up to trillions, ordinals, simple fractions and products. Every regular expression is linear.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rollout_ray.scoring.reading.numbers import exact_value


def words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_UNDER_TWENTY = words_of(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = words_of("twenty thirty forty fifty sixty seventy eighty ninety")
_SMALL = {word: value for value, word in enumerate(_UNDER_TWENTY)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_IRREGULAR = {
    "first": "one",
    "second": "two",
    "third": "three",
    "fifth": "five",
    "eighth": "eight",
    "ninth": "nine",
    "twelfth": "twelve",
}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_MULTIPLES = {"twice": 2, "double": 2, "triple": 3, "thrice": 3}
_SIGNS = {"negative": -1, "minus": -1, "plus": 1, "positive": 1}
# Words that change the number beside them: it is not what the text says.
CHANGING_WORDS = frozenset(
    words_of(
        "not no never neither nor none cannot without except unless or either between maybe perhaps possibly wrong "
        "incorrect least most less fewer more than under over above below almost nearly times squared cubed factorial "
        "power root log remainder mod modulo minus negative plus increase decrease increased decreased out ratio percent "
        "false if versus vs loss loses lost third thirds dozen dozens"
    )
) | frozenset((*_UNDER_TWENTY[2:], *_TENS, *_SCALES, *_PARTS, *_MULTIPLES))
_WORD = re.compile(r"[A-Za-z]{2,20}|[^\s-]{1,60}|-")
_DIGITS_ORDINAL = re.compile(r"(\d{1,9})(?:st|nd|rd|th)")


def spoken_number(text: str) -> tuple[Fraction, str] | None:
    """Return the number that a text begins with and the rest of the text.

    Return None if the text does not begin with a number that needs words: `18 eggs` is not for this module.
    """
    words = [word for match in _WORD.finditer(text[:300]) if (word := match.group()) != "-"]
    if words and words[0].lower() in ("a", "an", "the") and len(words) > 1:
        words = words[1:]
    for taken in range(min(len(words), 12), 0, -1):
        value = _value([word.lower().rstrip(",") for word in words[:taken]])
        if value is not None:
            return value, " ".join(words[taken:])
    return None


def _value(words: list[str]) -> Fraction | None:
    """Return the value of a list of lower-case words that is a number as a whole."""
    head = words[0]
    if head in _SIGNS and len(words) > 1:
        value = _value(words[1:]) or _plain(words[1:])
        return None if value is None else _SIGNS[head] * value
    if head in _MULTIPLES and len(words) > 1:
        return _product(Fraction(_MULTIPLES[head]), words[1:])
    if "and" in words[1:-1] and words[-1] in _PARTS:  # two and a half
        whole = words[: words.index("and")]
        ahead, part = _value(whole) or _plain(whole), _value([w for w in words[words.index("and") + 1 :] if w != "a"])
        return ahead + part if ahead is not None and part is not None and part < 1 else None
    if "of" in words[1:]:
        part = _value(words[: words.index("of")])
        return _product(part, words[words.index("of") + 1 :]) if part is not None and part < 1 else None
    if "times" in words[1:]:
        left = words[: words.index("times")]
        factor = _value(left) or _plain(left)
        return _product(factor, words[words.index("times") + 1 :]) if factor is not None else None
    if words[-1] in ("dozen", "dozens") and len(words) > 1:
        return _product(Fraction(12), [word for word in words[:-1] if word != "a"] or ["one"])
    if words == ["dozen"]:
        return Fraction(12)
    return _ordinal(words) if (value := _cardinal(words)) is None else value


def _product(factor: Fraction, words: list[str]) -> Fraction | None:
    value = (_value(words) or _plain(words)) if words else None
    return None if value is None else factor * value


def _plain(words: list[str]) -> Fraction | None:
    return exact_value(words[0]) if len(words) == 1 else None


def _cardinal(words: list[str]) -> Fraction | None:
    """Return the value of `two thousand three hundred and five`. Return None if another word is among them."""
    total = 0
    group = 0
    previous = ""
    for word in words:
        if word in _SMALL:
            value, below = _SMALL[word], group % 100
            if below and (value >= 10 or below < 20 or below % 10):
                return None
            group += value
        elif word == "hundred" and group:
            group *= 100
        elif word in _SCALES and group:
            total += group * _SCALES[word]
            group = 0
        elif word != "and" or previous not in _SCALES:
            return None
        previous = word
    return None if previous == "and" else Fraction(total + group)


def _ordinal(words: list[str]) -> Fraction | None:
    """Return 7 for `seventh` and `7th`, 2/3 for `two thirds`, 1/2 for `half`."""
    if len(words) == 1 and (match := _DIGITS_ORDINAL.fullmatch(words[0])):
        return Fraction(int(match.group(1)))
    bottom = _PARTS.get(words[-1]) or _ordinal_value(words[-1])
    if bottom is None:
        return None
    if len(words) == 1:
        return Fraction(1, bottom) if words[0] in _PARTS else Fraction(bottom)
    top = _cardinal(words[:-1])
    if top is not None and top >= 20 and top % 10 == 0 and bottom < 10 and not words[-1].endswith("s"):
        return top + bottom  # twenty first
    return None if top is None else top / bottom


def _ordinal_value(word: str) -> int | None:
    word = word.removesuffix("s") if word.endswith(("ths", "rds", "nds")) else word
    base = _IRREGULAR.get(word)
    if base is None and word.endswith("th"):
        base = word.removesuffix("th")
        base = base.removesuffix("ie") + "y" if base.endswith("ie") else base
    return _SMALL.get(base) or _SCALES.get(base) if base else None
