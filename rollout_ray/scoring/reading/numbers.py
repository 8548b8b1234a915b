r"""Find plain numbers in running text and give their exact values: decimals, fractions, mixed and scientific numbers.

Every regular expression here is linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

# A number as it stands in running text. The sign counts only where it does not follow a digit, word or bracket.
NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-+])?(?:\d{1,3}(?:,\d{3}){1,20}(?![\d,])|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{1,300})?"
    r"(?:[eE][-+]?\d{1,4}(?![\w.]))?(?:[ ]?/[ ]?\d{1,100}(?![\d.,]?\d))?"
)
_MAX_EXPONENT = 300  # beyond it a number such as 1e999999999 would fill the memory when written out
_SIMPLE_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))\s?(?:\{\s?(-?\d{1,100})\s?\}|(\d))")
DECIMAL = r"(?:\d{1,3}(?:,\d{3}){1,100}|\d{1,3}(?: \d{3}){1,100}|\d{1,300})?(?:(?<=\d)|(?=\.\d))(?:\.\d{0,300})?"
_PLAIN = re.compile(rf"^([-+]?)\s?({DECIMAL})(?:[eE]([-+]?\d{{1,4}}))?$")
_QUOTIENT = re.compile(r"^([-+]?)\s?(?:(\d{1,3}(?: \d{3}){1,30}|\d{1,100})\s{1,3})?(\d{1,100})\s?/\s?(-?\d{1,100})$")
_TIMES_TEN = re.compile(rf"^([-+]?{DECIMAL})\s?(?:x|×|\*|\\times|\\cdot)\s?10\s?\^\s?\{{?\s?([-+]?\d{{1,4}})\s?\}}?$")


_OVERLINED = re.compile(r"(-?)(\d{0,30})\.(\d{0,30})(?:\\(?:overline|dot|bar)\s?\{(\d{1,30})\}|\((\d{1,30})\))")
_REPEATING = re.compile(
    r"(-?)(\d{0,30})\.(\d{1,60}) ?(?:\((?:repeating|recurring)\)|repeating|recurring|\.\.\.|…|\\[lc]?dots)"
)


def without_recurring(text: str) -> str:
    r"""Return a text with recurring decimals (`0.\overline{36}`, `0.1666...`) as fractions."""
    text = _OVERLINED.sub(lambda m: _fraction(m[1], m[2], m[3], m[4] or m[5]), text)
    return _REPEATING.sub(_repeating, text)


def _fraction(sign: str, whole: str, ahead: str, period: str) -> str:
    top = int((whole + ahead + period) or "0") - int((whole + ahead) or "0")
    return f"{sign}{Fraction(top, 10 ** len(ahead) * (10 ** len(period) - 1))}"


def _repeating(match: re.Match[str]) -> str:
    """Return a fraction where the digits show a period at their end, twice and more; else the text."""
    sign, whole, digits = match.groups()
    named = match.group().rstrip(")").endswith("ing")
    for length in range(1, len(digits) // 2 + 1):
        if digits[-length:] == digits[-2 * length : -length] and (length > 1 or len(digits) > 2 or named):
            ahead = digits[:-length]
            while ahead.endswith(digits[-length:]):
                ahead = ahead[:-length]
            return _fraction(sign, whole, ahead, digits[-length:])
    return _fraction(sign, whole, "", digits) if named else match.group()


def simple_fractions(text: str) -> str:
    r"""Return the text with every fraction of two integers (`\frac{3}{4}`, `\frac34`) written as 3/4."""
    return _SIMPLE_FRACTION.sub(lambda m: f" {m.group(1) or m.group(2)}/{m.group(3) or m.group(4)} ", text)


def exact_value(text: str) -> Fraction | None:
    """Return the value of a text that is one plain number, single spaces in it. Return None for any other text."""
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
        mantissa, power_text = exact_value(scientific.group(1)), scientific.group(2)
        if mantissa is not None and abs(int(power_text)) <= _MAX_EXPONENT:
            return mantissa * Fraction(10) ** int(power_text)
    return None


def canonical(value: Fraction) -> str:
    """Return 72, -0.5 or 1/3: a terminating decimal where there is one, else a fraction in lowest terms."""
    rest = value.denominator
    twos = 0
    fives = 0
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
