"""Arrange input columns and trajectories in the layouts of a merged file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rollout_ray.config.schema import Layout
from rollout_ray.core.records import NAMED_REWARDS, PART_SCHEMA, PROMPT_TOKENS, SCORES
from rollout_ray.results.token_columns import own_prompts

REPEATED_BYTES = 96 << 20  # of input columns that are repeated beside trajectories, per table


def _as_questions(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    table = given
    for name in rows.column_names:
        if name not in given.column_names:
            table = table.append_column(name, rows.column(name))
    yield table


def _as_trajectories(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    lists = rows.column("trajectories").combine_chunks()
    parents = pc.list_parent_indices(lists)
    flat = lists.flatten()
    prompts = rows.column(PROMPT_TOKENS).combine_chunks() if PROMPT_TOKENS in rows.column_names else None
    # Every trajectory repeats the input columns. Large ones would exceed the memory, or the limit of Arrow.
    repeated = given.nbytes + (prompts.nbytes if prompts is not None else 0)
    most = max(1, REPEATED_BYTES * max(1, given.num_rows) // max(1, repeated))
    for begin in range(0, max(1, len(flat)), most):
        parent, own = parents.slice(begin, most), flat.slice(begin, most)
        table = given.take(parent).rename_columns(_beside_trajectory(given.column_names, own.type))
        if "question_id" not in table.column_names:
            table = table.append_column("question_id", rows.column("question_id").take(parent))
        for number, field in enumerate(own.type):
            table = table.append_column(field, own.field(number))
        if prompts is not None:
            table = table.append_column(PROMPT_TOKENS, own_prompts(prompts, parent, own.field("prompt_variant")))
        for name in SCORES:
            table = table.append_column(name, rows.column(name).take(parent))
        yield table


def _as_responses(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    lists = rows.column("trajectories").combine_chunks()
    texts = lists.flatten().field("full_text")
    offsets = pc.subtract(lists.offsets, lists.offsets[0])
    yield given.append_column("responses", pa.ListArray.from_arrays(offsets, texts))


_LAYOUTS = {"questions": _as_questions, "trajectories": _as_trajectories, "responses": _as_responses}


def to_layout(layout: Layout, given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the output rows of some questions, in at least one table.

    Args:
        layout: Layout of the output.
        given: Input columns, one row per question.
        rows: Rows of the same questions, as in the parts, in the same order.
    """
    return _LAYOUTS[layout](given, rows)


def _beside_trajectory(names: Sequence[str], trajectory: pa.StructType) -> list[str]:
    """Return the names of input columns in the flat layout. A name that trajectories have gets the prefix `input_`."""
    taken = {field.name for field in trajectory}
    return [f"input_{name}" if name in taken else name for name in names]


def output_schema(given: pa.Schema, layout: Layout, rows: pa.Schema = PART_SCHEMA) -> pa.Schema:
    """Return the schema of the merged file.

    Args:
        given: Schema of the input.
        layout: Layout of the output.
        rows: Schema of the rows of the parts.
    """
    empty = to_layout(layout, given.remove_metadata().empty_table(), rows.empty_table())
    return next(empty).schema


def has_flat_rewards(names: Collection[str], given: Collection[str]) -> bool:
    """Return whether a file of the flat layout has named rewards.

    Args:
        names: Columns of the file.
        given: Columns of the input. One of them may have the name of that field.
    """
    name = NAMED_REWARDS.name
    return name in names and (name not in given or f"input_{name}" in names)


def changes(column: pa.ChunkedArray) -> list[bool]:
    """Return whether each value differs from the value before it. The first does not."""
    after, before = column.slice(1), column.slice(0, max(0, len(column) - 1))
    try:
        unequal = pc.fill_null(pc.not_equal(after, before), False)
        if pa.types.is_floating(column.type):  # the same NaN is no change
            unequal = pc.and_not(unequal, pc.fill_null(pc.and_(pc.is_nan(after), pc.is_nan(before)), False))
    except pa.ArrowNotImplementedError:  # chat messages
        return [False, *(repr(a) != repr(b) for a, b in zip(after.to_pylist(), before.to_pylist(), strict=True))]
    return [False, *pc.or_(unequal, pc.xor(after.is_null(), before.is_null())).to_pylist()]
