"""Makes question-set parquets: from GSM8K's JSONL, or of generated problems for the demo model."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import ConfigError, DatasetError
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.data.rows import read_lines
from rollout_ray.storage.files import write_whole


def prepare_gsm8k(source: str | Path, target: str | Path) -> int:
    """Turns GSM8K's JSONL (question, answer with the gold behind ####) into a parquet and returns its row count.

    Columns: prompt, gold_answer, solution. Raises DatasetError with the line that has another form.
    """
    columns: dict[str, list[str]] = {"prompt": [], "gold_answer": [], "solution": []}
    if os.path.realpath(source) == os.path.realpath(target):
        raise DatasetError(f"{target} is the input itself; give another output")
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}") from error
    for place, row in read_lines(content, str(source)):
        try:
            question, answer = row["question"], row["answer"]
            solution, gold = answer.rsplit("####", 1)
            f"{question + solution}{gold}".encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{place}: a GSM8K row has a question, and an answer with its gold behind #### ({error!r})"
            ) from error
        columns["prompt"].append(question)
        columns["gold_answer"].append(gold.strip().replace(",", ""))
        columns["solution"].append(solution.strip())
    return _write(columns, target)


def prepare_demo(count: int, seed: int, target: str | Path) -> int:
    """Writes `count` generated problems that the demo model was not trained on. Columns: prompt, gold_answer."""
    if count < 0:
        raise ConfigError(f"{count} questions cannot be made; give a number from 0 on")
    problems = list(itertools.islice(generate_problems(seed, "test"), count))
    return _write({"prompt": [p.question for p in problems], "gold_answer": [p.answer for p in problems]}, target)


def _write(columns: dict[str, list[str]], target: str | Path) -> int:
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
    try:
        write_whole(target, lambda stream: pq.write_table(table, stream))
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error}") from error
    return int(table.num_rows)
