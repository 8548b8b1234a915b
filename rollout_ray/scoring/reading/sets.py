r"""Read intervals, inequalities and set-builders as one form of a set of real numbers.

A form is a tree of lists: ["interval", low, high, low_closed, high_closed] with LaTeX ends (None: infinite),
["union", ...], ["intersection", ...], ["minus", a, b], ["points", ...]. symbolic.py builds and compares the sets.
Every regular expression is linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Form = list[Any]


@dataclass(frozen=True, slots=True)
class RealSet:
    """A form; the unknown that it names, if any; `clear` where it can be nothing but a set (not a point (1, 2)); whether
    its ends have letters."""

    form: Form
    unknown: str | None
    clear: bool
    has_letters: bool


_WRITTEN = {
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "ℝ": "\\mathbb{R}",
    "<=": "\\le ",
    ">=": "\\ge ",
    "!=": "\\ne ",
    "\\leqslant": "\\le ",
    "\\geqslant": "\\ge ",
    "\\leq": "\\le ",
    "\\geq": "\\ge ",
    "\\neq": "\\ne ",
    "\\lt": "<",
    "\\gt": ">",
    "\\backslash": "\\setminus",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\vert": "|",
    "\\mid": "|",
    "\\colon": ":",
    "\\mathbf{R}": "\\mathbb{R}",
    "\\R ": "\\mathbb{R}",
}
_UNION = re.compile(r" {0,3}(?:\\cup(?![a-z])|\bor\b|\\lor(?![a-z])|\\vee(?![a-z])) {0,3}")
_INTERSECTION = re.compile(r" {0,3}(?:\\cap(?![a-z])|\band\b|\\land(?![a-z])|\\wedge(?![a-z])) {0,3}")
_MINUS = re.compile(r" {0,3}(?:\\setminus(?![a-z])|\bexcept(?: for)?\b|-(?=\s?\\\{)|,? x \\ne ) {0,3}")
_MEMBER = re.compile(r"^(?:\\?[A-Za-z]{1,7}\s?(?:\\in(?![a-z])|:)|(?:[Tt]he )?(?:domain|range|solution)(?: is|:)?)\s?")
_ALL = re.compile(r"(?:all |any )?(?:\\mathbb\s?\{\s?R\s?\}|real numbers?|reals?|x)", re.IGNORECASE)
_BUILDER = re.compile(r"^\\\{\s?(\\?[A-Za-z]{1,7})(?:\s?\\in\s?\\mathbb\s?\{\s?R\s?\})?\s?[|:]\s?(.{1,280}?)\s?\\\}$")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-z])|[<>=]")
_UNKNOWN = re.compile(r"\\?(?:[A-Za-z]|alpha|beta|theta|lambda|mu)")
_INFINITE = re.compile(r"[-+]?\s?\\infty(?![a-z])")


def read_set(text: str) -> RealSet | None:
    """Return the set that a tidied text writes. Return None for any other text."""
    if not any(mark in text for mark in "<>≤≥≠[(∞ℝ{\\") and "real" not in text:
        return None
    for written, plain in _WRITTEN.items():
        text = text.replace(written, plain)
    text = " ".join(text.split())
    unknowns: set[str] = set()
    form = _read(text, unknowns, 0)
    if form is None or len(unknowns) > 1:
        return None
    ambiguous = form[0] == "points" or (
        form[0] == "interval" and form[3] == form[4] and text[:1] in "([" and text[-1:] in ")]"
    )
    has_letters = any(re.search(r"(?<![\\A-Za-z])[A-Za-df-z](?![A-Za-z])", end) for end in _ends(form))
    return RealSet(form, next(iter(unknowns), None), not ambiguous or "\\infty" in text, has_letters)


def _ends(form: Form) -> list[str]:
    return [end for part in form[1:] for end in (_ends(part) if isinstance(part, list) else [part]) if isinstance(end, str)]


def _read(text: str, unknowns: set[str], depth: int) -> Form | None:
    text = text.strip()
    if depth > 6 or not text:
        return None
    if builder := _BUILDER.match(text):
        inner: set[str] = set()
        form = _read(builder.group(2), inner, depth + 1)
        return form if inner <= {builder.group(1)} else None
    for pattern, name in ((_UNION, "union"), (_INTERSECTION, "intersection"), (_MINUS, "minus")):
        parts = _split(text, pattern)
        if len(parts) > 1:
            forms = [_read(part, unknowns, depth + 1) or (name == "minus" and _points(part)) for part in parts]
            return [name, *forms] if all(forms) and (name != "minus" or len(parts) == 2) else None
    if _ALL.fullmatch(text):
        return ["interval", None, None, False, False] if text != "x" else None
    if (member := _MEMBER.match(text)) and member.end() < len(text):
        if "\\in" in member.group():
            unknowns.add(member.group().partition("\\in")[0].strip())
        return _read(text[member.end() :], unknowns, depth + 1)
    return _interval(text) or _relation(text, unknowns) or (_points(text[2:-2]) if text.startswith("\\{") else None)


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the parts of a text between matches outside all brackets."""
    parts = []
    begin = 0
    depth = 0
    ends = {match.start(): match.end() for match in pattern.finditer(text)}
    for position, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if position in ends and position >= begin and depth - (char in "([{") <= 0:
            parts.append(text[begin:position])
            begin = ends[position]
    return [*parts, text[begin:]]


