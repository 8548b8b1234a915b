"""Writes a safetensors file one tensor at a time, so that memory never holds more than one.

Owns the file format (https://github.com/huggingface/safetensors: eight bytes of length, a JSON header padded with spaces,
the data); the library's own writer takes all tensors of a file at once. Reading is the library's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch

_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
_METADATA = {"__metadata__": {"format": "pt"}}


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
    """Writes the tensors, which are those of `shapes`, in the order in which they come; returns the bytes of data.

    Raises OSError where the file cannot be written, KeyError for a type that is not stored, and ValueError where a tensor
    is missing, or another one comes.
    """
    # The header stands first and is known last: room for it is kept by the longest that it can be.
    longest = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [2**63, 2**63]} for name, shape in shapes.items()}
    room = (len(json.dumps({**_METADATA, **longest})) + 8) // 8 * 8
    header: dict[str, object] = dict(_METADATA)
    end = 0
    with open(path, "wb") as stream:
        stream.seek(8 + room)
        for name, tensor in tensors:
            if name in header or shapes.get(name) != tuple(tensor.shape):
                raise ValueError(f"{name} of the shape {tuple(tensor.shape)} is not due in {path.name}")
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            stream.write(data)
            offsets = [end, end + data.nbytes]
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            end += data.nbytes
        if missing := shapes.keys() - header.keys():
            raise ValueError(f"{min(missing)} is missing in {path.name}")
        stream.seek(0)
        stream.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
        stream.flush()
        os.fsync(stream.fileno())
    return end
