"""The scoring actor: joins the pieces of each question, grades and rewards them, and commits whole questions as parts.

Owns what lies between a generation and a committed row. Its generations come by reference from the engines; the driver
sees only receipts. Invariant: a question is acknowledged when, and only when, its part is on storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

import pyarrow as pa

from rollout_ray.config import RunConfig
from rollout_ray.errors import ConfigError
from rollout_ray.grading import Grade, Grader
from rollout_ray.ledger import RunDirectory
from rollout_ray.records import (
    PART_SCHEMA,
    Arm,
    Completion,
    Generated,
    Question,
    ScoredQuestion,
    Trajectory,
    draws_of,
    sampling_seed,
)
from rollout_ray.regime_w import Scorable, score_question
from rollout_ray.report import Summary

CustomReward = Callable[[Question, Sequence[Trajectory]], Sequence[float | None]]
PART_BYTES = 64 << 20  # of text; a part is written before more than this is held, however few its questions
_CORRECT = {"correct": True, "incorrect": False, "no_answer": False}


@dataclass(frozen=True)
class Receipt:
    """What a call committed: the questions' ordinals, and a summary of their rows. `waiting` complete questions are
    held for the next part."""

    committed: tuple[int, ...]
    summary: Summary
    waiting: int


class ScorerActor:
    """One scoring actor; the driver sends it every piece of the questions of its lane."""

    def __init__(self, lane: int, run: RunDirectory, config: RunConfig, arms: Sequence[Arm]) -> None:
        self._lane, self._run, self._config = lane, run, config
        self._arm_names = [arm.name for arm in arms]
        self._draws = draws_of(arms)
        self._grader = Grader(timeout_s=config.scoring.grade_timeout_s, memory_mib=config.scoring.grader_memory_mib)
        self._reward = load_reward(config.scoring.reward)
        self._pieces: dict[int, list[Generated]] = {}
        self._complete: dict[int, ScoredQuestion] = {}
        self._held_bytes = 0
        self._oldest = time.monotonic()

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call it."""
        return f"scorer-{self._lane}"

    def score(self, batch: Sequence[Generated], wanted: Set[int]) -> Receipt:
        """Takes the finished pieces of the questions `wanted` (ordinals); commits a part where enough questions, or
        seconds, have gathered."""
        whole: list[tuple[Question, int, list[Completion]]] = []
        for generated in batch:
            ordinal = generated.request.ordinal
            if ordinal not in wanted:
                continue
            pieces = self._pieces.setdefault(ordinal, [])
            pieces.append(generated)
            if sum(len(p.request) for p in pieces) == len(self._draws):
                del self._pieces[ordinal]
                completions = sorted((c for p in pieces for c in p.completions), key=lambda c: c.draw)
                whole.append((generated.request.question, ordinal, completions))
        if whole and not self._complete:
            self._oldest = time.monotonic()
        for (_, ordinal, _), scored in zip(whole, self._score(whole), strict=True):
            self._complete[ordinal] = scored
            self._held_bytes += sum(len(t.full_text) + len(t.reasoning) for t in scored.trajectories)
        full = len(self._complete) >= self._config.output.part_rows or self._held_bytes >= PART_BYTES
        if full or time.monotonic() - self._oldest >= self._config.output.flush_seconds:
            return self.flush()
        return Receipt((), Summary(), len(self._complete))

    def flush(self) -> Receipt:
        """Commits the complete questions that are held."""
        if not self._complete:
            return Receipt((), Summary(), 0)
        table = part_table(list(self._complete.values()))
        self._run.write_part(table)
        committed, self._complete, self._held_bytes = tuple(self._complete), {}, 0
        summary = Summary()
        summary.add(table)
        return Receipt(committed, summary, 0)

    def close(self) -> None:
        """Ends the grading children."""
        self._grader.close()

    def _score(self, whole: Sequence[tuple[Question, int, list[Completion]]]) -> list[ScoredQuestion]:
        pairs = [(q.gold_answer, c.full_text) for q, _, cs in whole for c in cs if c.finish_reason != "error"]
        graded = iter(self._grader.grade_many(pairs))
        return [self._score_one(question, completions, graded) for question, _, completions in whole]

    def _score_one(self, question: Question, completions: list[Completion], graded: Any) -> ScoredQuestion:
        grades = [next(graded) if c.finish_reason != "error" else Grade("error", None) for c in completions]
        draws = [self._draws[c.draw] for c in completions]
        scorables = [
            Scorable(g.reasoning, c.num_tokens, d.arm.probe_role)
            for g, c, d in zip(grades, completions, draws, strict=True)
        ]
        score = score_question(scorables, grades, self._config.scoring)
        trajectories = [
            Trajectory(
                arm=draw.arm.name,
                sample=draw.sample,
                seed=sampling_seed(self._config.sampling.seed, question.question_id, draw.arm.name, draw.sample),
                temperature=draw.arm.temperature,
                top_p=draw.arm.top_p,
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
            )
            for draw, completion, grade, reward in zip(draws, completions, grades, score.rewards, strict=True)
        ]
        trajectories.sort(key=lambda t: (self._arm_names.index(t.arm), t.sample))
        if self._reward:
            trajectories = _with_custom_rewards(self._reward, question, trajectories)
        return ScoredQuestion(question.question_id, tuple(trajectories), score.s_end, score.s_path, score.s_cf, score.s_wm)


def load_reward(name: str | None) -> CustomReward | None:
    """The reward `module:function`. Raises ConfigError where there is none of that name."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"scoring.reward {name} cannot be loaded: {error}") from error
    if not callable(found):
        raise ConfigError(f"scoring.reward {name} is no function")
    return found  # type: ignore[no-any-return]


def _with_custom_rewards(reward: CustomReward, question: Question, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    values = list(reward(question, trajectories))
    if len(values) != len(trajectories):
        raise ConfigError(f"the reward gave {len(values)} values for the {len(trajectories)} trajectories of {question}")
    return [replace(t, reward=None if v is None else float(v)) for t, v in zip(trajectories, values, strict=True)]


_FIELDS = tuple(field.name for field in fields(Trajectory))


def _as_dict(trajectory: Trajectory) -> dict[str, Any]:
    return {name: getattr(trajectory, name) for name in _FIELDS}


def part_table(scored: Sequence[ScoredQuestion]) -> pa.Table:
    """Rows of PART_SCHEMA."""
    rows = [
        {
            "question_id": q.question_id,
            "trajectories": [_as_dict(t) for t in q.trajectories],
            "s_end": q.s_end,
            "s_path": q.s_path,
            "s_cf": q.s_cf,
            "s_wm": q.s_wm,
        }
        for q in scored
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)
