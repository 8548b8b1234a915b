"""Read what the safetensors files of a model folder hold, from their headers.

A header names each tensor with its type, shape and place in the file. This module loads no tensor.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import ConfigError

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
INDEX = "model.safetensors.index.json"
MOST_HEADER = 1 << 27  # bytes; a longer one is no safetensors header
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Types of weights that are not quantized.
PLAIN = frozenset(("BF16", "F16", "F32", "F64"))
# Tensors that some hub checkpoints hold, no engine takes, and transformers does not write again.
UNUSED = re.compile(r"mtp\..*|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Attributes:
        dtype: Name of the type as safetensors spells it, such as BF16.
        begin: First byte in the file; `end` is the byte after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def is_plain(self) -> bool:
        """Whether the values are not quantized."""
        return self.dtype in PLAIN


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder's safetensors files, by name.

    Raises:
        ConfigError: There is no file, a file is damaged, or an index names a file or a tensor that is not there.
    """
    files = weight_files(folder)
    if not files:
        raise ConfigError(f"{folder} holds no safetensors file; save the weights with save_pretrained")
    found = {name: tensor for file in files for name, tensor in read_header(file).items()}
    for name, file in _indexed(folder).items():
        if name not in found and not UNUSED.fullmatch(name):
            raise ConfigError(f"{folder / file} lacks {name}, which {INDEX} says it holds; save or copy the weights again")
    return found


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, by name. Raises as `stored_tensors` does."""
    return {name: tensor.shape for name, tensor in stored_tensors(folder).items()}


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a loader takes.

    These are the files that the index names, else model.safetensors, else all. Mistral's consolidated files hold the same
    tensors again under names of their own, so they do not count.

    Raises:
        ConfigError: The index cannot be read.
    """
    one = folder / "model.safetensors"
    if (folder / INDEX).exists():
        return sorted({folder / name for name in _indexed(folder).values()})
    if one.exists():
        return [one]
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def is_pointer(file: Path) -> bool:
    """Return whether git-lfs has left its pointer in place of the file."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name. The header is eight bytes of length, then JSON.

    Raises:
        ConfigError: The file is missing, is a git-lfs pointer, or does not hold all of its data.
    """
    if is_pointer(file):
        raise ConfigError(f"{file} is a git-lfs pointer and holds no weights; run `git lfs pull` in its folder")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(MOST_HEADER, size):
                raise ValueError("it is cut short")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        data = 8 + length
        places = {name: tuple(data + offset for offset in entry["data_offsets"]) for name, entry in header.items()}
        if max((end for _, end in places.values()), default=0) > size:
            raise ValueError("it is cut short")
        return {
            name: StoredTensor(name, entry["dtype"], tuple(entry["shape"]), file, *places[name])
            for name, entry in header.items()
        }
    except FileNotFoundError as error:
        raise ConfigError(f"{file} is missing, and {INDEX} names it; copy or download it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no whole safetensors file ({error}); save the weights again") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint. Raises ConfigError if it cannot be read."""
    if is_pointer(file):
        raise ConfigError(f"{file} is a git-lfs pointer; run `git lfs pull` in its folder")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a folder that save_pretrained wrote") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no JSON object; give a folder that save_pretrained wrote")
    return content


def _indexed(folder: Path) -> dict[str, str]:
    """Return the file of each tensor that the index names; empty without an index."""
    index = folder / INDEX
    if not index.exists():
        return {}
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise ConfigError(f"{index} names no files; give a folder that save_pretrained wrote")
    return named
