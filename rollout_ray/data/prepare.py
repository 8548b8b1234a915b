"""Write question sets as parquet: from GSM8K's files, or from generated demo problems."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import ConfigError, DatasetError
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.data.input_files import find_input_files
from rollout_ray.data.json_files import JsonLine
from rollout_ray.data.sources import TableFilesSource, json_lines
from rollout_ray.storage.folder import write_file
from rollout_ray.storage.paths import real_path


def prepare_gsm8k(source: str | Path, target: str | Path) -> int:
    """Convert GSM8K's JSONL or parquet (question, and answer with the gold after ####) to parquet.

    The columns are prompt, gold_answer and solution.

    Returns:
        The number of rows.

    Raises:
        DatasetError: A line has another form, or a file cannot be read or written.
    """
    columns: dict[str, list[str]] = {"prompt": [], "gold_answer": [], "solution": []}
    if real_path(str(source)) == real_path(str(target)):
        raise DatasetError(f"{target} is the input itself; give another output path")
    for line in _rows(str(source)):
        prompt, gold, solution = _gsm8k_row(line)
        columns["prompt"].append(prompt)
        columns["gold_answer"].append(gold)
        columns["solution"].append(solution)
    return _write(columns, target)


def _rows(source: str) -> Iterator[JsonLine]:
    """Yield the rows of the files, with their places for messages."""
    files = find_input_files(source)
    if files.format == "lines":
        for info in files.infos:
            yield from json_lines(files, info)
        return
    number = itertools.count()
    for batch in TableFilesSource(files, None).batches():
        for row in batch.to_pylist():
            yield JsonLine(f"{source}, row {next(number)} (from 0)", 0, row)


def _gsm8k_row(line: JsonLine) -> tuple[str, str, str]:
    """Return prompt, gold answer and solution of a line."""
    try:
        question = line.row["question"]
        solution, gold = line.row["answer"].rsplit("####", 1)
        f"{question + solution}{gold}".encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{line.place}: a GSM8K row has a question, and an answer with its gold after #### ({error!r}). "
            "Give GSM8K's own JSONL or parquet"
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
        write_file(str(target), lambda stream: pq.write_table(table, stream))
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error}. Free space there, or give another output path") from error
    return int(table.num_rows)
