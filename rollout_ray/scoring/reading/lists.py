r"""Split an answer into its values: lists, labelled values, tuples, sets of points, and both signs of `\pm`.

It splits texts and reads no value. Every regular expression is linear.
"""

from __future__ import annotations

import re
from itertools import product

_SEPARATOR = re.compile(
    r" {0,3}(?:;|,(?!\d{3}(?!\d))|(?<=[^\d]),|,(?=\d{3}(?!\d))(?<=[a-z)],)) {0,3}(?:(?:and|or)\b {0,3})?"
    r"| {1,3}(?:and|or|alternatively) {1,3}"
    r"| {0,3}\\(?:lor|land|vee|wedge)(?![a-z]) {0,3}",
    re.IGNORECASE,
)
_OPENING, _CLOSING = "([{", ")]}"
_HEDGE = re.compile(
    r"^(?:maybe|perhaps|possibly|alternatively|or|either|potentially|probably|else)\b,? {0,3}", re.IGNORECASE
)
_OR = re.compile(r"\bor\b|\\lor|\\vee", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])|±|\+/-|\+-")
_OR_ASIDE = re.compile(r"^([^()]{1,100}) \(?(?:or|i\.e\.,?|that is,?|=)\s([^()]{1,100})\)$")
MAX_VALUES = 24


def split_values(text: str) -> tuple[list[str], bool]:
    """Return the parts of a text between separators outside all brackets, and whether an `or` is among these."""
    if aside := _OR_ASIDE.match(text):
        return [aside.group(1), aside.group(2)], True
    parts = []
    begin = 0
    by_or = False
    depths = _depths(text)
    for separator in _SEPARATOR.finditer(text):
        if separator.start() < begin or depths[separator.start()] > 0:
            continue
        parts.append(text[begin : separator.start()])
        by_or = by_or or bool(_OR.search(separator.group()))
        begin = separator.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()], by_or


def _depths(text: str) -> list[int]:
    depths = []
    depth = 0
    for char in text:
        if char in _CLOSING:
            depth -= 1
        depths.append(depth)
        if char in _OPENING:
            depth += 1
    return depths


def without_hedge(part: str) -> tuple[str, bool]:
    """Return a part without the `maybe` before it, and whether there was one."""
    shorter = _HEDGE.sub("", part)
    return shorter, shorter != part


def both_signs(text: str) -> list[str]:
    r"""Return the texts that `\pm` stands for, every sign free, `\mp` the opposite of the first; else the text alone."""
    signs = list(_PLUS_MINUS.finditer(text))
    if not 0 < len(signs) <= 3:
        return [text]
    opposite = [match.group() == "\\mp" for match in signs]
    free = len(signs) - sum(opposite)
    found = []
    for choice in product("+-", repeat=max(free, 1)):
        chosen = iter(choice)
        expanded, begin = "", 0
        for match, flips in zip(signs, opposite, strict=True):
            sign = ("-" if choice[0] == "+" else "+") if flips else next(chosen)
            ahead = expanded + text[begin : match.start()]
            bare = sign == "+" and (not ahead.strip() or ahead.rstrip()[-1] in "([{,=")
            expanded = ahead + ("" if bare else sign)
            begin = match.end()
        found.append((expanded + text[begin:]).strip())
    return found


def tuple_values(text: str) -> list[str] | None:
    """Return the entries of `(a, b)`. Return None for any other text."""
    return _entries(text, "(", ")")


def set_values(text: str) -> list[str] | None:
    r"""Return the entries of `\{a, b\}`. Return None for any other text."""
    return _entries(text, "\\{", "\\}") or _entries(text, "{", "}")


def _entries(text: str, opening: str, closing: str) -> list[str] | None:
    if not (text.startswith(opening) and text.endswith(closing)) or "|" in text or "\\mid" in text:
        return None
    inner = text[len(opening) : -len(closing)]
    depths = _depths(inner)
    if not inner.strip() or min(depths) < 0:
        return None
    parts, _ = split_values(inner)
    return parts if len(parts) > 1 or opening == "\\{" else None
