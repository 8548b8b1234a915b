"""Write question sets as parquet: from GSM8K's JSONL, or from generated demo problems."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import ConfigError, DatasetError
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.data.json_files import JsonLine, read_lines
from rollout_ray.storage.files import write_whole


def prepare_gsm8k(source: str | Path, target: str | Path) -> int:
    """Convert GSM8K's JSONL (question, and answer with the gold after ####) to parquet.

    The columns are prompt, gold_answer and solution.

    Returns:
        The number of rows.

    Raises:
        DatasetError: A line has another form, or a file cannot be read or written.
    """
    columns: dict[str, list[str]] = {"prompt": [], "gold_answer": [], "solution": []}
    if os.path.realpath(source) == os.path.realpath(target):
        raise DatasetError(f"{target} is the input itself; give another output path")
    try:
        with open(source, "rb") as stream:
            for line in read_lines(stream, str(source)):
                prompt, gold, solution = _gsm8k_row(line)
                columns["prompt"].append(prompt)
                columns["gold_answer"].append(gold)
                columns["solution"].append(solution)
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}. Check the path and its permissions") from error
    return _write(columns, target)


def _gsm8k_row(line: JsonLine) -> tuple[str, str, str]:
    """Return prompt, gold answer and solution of a line."""
    try:
        question = line.row["question"]
        solution, gold = line.row["answer"].rsplit("####", 1)
        f"{question + solution}{gold}".encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{line.place}: a GSM8K row has a question, and an answer with its gold after #### ({error!r}). "
            "Give GSM8K's own JSONL"
        ) from error
    return question, gold.strip().replace(",", ""), solution.strip()


def prepare_demo(count: int, seed: int, target: str | Path) -> int:
    """Write `count` generated problems that the demo model was not trained on.

    The columns are prompt and gold_answer. The same seed gives the same problems.

    Returns:
        The number of rows.

    Raises:
        ConfigError: `count` is negative.
        DatasetError: The file cannot be written.
    """
    if count < 0:
        raise ConfigError(f"{count} questions cannot be made; give 0 or more")
    problems = list(itertools.islice(generate_problems(seed, "test"), count))
    return _write({"prompt": [p.question for p in problems], "gold_answer": [p.answer for p in problems]}, target)


def _write(columns: dict[str, list[str]], target: str | Path) -> int:
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
    try:
        write_whole(target, lambda stream: pq.write_table(table, stream))
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error}. Free space there, or give another output path") from error
    return int(table.num_rows)
