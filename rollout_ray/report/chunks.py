"""Compress a report's questions into chunks, with an index to filter them.

The page decodes one chunk at a time. Long texts lose their middle, and chunks are thinned to
bound the page's size. Control characters are escaped here; the page renders texts as text.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rollout_ray.config.scoring_schema import ScoringConfig, reward_weight
from rollout_ray.core.records import Arm, Prompt, Question
from rollout_ray.core.redaction import escape_controls, shorten
from rollout_ray.results.merged_file import StoredQuestion
from rollout_ray.scoring.grader import explain_by_rule, read_gold
from rollout_ray.scoring.graders import grader_name
from rollout_ray.scoring.reading.answer import Answer
from rollout_ray.scoring.regime_w import RewardTerms, Scorable, reward_terms

CHUNK_SAMPLES = 256  # approximate trajectories in a chunk, which the page decodes to show one question
MOST_TRAJECTORIES = 100_000
MOST_BYTES = 64 << 20  # all chunks together, compressed
HEAD_CHARS, TAIL_CHARS = 6_000, 14_000  # parts shown of a longer text; the tail is longer because it has the answer
TITLE_CHARS = 110
MOST_VALUES = 50  # distinct values of a column of the user's that the page offers as a filter
VALUE_CHARS = 300  # shown of such a value
WHY_CHARS = 300  # of each text that explains a verdict
TERMS = tuple(f.name for f in fields(RewardTerms))
STATUSES = ("correct", "incorrect", "no_answer", "no_gold", "bad_gold", "timeout", "error")
FINISHES = ("stop", "length", "error")


def packed(value: Any) -> bytes:
    """Return the value as JSON, compressed with gzip, in base64.

    JSON in ASCII also represents an unpaired surrogate.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0))


def cut(text: str) -> str:
    """Return a text for the page: control characters escaped, the middle of a very long text removed."""
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        gone = len(text) - HEAD_CHARS - TAIL_CHARS
        text = f"{text[:HEAD_CHARS]}\n[... {gone} characters are left out here ...]\n{text[-TAIL_CHARS:]}"
    return escape_controls(text)


@dataclass(frozen=True)
class Shown:
    """What the page shows of a question's row besides prompt and gold.

    Attributes:
        data: The prompt before the prompt template. None: without a template.
        columns: The user's other columns as texts. None: the value is null.
    """

    data: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Chunk:
    """Consecutive questions. `index` has one list a column, over questions or over trajectories."""

    content: bytes
    index: dict[str, list[Any]]
    samples: int


