"""Build the scored row of a question from its completions and their grades.

Invariant: only this module fills the fields of a trajectory. The scoring actor, `verify` and `rescore` share it, so their
rows cannot differ. grader.py grades texts, and regime_w.py defines the rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa

from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import (
    PART_SCHEMA,
    Arm,
    Completion,
    Question,
    ScoredQuestion,
    Trajectory,
    sample_specs,
    sampling_seed,
)
from rollout_ray.scoring.custom_reward import CustomReward
from rollout_ray.scoring.grader import Grade, Grader
from rollout_ray.scoring.regime_w import Scorable, score_question

_CORRECT = {"correct": True, "incorrect": False, "no_answer": False}


class QuestionScorer:
    """Score the questions of one run.

    Attributes:
        samples: All samples of a question. `Completion.sample_index` is an index into them.
    """

    def __init__(self, arms: Sequence[Arm], scoring: ScoringConfig, run_seed: int, reward: CustomReward | None) -> None:
        self.samples = sample_specs(arms)
        self._place = {arm.name: number for number, arm in enumerate(arms)}
        self._scoring, self._run_seed = scoring, run_seed
        self._reward = reward

    def score(self, question: Question, completions: Sequence[Completion], grades: Sequence[Grade]) -> ScoredQuestion:
        """Return the scored question. Its trajectories have the order of the arms.

        Args:
            question: The question.
            completions: Its completions, in any order.
            grades: Their grades, in the same order.

        Raises:
            ConfigError: A custom reward fails.
        """
        samples = [self.samples[c.sample_index] for c in completions]
        scorables = [
            Scorable(g.reasoning, c.num_tokens, d.arm.probe_role)
            for g, c, d in zip(grades, completions, samples, strict=True)
        ]
        score = score_question(scorables, grades, self._scoring)
        trajectories = [
            Trajectory(
                arm=spec.arm.name,
                sample=spec.sample,
                seed=sampling_seed(self._run_seed, question.question_id, spec.arm.name, spec.sample),
                temperature=spec.arm.temperature,
                top_p=spec.arm.top_p,
                full_text=completion.full_text,
                reasoning=grade.reasoning,
                answer=grade.answer,
                correct=_CORRECT.get(grade.status),
                score_status=grade.status,
                reward=reward,
                num_prompt_tokens=completion.num_prompt_tokens,
                num_tokens=completion.num_tokens,
                finish_reason=completion.finish_reason,
                error=completion.error,
                engine=completion.engine,
                policy_version=completion.policy_version,
            )
            for spec, completion, grade, reward in zip(samples, completions, grades, score.rewards, strict=True)
        ]
        trajectories.sort(key=lambda t: (self._place[t.arm], t.sample))
        if self._reward:
            trajectories = _with_custom_rewards(self._reward, question, trajectories)
        return ScoredQuestion(question.question_id, tuple(trajectories), score.s_end, score.s_path, score.s_cf, score.s_wm)


def grade_questions(grader: Grader, whole: Iterable[tuple[Question, Sequence[Completion]]]) -> list[list[Grade]]:
    """Return the grades of each question's completions. A completion that an engine refused gets `error`.

    Raises:
        GradingError: A grading process does not start.
    """
    whole = list(whole)
    pairs = [(q.gold_answer, c.full_text) for q, cs in whole for c in cs if c.finish_reason != "error"]
    graded = iter(grader.grade_many(pairs))
    return [[next(graded) if c.finish_reason != "error" else Grade("error", None) for c in cs] for _, cs in whole]


def _with_custom_rewards(reward: CustomReward, question: Question, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the trajectories with the rewards of a user's function. Raises ConfigError if it fails."""
    try:
        rewards = [None if value is None else float(value) for value in reward(question, trajectories)]
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the reward fails at question {question.question_id}: {error!r}; correct the function"
        ) from error
    if len(rewards) != len(trajectories):
        raise ConfigError(
            f"the reward returned {len(rewards)} values for the {len(trajectories)} trajectories of question "
            f"{question.question_id}. Return one value for each trajectory"
        )
    if odd := [value for value in rewards if value is not None and not math.isfinite(value)]:
        raise ConfigError(
            f"the reward returned {odd[0]} for a trajectory of question {question.question_id}. Return a finite number, "
            "or None"
        )
    return [replace(trajectory, reward=value) for trajectory, value in zip(trajectories, rewards, strict=True)]


_FIELDS = tuple(field.name for field in fields(Trajectory))


def as_dict(trajectory: Trajectory) -> dict[str, Any]:
    """Return the fields by name, as in the column `trajectories` of the output."""
    return {name: getattr(trajectory, name) for name in _FIELDS}


def part_table(scored: Sequence[ScoredQuestion]) -> pa.Table:
    """Return the questions as rows of PART_SCHEMA."""
    rows = [
        {
            "question_id": q.question_id,
            "trajectories": [as_dict(t) for t in q.trajectories],
            "s_end": q.s_end,
            "s_path": q.s_path,
            "s_cf": q.s_cf,
            "s_wm": q.s_wm,
        }
        for q in scored
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)
