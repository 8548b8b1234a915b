"""Hold an answer in its normal form, and tell which texts count as the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer; `text` is its normal form, `number` its exact value where it is a plain quantity.

    `unit` is as written; `weak` where it is a letter glued to the number. `values` are the entries of a list, `ordered`
    in a tuple, each with its label in `labels` where all have one; `several` also where the entries cannot be told.
    `equation` is the whole of `x = text` and `name` its left side where that is a mere name. `choice` is the letter of a
    multiple choice and `chosen` the text behind it. `parameters` are letters that stand for any number.
    """

    text: str
    number: Fraction | None = None
    percent: bool = False
    unit: str = ""
    weak: bool = False
    several: bool = False
    values: tuple[Answer, ...] = ()
    labels: tuple[str, ...] = ()
    ordered: bool = False
    by_or: bool = False
    equation: str | None = None
    name: str = ""
    choice: str | None = None
    chosen: str = ""
    parameters: frozenset[str] = frozenset()


_CLOCK = re.compile(r"(\d{1,2}(?::\d{2}){1,2})([ap])\.?m\.?", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:[Aa]n|a|[Tt]he|[Oo]n) (?=[A-Za-z\d%. ]{3,60}$)")
_REMAINDER = re.compile(r"(?<=\d) ?[rR] ?(?=\d)")


def comparable(text: str) -> str:
    """Return an answer's text without what does not tell answers apart.

    That is spaces, the brackets of a choice, the case of words, an article, and how am and pm are written. Two answers
    of the same text in this form count as the same.
    """
    text = "".join(_REMAINDER.sub("remainder", _ARTICLE.sub("", text)).split())
    if len(text) in (2, 3) and text[-1] == ")" and (len(text) == 2 or text[0] == "("):
        text = text[-2]
    if clock_time := _CLOCK.fullmatch(text):
        return f"{clock_time.group(1)}{clock_time.group(2).lower()}m"
    return text.casefold() if text.isalpha() else text
