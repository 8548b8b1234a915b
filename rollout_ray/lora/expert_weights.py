"""Under which names a checkpoint stores a model's parameters where transformers renames or joins them as it loads: since
its version 5 a mixture of experts has one parameter of all experts, and its checkpoint goes on to have one of each.

Owns the question to transformers' own table of conversions. It reads no tensor but those of a parameter that is asked for.
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
    """A parameter that is stored in parts: their names by transformers' pattern for them, and what joins them."""

    converter: WeightConverter
    names: dict[str, list[str]] = field(default_factory=dict)

    def all_names(self) -> list[str]:
        """The stored names of all parts."""
        return [name for names in self.names.values() for name in names]

    def join(self, checkpoint: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The parameter, of these tensors."""
        tensors: dict[str, Any] = {
            pattern: [checkpoint[name] for name in sorted(names, key=_by_numbers)] for pattern, names in self.names.items()
        }
        patterns = {"source_patterns": self.converter.source_patterns, "target_patterns": self.converter.target_patterns}
        for operation in self.converter.operations:
            tensors = operation.convert(tensors, **patterns)
        (joined,) = tensors.values()
        return joined


def renamed_and_joined(model: torch.nn.Module, stored: Iterable[str]) -> tuple[dict[str, str], dict[str, Parts]]:
    """Of the `stored` tensors those that are a parameter of the model under another name, and those that are parts of one,
    each by the parameter's name."""
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
    """As names are sorted by people: the tenth expert comes after the ninth."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
