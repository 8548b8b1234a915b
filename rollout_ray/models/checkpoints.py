"""Checkpoints on disk: which weights a policy has, and whether others fit in their place.

This makes the fingerprint of a model folder. It compares two folders by their configs and their safetensors headers.
It loads no tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import ConfigError

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
BLOCKS, BLOCK = 64, 4096  # of each weight file go into its fingerprint: how many, and bytes of each
MOST_HEADER = 1 << 27  # bytes; a longer one is no safetensors header

# Fields of a config.json that do not change how weights are used.
_INCIDENTAL = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # transformers' Trainer sets them to the tokenizer's
}
# Tensors that some hub checkpoints hold, no engine takes, and transformers does not write again.
_UNUSED = re.compile(r"mtp\..*|.*\.rotary_emb\.inv_freq")


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
    if not os.path.isdir(offered):
        raise ConfigError(f"there is no folder {offered} to load weights from; the old weights stay in use")
    base = _local_folder(held)
    config = _config(base)
    different = _differing(config, _config(Path(offered)))
    if different:
        raise ConfigError(
            f"the weights in {offered} are another model's: its config differs from that of {held} in {different}; the old "
            "weights stay in use"
        )
    ours, theirs = tensor_shapes(base), tensor_shapes(Path(offered))
    for name in [*ours, *theirs]:
        only_one = (name in ours) != (name in theirs)
        if only_one and (_UNUSED.fullmatch(name) or (name.endswith("lm_head.weight") and _ties(config))):
            continue
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"the weights in {offered} have another shape: {name} is {_shown(theirs.get(name))} there and "
                f"{_shown(ours.get(name))} in {held}; the old weights stay in use"
            )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the folder's safetensors files, by name.

    Raises:
        ConfigError: There is no file, a file is damaged, or an index names a file that is not there.
    """
    return {name: shape for shapes in shapes_by_file(folder).values() for name, shape in shapes.items()}


def shapes_by_file(folder: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """The same, apart for each file."""
    files = weight_files(folder)
    if not files:
        raise ConfigError(f"{folder} holds no safetensors file; save the weights with save_pretrained")
    return {file: _shapes_of(file) for file in files}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader takes: those that the index names, else model.safetensors, else all of them but
    the consolidated ones of Mistral's, which are the same tensors again under names of their own. Raises ConfigError where
    the index cannot be read."""
    index, one = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        named = _json(index).get("weight_map")
        if not isinstance(named, dict):
            raise ConfigError(f"{index} names no files; give a folder that save_pretrained wrote")
        return sorted({folder / name for name in named.values()})
    if one.exists():
        return [one]
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def _shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """From the header alone: eight bytes of length, then JSON. The data must be there in full as well."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(MOST_HEADER, size):
                raise ValueError("it is cut short")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end > size:
            raise ValueError("it is cut short")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no whole safetensors file ({error}); save the weights again") from error


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a folder that save_pretrained wrote") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no JSON object; give a folder that save_pretrained wrote")
    return content


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


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape))


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
