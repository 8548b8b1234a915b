"""Grades a model's text against a gold answer: exactly where both are plain numbers, else symbolically in a child.

Owns the verdict on one pair and the child processes that symbolic comparisons run in: each can be killed, so that no
answer hangs, exhausts or takes down the caller. It does not find answers (answers.py) and gives no rewards (regime_w.py).
"""

from __future__ import annotations

import math
import queue
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rollout_ray.core.records import ScoreStatus
from rollout_ray.core.redaction import encodable
from rollout_ray.scoring.extraction import extract_answer
from rollout_ray.scoring.grader_process import Child, Verdict
from rollout_ray.scoring.latex import to_latex, too_costly
from rollout_ray.scoring.normal_form import Answer, comparable, normalise
from rollout_ray.scoring.units import date

Pairs = tuple[tuple[str, str], ...]
_CACHE_SIZE = 100_000


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one text, and the normal form of its answer (None where it gives none)."""

    status: ScoreStatus
    answer: str | None
    reasoning: str = ""


class Grader:
    """Grades texts; owns the children of symbolic comparisons, which start when one is first needed.

    Use as a context manager, or call `close`. Not thread-safe: one Grader a thread.
    """

    def __init__(self, *, timeout_s: int = 5, memory_mib: int = 1024, children: int = 1) -> None:
        self._timeout_s, self._memory_mib, self._count = timeout_s, memory_mib, children
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._children: list[Child] = []
        self._known: dict[tuple[str, str], Verdict] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children. The Grader can be used again; it starts new ones."""
        for child in self._children:
            child.kill()
        if self._threads:
            self._threads.shutdown()
        self._threads, self._children, self._idle = None, [], queue.SimpleQueue()

    def forget(self) -> None:
        """Drops the verdicts that are remembered: what once ran out of time need not do so again."""
        self._known.clear()

    def prepare(self) -> None:
        """Starts the children now: each imports sympy, for which the first symbolic comparison would wait."""
        list(self._pool().map(Child.prepare, self._children))

    def grade(self, gold_answer: str | None, text: str) -> Grade:
        """Grades one text; see `grade_many`."""
        return self.grade_many([(gold_answer, text)])[0]

    def grade_many(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        """Grades (gold answer, text) pairs, in their order.

        A gold of None gives no_gold, an unreadable one bad_gold. A comparison that ran out of time is a timeout and
        one that failed an error; neither is ever an 'incorrect'.
        """
        extractions = [extract_answer(text) for _, text in pairs]
        golds = {gold: read_gold(gold) for gold in {gold for gold, _ in pairs if gold is not None}}
        statuses: list[ScoreStatus | Pairs] = []
        for (gold, _), found in zip(pairs, extractions, strict=True):
            if gold is None:
                statuses.append("no_gold")
            elif (gold_answer := golds[gold]) is None:
                statuses.append("bad_gold")
            else:
                statuses.append(_decide(gold_answer, found.answer))
        verdicts = self._compare({pair for pairs in statuses if isinstance(pairs, tuple) for pair in pairs})
        grades = []
        for status, found in zip(statuses, extractions, strict=True):
            settled: ScoreStatus = _best([verdicts[p] for p in status]) if isinstance(status, tuple) else status
            answer = found.answer.text if found.answer and settled != "no_answer" else None
            grades.append(Grade(settled, answer, found.reasoning))
        return grades

    def _compare(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Verdict]:
        """Symbolic verdicts on (gold, answer) pairs; each distinct pair is compared once."""
        new = [pair for pair in wanted if pair not in self._known]
        if new:
            if len(self._known) > _CACHE_SIZE:
                self._known.clear()
                new = list(wanted)
            self._known.update(zip(new, self._pool().map(self._compare_one, new), strict=True))
        return {pair: self._known[pair] for pair in wanted}

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._children = [Child(self._timeout_s, self._memory_mib) for _ in range(self._count)]
            for child in self._children:
                self._idle.put(child)
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="grader")
        return self._threads

    def _compare_one(self, pair: tuple[str, str]) -> Verdict:
        child = self._idle.get()
        try:
            return child.compare(*pair)
        finally:
            self._idle.put(child)


