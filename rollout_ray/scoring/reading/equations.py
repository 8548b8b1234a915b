r"""Split equations and tell what their left side is: a name, the thing asked, arithmetic, or a constraint.

Every regular expression is linear.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"\\?[A-Za-z]{1,30}(?:\^\{?-1\}?)?(?:_(?:\{[^{}]{1,20}\}|\w))?'{0,2}(?:\([a-z](?:, ?[a-z]){0,3}\))?:?")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,30}(?![A-Za-z])")
_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=\d)")
_ARITHMETIC = re.compile(r"(?:\\(?:times|cdot|div|frac|sqrt|approx)(?![a-zA-Z])|[^A-Za-z\\])*")
_LABELLED = re.compile(r"^([A-Za-z\\][A-Za-z_{}\d ]{0,30}?(?:\([^()]{1,12}\))?)\s?(?:=|:|\bis\b)\s?(.{1,200})$")
_FUNCTIONS = r"\\?(?:sin|cos|tan|cot|sec|csc|ln|log|det|tr|deg|gcd|lcm|max|min|arg|Re|Im)"
# m+n, 100m+n, |AB|, f(3), P(X>2), \sin\theta, \angle ABC, a_{10}
_ASKED = re.compile(
    r"(?:10{0,3})?[A-Za-z](?:\s?[+·*]\s?(?:10{0,3})?[A-Za-z]){1,5}"
    r"|\\?\|[^|=]{1,30}\\?\||[A-Za-z]{1,3}\([^()=]{1,30}\)|[A-Z]{2,3}"
    rf"|{_FUNCTIONS}\s?(?:\\?[A-Za-z]{{1,7}}|\([^()=]{{1,20}}\)|\{{[^{{}}]{{1,20}}\}})"
    r"|\\?(?:angle|triangle|overline|vec|area|mathbb)\s?\{?\s?\\?[A-Za-z ]{1,20}\}?|\[[A-Z]{2,6}\]"
)


def sides(text: str) -> list[str]:
    """Return the parts of a text between its equals signs, those inside braces (a sum's limits) apart."""
    found = []
    depth = 0
    begin = 0
    for position, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == "=" and depth <= 0:
            found.append(text[begin:position].strip())
            begin = position + 1
    return [*found, text[begin:].strip()]


def is_name(side: str) -> bool:
    r"""Return whether a side only names a value: `x`, `f(x)`, `\theta_1`, `(x, y)`, `total cost`."""
    if side.startswith("(") and side.endswith(")"):
        side = side[1:-1].replace(",", " ")
    return bool(side) and all(_NAME.fullmatch(word) for word in side.split())


def is_asked(side: str) -> bool:
    r"""Return whether a side is a quantity that a question may ask for: `m+n`, `|AB|`, `f(3)`, `\\sin\\theta`."""
    return bool(_ASKED.fullmatch(side.strip()))


def is_arithmetic(side: str) -> bool:
    """Return whether a side has no unknowns: numbers and operators, and words such as units."""
    words = _WORD.findall(side)
    if any(len(word) < 3 and word.lower() not in _SHORT_UNITS for word in words):
        return False
    return bool(_ARITHMETIC.fullmatch(_TIMES.sub("*", _WORD.sub("", side))))


_SHORT_UNITS = frozenset(
    ("m", "cm", "mm", "km", "dm", "g", "kg", "mg", "ml", "l", "lb", "oz", "ft", "in", "yd", "mi", "s", "h")
)


def labelled(part: str) -> tuple[str, str] | None:
    """Return the label and the value of `a = 1`, `Maximum = 2` or `T(10) = 2`. Return None for any other text."""
    found = sides(part)
    if len(found) == 2 and (is_name(found[0]) or is_asked(found[0])) and found[1]:
        return found[0].strip(), found[1]
    match = _LABELLED.match(part) if ":" in part and "=" not in part and "\\" not in part else None
    return (match.group(1).strip(), match.group(2).strip()) if match and len(match.group(1)) < 20 else None
