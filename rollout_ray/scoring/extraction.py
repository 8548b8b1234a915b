"""Finds the final answer in a model's text: markers, thoughts, run-ons, and what is no answer.

Owns which part of a text is the answer. It does not bring it to a normal form (normal_form.py) and judges nothing
(grading.py). Every regular expression here is linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rollout_ray.core.redaction import encodable
from rollout_ray.scoring.normal_form import BOX, SNIPPET_CHARS, Answer, balanced, normalise
from rollout_ray.scoring.numbers import NUMBER, simple_fractions

TAIL_CHARS = 20_000  # the final answer is looked for in this much of the end of a text


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer of a text, None where it gives none, and the reasoning: what comes before the answer."""

    answer: Answer | None
    reasoning: str


_THINK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_RUN_ON = re.compile(r"^[ \t#*]*(?:Problem|Question)(?: \d{1,4})?[*]*:", re.MULTILINE)
_MARKER = re.compile(
    r"\\(?:boxed|fbox)[ ]?\{|####(?=\s{0,3}[^\sA-Za-z#])|<answer>"  # four hashes before a word are a heading
    r"|\bthe (?:final |correct |right |best )?answer is\b"
    r"(?!\s{1,3}(?:indeed |also |not )?(?:correct|right(?![ -](?:angle|triangle))|verified|confirmed|consistent|reasonable"
    r"|valid|wrong|exact|plausible|above)\b):?"  # which would be a judgement
    r"|\b(?:final )?answer[*_]{0,2}[ ]?:",
    re.IGNORECASE,
)
# A step's label, which is no number of the solution, or what shows that the model has begun to answer.
_LABEL_OR_BEGUN = re.compile(
    rf"^[ \t#*]{{0,9}}(?P<label>Step \d{{1,3}}\b|\d{{1,3}}[.)](?=[ \t*]{{1,5}}\S))|{_MARKER.pattern}|\d",
    re.IGNORECASE | re.MULTILINE,
)
# Bold type stands against a word on one side; x**2 and 2 ** 3 are powers.
_BOLD = re.compile(r"(?<![^\s(:$])(?:\*{2,3}|_{2,3})(?=[^\s*_])|(?<=[^\s*_])(?:\*{2,3}|_{2,3})(?![^\s.,;:!?)%])")
_DISPLAY = {"\\[": "\\]", "$$": "$$"}  # on a line of its own, and what closes it
_FENCE = re.compile(r"```[a-z]{0,10}")
_FORMULA = re.compile(
    r"\${1,2}([^$\s](?:[^$]{0,300}[^$\s])?)\${1,2}(?=[.\s])|\\\((.{1,300}?)\\\)(?=[.\s])"
)  # before more words


def extract_answer(text: str) -> Extraction:
    """Finds the final answer of a model's whole output.

    Thoughts are dropped, a run-on into another problem is cut, and the last marker wins (a box, ####, Answer:, the
    answer is, <answer>); without a marker it is the last number. A hedge, two different boxes on the last line, or a
    marker with nothing behind it is no answer.
    """
    whole = _without_run_on(encodable(text))
    said = _after_thoughts(whole)
    tail = said[-TAIL_CHARS:]
    marker = None
    for marker in _MARKER.finditer(tail):  # noqa: B007  (the last one is wanted)
        pass
    if marker is None:
        number = _last_number(tail)
        return Extraction(normalise(number, prose=True) if number else None, _strip_tags(whole).strip())
    begin = len(whole) - len(tail) + marker.start()
    reasoning = _strip_tags(whole[:begin]).rstrip().rstrip("*_").rstrip()
    return Extraction(_marked_answer(tail, marker), reasoning)


def _without_run_on(text: str) -> str:
    """Cuts where the model, having answered, starts another problem. A restatement at the start is no run-on."""
    begun = next((found for found in _LABEL_OR_BEGUN.finditer(text) if not found["label"]), None)
    header = _RUN_ON.search(text, begun.end()) if begun else None
    return text[: header.start()] if header else text


def _after_thoughts(text: str) -> str:
    """The text after the last closed thought; nothing where the last thought is never closed.

    What it returns is a suffix of `text`.
    """
    tags = list(_THINK.finditer(text))
    if not tags:
        return text
    last = tags[-1]
    return text[last.end() :] if last.group().startswith("</") else ""


def _strip_tags(text: str) -> str:
    return _THINK.sub("", text) if "<" in text else text


def _last_number(text: str) -> str | None:
    """The last number of a text, a fraction command being one; digits inside a word are none."""
    text = (simple_fractions(text) if "\\" in text else text).replace("\u2212", "-")
    found = None
    for match in NUMBER.finditer(text):
        inside = text[match.start() - 1 : match.start()].isalpha() and text[match.end() : match.end() + 1].isalpha()
        if match.group() and not inside:
            found = match.group()
    return found


def _marked_answer(tail: str, marker: re.Match[str]) -> Answer | None:
    behind = tail[marker.end() :]
    if marker.group().startswith("\\"):
        if _boxes_disagree(tail, marker.start()):
            return None
        content = balanced(behind)
    elif marker.group().lower() == "<answer>":
        content = _BOLD.sub("", re.split(r"</answer>|\Z", behind, maxsplit=1, flags=re.IGNORECASE)[0])
    else:
        content = _first_line(behind)
        if content and (formula := _FORMULA.match(content)):
            content = formula.group(1) or formula.group(2)
    if content is None or not content.strip() or len(content.strip()) > SNIPPET_CHARS:
        return None
    return normalise(content, prose=not marker.group().startswith("\\"))


def _first_line(text: str) -> str | None:
    """The first line that says something, without bold type; display maths or a code fence on lines of its own is one."""
    lines = [line for line in (_BOLD.sub("", line).strip(" \t*_") for line in text.splitlines()) if line]
    if not lines:
        return None
    closing = _DISPLAY.get(lines[0]) or ("```" if _FENCE.fullmatch(lines[0]) else None)
    if closing is None:
        return lines[0]
    end = lines.index(closing, 1) if closing in lines[1:] else 2
    return " ".join(lines[1:end])


def _boxes_disagree(tail: str, last_start: int) -> bool:
    line_start = tail.rfind("\n", 0, last_start) + 1
    contents = [balanced(tail[box.end() :]) for box in BOX.finditer(tail, line_start)]
    forms = [normalise(c) for c in contents if c is not None]
    return len({form and (form.text, form.number) for form in forms}) > 1