def read_gold(gold: str) -> Answer | None:
    """The answer of a gold column: a bare answer, or a worked solution that ends in a marker such as `#### 72`."""
    if "####" in gold or "\\boxed" in gold or "<answer>" in gold:
        return extract_answer(gold).answer
    return normalise(encodable(gold))


def _decide(gold: Answer, answer: Answer | None) -> ScoreStatus | Pairs:
    """A status where the two texts settle it, else the (gold, answer) pairs of which a symbolic comparison must find
    one equal."""
    if answer is None:
        return "no_answer"
    if status := _settled(gold, answer):
        return status
    pairs = ((gold.text, answer.text),)
    if gold.equation and answer.equation:
        stated = gold.equation != gold.text and answer.equation != answer.text
        same_name = stated and gold.equation.partition("=")[0].strip() == answer.equation.partition("=")[0].strip()
        pairs = ((gold.equation, answer.equation), *(pairs if stated else ())) if not same_name else pairs
    if any(too_costly(text) for pair in pairs for text in pair):
        return "error"
    return tuple((to_latex(left), to_latex(right)) for left, right in pairs)


def _settled(gold: Answer, answer: Answer) -> ScoreStatus | None:
    """The status without a symbolic comparison: of numbers, equal texts, choices, ratios and what is no mathematics."""
    if gold.number is not None and answer.number is not None:
        equal = gold.number == answer.number or (
            gold.percent != answer.percent
            and gold.number * (1 if gold.percent else 100) == answer.number * (1 if answer.percent else 100)
        )
        return "correct" if equal else "incorrect"
    if comparable(gold.text) == comparable(answer.text):
        return "correct"
    if gold.choice and answer.choice and len(comparable(gold.text)) == 1:
        return "correct" if gold.choice == answer.choice else "incorrect"
    if answer.several and gold.number is not None:
        return "no_answer"
    for read in (_ratio, _based):
        if (left := read(gold.text)) and (right := read(answer.text)):
            return "correct" if left == right else "incorrect"
    if date(gold.text) or date(answer.text):
        return "incorrect"  # June 20 is neither July 20 nor 20
    if any(a.equation == a.text and not a.several and not b.equation for a, b in ((gold, answer), (answer, gold))):
        return "incorrect"  # 2x + y = 1 against 1
    return None if _worth_parsing(answer.text) and _worth_parsing(gold.text) else "incorrect"


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on an answer that was compared in several forms: correct in one is correct, and an 'incorrect' must
    hold in all."""
    return min(verdicts, key=("correct", "timeout", "error", "bad_gold", "incorrect").index)


_COLONS = re.compile(r"^(\d{1,30})\s?:\s?(\d{1,30})(?:\s?:\s?(\d{1,30}))?$")


def _ratio(text: str) -> tuple[int, ...] | None:
    """The terms of a ratio such as 2:4, in lowest terms; a time of day such as 12:05 keeps its own."""
    if not (match := _COLONS.match(text)):
        return None
    terms = [term for term in match.groups() if term]
    common = 1 if any(len(term) > 1 and term[0] == "0" for term in terms) else math.gcd(*map(int, terms))
    return tuple(int(term) // (common or 1) for term in terms)


_IN_BASE = re.compile(r"^(-?[\dA-Fa-f]{1,200})\s?_\s?\{?\s?(\d{1,2})\s?\}?$")


def _based(text: str) -> tuple[str, str] | None:
    """The digits and the base of a numeral that names its base, such as 35_8."""
    return (match.group(1).upper(), match.group(2)) if (match := _IN_BASE.match(text)) else None


_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[a-zA-Z]{1,20}\*?\}")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{4,}")


def _worth_parsing(text: str) -> bool:
    """Whether a text can be mathematics: it has a digit, a command or a short symbol, and is no word or sentence."""
    if text.isalpha() and len(text) > 2:
        return False
    if len(_LONG_WORD.findall(_ENVIRONMENT.sub("", text))) > 3:
        return False
    return any(c.isdigit() or c == "\\" for c in text) or len(text) <= 40
