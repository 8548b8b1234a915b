"""Find the final answer in a model's text.

The last marker wins. Without a marker it is the last number. Behind the answer only a correction is read.
normal_form.py gives the answer its normal form. Every regular expression is linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rollout_ray.core.redaction import encodable
from rollout_ray.scoring.normal_form import normalise
from rollout_ray.scoring.placement.markers import LINE_MARKER, last_marker
from rollout_ray.scoring.placement.sentence import correction, without_offers
from rollout_ray.scoring.placement.turns import after_thoughts, without_run_on, without_thought_tags
from rollout_ray.scoring.reading.answer import Answer
from rollout_ray.scoring.reading.numbers import NUMBER, simple_fractions
from rollout_ray.scoring.reading.tidy import BOX, SNIPPET_CHARS, balanced

TAIL_CHARS = 20_000  # the final answer is looked for in this much of the end of a text


@dataclass(frozen=True, slots=True)
class Extraction:
    """The final answer of a text.

    Attributes:
        answer: The answer. None: the text gives none.
        reasoning: The text before the answer.
        taken: The text that was taken for the answer.
    """

    answer: Answer | None
    reasoning: str
    taken: str = ""


# Bold type stands against a word on one side; x**2 and 2 ** 3 are powers.
_BOLD = re.compile(r"(?<![^\s(:$])(?:\*{2,3}|_{2,3})(?=[^\s*_])|(?<=[^\s*_])(?:\*{2,3}|_{2,3})(?![^\s.,;:!?)%])")
_DISPLAY = {"\\[": "\\]", "$$": "$$", "$": "$", "\\(": "\\)"}
_FENCE = re.compile(r"```[a-z]{0,10}")
_FORMULA = re.compile(r"\${1,2}([^$\s](?:[^$]{0,300}[^$\s])?)\${1,2}(?=[.\s])|\\\((.{1,300}?)\\\)(?=[.\s])")
_BARE_WORDS = re.compile(r"[\sA-Za-z,.']*")
_CONDITION = re.compile(r"\b(?:when|if|where|at|for|or|and|not|than|times|by|to|of|is)\b")
_BETWEEN_BOXES = re.compile(r"[\s$,;.:{}*]|\\[\[\]()]|\\q?quad|\\text")
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z\\$])|\n")
_DENIED = re.compile(r"(?:\bnot|n't|\bnever) (?:be )?$", re.IGNORECASE)
_CHOSEN = re.compile(r"\b(?:[Oo]ption|[Cc]hoice) \(?([A-J])\)? is (?:the )?(?:correct|right|best)\b")
_THEN = re.compile(r"\}[^{}.\n]{0,40}\b(?:then|but|rather|not)\b[^{}\n]{0,30}$")
_JSON_STRING = re.compile(r"\"((?:[^\"\\]|\\.){0,400})\"")


def extract_answer(text: str) -> Extraction:
    """Find the final answer of a model's whole output.

    It drops thoughts and cuts a run-on. The last marker wins. A marker with nothing behind it gives no answer.
    """
    whole = without_run_on(encodable(text))
    said = after_thoughts(whole)
    tail = said[-TAIL_CHARS:]
    marker = last_marker(tail)
    if marker is None and "\nB: " not in tail:
        marker = LINE_MARKER.search(tail)
    if marker is None:
        return _without_marker(whole, tail)
    begin = len(whole) - len(tail) + marker.start()
    reasoning = without_thought_tags(whole[:begin]).rstrip().rstrip("*_").rstrip()
    answer, taken = _marked_answer(tail, marker)
    return Extraction(answer, reasoning, taken)


def _without_marker(whole: str, tail: str) -> Extraction:
    reasoning = without_thought_tags(whole).strip()
    if chosen := _CHOSEN.search(tail):
        return Extraction(normalise(chosen.group(1)), reasoning, chosen.group(1))
    number = _last_number(without_offers(tail))
    return Extraction(normalise(number, prose=True) if number else None, reasoning, number or "")


def _last_number(text: str) -> str | None:
    """Return the last number of a text, a fraction command being one; digits inside a word are none."""
    text = (simple_fractions(text) if "\\" in text else text).replace("\u2212", "-")
    found = None
    for match in NUMBER.finditer(text):
        inside = text[match.start() - 1 : match.start()].isalpha() and text[match.end() : match.end() + 1].isalpha()
        if match.group() and not inside:
            found = None if _DENIED.search(text[max(0, match.start() - 40) : match.start()]) else match.group()
    return found


def _marked_answer(tail: str, marker: re.Match[str]) -> tuple[Answer | None, str]:
    """Return the answer behind a marker and the text taken for it, after the corrections that follow."""
    behind = tail[marker.end() :]
    boxed = marker.group().startswith("\\")
    if boxed:
        contents = _boxes(tail, marker.start())
        content: str | None = ", ".join(contents) if contents else None
        rest = behind[len(balanced(behind) or "") :]
    elif marker.group().lower() == "<answer>":
        content = _BOLD.sub("", re.split(r"</answer>|\Z", behind, maxsplit=1, flags=re.IGNORECASE)[0])
        rest = ""
    elif marker.group().startswith('"'):
        string = _JSON_STRING.match(behind)
        content = string.group(1).replace("\\\\", "\\") if string else re.split(r"[,}\n]", behind, maxsplit=1)[0]
        rest = ""
    else:
        content = _first_line(behind.lstrip(": "))
        rest = behind
    corrected, said = correction(rest)
    if corrected:
        return (normalise(said, prose=True) if said else None), said or ""
    if content is None or not content.strip() or len(content.strip()) > SNIPPET_CHARS:
        return None, (content or "").strip()[:SNIPPET_CHARS]
    answer = normalise(content, prose=not boxed or _is_sentence(content))
    if boxed and answer and len(contents) > 1 and _THEN.search(tail[max(0, marker.start() - 100) : marker.start()]):
        answer = Answer(answer.text, several=answer.several)  # one after the other, not a list
    return answer, content.strip()


def _is_sentence(content: str) -> bool:
    return "\\" not in content and len(re.findall(r"[A-Za-z]{2,30}", content)) > 3


def _boxes(tail: str, last: int) -> list[str]:
    """Return the contents of the last box and of the boxes joined with it: those of its sentence."""
    boxes = [box for box in BOX.finditer(tail, max(0, last - 3 * SNIPPET_CHARS)) if box.start() <= last]
    found: list[str] = []
    following = last
    for box in reversed(boxes):
        content = balanced(tail[box.end() :])
        if content is None:
            return found if found else []
        end = box.end() + len(content) + 1
        between = tail[end:following] if box.start() != last else ""
        if _SENTENCE_END.search(between) and _BETWEEN_BOXES.sub("", between) not in ("or", "and"):
            break
        found.insert(0, content)
        following = box.start()
    return found if len(set(found)) > 1 else found[-1:]


def _first_line(text: str) -> str | None:
    """Return the first line that says something, without bold type; maths or code over several lines is one."""
    lines = [
        line for line in (_BOLD.sub("", line).strip(" \t*_") for line in text[: 4 * SNIPPET_CHARS].splitlines()) if line
    ]
    if not lines:
        return None
    if _FENCE.fullmatch(lines[0]):
        end = lines.index("```", 1) if "```" in lines[1:] else 2
        return " ".join(lines[1:end])
    line = lines[0]
    opening = next((sign for sign in _DISPLAY if line.startswith(sign)), None)
    if opening and (closing := _DISPLAY[opening]) not in line[len(opening) :]:
        taken = [line]
        for following in lines[1:]:
            taken.append(following)
            if closing in following:
                break
        else:
            taken = lines[:2]
        line = " ".join(taken)
    return _formula(line)


def _formula(line: str) -> str:
    """Return the formula that a line begins with where only words about it follow, else the line."""
    formula = _FORMULA.match(line)
    rest = line[formula.end() :] if formula else ""
    if formula and _BARE_WORDS.fullmatch(rest) and not _CONDITION.search(rest):
        return formula.group(1) or formula.group(2)
    return line
