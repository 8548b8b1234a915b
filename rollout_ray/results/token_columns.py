"""Read and arrange the columns of a run that stores token ids and log-probabilities.

Token lists are read as NumPy arrays: Python numbers would take eight times their memory.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rollout_ray.core.records import NAMED_REWARDS, PROMPT_TOKENS, TOKEN_COLUMNS

_LISTS = tuple(name for name in TOKEN_COLUMNS if name != "prompt_variant")


def token_lists(column: pa.Array | pa.ChunkedArray) -> list[np.ndarray[Any, Any] | None]:
    """Return each list of numbers as an array; None for a null."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found: list[np.ndarray[Any, Any] | None] = []
    for chunk in chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        ends = chunk.offsets.to_pylist()
        known = chunk.is_valid().to_pylist()
        found += [
            values[begin:end] if valid else None for begin, end, valid in zip(ends[:-1], ends[1:], known, strict=True)
        ]
    return found


def prompt_lists(column: pa.Array | pa.ChunkedArray) -> list[list[np.ndarray[Any, Any] | None]]:
    """Return the tokens of each question's prompt variants."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found: list[list[np.ndarray[Any, Any] | None]] = []
    for chunk in chunks:
        ends = chunk.offsets.to_pylist()
        inner = token_lists(chunk.values)
        found += [inner[begin:end] for begin, end in pairwise(ends)]
    return found


def trajectory_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table of trajectories as dicts."""
    lists = [name for name in _LISTS if name in rows.column_names]
    found: list[dict[str, Any]] = rows.drop_columns(lists).to_pylist()
    for name in lists:
        for row, values in zip(found, token_lists(rows.column(name)), strict=True):
            row[name] = values
    if NAMED_REWARDS.name in rows.column_names:
        for row in found:
            pairs = row[NAMED_REWARDS.name]  # Arrow gives a map as pairs
            row[NAMED_REWARDS.name] = None if pairs is None else dict(pairs)
    return found


def nested_rows(lists: pa.ListArray) -> list[list[dict[str, Any]]]:
    """Return the trajectories of each question as dicts."""
    flat = lists.flatten()
    if lists.null_count or flat.null_count:  # no run writes them
        return [row or [] for row in lists.to_pylist()]
    found = trajectory_rows(pa.Table.from_struct_array(flat))
    ends = pc.subtract(lists.offsets, lists.offsets[0]).to_pylist()
    return [found[begin:end] for begin, end in pairwise(ends)]


def own_lists(rows: list[dict[str, Any]]) -> list[np.ndarray[Any, Any] | None]:
    """Take the prompts out of one question's rows of the flat layout, and return them by variant."""
    found: dict[int, np.ndarray[Any, Any] | None] = {}
    for row in rows:
        found[row["prompt_variant"] or 0] = row.pop(PROMPT_TOKENS)
    return [found.get(number) for number in range(max(found, default=-1) + 1)]


def own_prompts(prompts: pa.ListArray, parents: pa.Array, variants: pa.Array) -> pa.Array:
    """Return the prompt's tokens of each trajectory.

    Args:
        prompts: The tokens of each question's prompt variants.
        parents: For each trajectory, the number of its question.
        variants: For each trajectory, the index of its variant.
    """
    return prompts.values.take(pc.add(prompts.offsets.take(parents), pc.cast(variants, pa.int32())))
