"""Find weights that are not finite: NaN and infinity, such as a diverged training leaves.

Cost: a checkpoint of up to 256 MiB is read whole. Of a larger one, at most 4096 blocks of 4 KiB are read, spread over its
tensors: of one with more than 4096 tensors, each second, third or so. What lies between the blocks is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from rollout_ray.core.errors import ConfigError
from rollout_ray.models.weight_files import UNUSED, StoredTensor

READ_WHOLE = 256 << 20  # bytes of all tensors
BLOCKS, BLOCK = 4096, 4096  # of a larger checkpoint: how many blocks, and bytes of each
CHUNK = 4 << 20  # bytes that are in memory at once

# Type -> (bytes of a value, mask of the bits that are all set in NaN and infinity). F8_E4M3 has no infinity.
_EXPONENTS = {
    "F64": (8, 0x7FF0000000000000),
    "F32": (4, 0x7F800000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
}


def check_finite(tensors: Sequence[StoredTensor]) -> None:
    """Raise ConfigError if values that are read are NaN or infinite. The text names the tensor."""
    weights = [tensor for tensor in tensors if tensor.dtype in _EXPONENTS and _is_weight(tensor.name)]
    whole = sum(tensor.end - tensor.begin for tensor in weights) <= READ_WHOLE
    blocks = None if whole else max(1, BLOCKS // len(weights))
    apart = 1 if whole else -(-len(weights) // BLOCKS)
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in weights[::apart]:
        by_file.setdefault(tensor.file, []).append(tensor)
    for file, inside in by_file.items():
        with file.open("rb", buffering=0) as stream:
            for tensor in inside:
                if not _is_finite(stream, tensor, blocks):
                    raise ConfigError(
                        f"{tensor.name} in {file} holds NaN or infinite values; the training has diverged, so give an "
                        "earlier checkpoint"
                    )


def _is_weight(name: str) -> bool:
    """Return whether the values of a tensor count. Old checkpoints store attention masks, with infinities."""
    return not UNUSED.fullmatch(name) and "mask" not in name


def _is_finite(stream: BinaryIO, tensor: StoredTensor, blocks: int | None) -> bool:
    """Return whether the tensor's values in so many blocks are finite. None: all values."""
    import numpy as np

    width, mask = _EXPONENTS[tensor.dtype]
    size = tensor.end - tensor.begin
    if blocks is None or size <= blocks * BLOCK:
        places, length = list(range(0, size, CHUNK)), CHUNK
    else:  # a multiple of the longest value's bytes
        places, length = [(size - BLOCK) * number // max(1, blocks - 1) // 8 * 8 for number in range(blocks)], BLOCK
    for place in places:
        stream.seek(tensor.begin + place)
        values = np.frombuffer(stream.read(min(length, size - place)), f"<u{width}")
        if ((values & mask) == mask).any():
            return False
    return True
