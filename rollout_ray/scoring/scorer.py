"""Build the scored row of a question from its completions and their grades.

Invariant: only this module fills the fields of a trajectory. The scoring actor, `verify` and `rescore` share it, so their
rows cannot differ. grader.py grades texts, and regime_w.py defines the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.records import (
    NAMED_REWARDS,
    PROMPT_TOKENS,
    SCORES,
    Arm,
    Completion,
    Question,
    ScoredQuestion,
    Trajectory,
    part_schema,
    prompt_variants,
    sample_specs,
    sampling_seed,
)
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.scoring.grader import Grade
from rollout_ray.scoring.graders import Graders, grading_columns
from rollout_ray.scoring.regime_w import Scorable, score_question
from rollout_ray.scoring.user_code.rewards import UserRewards, row_columns

_CORRECT = {"correct": True, "incorrect": False, "no_answer": False}


class QuestionScorer:
    """Score the questions of one run.

    Attributes:
        samples: All samples of a question. `Completion.sample_index` is an index into them.
    """

    def __init__(self, arms: Sequence[Arm], scoring: ScoringConfig, run_seed: int) -> None:
        self.samples = sample_specs(arms)
        self._place = {arm.name: number for number, arm in enumerate(arms)}
        self._variants = prompt_variants(arms)
        self._scoring, self._run_seed = scoring, run_seed

    def score(self, question: Question, completions: Sequence[Completion], grades: Sequence[Grade]) -> ScoredQuestion:
        """Return the scored question, with the rewards of Regime W. Its trajectories have the order of the arms.

        Args:
            question: The question.
            completions: Its completions, in any order.
            grades: Their grades, in the same order.
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
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                prompt_variant=self._variants[spec.arm.prompt_variant],
            )
            for spec, completion, grade, reward in zip(samples, completions, grades, score.rewards, strict=True)
        ]
        trajectories.sort(key=lambda t: (self._place[t.arm], t.sample))
        scores = (score.s_end, score.s_path, score.s_cf, score.s_wm)
        return ScoredQuestion(question.question_id, tuple(trajectories), *scores, self._prompts(completions))

    def _prompts(self, completions: Sequence[Completion]) -> tuple[Sequence[int], ...]:
        """Return the tokens of each prompt variant; none for a prompt that was refused."""
        prompts: list[Sequence[int]] = [()] * len(self._variants)
        for completion in completions:
            if completion.prompt_token_ids is not None:
                variant = self.samples[completion.sample_index].arm.prompt_variant
                prompts[self._variants[variant]] = completion.prompt_token_ids
        return tuple(prompts)


def scoring_columns(sources: RewardSources, scoring: ScoringConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the input columns, among these names, that graders and reward functions read.

    Raises:
        ConfigError: A function cannot be loaded, or takes a column that the input lacks.
    """
    wanted = {*row_columns(sources, scoring, names), *grading_columns(scoring, names)}
    return tuple(name for name in names if name in wanted)


def score_questions(
    whole: Sequence[tuple[Question, Sequence[Completion]]], graders: Graders, scorer: QuestionScorer, rewards: UserRewards
) -> list[ScoredQuestion]:
    """Return the questions graded and rewarded, in their order.

    Raises:
        GradingError: A grading process does not start.
        ConfigError: The process of the user's functions does not start.
    """
    grades = graders.grade(whole)
    scored = [scorer.score(question, cs, gs) for (question, cs), gs in zip(whole, grades, strict=True)]
    return rewards.apply([question for question, _ in whole], scored)


def part_table(scored: Sequence[ScoredQuestion], tokens: bool = False) -> pa.Table:
    """Return the questions as rows of a part, with named rewards if a trajectory has them.

    Args:
        scored: The questions.
        tokens: The run stores token ids and log-probabilities.
    """
    rewards = any(t.rewards is not None for q in scored for t in q.trajectories)
    schema = part_schema(tokens, rewards)
    names = [field.name for field in schema.field("trajectories").type.value_type]
    rows = []
    for q in scored:
        trajectories = [{name: getattr(t, name) for name in names} for t in q.trajectories]
        row = {"question_id": q.question_id, "trajectories": trajectories, **{name: getattr(q, name) for name in SCORES}}
        if tokens:
            row[PROMPT_TOKENS] = [_as_array(ids, np.int32) for ids in q.prompt_token_ids]
            for trajectory in trajectories:
                trajectory["token_ids"] = _as_array(trajectory["token_ids"], np.int32)
                trajectory["logprobs"] = _as_array(trajectory["logprobs"], np.float32)
        for trajectory in trajectories if rewards else ():
            if (given := trajectory[NAMED_REWARDS.name]) is not None:
                trajectory[NAMED_REWARDS.name] = list(given.items())
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def _as_array(values: Sequence[float] | None, kind: type[np.number[Any]]) -> np.ndarray[Any, Any]:
    """Return the values in the form that Arrow takes without a Python object for each. An error row has none."""
    return np.asarray(() if values is None else values, kind)
