"""Checks a merged file against what its own texts and description give, and names every disagreement.

Recomputes from the file alone: which questions, arms and samples it must hold, each seed, and from each text and gold
answer the reasoning, answer, grade, coherence and reward. What nothing else in the file depends on cannot be told from
it: text after the answer, token counts up to the penalty's limit, the engine's name, the policy's version, input columns
beside prompt and gold. It corrects nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import SCORES, Completion, Question, ScoredQuestion
from rollout_ray.results.findings import Disagreement, Verification
from rollout_ray.results.id_sketch import IdSketch
from rollout_ray.results.merged_file import MergedFile, StoredQuestion
from rollout_ray.scoring.grader import Grade, Grader
from rollout_ray.scoring.grader_process import VERDICTS
from rollout_ray.scoring.scorer import CustomReward, QuestionScorer, grade_questions, load_reward

TOLERANCE = 1e-9
RECOMPUTED = ("seed", "temperature", "top_p", "reasoning", "answer", "score_status", "correct", "reward")
FINISH_REASONS = ("stop", "length", "error")
_NOT_SETTLED = ("timeout", "error")


def verify(path: str, reward: str | None = None) -> Verification:
    """Verifies a run directory's merged file, or any merged file, by its path or URI.

    A custom reward is called again where it can be imported and the path is the run's own merged file. A name that stands
    in some other file is code that its reader may not want to run: there `reward` must give the same `module:function`.
    Raises LedgerError where there is no such file, and VerifyError where it cannot be read.
    """
    began = time.monotonic()
    with MergedFile(path) as merged:
        result = Verification(merged.path, merged.layout)
        if merged.note:
            result.unchecked.append(merged.note)
        scoring = merged.description.config.scoring
        function = _reward(merged, reward, result)
        with Grader(timeout_s=scoring.grade_timeout_s, memory_mib=scoring.grader_memory_mib) as grader:
            verifier = _Verifier(merged, grader, function, result)
            for given, stored in merged.batches():
                verifier.check(given, stored)
            verifier.finish()
    result.seconds = time.monotonic() - began
    return result


def _reward(merged: MergedFile, allowed: str | None, result: Verification) -> CustomReward | None:
    """The custom reward to be called; None is Regime W's, unless the result says that rewards are not checked."""
    name = merged.description.config.scoring.reward
    if name is None or merged.layout == "responses":
        return None
    try:
        if merged.run is None and allowed != name:
            raise ConfigError(f"the file names the function {name}, which --reward {name} would allow to be called")
        return load_reward(name)
    except ConfigError as error:
        result.rewards_checked = False
        result.unchecked.append(f"rewards were not checked: {error}")
        return None


