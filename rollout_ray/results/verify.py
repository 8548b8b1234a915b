"""Recompute the values of a merged file from its texts and description, and name every disagreement.

Recomputed are the expected questions, arms and samples, the seeds, and the reasoning, answer, grade, coherence and
reward of each text. Some values cannot be checked: text after the answer, small token counts, engine names, policy
versions, and other input columns. The file is not changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rollout_ray.core.records import NAMED_REWARDS, SCORES, Completion, Question, ScoredQuestion
from rollout_ray.results.allowed_rewards import allowed_rewards
from rollout_ray.results.findings import Disagreement, Verification
from rollout_ray.results.id_check import IdCheck
from rollout_ray.results.merged_file import MergedFile, StoredQuestion
from rollout_ray.results.token_check import token_faults
from rollout_ray.scoring.grader import Grade, Grader
from rollout_ray.scoring.grader_process import VERDICTS
from rollout_ray.scoring.graders import Graders, grader_limits, grading_columns
from rollout_ray.scoring.scorer import QuestionScorer
from rollout_ray.scoring.user_code.rewards import UserRewards

TOLERANCE = 1e-9
RECOMPUTED = ("seed", "temperature", "top_p", "reasoning", "answer", "score_status", "correct", "reward")
FINISH_REASONS = ("stop", "length", "error")
_NOT_SETTLED = ("timeout", "error")
_UNSETTLED = ("score_status", "correct", "reward", "rewards")  # of a row whose grade or reward failed


def verify(path: str, reward: str | None = None) -> Verification:
    """Verify a merged file.

    The custom reward that a file names is called only for the merged file in its run directory. The name in any other file
    is code that the user may not trust. Then `reward` names the function to call.

    Args:
        path: Path or URI of a run directory or a merged file.
        reward: The `module:function` to recompute custom rewards with, or several with commas between them. None: those
            that the file names.

    Raises:
        ConfigError: `reward` is given and cannot be loaded, names too few functions, or the run has no custom reward.
        LedgerError: There is no such file.
        VerifyError: The file cannot be read.
    """
    began = time.monotonic()
    with MergedFile(path) as merged:
        result = Verification(merged.path, merged.layout)
        if merged.note:
            result.unchecked.append(merged.note)
        scoring = merged.description.config.scoring
        sources, row = allowed_rewards(merged, reward, result)
        with Grader(**grader_limits(scoring)) as grader, closing(UserRewards(sources, scoring)) as rewards:
            verifier = _Verifier(merged, grader, rewards, row, result)
            for given, stored in merged.batches():
                verifier.check(given, stored)
            verifier.finish()
    result.seconds = time.monotonic() - began
    return result


class _Verifier:
    """Checks the questions once, in file order. Holds one batch, and all ids."""

    def __init__(
        self, merged: MergedFile, grader: Grader, rewards: UserRewards, row: Sequence[str], result: Verification
    ) -> None:
        self._merged = merged
        self._graders = Graders(merged.description.config.scoring, grader)
        self._rewards = rewards
        grading = grading_columns(merged.description.config.scoring, merged.given_schema.names)
        self._columns = list(dict.fromkeys([*row, *grading]))
        self._result = result
        description = merged.description
        config = description.config
        self._description = description
        self._beta = None if rewards.process else config.scoring.beta
        self._scorer = QuestionScorer(description.arms, config.scoring, config.sampling.seed)
        self._index_of_key = {(d.arm.name, d.sample): n for n, d in enumerate(self._scorer.samples)}
        recomputed = (*RECOMPUTED, *(["prompt_variant"] if merged.tokens else []))
        with_rewards = (*recomputed, *([NAMED_REWARDS.name] if merged.rewards else []))
        self._fields = with_rewards if result.rewards_checked else tuple(f for f in recomputed if f != "reward")
        self._row = 0
        self._ids = IdCheck(merged, result)
        self._fingerprint = 0
        self._open_grades = 0
        self._open_rewards = 0

    # Questions

    def check(self, given: pa.Table, stored: Sequence[StoredQuestion]) -> None:
        """Check the questions of one batch.

        Args:
            given: Input columns, one row per question.
            stored: The same questions as stored.
        """
        result = self._result
        result.questions += len(stored)
        result.trajectories += sum(len(s.trajectories) for s in stored)
        hashes = None
        if self._description.hashed_ids:
            hashes = [i.partition("-")[0] for i in self._merged.question_set(given, None).ids]
        if self._merged.layout == "responses" and hashes is not None:
            stored = [replace(s, question_id=self._ids.id_of_hash(h)) for s, h in zip(stored, hashes, strict=True)]
        picked = [n for n, s in enumerate(stored) if self._ids.is_new(s.question_id, self._row + n)]
        self._row += len(stored)
        chosen = [stored[n] for n in picked]
        ids = [str(s.question_id) for s in chosen]
        known = self._merged.question_set(given.take(pa.array(picked, pa.int64())), ids, self._columns)
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

    def _compare_count(self, question: Question, stored: StoredQuestion) -> None:
        if len(stored.trajectories) != len(self._index_of_key):
            self._add("keys", question, "number of responses", len(stored.trajectories), len(self._index_of_key))

    # Trajectories

    def _check_trajectories(self, questions: Sequence[Question], stored: Sequence[StoredQuestion]) -> None:
        rows = [self._keyed(q, s) for q, s in zip(questions, stored, strict=True)]
        completions = [
            [self._completion(q, k, t) for k, t in kept.items()] for q, kept in zip(questions, rows, strict=True)
        ]
        grades = self._graders.grade(zip(questions, completions, strict=True))
        scored = [
            self._scorer.score(q, cs, [self._settled(g, t) for g, t in zip(gs, kept.values(), strict=True)])
            for q, kept, cs, gs in zip(questions, rows, completions, grades, strict=True)
        ]
        whole = [n for n, kept in enumerate(rows) if len(kept) == len(self._index_of_key)]
        rewarded = self._rewards.apply([questions[n] for n in whole], [scored[n] for n in whole])
        for n, one in zip(whole, rewarded, strict=True):
            scored[n] = one
        for question, before, kept, now in zip(questions, stored, rows, scored, strict=True):
            if self._merged.tokens:
                self._check_tokens(question, before, kept)
            self._compare(question, before, kept, now)

    def _keyed(self, question: Question, stored: StoredQuestion) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Return the trajectories by (arm, sample), in sample order. Report missing, unexpected and doubled ones."""
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
        """Return the completion that the row holds. Report values that contradict each other."""
        reason = stored["finish_reason"]
        text = stored["full_text"]
        error = stored["error"]
        if reason not in FINISH_REASONS:
            self._add("finish_reason", question, "finish_reason", reason, "stop, length or error", key)
        failed = reason == "error"
        if failed and text:
            self._add("finish_reason", question, "full_text of an error", text, "", key)
        if failed == (error is None) and (failed or stored["score_status"] != "error"):  # or it is a failed reward's reason
            self._add("finish_reason", question, "error", error, "a reason" if failed else None, key)
        if not isinstance(text, str):
            self._add("full_text", question, "full_text", text, "a text", key)
            text = ""
        return Completion(
            sample_index=self._index_of_key[key],
            full_text="" if failed else text,
            num_prompt_tokens=self._count(question, key, stored, "num_prompt_tokens"),
            num_tokens=self._count(question, key, stored, "num_tokens"),
            finish_reason=reason if reason in FINISH_REASONS else "stop",
            engine=stored["engine"],
            error=error if failed else None,
            policy_version=self._count(question, key, stored, "policy_version"),
        )

    def _count(self, question: Question, key: tuple[str, int], stored: Mapping[str, Any], name: str) -> int:
        """Return a count of the row. Report a value that is not a number from 0, and return 0 for it."""
        value = stored[name]
        if isinstance(value, int) and value >= 0:
            return value
        kind = "policy_version" if name == "policy_version" else "num_tokens"
        self._add(kind, question, name, value, "a number from 0", key)
        return 0

    def _check_tokens(
        self, question: Question, stored: StoredQuestion, rows: Mapping[tuple[str, int], Mapping[str, Any]]
    ) -> None:
        for key, trajectory in rows.items():
            for what, found, due in token_faults(stored, trajectory):
                self._add("tokens", question, what, found, due, key)

    def _settled(self, grade: Grade, stored: Mapping[str, Any]) -> Grade:
        """Return the grade to use: the stored grade if the comparison timed out or failed, then or now."""
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
        whole = len(rows) == len(self._index_of_key)  # coherence depends on all trajectories
        follow = 0
        for trajectory in scored.trajectories:
            key = (trajectory.arm, trajectory.sample)
            failed = trajectory.finish_reason != "error" and (trajectory.error or rows[key]["error"])
            self._open_rewards += bool(failed)
            for name in self._fields:
                was, now = rows[key][name], getattr(trajectory, name)
                if failed and name in _UNSETTLED:
                    continue
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
        """Return whether only the difference in s_wm, which is reported, explains the difference in reward."""
        if self._beta is None or not isinstance(was, float) or not isinstance(now, float):
            return False
        shifts = [s["s_wm"] - scored.s_wm for s in stored.scores if isinstance(s["s_wm"], float)]
        return any(not _same(shift, 0.0) and _same(was - now, self._beta * shift) for shift in shifts)

    # The end

    def finish(self) -> None:
        """Check the set of questions and its fingerprint, after all batches."""
        if self._open_grades:
            self._result.unchecked.append(
                f"{self._open_grades} statuses could not be checked: a comparison failed or timed out, then or now"
            )
        if self._open_rewards:
            self._result.unchecked.append(
                f"{self._open_rewards} rewards could not be checked: a function failed, then or now"
            )
        if self._merged.layout == "responses":
            self._result.unchecked.append("a 'responses' file has no keys, seeds, answers or rewards that could be checked")
        self._ids.finish(f"{self._fingerprint:032x}")

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
    if isinstance(stored, Mapping) and isinstance(recomputed, Mapping):
        return stored.keys() == recomputed.keys() and all(_same(stored[name], recomputed[name]) for name in stored)
    if isinstance(recomputed, float) and isinstance(stored, float | int) and not isinstance(stored, bool):
        return math.isclose(stored, recomputed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(stored) is type(recomputed) and stored == recomputed
