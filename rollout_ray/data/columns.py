"""Find the columns of a question set and check that they can serve."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Set

import pyarrow as pa

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.records import SCORES, TOKEN_COLUMNS, TRAJECTORY
from rollout_ray.data.sources import Source

log = logging.getLogger(__name__)

GOLD_KEY = "gold_answer"
ID_KEY = "question_id"
MAKE_A_COLUMN = "Make the field a column of its own, and name that"
RESERVED = ("trajectories", "responses", *SCORES)


def find_column(source: Source, named: str | None, usual: str, flag: str) -> str | None:
    """Return the column `named` by the user, else the `usual` one, else None.

    Args:
        source: The input.
        named: Column that the user gave with `flag`, or None.
        usual: Column to use if it exists and none is named.
        flag: Name of the flag, without dashes, for the message.

    Raises:
        DatasetError: The input has no column of the given name.
    """
    if named is not None and named not in source.schema.names:
        outer, _, inner = named.partition(".")
        if inner and outer in source.schema.names:
            raise DatasetError(
                f"{source.name} has no column '{named}', and no field of a struct can be named. {MAKE_A_COLUMN}: --{flag}"
            )
        raise DatasetError(f"{source.name} has no column '{named}'; {list_columns(source)}. Name it: --{flag}")
    return named or (usual if usual in source.schema.names else None)


def list_columns(source: Source) -> str:
    """List the columns of the input, for a message."""
    return f"it has: {', '.join(source.schema.names)}" if source.schema.names else "it is empty"


def check_columns(source: Source, prompt_key: str, gold_key: str | None, id_key: str | None) -> None:
    """Check the columns of the input.

    Args:
        source: The input.
        prompt_key: Column of the prompts.
        gold_key: Column of the gold answers, or None.
        id_key: Column of the ids, or None.

    Raises:
        DatasetError: A column is missing, has an unusable type, or has a name that the output needs.
    """
    names = source.schema.names
    if prompt_key not in names:
        raise DatasetError(
            f"{source.name} has no column '{prompt_key}' for the prompt; {list_columns(source)}. Name it: --prompt_key"
        )
    taken = [name for name in names if name in RESERVED or (name == ID_KEY and id_key != name)]
    if taken:
        raise DatasetError(f"{source.name} has a column '{taken[0]}', a name of the output; rename it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{source.name} has the column '{twice[0]}' more than once; rename one")
    if clash := [n for n in names if n in TRAJECTORY.names and f"input_{n}" in names]:
        raise DatasetError(f"{source.name} has the columns '{clash[0]}' and 'input_{clash[0]}'; rename one")
    kind = source.schema.field(prompt_key).type
    if not (_is_text(kind) or _is_chat(kind) or pa.types.is_null(kind)):
        raise DatasetError(
            f"{source.name}: column '{prompt_key}' holds {kind}; a prompt is a string, or a list of messages with role "
            "and content. Name another column: --prompt_key"
        )
    if gold_key and not _is_scalar(kind := source.schema.field(gold_key).type):
        hint = f". {MAKE_A_COLUMN}: --gold_key" if pa.types.is_struct(kind) else ""
        raise DatasetError(f"{source.name}: column '{gold_key}' holds {kind}; a gold answer is one string or number{hint}")
    if id_key and not _is_scalar(kind := source.schema.field(id_key).type):
        raise DatasetError(f"{source.name}: column '{id_key}' holds {kind}; an id is one string or number")


def check_token_columns(source: Source) -> None:
    """Raise DatasetError if the input has a column that a run with token ids writes."""
    if taken := [name for name in source.schema.names if name in TOKEN_COLUMNS]:
        raise DatasetError(f"{source.name} has a column '{taken[0]}', a name of the output with --tokens; rename it")


def check_files(source: Source, prompt_key: str | None, gold_key: str | None, id_key: str | None, rest: Set[str]) -> None:
    """Check that each file of the input has the columns that make a question.

    Args:
        source: The input.
        prompt_key: Column of the prompts, or None if a template makes them.
        gold_key: Column of the gold answers, or None.
        id_key: Column of the ids, or None.
        rest: Columns of the template.

    Raises:
        DatasetError: A file has no prompt, or no id. A file without another of these columns is named in a warning.
    """
    for key, what in ((prompt_key, "prompt"), (id_key, "id")):
        if key is not None and (files := source.files_without(key)):
            raise DatasetError(
                f"{_some(files)} of {source.name} has no column '{key}' for the {what}, which the other files have. Leave "
                "the file out, or give its rows this column"
            )
    for key in sorted(rest & set(source.schema.names)):
        if files := source.files_without(key):
            log.warning(
                "%s of %s has no column '%s' of the prompt template: it is null there", _some(files), source.name, key
            )
    if gold_key is not None and (files := source.files_without(gold_key)):
        log.warning("%s of %s has no column '%s': its rows are not graded", _some(files), source.name, gold_key)


def _some(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"each of {len(files)} files, such as {files[0]},"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    """Return whether a cell is one string, bytes, number, boolean or uuid."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(
        _is_text(kind) or is_bytes or is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind) or kind == pa.uuid()
    )


def _is_chat(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    if pa.types.is_map(item):
        return True
    fields = {item.field(i).name for i in range(item.num_fields)} if pa.types.is_struct(item) else set()
    return {"role", "content"} <= fields