class _Verifier:
    """Goes through the questions once, in the order of the file; holds a batch, and the ids seen."""

    def __init__(self, merged: MergedFile, grader: Grader, reward: CustomReward | None, result: Verification) -> None:
        self._merged, self._grader, self._result = merged, grader, result
        description = merged.description
        config = description.config
        self._description, self._beta = description, None if reward else config.scoring.beta
        self._scorer = QuestionScorer(description.arms, config.scoring, config.sampling.seed, reward)
        self._plain = QuestionScorer(description.arms, config.scoring, config.sampling.seed, None)
        self._index_of_key = {(d.arm.name, d.sample): n for n, d in enumerate(self._scorer.samples)}
        self._fields = RECOMPUTED if result.rewards_checked else tuple(f for f in RECOMPUTED if f != "reward")
        self._row = 0
        self._seen: dict[str, int] = {}
        self._found, self._fingerprint = IdSketch(), 0
        self._hashes: Counter[str] = Counter()
        self._open_grades = 0

    # Questions

    def check(self, given: pa.Table, stored: Sequence[StoredQuestion]) -> None:
        """Checks the questions of one batch."""
        result = self._result
        result.questions += len(stored)
        result.trajectories += sum(len(s.trajectories) for s in stored)
        hashes = None
        if self._description.hashed_ids:
            hashes = [i.partition("-")[0] for i in self._merged.question_set(given, None).ids]
        if self._merged.layout == "responses" and hashes is not None:
            stored = [replace(s, question_id=self._numbered(h)) for s, h in zip(stored, hashes, strict=True)]
        picked = [n for n, s in enumerate(stored) if self._is_new(s.question_id, self._row + n)]
        self._row += len(stored)
        chosen = [stored[n] for n in picked]
        known = self._merged.question_set(given.take(pa.array(picked, pa.int64())), [str(s.question_id) for s in chosen])
        self._fingerprint = (self._fingerprint + int(known.fingerprint, 16)) % 2**128
        questions = list(known.questions())
        if self._merged.layout == "responses":
            for question, one in zip(questions, chosen, strict=True):
                self._compare_count(question, one)
            return
        for n, question, one in zip(picked, questions, chosen, strict=True):
            if hashes and question.question_id.partition("-")[0] != hashes[n]:
                self._add("content", question, "hash of prompt and gold answer", question.question_id, hashes[n])
            for name in one.uneven:
                self._add("content", question, f"{name} differs between its rows")
        self._check_trajectories(questions, chosen)

    def _is_new(self, question_id: Any, row: int) -> bool:
        """Whether the row is the first of its id; registers the id."""
        key = "" if question_id is None else str(question_id)
        if not key:
            if self._merged.layout != "responses":
                self._result.add("rows", Disagreement(f"of row {row} (from 0)", None, None, "has no question_id"))
                return False
            key = f"row {row}"
        elif key in self._seen:
            self._result.add(
                "rows", Disagreement(key, None, None, f"stands twice, in rows {self._seen[key]} and {row} (from 0)")
            )
            return False
        else:
            self._found.add(key)
        self._seen[key] = row
        return True

    def _numbered(self, digest: str) -> str:
        """The id that the input's row got: of exact duplicates all but the first have a number."""
        self._hashes[digest] += 1
        return digest if self._hashes[digest] == 1 else f"{digest}-{self._hashes[digest]}"

    def _compare_count(self, question: Question, stored: StoredQuestion) -> None:
        if len(stored.trajectories) != len(self._index_of_key):
            self._add("keys", question, "number of responses", len(stored.trajectories), len(self._index_of_key))

    # Trajectories

    def _check_trajectories(self, questions: Sequence[Question], stored: Sequence[StoredQuestion]) -> None:
        rows = [self._keyed(q, s) for q, s in zip(questions, stored, strict=True)]
        completions = [
            [self._completion(q, k, t) for k, t in kept.items()] for q, kept in zip(questions, rows, strict=True)
        ]
        grades = grade_questions(self._grader, zip(questions, completions, strict=True))
        for question, one, kept, cs, gs in zip(questions, stored, rows, completions, grades, strict=True):
            settled = [self._settled(g, t) for g, t in zip(gs, kept.values(), strict=True)]
            scorer = self._scorer if len(kept) == len(self._index_of_key) else self._plain
            self._compare(question, one, kept, scorer.score(question, cs, settled))

    def _keyed(self, question: Question, stored: StoredQuestion) -> dict[tuple[str, int], Mapping[str, Any]]:
        """The trajectories by (arm, sample), in the order of the draws; what is missing, foreign or double is reported."""
        found: dict[tuple[Any, Any], Mapping[str, Any]] = {}
        for trajectory in stored.trajectories:
            key = (trajectory["arm"], trajectory["sample"]) if trajectory else (None, None)
            if key not in self._index_of_key:
                self._add("keys", question, "is not of this run", key=key)
            elif key in found:
                self._add("keys", question, "stands twice", key=key)
            else:
                found[key] = trajectory
        for key in self._index_of_key:
            if key not in found:
                self._add("keys", question, "is missing", key=key)
        return {key: found[key] for key in self._index_of_key if key in found}

    def _completion(self, question: Question, key: tuple[str, int], stored: Mapping[str, Any]) -> Completion:
        """What the engine said of a draw, as far as the row holds it; what contradicts itself is reported."""
        reason, text, error = stored["finish_reason"], stored["full_text"], stored["error"]
        if reason not in FINISH_REASONS:
            self._add("finish_reason", question, "finish_reason", reason, "stop, length or error", key)
        failed = reason == "error"
        if failed and text:
            self._add("finish_reason", question, "full_text of an error", text, "", key)
        if failed == (error is None):
            self._add("finish_reason", question, "error", error, "a reason" if failed else None, key)
        counts = {}
        for name in ("num_prompt_tokens", "num_tokens", "policy_version"):
            counts[name] = stored[name] if isinstance(stored[name], int) and stored[name] >= 0 else 0
            if counts[name] != stored[name] or stored[name] is None:
                kind = "policy_version" if name == "policy_version" else "num_tokens"
                self._add(kind, question, name, stored[name], "a number from 0", key)
        if not isinstance(text, str):
            self._add("full_text", question, "full_text", text, "a text", key)
            text = ""
        return Completion(
            self._index_of_key[key], "" if failed else text, counts["num_prompt_tokens"], counts["num_tokens"],
            reason if reason in FINISH_REASONS else "stop", stored["engine"], error,
            counts["policy_version"],
        )  # fmt: skip

    def _settled(self, grade: Grade, stored: Mapping[str, Any]) -> Grade:
        """The grade to go on with: the stored one where a comparison ran out of time, or failed, now or then."""
        status = stored["score_status"]
        if status == grade.status or not {status, grade.status} <= VERDICTS or stored["finish_reason"] == "error":
            return grade
        if status in _NOT_SETTLED or grade.status in _NOT_SETTLED:
            self._open_grades += 1
            return replace(grade, status=status)
        return grade

    def _compare(
        self,
        question: Question,
        stored: StoredQuestion,
        rows: Mapping[tuple[str, int], Mapping[str, Any]],
        scored: ScoredQuestion,
    ) -> None:
        whole = len(rows) == len(self._index_of_key)  # coherence is a matter of all trajectories
        follow = 0
        for trajectory in scored.trajectories:
            key = (trajectory.arm, trajectory.sample)
            for name in self._fields:
                was, now = rows[key][name], getattr(trajectory, name)
                if _same(was, now) or (name == "reward" and not whole):
                    continue
                if name == "reward" and self._follows_coherence(was, now, stored, scored):
                    follow += 1
                else:
                    self._add(name, question, name, was, now, key)
        if not whole:
            return
        for scores in stored.scores:
            for name in SCORES:
                if not _same(scores[name], getattr(scored, name)):
                    more = f" (and with it the rewards of {follow} trajectories)" if name == "s_wm" and follow else ""
                    self._add(name, question, name + more, scores[name], getattr(scored, name))

    def _follows_coherence(self, was: Any, now: Any, stored: StoredQuestion, scored: ScoredQuestion) -> bool:
        """Whether a reward differs by what the question's s_wm, which is reported, differs by, and by nothing else."""
        if self._beta is None or not isinstance(was, float) or not isinstance(now, float):
            return False
        shifts = [s["s_wm"] - scored.s_wm for s in stored.scores if isinstance(s["s_wm"], float)]
        return any(not _same(shift, 0.0) and _same(was - now, self._beta * shift) for shift in shifts)

    # The end

    def finish(self) -> None:
        """Checks what only the whole file shows: its questions and their fingerprint."""
        if self._open_grades:
            self._result.unchecked.append(
                f"{self._open_grades} statuses could not be checked: a comparison failed or ran out of time, now or then"
            )
        if self._merged.layout == "responses":
            self._result.unchecked.append("a 'responses' file has no keys, seeds, answers or rewards that could be checked")
        missing, extra, unnamed = self._absent()
        for question_id in missing:
            self._result.add("rows", Disagreement(question_id, None, None, "is missing"))
        for question_id in extra:
            self._result.add("rows", Disagreement(question_id, None, None, "is not of this run"))
        if unnamed:
            self._note_number()
        due = self._description.fingerprint
        if (
            not any(self._result.counts[kind] for kind in ("rows", "count", "content"))
            and f"{self._fingerprint:032x}" != due
        ):
            self._result.add(
                "content",
                Disagreement(
                    "(any)", None, None, "fingerprint of prompts and gold answers", f"{self._fingerprint:032x}", due
                ),
            )

    def _note_number(self) -> None:
        """Says what is known where not all ids can be named."""
        due, here = self._description.questions, len(self._seen)
        what = "number of questions" if due != here else "has ids that are not of this run"
        values = (here, due) if due != here else (None, None)
        self._result.add("count", Disagreement("(any)", None, None, what, *values))

    def _absent(self) -> tuple[Sequence[str], Sequence[str], int]:
        """Ids that are missing, ids that are foreign, and how many cells of the roster say no more than that they
        differ. Where the file's roster cannot name all, the parts of its run directory are asked."""
        difference = self._description.id_sketch.compare(self._found)
        run = self._merged.run
        if difference.unnamed and run is not None and (known := run.done_ids()):
            return sorted(known - self._seen.keys()), sorted(self._seen.keys() - known), 0
        return difference.missing, difference.extra, difference.unnamed

    def _add(
        self,
        kind: str,
        question: Question,
        what: str,
        stored: Any = None,
        now: Any = None,
        key: tuple[Any, Any] = (None, None),
    ) -> None:
        self._result.add(kind, Disagreement(question.question_id, key[0], key[1], what, stored, now))


def _same(stored: Any, recomputed: Any) -> bool:
    if isinstance(recomputed, float) and isinstance(stored, float | int) and not isinstance(stored, bool):
        return math.isclose(stored, recomputed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(stored) is type(recomputed) and stored == recomputed