def _interval(text: str) -> Form | None:
    if len(text) < 4 or text[0] not in "([" or text[-1] not in ")]":
        return None
    ends = _split(text[1:-1], re.compile(r"\s?,\s?"))
    if len(ends) != 2 or not all(end.strip() for end in ends) or any(_RELATION.search(end) for end in ends):
        return None
    low, high = (None if _INFINITE.fullmatch(end.strip()) else end.strip() for end in ends)
    return ["interval", low, high, text[0] == "[" and low is not None, text[-1] == "]" and high is not None]


def _relation(text: str, unknowns: set[str]) -> Form | None:
    """Return the set of `x < 2`, `2 \\le x`, `1 < x < 4`, `x = 1` or `x \\ne 3`."""
    signs = [match.group() for match in _RELATION.finditer(text)]
    terms = [term.strip() for term in _RELATION.split(text)]
    if len(signs) not in (1, 2) or len(terms) != len(signs) + 1 or not all(terms):
        return None
    if len(signs) == 2:
        return _chain(terms, signs, unknowns)
    (sign,) = signs
    if _UNKNOWN.fullmatch(terms[0]) and not _has(terms[1], terms[0]):
        unknown, end = terms
    elif _UNKNOWN.fullmatch(terms[1]) and not _has(terms[0], terms[1]):
        end, unknown = terms
        sign = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(sign, sign)
    else:
        return None
    unknowns.add(unknown)
    if sign in ("=", "\\ne"):
        return ["points", end] if sign == "=" else ["minus", ["interval", None, None, False, False], ["points", end]]
    closed = sign in ("\\le", "\\ge")
    return ["interval", None, end, False, closed] if sign in ("<", "\\le") else ["interval", end, None, closed, False]


def _chain(terms: list[str], signs: list[str], unknowns: set[str]) -> Form | None:
    low, unknown, high = terms
    if not _UNKNOWN.fullmatch(unknown) or _has(low, unknown) or _has(high, unknown):
        return None
    if set(signs) <= {">", "\\ge"}:
        low, high = high, low
        signs = ["<" if sign == ">" else "\\le" for sign in reversed(signs)]
    if not set(signs) <= {"<", "\\le"}:
        return None
    unknowns.add(unknown)
    return ["interval", low, high, signs[0] == "\\le", signs[1] == "\\le"]


def _has(text: str, unknown: str) -> bool:
    return bool(re.search(rf"(?<![A-Za-z\\]){re.escape(unknown)}(?![A-Za-z])", text))


def _points(text: str) -> Form | None:
    values = [value.strip() for value in text.strip().removeprefix("\\{").removesuffix("\\}").split(",")]
    return ["points", *values] if all(values) and not any(_RELATION.search(value) for value in values) else None
