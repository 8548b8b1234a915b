"""Find weights that a checkpoint lacks and vLLM does not miss: parts of a matrix that it packs from several tensors.

vLLM itself counts such a matrix, as of q_proj, k_proj and v_proj, as loaded once one part is. It computes with whatever
the memory held in place of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rollout_ray.core.errors import ConfigError


@contextmanager
def no_part_missing(model_config: Any) -> Iterator[None]:
    """Check each load of weights within the block: raise ConfigError if a part of a packed matrix stays unset.

    Quantized weights are not checked, and no model whose layers share keys and values: both may leave parts out.
    """
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if model_config.quantization or getattr(model_config.hf_text_config, "num_kv_shared_layers", 0):
        yield
        return
    original = DefaultModelLoader.load_weights

    def load_weights(loader: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        packed = _packed(model)
        for weight in packed.values():
            weight.fill_(torch.nan)
        original(loader, model, *args, **kwargs)
        if unset := [name for name, weight in packed.items() if weight.isnan().any()]:
            raise ConfigError(
                f"the checkpoint lacks a part of {unset[0]}, or holds NaN there; save or copy the weights again"
            )

    DefaultModelLoader.load_weights = load_weights
    try:
        yield
    finally:
        DefaultModelLoader.load_weights = original


def _packed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the matrices that are packed from several tensors, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if len(getattr(module, "output_sizes", ())) > 1 and isinstance(weight, torch.Tensor) and weight.is_floating_point():
            found[f"{name}.weight"] = weight.data
    return found