@dataclass
class Chunks:
    """All chunks of one report.

    With too many trajectories or bytes, every second chunk is dropped, repeatedly.
    The remaining questions stay evenly spread over the file, and memory stays bounded.
    """

    arms: Sequence[Arm]
    scoring: ScoringConfig
    most_trajectories: int = MOST_TRAJECTORIES
    most_bytes: int = MOST_BYTES
    stride: int = 1
    _kept: list[Chunk] = field(default_factory=list)
    _held: list[tuple[int, Question, StoredQuestion, Shown]] = field(default_factory=list)
    _values: dict[str, dict[str | None, int]] = field(default_factory=dict)  # codes by column, as far as MOST_VALUES + 1
    _held_samples: int = 0
    _met: int = 0  # chunks so far, including dropped ones
    _seen: int = 0  # questions so far

    def add(self, question: Question, stored: StoredQuestion, shown: Shown | None = None) -> None:
        """Add the next question of the file."""
        self._held.append((self._seen, question, stored, shown or Shown()))
        self._seen += 1
        self._held_samples += max(1, len(stored.trajectories))
        if self._held_samples >= CHUNK_SAMPLES:
            self._close()

    def finish(self) -> None:
        """Close the last chunk. Call this after the last question."""
        if self._held:
            self._close()

    def _close(self) -> None:
        if self._met % self.stride == 0:
            self._kept.append(self._chunk())
        self._met += 1
        self._held, self._held_samples = [], 0
        while len(self._kept) > 1 and self._too_much():
            self._kept, self.stride = self._kept[::2], 2 * self.stride

    def _too_much(self) -> bool:
        samples, size = sum(c.samples for c in self._kept), sum(len(c.content) for c in self._kept)
        return samples > self.most_trajectories or size > self.most_bytes

    def contents(self) -> Iterator[bytes]:
        """Return each chunk's content: a packed list of questions (see `_detail`)."""
        return (chunk.content for chunk in self._kept)

    def index(self) -> dict[str, Any]:
        """Return the columns that the page filters, sorts and lists by, and the names behind their codes.

        Columns over questions: `n` (trajectories), `number` (position in the file), `chunk`, `title`, `wm`.
        `given` has the values of the user's columns with few values, and `given:NAME` the code of each question's value.
        Columns over trajectories: `arm`, `status`, `finish`, `answer`, `reward`, `tokens`.
        Equal answers of one question have equal numbers. No answer is 0.
        """
        columns: dict[str, list[Any]] = {}
        for number, chunk in enumerate(self._kept):
            for name, values in chunk.index.items():
                columns.setdefault(name, []).extend(values)
            columns.setdefault("chunk", []).extend([number] * len(chunk.index["n"]))
        few = {name: list(codes) for name, codes in self._values.items() if len(codes) <= MOST_VALUES}
        for name in self._values.keys() - few.keys():
            columns.pop(f"given:{name}", None)
        return {"statuses": STATUSES, "finishes": FINISHES, "given": few, "columns": columns}

    def _chunk(self) -> Chunk:
        index: dict[str, list[Any]] = {
            name: [] for name in ("n", "number", "title", "wm", "arm", "status", "finish", "answer", "reward", "tokens")
        }
        place = {arm.name: n for n, arm in enumerate(self.arms)}
        details = []
        for number, question, stored, shown in self._held:
            answers: dict[str | None, int] = {None: 0}
            index["n"].append(len(stored.trajectories))
            index["number"].append(number)
            index["title"].append(escape_controls(_title(question, shown.data)))
            for name, value in shown.columns.items():
                index.setdefault(f"given:{name}", []).append(self._code(name, value))
            index["wm"].append(_rounded(stored.scores[0]["s_wm"]))
            for t in stored.trajectories:
                index["arm"].append(place.get(t["arm"], -1))
                index["status"].append(STATUSES.index(t["score_status"]) if t["score_status"] in STATUSES else -1)
                index["finish"].append(FINISHES.index(t["finish_reason"]) if t["finish_reason"] in FINISHES else -1)
                index["answer"].append(answers.setdefault(t["answer"], len(answers)))
                index["reward"].append(_rounded(t["reward"]))
                index["tokens"].append(t["num_tokens"])
            data = None if shown.data is None else cut(shown.data)
            details.append({**self._detail(question, stored), "data": data, "columns": shown.columns})
        return Chunk(packed(details), index, self._held_samples)

    def _code(self, name: str, value: str | None) -> int:
        """Return the number of a value among those of its column, or -1 once these are too many for a filter."""
        codes = self._values.setdefault(name, {})
        if len(codes) <= MOST_VALUES:
            codes.setdefault(value, len(codes))
        return codes.get(value, -1)

    def _detail(self, question: Question, stored: StoredQuestion) -> dict[str, Any]:
        """Return one question for the page: id, prompt as [role, text] pairs, gold, fault, scores, trajectories."""
        gold = read_gold(question.gold_answer)
        return {
            "id": escape_controls(str(stored.question_id)),
            "prompt": [[escape_controls(role), cut(text)] for role, text in _turns(question.prompt)],
            "gold": None if question.gold_answer is None else cut(question.gold_answer),
            "fault": None if question.fault is None else escape_controls(question.fault),
            "scores": {name: _rounded(value) for name, value in stored.scores[0].items()},
            "trajectories": [
                {
                    "sample": t["sample"],
                    "seed": str(t["seed"]),  # a seed has 63 bits, and a JavaScript number holds 53
                    "text": cut(t["full_text"]),
                    "answer": None if t["answer"] is None else cut(t["answer"]),
                    "why": self._why(question, gold, t),
                    "terms": terms,
                    "prompt_tokens": t["num_prompt_tokens"],
                    "error": None if t["error"] is None else cut(t["error"]),
                    "engine": escape_controls(t["engine"]),
                    "policy_version": t["policy_version"],
                }
                for t, terms in zip(stored.trajectories, self._terms(stored), strict=True)
            ],
        }

    def _why(self, question: Question, gold: Answer | None, trajectory: Mapping[str, Any]) -> list[str | None] | None:
        """Return why a trajectory has its verdict (see `_why_math`). Graders without rules show the gold as it stands."""
        name = grader_name(self.scoring, question) or "none"
        if name == "math" or trajectory["finish_reason"] == "error":
            return _why_math(question.gold_answer, gold, trajectory)
        answer, gold_text = (
            None if text is None else escape_controls(shorten(text, WHY_CHARS))
            for text in (trajectory["answer"], question.gold_answer)
        )
        return [answer, answer, gold_text, f"the grader {name}", None]

    def _named_terms(self, rewards: Mapping[str, float] | None) -> Mapping[str, float] | None:
        """Return the named rewards, each with its weight in the name if that is not 1."""
        if not rewards:
            return rewards
        weights = {name: reward_weight(self.scoring, name, rewards) for name in rewards}
        return {
            escape_controls(name if weights[name] == 1.0 else f"{name} (x {weights[name]:g})"): round(value, 6)
            for name, value in rewards.items()
        }

    def _terms(self, stored: StoredQuestion) -> list[Mapping[str, float] | None]:
        """Return the terms of each reward, or None for an unknown one and for a custom one without names."""
        if self.scoring.reward_functions:
            return [self._named_terms(t.get("rewards")) for t in stored.trajectories]
        roles = {arm.name: arm.probe_role for arm in self.arms}
        scorables = [Scorable(t["reasoning"], t["num_tokens"], roles.get(t["arm"])) for t in stored.trajectories]
        statuses = [t["score_status"] for t in stored.trajectories]
        scores = stored.scores[0]
        terms = reward_terms(scorables, statuses, scores["s_end"], scores["s_wm"], self.scoring)
        return [None if one is None else {name: round(getattr(one, name), 6) for name in TERMS} for one in terms]


