"""Find what a sentence states as the answer: its end, the comment behind it, and corrections that follow.

It reads prose only, and it values nothing (quantity.py). Every regular expression is linear.
"""

from __future__ import annotations

import re

from rollout_ray.scoring.reading.number_words import spoken_number

REST_CHARS = 2_000  # a correction is looked for in this much text behind an answer

# The end of a sentence: not behind an initial, a single letter (a choice, p.m.) or an abbreviation.
_SENTENCE_END = re.compile(
    r"(?<![ .(][A-Za-z])(?<!^[A-Za-z])(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)(?<!vs)(?<!approx)(?<!\.)[.!?](?!\.)[\"')*_$]{0,3}"
    r"(?=\s[^\s.,;:=])"
)
_FOREIGN_END = re.compile(r"[。！？；，]")
_COMMENT = re.compile(
    r"(?<=\S)(?:,? (?:because|since|i\.e\.|e\.g\.)\s"
    r"|[,;] (?:as|so|which|where|with|thus|hence|therefore|meaning|that is|it (?:can't|cannot|is not|isn't)|not|doesn't)\b"
    r"|[,;] (?:about |only |just )?\d[\d.,]{0,12}%? [a-z ]{0,20}(?:more|less|fewer|[a-z]{2,10}er) than\b"
    r"| (?:while|whereas|although|though)\b).*$"
    r"|(?<=\S) \((?:that is|i\.e\.|because|since|rounded|which|in|after|where|as)\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_WORDS_ASIDE = re.compile(r" \(([A-Za-z -]{3,60})\)")  # 7 (seven)
_CORRECTION = re.compile(
    r"(?<=[?.!,;] )no, |\b(?:wait|actually|correction|scratch that|i meant?|hold on|oops|sorry"
    r"|i made (?:a|an) (?:mistake|error)|that(?:'s| is| was) (?:wrong|incorrect|not right|not correct)"
    r"|let me (?:recheck|reconsider|redo|recalculate))\b",
    re.IGNORECASE,
)
_NEW_VALUE = re.compile(
    r"\b(?:should be|must be|it is|it's|is|equals|actually|becomes|get|gives|no,|correction:?|i meant?)\s{1,3}"
    r"((?:\$|\\\(|\\boxed\{|\*{2})?[-−]?\$?[\d.][^.!?\n]{0,80}|[^.!?\n]{1,80}$)",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(r"\b(?:yes|correct|right|indeed|confirms?|confirmed|matches|holds|stands|same)\b", re.IGNORECASE)
_OFFER = re.compile(
    r"\b(?:would you like|let me know|i hope this|hope this helps|feel free|do you want|if you (?:want|need|have|would))\b",
    re.IGNORECASE,
)
_CHECK = re.compile(
    r"^[*_#\s]{0,6}(?:check(?:ing)?\b|to (?:check|verify)|verif(?:y|ication|ying)|we (?:can|may) (?:check|verify))",
    re.IGNORECASE,
)


def first_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence."""
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def first_clause(raw: str) -> str:
    """Return a text up to the first full stop or comma of Chinese or Japanese, which no number contains."""
    return raw if raw.isascii() else _FOREIGN_END.split(raw, maxsplit=1)[0]


def without_comment(text: str) -> str:
    """Return a sentence without the reason, comparison or explanation behind its answer."""
    return _COMMENT.sub("", text).rstrip()


def without_aside(text: str) -> str:
    """Return a text without a number's words in brackets, `7 (seven)`, and without words in brackets at its end."""
    aside = _WORDS_ASIDE.search(text)
    if aside is None or re.search(r"\b(?:sin|cos|tan|log|ln|exp|sqrt|or|maybe|perhaps|not|mod)\b", aside.group(1)):
        return text
    at_end = aside.end() == len(text)
    return text[: aside.start()] + text[aside.end() :] if at_end or spoken_number(aside.group(1)) else text


def correction(rest: str) -> tuple[bool, str | None]:
    """Return whether the text behind an answer takes it back, and what it says instead (None where it says nothing)."""
    rest = rest[:REST_CHARS]
    cues = list(_CORRECTION.finditer(rest))
    if not cues:
        return False, None
    said = rest[cues[-1].start() :]
    values = list(_NEW_VALUE.finditer(said))
    if values and any(char.isdigit() for char in values[-1].group(1)):
        return True, first_sentence(values[-1].group(1))
    if _CONFIRMED.search(rest[cues[0].end() :]) and not re.search(r"\b(?:not|isn't|n't) (?:correct|right)", said):
        return False, None
    taken_back = re.search(r"\b(?:wrong|incorrect|mistake|error|not right|not correct)\b", rest[cues[0].start() :])
    return bool(taken_back), None


def without_offers(text: str) -> str:
    """Return a text without the offers and checks that close it."""
    paragraphs = re.split(r"\n\s{0,9}\n", text)
    while len(paragraphs) > 1 and (_OFFER.search(paragraphs[-1][:300]) or _CHECK.match(paragraphs[-1])):
        paragraphs.pop()
    last = paragraphs[-1]
    offer = _OFFER.search(last)
    if offer and any(char.isdigit() for char in last[: offer.start()]):
        paragraphs[-1] = last[: offer.start()]
    return "\n\n".join(paragraphs)
