"""Grade each question with the grader that the config, or a column of the data, names for it.

math     compare with the gold answer as mathematics (grader.py)
choice   compare the letter of a choice; the gold is a letter, or the index or text of one of `choices`
exact    compare the text behind the last marker, or the whole answer, with the gold
regex    search the answer for the gold, a regular expression
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import DatasetError
from rollout_ray.core.records import Completion, Question
from rollout_ray.core.redaction import encodable, shorten
from rollout_ray.scoring.extraction import TAIL_CHARS, extract_answer
from rollout_ray.scoring.grader import Grade, Grader, read_gold
from rollout_ray.scoring.placement.markers import last_marker
from rollout_ray.scoring.placement.turns import after_thoughts, without_run_on

CHOICES = "choices"
_LETTER = re.compile(r"[\s*_]{0,4}[\[(]?([A-J])[\])]?[*_]{0,3}(?:[.):,]|\s{0,9}$)")
_OPTION = re.compile(r"\b(?:option|choice)\s{1,3}[\[(]?([A-J])\b", re.IGNORECASE)
_ALSO = re.compile(  # a further letter beside the first: "A, B", "(A) and (B)", "A) or B)"
    r"[\])*_.:,;\s]{0,6}(?:(?i:and|or)|/|&)?\s{0,3}(?:(?i:option|choice)\s{1,3})?[\[(]?([A-J])"
    r"(?:[\]),.;:]|\s*$|\s+(?i:and|or)\b)"
)
_CORRECTED = re.compile(r"(?:[,;]|\bno|\bis)\s{1,3}[*_]{0,3}[\[(]?([A-J])[\])*_.\s]{0,6}$")  # "A: no, B"
_LONE_CHARS = 300  # of an answer without a marker that may be a letter and its text


class Graders:
    """Grade completions. The caller owns `math`."""

    def __init__(self, scoring: ScoringConfig, math: Grader) -> None:
        self._math, self._scoring = math, scoring

    def grade(self, whole: Iterable[tuple[Question, Sequence[Completion]]]) -> list[list[Grade]]:
        """Return the grades of each question's completions. A completion that an engine refused gets `error`.

        Raises:
            GradingError: A grading process does not start.
        """
        whole = list(whole)
        names = [grader_name(self._scoring, question) for question, _ in whole]
        pairs = [
            (question.gold_answer, completion.full_text)
            for name, (question, completions) in zip(names, whole, strict=True)
            if name == "math"
            for completion in completions
            if completion.finish_reason != "error"
        ]
        as_math = iter(self._math.grade_many(pairs))
        return [
            [
                Grade("error", None)
                if completion.finish_reason == "error"
                else next(as_math)
                if name == "math"
                else grade_text(name or "", question, completion.full_text, self._scoring.grade_timeout_s)
                for completion in completions
            ]
            for name, (question, completions) in zip(names, whole, strict=True)
        ]


def grader_limits(scoring: ScoringConfig) -> dict[str, int]:
    """Return the bounds that a config sets on symbolic comparisons, as a Grader takes them."""
    return {"timeout_s": scoring.grade_timeout_s, "memory_mib": scoring.grader_memory_mib}


def grader_name(scoring: ScoringConfig, question: Question) -> str | None:
    """Return the name of the grader of a question. None: the config has none for its source."""
    if not scoring.graders:
        return scoring.grader or "math"
    return scoring.graders.get(str(question.row.get(scoring.source_key)), scoring.grader)


def grade_text(name: str, question: Question, text: str, timeout_s: float) -> Grade:
    """Return the grade that a grader other than `math` gives."""
    gold = question.gold_answer
    found = extract_answer(text)
    said, marked = final_answer(text, found.taken)
    if gold is None:
        return Grade("no_gold", said or None, found.reasoning)
    if not readable(name, question):
        return Grade("bad_gold", said or None, found.reasoning)
    if not said:
        return Grade("no_answer", None, found.reasoning)
    match name:
        case "choice":
            return _grade_choice(question, said, marked, found.reasoning)
        case "regex":
            return _grade_regex(gold, text, said, found.reasoning, timeout_s)
        case _:
            answer = said.rstrip(".") if not gold.rstrip().endswith(".") else said
            right = " ".join(answer.split()) == " ".join(gold.split())
            return Grade("correct" if right else "incorrect", said, found.reasoning)


def final_answer(text: str, taken: str) -> tuple[str, bool]:
    """Return what a text gives as its answer, and whether a marker announces it. Without one, it is the whole text.

    Args:
        text: The whole output.
        taken: The text behind its last marker, as `extract_answer` found it.
    """
    said = after_thoughts(without_run_on(encodable(text)))[-TAIL_CHARS:]
    marked = last_marker(said) is not None
    return (taken if marked else said).strip(), marked


def readable(name: str, question: Question) -> bool:
    """Return whether a grader can read the gold answer of a question."""
    gold = question.gold_answer
    if gold is None:
        return True
    match name:
        case "choice":
            return _gold_letter(question) is not None
        case "regex":
            return _compiled(gold) is not None
        case "exact":
            return bool(gold.strip())
        case _:
            return read_gold(gold) is not None


def unreadable_golds(scoring: ScoringConfig, questions: Iterable[Question]) -> list[str]:
    """Return the gold answers that their graders cannot read, each once."""
    found = (q.gold_answer for q in questions if not readable(grader_name(scoring, q) or "math", q))
    return list(dict.fromkeys(gold for gold in found if gold is not None))


def _grade_choice(question: Question, said: str, marked: bool, reasoning: str) -> Grade:
    letter = _said_letter(said, marked or len(said) <= _LONE_CHARS, question.row)
    if letter is None:
        return Grade("no_answer", None, reasoning)
    return Grade("correct" if letter == _gold_letter(question) else "incorrect", letter, reasoning)


def _said_letter(said: str, may_be_letter: bool, row: Mapping[str, Any]) -> str | None:
    """Return the letter that an answer means. A choice whose own text begins like a letter comes first."""
    of_text = _letter_of_text(said, row)
    if of_text is not None and _bare_letter(said) in (None, of_text):
        return of_text
    return _letter(said, row) if may_be_letter and of_text is None else None


def _letter(said: str, row: Mapping[str, Any]) -> str | None:
    """Return the letter that a text begins with, or None if it names another one, too."""
    match = _LETTER.match(said) or _OPTION.match(said)
    if match is None:
        return None
    letter, behind = match.group(1).upper(), said[match.end(1) :]
    if _letter_of_text(behind.lstrip("])*_.:, \t\n"), row) == letter:  # "C. A and B", where that is the choice C
        return letter
    if match.re is _OPTION:
        behind = behind.upper()
    corrected = _CORRECTED.search(behind)
    others = {corrected.group(1)} if corrected else set()
    while also := _ALSO.match(behind):
        others.add(also.group(1))
        behind = behind[also.end(1) :]
    return None if others - {letter} else letter


def _bare_letter(text: str) -> str | None:
    text = text.strip().rstrip(".")
    return text if re.fullmatch("[A-J]", text) else None


def _gold_letter(question: Question) -> str | None:
    """Return the letter of the gold answer: it is a letter, or the index (from 0) or the text of one of the choices.

    Return None if these readings differ. An integer of the data is an index, whatever the choices say.
    """
    gold = (question.gold_answer or "").strip()
    choices = question.row.get(CHOICES)
    count = min(len(choices), 10) if isinstance(choices, list) else 0
    index = chr(ord("A") + int(gold)) if gold.isdecimal() and int(gold) < count else None
    if index is not None and question.gold_is_integer:
        return index
    readings = {index, _letter_of_text(gold, question.row), _bare_letter(gold)} - {None}
    if not readings:
        return _letter(gold, question.row)
    return readings.pop() if len(readings) == 1 else None


def _letter_of_text(text: str, row: Mapping[str, Any]) -> str | None:
    """Return the letter of the choice that has this text."""
    choices = row.get(CHOICES)
    wanted = " ".join(text.split()).casefold().rstrip(".")
    texts = [" ".join(str(c).split()).casefold().rstrip(".") for c in choices] if isinstance(choices, list) else []
    return chr(ord("A") + texts.index(wanted)) if wanted in texts[:10] else None


def _compiled(pattern: str) -> Any:
    """Return the pattern of `regex`, whose searches have a time limit. Return None if it is none."""
    import regex

    try:
        return regex.compile(pattern)
    except regex.error:
        return None


def _grade_regex(gold: str, text: str, said: str, reasoning: str, timeout_s: float) -> Grade:
    searched = after_thoughts(without_run_on(encodable(text)))
    try:
        found = _compiled(gold).search(searched, timeout=timeout_s)
    except TimeoutError:
        return Grade("timeout", said, reasoning)
    return Grade("correct", found.group(), reasoning) if found else Grade("incorrect", said[-_LONE_CHARS:], reasoning)


def grading_columns(scoring: ScoringConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the input columns, among these names, that the graders of a config read."""
    wanted = {scoring.source_key} if scoring.graders else set()
    if "choice" in (scoring.grader, *scoring.graders.values()):
        wanted.add(CHOICES)
    return tuple(name for name in names if name in wanted)


def check_sources(scoring: ScoringConfig, questions: Iterable[Question], columns: Sequence[str]) -> None:
    """Refuse a question whose source has no grader.

    Raises:
        DatasetError: The column of the sources is missing, or holds a source without a grader.
    """
    if not scoring.graders:
        return
    if scoring.source_key not in columns:
        raise DatasetError(
            f"the data have no column {scoring.source_key}, by which scoring.graders chooses; the columns are "
            f"{', '.join(columns)}. Name one with --source_key"
        )
    if scoring.grader is not None:
        return
    unknown = {str(q.row.get(scoring.source_key)) for q in questions if grader_name(scoring, q) is None}
    if unknown:
        named = ", ".join(shorten(name, 60) for name in sorted(unknown)[:3])
        raise DatasetError(
            f"scoring.graders has no grader for {len(unknown)} sources of the column {scoring.source_key}, such as "
            f"{named}; add them, or give --grader for the others"
        )