def _why_math(gold_answer: str | None, gold: Answer | None, trajectory: Mapping[str, Any]) -> list[str | None] | None:
    """Return why a trajectory has its verdict: text taken, its normal form, that form of the gold, rule, status now.

    Return None for a trajectory without a text. The last item is None unless today's rule gives another status.
    """
    if trajectory["finish_reason"] == "error":
        return None
    found = explain_by_rule(gold_answer, gold, trajectory["full_text"])
    other = None if found.status == trajectory["score_status"] else found.status
    texts = [None if text is None else escape_controls(shorten(text, WHY_CHARS)) for text in (found.answer, found.gold)]
    return [escape_controls(shorten(found.taken, WHY_CHARS)), *texts, found.rule, other]


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    if isinstance(prompt, str):
        return [("user", prompt)] if prompt else []
    return [(str(message["role"]), str(message["content"])) for message in prompt]


def _title(question: Question, data: str | None) -> str:
    """Return the beginning of the data's prompt, or of the last message, as one line."""
    turns = _turns(question.prompt) if data is None else [("user", data)]
    text = " ".join(turns[-1][1][: 4 * TITLE_CHARS].split()) if turns else question.fault or ""
    return text if len(text) <= TITLE_CHARS else text[: TITLE_CHARS - 1] + "\u2026"


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else round(value, 6)
