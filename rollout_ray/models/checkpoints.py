"""Checkpoints on disk: which weights a policy has, and whether others fit in their place.

This makes the fingerprint of a model folder. It compares two folders by their configs and their safetensors headers.
It loads no tensor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.models.weight_files import (
    UNUSED,
    WEIGHTS,
    StoredTensor,
    read_json,
    stored_tensors,
    tensor_shapes,
    weight_files,
)

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
BLOCKS, BLOCK = 64, 4096  # of each weight file go into its fingerprint: how many, and bytes of each

# Fields of a config.json that do not change how weights are used.
_INCIDENTAL = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # transformers' Trainer sets them to the tokenizer's
}


@dataclass(frozen=True)
class Policy:
    """The weights that engines hold.

    Attributes:
        path: Folder or hub id.
        fingerprint: Fingerprint of the path when the weights were loaded.
        version: Number of updates since the engines first started.
    """

    path: str
    fingerprint: str
    version: int = 0

    def changed_on_disk(self) -> bool:
        """Return whether the folder holds other weights now. A new engine would load those."""
        return os.path.isdir(self.path) and model_fingerprint(self.path) != self.fingerprint


def model_fingerprint(model_path: str) -> str:
    """Return a cheap fingerprint of a local checkpoint or adapter; of a hub id the id itself.

    It hashes the configs, and the names, sizes and 64 evenly spread blocks of the weight files. A step of training moves
    nearly every weight, so the blocks differ even if names and sizes do not.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        return model_path
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.iterdir()):
        if file.suffix in WEIGHTS:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}\n".encode())
            with file.open("rb", buffering=0) as stream:
                for number in range(BLOCKS):
                    stream.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
                    digest.update(stream.read(BLOCK))
                    if size <= BLOCK:
                        break
        elif file.name in ("config.json", "adapter_config.json"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def check_same_shape(held: str, offered: str) -> None:
    """Raise ConfigError if a checkpoint cannot take the place of another one.

    Args:
        held: Folder of the present weights, or id of a hub model in the local cache.
        offered: Folder of the new weights.
    """
    base = _local_folder(held)
    config = _config(base)
    different = _differing(config, _config(Path(offered)))
    if different:
        raise ConfigError(
            f"the weights in {offered} are another model's: its config differs from that of {held} in {different}"
        )
    ours, theirs = stored_tensors(base), stored_tensors(Path(offered))
    for name in [*ours, *theirs]:
        only_one = (name in ours) != (name in theirs)
        if only_one and (UNUSED.fullmatch(name) or (name.endswith("lm_head.weight") and _ties(config))):
            continue
        if only_one or ours[name].shape != theirs[name].shape:
            raise ConfigError(
                f"the weights in {offered} have another shape: {name} is {_shown(theirs.get(name))} there and "
                f"{_shown(ours.get(name))} in {held}"
            )
        if ours[name].is_plain != theirs[name].is_plain:
            raise ConfigError(
                f"the weights in {offered} are quantized in another way: {name} is {theirs[name].dtype} there and "
                f"{ours[name].dtype} in {held}"
            )


def embedding_rows(folder: Path) -> int | None:
    """Return the rows of the embedding of a folder's language model; None if they are not known."""
    shapes = tensor_shapes(folder) if weight_files(folder) else {}
    if rows := [shape[0] for name, shape in shapes.items() if name.endswith(_EMBEDDINGS) and shape]:
        return max(rows)
    config = _config(folder)
    rows_named = (config.get("text_config") or config).get("vocab_size")
    return rows_named if isinstance(rows_named, int) else None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json")


def _ties(config: dict[str, Any]) -> bool:
    """Return whether the output layer may share the embedding, so that a file need not hold it.

    Some architectures tie the two by default.
    """
    text = config.get("text_config")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    return said is not False


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return the fields that differ, by dotted names. A field that only one config has may be a written-out default."""
    return ", ".join(f"{name} ({there}, not {here})" for name, here, there in _differences(ours, theirs))


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted((ours.keys() & theirs.keys()) - _INCIDENTAL):
        here, there = ours[name], theirs[name]
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{prefix}{name}.")
        elif here != there and here is not None and there is not None:
            yield f"{prefix}{name}", here, there


def _shown(tensor: StoredTensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape))


def _local_folder(model: str) -> Path:
    """Return the folder of a model; for a hub id, its folder in the local cache."""
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the shapes of {model} cannot be read here, so that no other weights can be checked against them; give "
            "model_path as a folder that this machine sees"
        ) from error
