"""Build the scored row of a question from its completions and their grades.

Invariant: only this module fills the fields of a trajectory. The scoring actor, `verify` and `rescore` share it, so their
rows cannot differ. grader.py grades texts, and regime_w.py defines the rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import (
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
        self._variants = prompt_variants(arms)
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
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                prompt_variant=self._variants[spec.arm.prompt_variant],
            )
            for spec, completion, grade, reward in zip(samples, completions, grades, score.rewards, strict=True)
        ]
        trajectories.sort(key=lambda t: (self._place[t.arm], t.sample))
        if self._reward:
            trajectories = _with_custom_rewards(self._reward, question, trajectories)
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


def part_table(scored: Sequence[ScoredQuestion], tokens: bool = False) -> pa.Table:
    """Return the questions as rows of `part_schema(tokens)`. `tokens`: the run stores token ids and log-probabilities."""
    schema = part_schema(tokens)
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
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def _as_array(values: Sequence[float] | None, kind: type[np.number[Any]]) -> np.ndarray[Any, Any]:
    """Return the values in the form that Arrow takes without a Python object for each. An error row has none."""
    return np.asarray(() if values is None else values, kind)
