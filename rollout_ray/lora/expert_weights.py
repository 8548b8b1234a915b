"""Map a checkpoint's stored tensors to the parameters that transformers renames or joins.

Since version 5, transformers joins all experts of a mixture into one parameter.
Checkpoints still store one tensor an expert. transformers' own conversion table gives the mapping.
Only the tensors of a requested parameter are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter


@dataclass
class Parts:
    """A parameter that is stored in parts, and the converter that joins them.

    `names` lists the stored names for each of the converter's source patterns.
    """

    converter: WeightConverter
    names: dict[str, list[str]] = field(default_factory=dict)

    def all_names(self) -> list[str]:
        """Return the stored names of all parts."""
        return [name for names in self.names.values() for name in names]

    def join(self, checkpoint: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the parameter, joined from the checkpoint's tensors."""
        tensors: dict[str, Any] = {
            pattern: [checkpoint[name] for name in sorted(names, key=_by_numbers)] for pattern, names in self.names.items()
        }
        patterns = {"source_patterns": self.converter.source_patterns, "target_patterns": self.converter.target_patterns}
        for operation in self.converter.operations:
            tensors = operation.convert(tensors, **patterns)
        (joined,) = tensors.values()
        return joined


def renamed_and_joined(model: torch.nn.Module, stored: Iterable[str]) -> tuple[dict[str, str], dict[str, Parts]]:
    """Map the stored tensors that transformers renames, or that are parts of a parameter.

    Returns:
        The stored name by parameter name, and the `Parts` by parameter name.
    """
    conversions = get_model_conversion_mapping(model)
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    renamings = [one for one in conversions if not isinstance(one, WeightConverter)]
    renamed: dict[str, str] = {}
    joined: dict[str, Parts] = {}
    for each in stored:
        name = each
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        for converter in converters:
            found, pattern = converter.rename_source_key(name)
            if pattern is not None:
                joined.setdefault(found, Parts(converter)).names.setdefault(pattern, []).append(each)
                break
        else:
            renamed[name] = each
    return renamed, joined


def _by_numbers(name: str) -> list[Any]:
    """Return a sort key that orders expert 10 after expert 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
