"""Tell ratios, numerals with a base, and texts that can be mathematics. Every regular expression is linear."""

from __future__ import annotations

import math
import re

RATIO = re.compile(r"^(\d{1,30})\s?(?::|to)\s?(\d{1,30})(?:\s?(?::|to)\s?(\d{1,30}))?$")


def ratio(text: str) -> tuple[int, ...] | None:
    """Return the terms of a ratio such as 2:4 in lowest terms; a time of day such as 12:05 keeps its own."""
    if not (match := RATIO.match(text)):
        return None
    terms = [term for term in match.groups() if term]
    common = 1 if any(len(term) > 1 and term[0] == "0" for term in terms) else math.gcd(*map(int, terms))
    return tuple(int(term) // (common or 1) for term in terms)


_IN_BASE = re.compile(r"^(-?[\dA-Fa-f]{1,200})\s?_\s?\{?\s?(\d{1,2})\s?\}?$")


def based(text: str) -> tuple[str, str] | None:
    """Return the digits and the base of a numeral that names its base, such as 35_8."""
    return (match.group(1).upper(), match.group(2)) if (match := _IN_BASE.match(text)) else None


_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[a-zA-Z]{1,20}\*?\}")
_WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{3,}")
_FUNCTIONS = frozenset(
    f"{arc}{name}{h}" for arc in ("", "arc", "a") for name in ("sin", "cos", "tan", "cot", "sec", "csc") for h in ("", "h")
) | frozenset(("log", "exp", "sqrt", "abs", "infinity", "infty", "inf", "max", "min", "gcd", "lcm", "det", "mod", "cbrt"))
_NO_VALUE = re.compile(r"/ ?0(?![\d.])|\\frac\s?\{[^{}]{0,100}\}\s?\{\s?0\s?\}")
_QUANTIFIER = re.compile(r"[∀∃…]|\.\.\.|\\(?:forall|exists|[lc]?dots[cbm]?)(?![a-z])")


def worth_parsing(text: str) -> bool:
    """Return whether a text can be mathematics: no words in it but functions, no quantifier, no dots, no division by 0."""
    if _QUANTIFIER.search(text) or _NO_VALUE.search(text) or (text.isalpha() and len(text) > 2):
        return False
    words = [word for word in _WORD.findall(_ENVIRONMENT.sub("", text)) if word.lower() not in _FUNCTIONS]
    if any(len(word) > 3 for word in words) or len(words) > 2:
        return False
    return any(c.isdigit() or c == "\\" for c in text) or len(text) <= 40
