"""The scoring actor: join the chunks of each question, grade and reward them, and commit whole questions as parts.

Generations come by reference from the engines; the driver sees only receipts. Invariant: a receipt names a question if,
and only if, its part is on storage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import (
    TOKEN_BYTES,
    Arm,
    Completion,
    Generated,
    Question,
    RolloutRequest,
    ScoredQuestion,
)
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.scoring.grader import Grader
from rollout_ray.scoring.graders import Graders, grader_limits
from rollout_ray.scoring.scorer import QuestionScorer, part_table, score_questions
from rollout_ray.scoring.user_code.rewards import UserRewards
from rollout_ray.storage.partial_files import SavedSamples, save_samples
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.summary import Summary

PART_BYTES = 64 << 20  # of text and tokens; a part is written before more is held, however few its questions


@dataclass(frozen=True)
class Receipt:
    """What a call committed.

    Attributes:
        committed: Ordinals of the questions.
        summary: Sums over their rows.
        waiting: Complete questions that are held for the next part.
        saved: Samples of other questions that were saved.
    """

    committed: tuple[int, ...]
    summary: Summary
    waiting: int
    saved: int = 0


@dataclass
class _Open:
    """A question that lacks samples: its completions so far, by sample. Among them are those of earlier sessions."""

    question: Question
    saved: Mapping[int, Completion]
    completions: dict[int, Completion]


class ScorerActor:
    """One scoring actor. The driver sends it every chunk of the questions of its index, in one run after the other."""

    def __init__(self, scorer_index: int) -> None:
        """Serve no run yet: `begin` comes before everything else."""
        self._index = scorer_index
        self._limits: dict[str, int] = {}
        self._grader = Grader()
        self._rewards: UserRewards | None = None

    def __repr__(self) -> str:
        """Return the name in Ray's dashboard and logs."""
        return f"scorer-{self._index}"

    def begin(self, run: RunDirectory, config: RunConfig, arms: Sequence[Arm], rewards: RewardSources) -> Receipt:
        """Begin a run. Drop what an earlier run left, except the grading processes.

        Raises:
            LedgerError: This node does not see the run directory, or another driver has taken over the run.
            ConfigError: This node cannot load a reward function.
        """
        run.check_access()  # a scorer that cannot write must say so before the engines sample anything
        self._run, self._config = run, config
        self._scorer = QuestionScorer(arms, config.scoring, config.sampling.seed)
        self._end_rewards()
        self._rewards = UserRewards(rewards, config.scoring)
        self._rewards.prepare()
        limits = grader_limits(config.scoring)
        if limits != self._limits:
            self._grader.close()
            self._limits, self._grader = limits, Grader(**limits)
        self._grader.forget()
        self._saved = SavedSamples(run)
        self._open: dict[int, _Open] = {}
        self._complete: dict[int, ScoredQuestion] = {}
        self._held_bytes = 0
        self._oldest = time.monotonic()
        return Receipt((), Summary(), 0)

    def prepare(self) -> None:
        """Start grading processes and imports while the engines start, so the first batch does not wait for them."""
        self._grader.prepare()
        part_table([])

    def score(self, batch: Sequence[Generated], wanted: Set[int]) -> Receipt:
        """Score finished chunks, and commit a part if enough questions or seconds have gathered.

        Args:
            batch: The chunks.
            wanted: Ordinals of the questions to score; chunks of others are left out.
        """
        whole: list[tuple[Question, int, list[Completion]]] = []
        for generated in batch:
            ordinal = generated.request.ordinal
            if ordinal not in wanted:
                continue
            opened = self._open.get(ordinal) or self._take_up(generated.request)
            opened.completions.update((c.sample_index, c) for c in generated.completions)
            if len(opened.completions) == len(self._scorer.samples):
                del self._open[ordinal]
                whole.append((opened.question, ordinal, [done for _, done in sorted(opened.completions.items())]))
        if whole and not self._complete:
            self._oldest = time.monotonic()
        for (_, ordinal, _), scored in zip(whole, self._score(whole), strict=True):
            self._complete[ordinal] = scored
            self._held_bytes += sum(len(t.full_text) + len(t.reasoning) for t in scored.trajectories)
            self._held_bytes += sum(TOKEN_BYTES * len(t.token_ids or ()) for t in scored.trajectories)
        full = len(self._complete) >= self._config.output.part_rows or self._held_bytes >= PART_BYTES
        if full or time.monotonic() - self._oldest >= self._config.output.flush_seconds:
            return self.flush()
        return Receipt((), Summary(), len(self._complete))

    def _take_up(self, request: RolloutRequest) -> _Open:
        """Begin a question with the samples that earlier sessions saved."""
        saved = self._saved.of(request.question.question_id)
        return self._open.setdefault(request.ordinal, _Open(request.question, saved, dict(saved)))

    def flush(self) -> Receipt:
        """Commit the complete questions that are held."""
        if not self._complete:
            return Receipt((), Summary(), 0)
        table = part_table(list(self._complete.values()), self._config.output.tokens)
        self._run.write_part(table)
        committed = tuple(self._complete)
        self._complete = {}
        self._held_bytes = 0
        summary = Summary()
        summary.add(table)
        return Receipt(committed, summary, 0)

    def save(self) -> Receipt:
        """Commit the complete questions, and save the samples of the others for the next session."""
        receipt = self.flush()
        new = {
            opened.question.question_id: [c for c in opened.completions.values() if c.sample_index not in opened.saved]
            for opened in self._open.values()
        }
        return replace(receipt, saved=save_samples(self._run, new))

    def close(self) -> None:
        """End the grading processes, and those of the user's functions."""
        self._grader.close()
        self._end_rewards()

    def _end_rewards(self) -> None:
        if self._rewards is not None:
            self._rewards.close()

    def _score(self, whole: Sequence[tuple[Question, int, list[Completion]]]) -> list[ScoredQuestion]:
        assert self._rewards is not None
        pairs = [(question, completions) for question, _, completions in whole]
        return score_questions(pairs, Graders(self._config.scoring, self._grader), self._scorer, self._rewards)
