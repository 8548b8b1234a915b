"""Makes question-set parquets: from GSM8K's JSONL, or of generated problems for the demo model."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.demo_questions import generate_problems
from rollout_ray.errors import DatasetError


def prepare_gsm8k(source: str | Path, target: str | Path) -> int:
    """Turns GSM8K's JSONL (question, answer with the gold behind ####) into a parquet and returns its row count.

    Columns: prompt, gold_answer, solution. Raises DatasetError with the line that has another form.
    """
    columns: dict[str, list[str]] = {"prompt": [], "gold_answer": [], "solution": []}
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{source} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
            solution, gold = answer.rsplit("####", 1)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{source}, line {number}: a GSM8K row has a question, and an answer with its gold behind #### ({error!r})"
            ) from error
        columns["prompt"].append(question)
        columns["gold_answer"].append(gold.strip().replace(",", ""))
        columns["solution"].append(solution.strip())
    return _write(columns, target)


def prepare_demo(count: int, seed: int, target: str | Path) -> int:
    """Writes `count` generated problems that the demo model was not trained on. Columns: prompt, gold_answer."""
    problems = list(itertools.islice(generate_problems(seed, "test"), count))
    return _write({"prompt": [p.question for p in problems], "gold_answer": [p.answer for p in problems]}, target)


def _write(columns: dict[str, list[str]], target: str | Path) -> int:
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
    partial = Path(f"{target}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        os.replace(partial, target)
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error}") from error
    return int(table.num_rows)
