"""Write a safetensors file one tensor at a time, so memory holds one tensor.

The format is https://github.com/huggingface/safetensors: eight bytes with the header's length, a
JSON header padded with spaces, and the data. The library's own writer needs all tensors at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_METADATA = {"__metadata__": {"format": "pt"}}


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
    """Write the tensors in the given order and return the bytes of data.

    Args:
        shapes: Shape of every tensor by name.
        tensors: Names and tensors, exactly those in `shapes`.

    Raises:
        OSError: The file cannot be written.
        KeyError: A tensor's type has no safetensors name.
        ValueError: A tensor is missing or unexpected.
    """
    # The header comes first in the file and is known last, so reserve space for the longest possible one.
    longest = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [2**63, 2**63]} for name, shape in shapes.items()}
    reserved = (len(json.dumps({**_METADATA, **longest})) + 8) // 8 * 8
    header: dict[str, object] = dict(_METADATA)
    end = 0
    with open(path, "wb") as stream:
        stream.seek(8 + reserved)
        for name, tensor in tensors:
            if name in header or shapes.get(name) != tuple(tensor.shape):
                raise ValueError(f"{path.name} has no {name} of shape {tuple(tensor.shape)}")
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            stream.write(data)
            offsets = [end, end + data.nbytes]
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            end += data.nbytes
        if missing := shapes.keys() - header.keys():
            raise ValueError(f"{path.name} lacks the tensor {min(missing)}")
        stream.seek(0)
        stream.write(reserved.to_bytes(8, "little") + json.dumps(header).encode().ljust(reserved))
        stream.flush()
        os.fsync(stream.fileno())
    return end
