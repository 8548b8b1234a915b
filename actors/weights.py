"""A method that vLLM's worker processes get from us: to load other weights of the same shape in place.

vLLM mixes Worker's base `WeightsExtension` in by name (worker_extension_cls), so it runs where the weights are, whether
that is this process or one of vLLM's own. What surrounds it (requests, prefix cache, checks) is vllm_backend.py's.
"""

from __future__ import annotations

from typing import Any

NAME = f"{__name__}.WeightsExtension"


class WeightsExtension:
    """Mixed into vLLM's Worker."""

    def rollout_load_weights(self: Any, path: str) -> None:
        """Loads the checkpoint in the folder `path` into the present tensors, which compiled graphs go on to use."""
        self.reload_weights(weights_path=path)
        if self.device.type == "cpu":
            self._rollout_pack_again()

    def _rollout_pack_again(self: Any) -> None:
        """On the CPU a layer multiplies with a packed copy of its weight. vLLM packs again what it loads, but not an
        output layer that shares the embedding's weight: no tensor of the checkpoint is its own, and it would go on with
        the old ones."""
        for layer in self.model_runner.get_model().modules():
            weight = getattr(layer, "weight", None)
            if hasattr(layer, "cpu_linear") and weight is not None and weight.numel():
                layer.quant_method.process_weights_after_loading(layer)
