r"""The markers that announce a final answer: `\boxed{}`, `####`, `Answer:`, `the answer is`, `<answer>`, JSON keys.

A judgement (`the answer is correct`), a denial (`the answer is not 26`) and a check (`check the answer:`) are no markers.
Every regular expression is linear.
"""

from __future__ import annotations

import re

_JUDGEMENT = (
    r"(?!\s{1,3}(?:(?:indeed |also |not )?(?:correct|right(?![ -](?:angle|triangle))|verified|confirmed|consistent"
    r"|reasonable|valid|wrong|exact|plausible|above)\b|not\b))"
)
MARKER = re.compile(
    r"(?=[\\#<TtAaFf\"*_答])(?:"  # most places of a text are left at once
    r"\\(?:boxed|fbox)[ ]?\{|####(?=\s{0,3}[^\sA-Za-z#])|<answer>"  # four hashes before a word are a heading
    r"|\bthe (?:final |correct |right |best )?(?:answers?|option|choice)(?:, [^,.\n]{1,80},)?"
    rf" (?:is|are|would be|should be|must be)\b{_JUDGEMENT}:?(?! (?:for )?[a-z]{{2,12}}ed by\b)"
    r"|\b(?:final )?(?:answers?|ans)[*_]{0,2}[ ]?:"
    r"|^#{1,6} ?(?:the )?final answer[*_ ]{0,3}$|^[*_]{2}(?:the )?final answer[.:]?[*_]{2}[ \t]{0,3}$"
    r"|\"(?:final[_ ]?)?answer\"\s{0,3}:\s{0,3}|答案(?:是|为|：|:))",
    re.IGNORECASE | re.MULTILINE,
)
_CHECKED = re.compile(r"\b(?:double-)?(?:check|verif)(?:y|ing|ying)? (?:the |our |your |my |this )?$", re.IGNORECASE)
# The last line of a worked solution (`A: 18`); where choices are listed it is one of them.
LINE_MARKER = re.compile(r"^A: (?=[^\n]{1,300}\s{0,99}\Z)", re.MULTILINE)


def last_marker(text: str) -> re.Match[str] | None:
    """Return the last marker of a text; `check the answer:` is none."""
    found = None
    for marker in MARKER.finditer(text):
        if not _CHECKED.search(text, max(0, marker.start() - 30), marker.start()):
            found = marker
    return found
