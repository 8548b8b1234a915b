r"""Bring the Unicode and LaTeX spellings of a snippet to plain ones.

It changes how a text is written, never what it says: units, signs and words stay. Every regular expression is linear.
"""

from __future__ import annotations

import re
import unicodedata

SNIPPET_CHARS = 300  # a final answer longer than this is not one

BOX = re.compile(r"\\(?:boxed|fbox)[ ]?\{")
_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,300}")
_HTML_SCRIPT = re.compile(r"<(su[pb])>([^<>]{1,60})</su[pb]>", re.IGNORECASE)
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_INVISIBLE = dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xAD, 0))
_PLAIN_SIGNS = {0x2212: "-", 0x2044: "/", 0x066C: ",", 0x2019: "'"}
_SPECIAL_TOKEN = re.compile(r"(?<=\S)\s{0,3}<\|[^|<>]{1,40}\|>.*\Z|<\|[^|<>]{1,40}\|>", re.DOTALL)  # what follows is cut
_PHANTOM = re.compile(r"\\(?:[hv]?phantom|[hv]space\*?)\s?\{[^{}]{0,100}\}")
_ANY_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])(?:\s(?=[\d{]))?")
_PART = r"(?:\{([^{}]{1,200})\}|(\d|[a-zA-Z]|\\(?:pi|alpha|beta|theta|phi|lambda|omega)(?![a-zA-Z])))"
_SHORT_FRACTION = re.compile(rf"\\frac\s?{_PART}\s?{_PART}")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it)|mbox|operatorname)\s?\{([^{}]{0,200})\}")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:> ]|!\s?)|\\q?quad\b|\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|[$€£¥₹~]|\\\$|\{,\}(?=\d)"
)
_SPACES = frozenset(("~", "\\ ", "\\quad", "\\qquad", "\\;", "\\:", "\\>"))
_PERCENT = re.compile(r"\\%|(?<=[\d} ])[ ]{0,3}(?:percent(?:age)?|per cent|pct)\b", re.IGNORECASE)
_DEGREE = re.compile(r"\s?(?:\^\s?\{?\s?(?:\\circ|°)\s?\}?|°)\s?([CF]\b)?")
_ORDINAL = re.compile(r"(?<=\d)\s?\^\s?\{?\s?(st|nd|rd|th)\b\s?\}?")
_DASH_SIGN = re.compile(r"(?:(?<=^)|(?<=[=:( ]))[–—](?=\d)")
_TAG = re.compile(r"</?(?:answer|number)>", re.IGNORECASE)
_FRAME = "*`\"'≈ "


def tidy(raw: str) -> str:
    """Return a snippet in plain spelling, without what merely frames it."""
    text = _TAG.sub(" ", _SPECIAL_TOKEN.sub("", raw[: 4 * SNIPPET_CHARS])).translate(_INVISIBLE)
    if text.isascii() and text.replace(" ", "").isdigit():  # nearly every answer of GSM8K
        return " ".join(text.split())
    text = _HTML_SCRIPT.sub(lambda m: ("^{" if m[1].lower() == "sup" else "_{") + m[2] + "}", text)
    text = _THIN_SEPARATOR.sub("", _VULGAR.sub(" ", text))
    text = _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m.group()) + "}", text)
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN_SIGNS)
    if (box := BOX.search(text)) and (content := balanced(text[box.end() :])) is not None:
        text = content
    text = _DELIMITERS.sub(" ", _PHANTOM.sub("", text))
    text = _SPACING.sub(lambda m: " " if m.group() in _SPACES else "", text)
    text = _TEXT_COMMAND.sub(lambda m: " " + m.group(1).strip() + " ", text)
    text = _ANY_FRACTION.sub(r"\\frac", text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _ORDINAL.sub(r"\1", _PERCENT.sub("%", text))
    text = _DEGREE.sub(lambda m: "°" + (m[1] or ""), text)
    text = _DASH_SIGN.sub("-", " ".join(text.split())).strip(_FRAME)
    return text if text.endswith("...") else text.rstrip(".,;:\\。?").strip(_FRAME)


def balanced(text: str) -> str | None:
    """Return the text up to the brace that closes the one just opened. Return None if it is never closed."""
    depth = 1
    for position, char in enumerate(text[: 2 * SNIPPET_CHARS]):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:position]
    return None
