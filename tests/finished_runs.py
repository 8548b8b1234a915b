"""Finished runs for the tests of what reads them: made without an engine by the same scoring, ledger, merge and
description, from inputs of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Completion, Question, sampling_seed
from rollout_ray.data.question_set import load_questions
from rollout_ray.results.merge import merge
from rollout_ray.results.metadata import describe
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.scoring.grader import Grader
from rollout_ray.scoring.graders import Graders, grading_columns
from rollout_ray.scoring.scorer import QuestionScorer, part_table, score_questions
from rollout_ray.scoring.user_code.rewards import UserRewards, row_columns
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import demo_rows


def drawn(question: Question, draw: int, seed: int, max_tokens: int) -> Completion:
    """A completion that depends on the seed alone: right, wrong, truncated, without an answer, or refused."""
    rng = random.Random(seed)
    if question.fault or rng.random() < 0.05:
        return Completion(draw, "", 0, 0, "error", f"engine-{draw % 2}", question.fault or "refused")
    thoughts = " ".join(rng.choices(["first", "then", "so", "add", "multiply", "check", "we", "get"], k=rng.randint(3, 30)))
    tokens = rng.randint(5, min(900, max_tokens))
    ending = rng.choice([f"Answer: {question.gold_answer}", f"Answer: {rng.randint(1, 9)}", "#### 7", "and so on"])
    return Completion(draw, f"{thoughts}\n{ending}", 12, tokens, rng.choice(["stop", "length"]), f"engine-{draw % 2}")


Drawn = Callable[[Question, int, int, int], Completion]


def finished(folder: Path, rows: Any, draw: Drawn = drawn, **sections: Any) -> RunDirectory:
    """A run directory as a run leaves it, without engines: the same scoring, ledger, merge and description."""
    cfg = RunConfig.model_validate({"output": {"output_dir": str(folder)}, **sections})
    questions, arms = load_questions(rows, cfg.data), resolve_arms(cfg)
    run = RunDirectory(str(folder))
    facts = describe(cfg, arms, questions)
    identity = {**cfg.identity(), "data.fingerprint": questions.fingerprint}
    run.open(identity, {"arms": facts["arms"], "dataset": facts["dataset"]})
    scorer = QuestionScorer(arms, cfg.scoring, cfg.sampling.seed)
    sources = RewardSources.of_config(cfg.scoring)
    names = questions.source.schema.names
    columns = {*row_columns(sources, cfg.scoring, names), *grading_columns(cfg.scoring, names)}
    questions = replace(questions, row_columns=tuple(columns))
    with Grader() as grader, closing(UserRewards(sources, cfg.scoring)) as rewards:
        whole = [(question, completions(question, scorer, cfg, draw)) for question in questions.questions()]
        scored = score_questions(whole, Graders(cfg.scoring, grader), scorer, rewards)
    run.write_part(part_table(scored, cfg.output.tokens))
    metadata = {"schema_version": 1, "config_digest": cfg.digest(), **facts}
    if cfg.output.tokens:
        metadata["logprobs"] = cfg.output.logprobs
    merge(run, questions, cfg.output.layout, len(scorer.samples), metadata)
    return run


def completions(question: Question, scorer: QuestionScorer, cfg: RunConfig, draw: Drawn) -> list[Completion]:
    seeds = [sampling_seed(cfg.sampling.seed, question.question_id, d.arm.name, d.sample) for d in scorer.samples]
    return [draw(question, n, seed, scorer.samples[n].arm.max_tokens) for n, seed in enumerate(seeds)]


Rows = list[dict[str, Any]]


def altered(source: str, target: Path, change: Callable[[Rows], object]) -> str:
    """A copy of a merged file whose rows (as dicts) `change` was let loose on."""
    table = pq.read_table(source)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target, row_group_size=7)
    return str(target)


def merged_path(run: RunDirectory) -> str:
    return run.path("merged.parquet")


CHAT = [[{"role": "user", "content": f"What is {n} and 1?"}] for n in range(8)]
INPUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "content hashes": (demo_rows(8), {}),
    "ids of its own": ([{**row, "question_id": f"q/{n}"} for n, row in enumerate(demo_rows(8))], {}),
    "ids in another column": ([{**row, "uid": n} for n, row in enumerate(demo_rows(8))], {"id_key": "uid"}),
    "exact duplicates": ([demo_rows(1)[0]] * 3 + demo_rows(4), {}),
    "no gold": ([{"prompt": f"p{n}"} for n in range(5)], {}),
    "chat and a number as gold": (
        [{"chat": c, "answer": n} for n, c in enumerate(CHAT)], {"prompt_key": "chat", "gold_key": "answer"},
    ),
    "rows that cannot be asked": ([{"prompt": p, "gold_answer": "1"} for p in ("a", None, " ", "b")], {}),
    "bytes that are no text": (
        pa.table({"prompt": pa.array([b"\xff\xfe", b"ok"], pa.binary()).view(pa.string()), "gold_answer": ["1", "2"]}), {},
    ),
    "bytes as ids, and a gold that is in part no number": (
        pa.table(
            {
                "prompt": [f"p{n}" for n in range(6)],
                "question_id": pa.array([f"q{n}".encode() for n in range(6)], pa.binary()),
                "gold_answer": pa.array([0.1, float("nan"), None, 3.14, 7.0, 1e30], pa.float32()),
            }
        ),
        {},
    ),
    "a gold with the name that the flat layout gives to another": (
        [{"prompt": f"p{n}", "input_answer": str(n), "input_num_tokens": n} for n in range(5)],
        {"gold_key": "input_answer"},
    ),
    "no rows": (pa.table({"prompt": pa.array([], pa.string())}), {}),
}  # fmt: skip
