"""Show the prompts of one question, as text and as tokens, in every prompt variant. Starts no engine."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from rollout_ray.config.notices import notices
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import Arm, Question
from rollout_ray.data.question_set import load_questions
from rollout_ray.models.local_tokenizer import NO_LIMIT, load_encoder
from rollout_ray.models.prompt_encoder import PromptEncoder
from rollout_ray.models.prompt_report import report_prompts, variants_of
from rollout_ray.models.prompt_wording import Examples
from rollout_ray.models.resolved_run import resolve

LINE_COLUMNS = 110


def show_prompt(cfg: RunConfig, dataset: Any = None, row: int = 0, arm: str | None = None) -> Iterator[str]:
    """Yield the lines that show the prompts of a question.

    Args:
        cfg: The config of the run.
        dataset: As in `rollout_ray.collect`.
        row: Number of the question, from 0.
        arm: Name of the only arm to show. None: one of each prompt variant.

    Raises:
        ConfigError: The config names no data set, the row or the arm is not there, or the run would be refused.
        DatasetError: The data set cannot be read.
    """
    dataset = cfg.data.dataset if dataset is None else dataset
    if dataset is None:
        raise ConfigError("no data set was given; name one with --dataset")
    run = resolve(cfg)
    questions = load_questions(dataset, cfg.data)
    question = next(islice(questions.questions(), row, None), None) if row >= 0 else None
    if question is None:
        raise ConfigError(f"row {row} is not there: {questions.source.name} has {len(questions)} rows, counted from 0")
    arms = [one for one in run.arms if arm in (None, one.name)]
    if not arms:
        raise ConfigError(f"there is no arm {arm}; give one of {', '.join(one.name for one in run.arms)}")
    run = replace(run, examples=Examples.of(questions.questions()))
    encoder = load_encoder(run, run.max_model_len or NO_LIMIT)
    report = report_prompts(encoder, run)
    yield f"row {row} of {questions.source.name}, question {question.question_id}"
    yield from report.notes
    yield from (f"warning: {warning}" for warning in [*report.warnings, *notices(cfg, run.arms)])
    for same in variants_of(arms):
        yield ""
        yield from _variant(encoder, question, same)


def _variant(encoder: PromptEncoder, question: Question, same: list[Arm]) -> Iterator[str]:
    """Yield the lines of one prompt variant, whose arms are `same`."""
    names = f"arm{'s' if len(same) > 1 else ''} {', '.join(one.name for one in same)}"
    try:
        if question.fault:
            raise Refused(question.fault)
        tokens = encoder.encode(question.prompt, same[0])
    except Refused as refused:
        yield f"{names}: no prompt. The row becomes an error row: {refused}"
        return
    yield f"{names}: {len(tokens)} tokens"
    yield "--- text"
    yield encoder.text_of(tokens)
    yield "--- tokens; special ones stand without quotes"
    pieces = (f"{token} {text if special else repr(text)}" for token, text, special in encoder.pieces(tokens))
    # A wrap never falls inside a token: the space in it is another character until then.
    whole = "  ".join(piece.replace(" ", "\0") for piece in pieces)
    lines = textwrap.wrap(whole, LINE_COLUMNS, break_long_words=False, break_on_hyphens=False)
    yield from (line.replace("\0", " ") for line in lines)
