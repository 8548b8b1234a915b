"""Grade a model's text against a gold answer: by rules where both are plain, else symbolically in a child process.

A child can be killed, so no answer hangs, exhausts or takes down the caller. Each distinct comparison is made once.
extraction.py finds the answer, comparing/ has the rules, and regime_w.py the rewards.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rollout_ray.core.records import ScoreStatus
from rollout_ray.core.redaction import encodable
from rollout_ray.scoring.comparing.decision import decide
from rollout_ray.scoring.comparing.verdict import Decision
from rollout_ray.scoring.extraction import Extraction, extract_answer
from rollout_ray.scoring.grader_process import Child, Verdict
from rollout_ray.scoring.normal_form import normalise
from rollout_ray.scoring.placement.markers import LINE_MARKER, MARKER
from rollout_ray.scoring.reading.answer import Answer

_CACHE_SIZE = 100_000


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one text.

    Attributes:
        status: The verdict.
        answer: Normal form of the answer. None: the text gives no answer.
        reasoning: The text before the answer.
    """

    status: ScoreStatus
    answer: str | None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text has its grade.

    Attributes:
        status: The verdict. None: a symbolic comparison decides, and was not made.
        taken: The text that was taken for the answer.
        answer: Normal form of the answer, with its unit.
        gold: Normal form of the gold answer. None: it cannot be read, or there is none.
        rule: The rule that decides.
        seconds: Time that the grade took.
    """

    status: ScoreStatus | None
    taken: str
    answer: str | None
    gold: str | None
    rule: str
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Return the explanation for a terminal."""
        return [
            f"status          {self.status}",
            f"text taken      {self.taken or '(none)'}",
            f"normal form     {self.answer if self.answer is not None else '(none)'}",
            f"gold            {self.gold if self.gold is not None else '(cannot be read)'}",
            f"decided by      {self.rule}",
            f"time            {1000 * self.seconds:.1f} ms",
        ]


class Grader:
    """Grade texts, with child processes for symbolic comparisons. The first such comparison starts them.

    Use it as a context manager, or call `close`. It is not thread-safe: each thread needs its own.
    """

    def __init__(self, *, timeout_s: int = 5, memory_mib: int = 1024, children: int = 1) -> None:
        """Start nothing yet.

        Args:
            timeout_s: CPU time of one step of a symbolic comparison, in seconds.
            memory_mib: Memory of a child, in MiB.
            children: Child processes.
        """
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        self._count = children
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._children: list[Child] = []
        self._known: dict[str, Verdict] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the children. The Grader can be used again; it then starts new ones."""
        for child in self._children:
            child.kill()
        if self._threads:
            self._threads.shutdown()
        self._threads = None
        self._children = []
        self._idle = queue.SimpleQueue()

    def forget(self) -> None:
        """Forget the verdicts: a comparison that ran out of time once may succeed later."""
        self._known.clear()

    def prepare(self) -> None:
        """Start the children now, so that the first symbolic comparison does not wait for their imports.

        Raises:
            GradingError: A child does not start.
        """
        list(self._pool().map(Child.prepare, self._children))

    def grade(self, gold_answer: str | None, text: str) -> Grade:
        """Grade one text. See `grade_many`."""
        return self.grade_many([(gold_answer, text)])[0]

    def grade_many(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        """Return the grades of pairs of a gold answer and a text, in their order.

        A gold of None gives no_gold, and one that cannot be read bad_gold. A comparison that runs out of time gives
        timeout, and one that fails gives error. Neither is ever incorrect.

        Raises:
            GradingError: A child does not start.
        """
        extractions = [extract_answer(text) for _, text in pairs]
        golds = {gold: read_gold(gold) for gold in {gold for gold, _ in pairs if gold is not None}}
        decisions = [
            _decide(gold, golds.get(gold or ""), found) for (gold, _), found in zip(pairs, extractions, strict=True)
        ]
        verdicts = self._compare({task for decision in decisions for task in decision.tasks})
        return [_grade(_status(decision, verdicts), found) for decision, found in zip(decisions, extractions, strict=True)]

    def explain(self, gold_answer: str | None, text: str) -> Explanation:
        """Return why a text gets its grade: what was compared, by which rule, in what time.

        Raises:
            GradingError: A child does not start.
        """
        begun = time.perf_counter()
        found, tasks = _explained(gold_answer, read_gold(gold_answer), text)
        status = found.status or _best(list(self._compare(set(tasks)).values()))
        return replace(found, status=status, seconds=time.perf_counter() - begun)

    def _compare(self, wanted: set[str]) -> dict[str, Verdict]:
        """Return the verdict on each task. The grading process does each distinct task once."""
        new = [task for task in wanted if task not in self._known]
        if new:
            if len(self._known) > _CACHE_SIZE:
                self._known.clear()
                new = list(wanted)
            self._known.update(zip(new, self._pool().map(self._compare_one, new), strict=True))
        return {task: self._known[task] for task in wanted}

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._children = [Child(self._timeout_s, self._memory_mib) for _ in range(self._count)]
            for child in self._children:
                self._idle.put(child)
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="grader")
        return self._threads

    def _compare_one(self, task: str) -> Verdict:
        child = self._idle.get()
        try:
            return child.compare(task)
        finally:
            self._idle.put(child)


def read_gold(gold: str | None) -> Answer | None:
    """Return the answer of a gold column: a bare answer, or a worked solution that ends in a marker such as `#### 72`.

    Return None for a gold that cannot be read. Its grade is bad_gold.
    """
    if gold is None:
        return None
    if MARKER.search(gold) or ("\n" in gold and LINE_MARKER.search(gold)):
        return extract_answer(gold).answer
    gold = encodable(gold)
    words = sum(word.isalpha() for word in gold.split())
    found = normalise(gold, prose="\\" not in gold and words > 2)
    return None if found and found.several and not found.values and "?" in found.text else found


def _decide(gold_text: str | None, gold: Answer | None, found: Extraction) -> Decision:
    if gold_text is None:
        return Decision("the question has no gold answer", "no_gold")
    if gold is None:
        return Decision("the gold answer cannot be read", "bad_gold")
    return decide(gold, found.answer)


def explain_by_rule(gold_answer: str | None, gold: Answer | None, text: str) -> Explanation:
    """Return why a text gets its grade, without a symbolic comparison.

    Args:
        gold_answer: The gold answer.
        gold: The same, as `read_gold` returns it.
        text: The text.
    """
    return _explained(gold_answer, gold, text)[0]


def _explained(gold_answer: str | None, gold: Answer | None, text: str) -> tuple[Explanation, tuple[str, ...]]:
    """Return the explanation, and the tasks that remain for the grading process."""
    found = extract_answer(text)
    decision = _decide(gold_answer, gold, found)
    forms = _shown(found.answer), _shown(gold)
    return Explanation(decision.status, found.taken, *forms, decision.rule), decision.tasks


def _status(decision: Decision, verdicts: dict[str, Verdict]) -> ScoreStatus:
    return decision.status or _best([verdicts[task] for task in decision.tasks])


def _grade(status: ScoreStatus, found: Extraction) -> Grade:
    answer = found.answer.text if found.answer and status != "no_answer" else None
    return Grade(status, answer, found.reasoning)


def _shown(answer: Answer | None) -> str | None:
    """Return a normal form with its unit."""
    if answer is None:
        return None
    text = answer.equation or answer.text
    return f"{text}{'%' if answer.percent else ''} {answer.unit}".strip()


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on an answer that was compared in several forms. All must be incorrect for an `incorrect`."""
    return min(verdicts, key=("correct", "timeout", "error", "bad_gold", "incorrect").index)
