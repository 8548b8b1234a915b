"""Run a base model with a LoRA adapter on the CPU without loading the base model's weights.

peft says which modules the adapter changes and by how much. A forward pass reads each layer's
weights from the checkpoint and drops them afterwards. merge.py writes the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights

from rollout_ray.core.errors import ConfigError
from rollout_ray.lora.lazy_model import LazyModel, first_line
from rollout_ray.models.adapters import PEFT_PREFIX, read_adapter_config
from rollout_ray.models.weight_files import tensor_shapes

ADAPTER = "default"

# Fields of an adapter's config that peft resolves for us, or that do not change its weights. With any other field, the
# adapter is more than an addition of B A to a weight.
_KNOWN = {
    *(
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
    ),
    *("fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha"),
    *("lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
}
# Initial values that keep the base weights. The others (PiSSA, OLoRA, CorDA, LoftQ ...) subtract from them.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


class AdaptedModel(LazyModel):
    """A base model with a LoRA adapter that peft's save_pretrained wrote.

    replaced: Parameters that the adapter replaces entirely (modules_to_save).
    """

    def __init__(self, folder: Path, adapter: Path) -> None:
        """Load the adapter into the model.

        Raises:
            ConfigError: The adapter belongs to another model, or its kind cannot be merged.
        """
        self.config = _mergeable(adapter)
        names = tensor_shapes(adapter)  # refuses what is not safetensors
        inner = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names if ".lora_" in name}
        super().__init__(folder, inner)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft warns about tied embeddings, which merge.py unties
                self.peft_model = get_peft_model(self.model, self.config)
            self._wrappers = {n: m for n, m in self.model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
            weights = self._without_base(load_peft_weights(str(adapter), device="cpu"), adapter)
            loaded = set_peft_model_state_dict(self.peft_model, weights)
        except (ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"The adapter {adapter} does not fit {folder}: {first_line(error)}. Give the base model of its training."
            ) from error
        missing = [name for name in loaded.missing_keys if ".lora_" in name or ".modules_to_save." in name]
        if odd := [*loaded.unexpected_keys, *missing]:
            raise ConfigError(
                f"The adapter {adapter} does not fit {folder}: {odd[0]} is unknown or missing. "
                "Give the base model of its training."
            )
        self.peft_model.eval()
        self._layers: dict[str, LoraLayer] = {}
        self.replaced: dict[str, torch.Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                if f"{name}.weight" not in self.stored:
                    raise ConfigError(
                        f"The adapter changes {name}, which has no stored weight of its own. "
                        "Merge it with peft's merge_and_unload."
                    )
                self._layers[f"{name}.weight"] = module
        for name, wrapper in self._wrappers.items():
            self._replace(name, wrapper.modules_to_save[ADAPTER])

    def _without_base(self, weights: dict[str, torch.Tensor], adapter: Path) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors without the base embeddings that peft saves along."""
        kept = {}
        for key, tensor in weights.items():
            name = key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
            if name not in self.stored or any(name.startswith(f"{wrapper}.") for wrapper in self._wrappers):
                kept[key] = tensor
                continue
            base = self.checkpoint[self.stored[name]]
            if base.shape != tensor.shape or not torch.equal(base, tensor.to(base.dtype)):
                raise ConfigError(
                    f"The adapter {adapter} was trained with other values of {name} than this base model has. "
                    "Give the base model of its training."
                )
        return kept

    def base_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return `logits` without the adapter."""
        with self.peft_model.disable_adapter():
            return self.logits(prompts)

    @property
    def changed(self) -> list[str]:
        """Names of the parameters that the adapter adds to."""
        return list(self._layers)

    @property
    def unties(self) -> bool:
        """Whether the adapter gives two tied parameters (an embedding and its head) different values."""
        touched = {*self._layers, *self.replaced}
        return any(touched & {twin, source} for twin, source in self.tied.items())

    def _replace(self, name: str, module: torch.nn.Module) -> None:
        for inner, tensor in module.state_dict().items():
            full = f"{name}.{inner}"
            if full not in self.stored or tensor.shape != self.checkpoint.shapes[self.stored[full]]:
                raise ConfigError(
                    f"The adapter replaces {full}, and the base model has no such tensor of this shape. "
                    "Merge it with peft's merge_and_unload."
                )
            self.replaced[full] = tensor.detach()

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the parameter with the adapter merged. It is float32 if it changed.

        Args:
            name: Name of the parameter.
            weight: Its value in the base model.
        """
        if name in self.replaced:
            return self.replaced[name]
        if name in self._layers:
            with torch.inference_mode():
                return weight.float() + self._layers[name].get_delta_weight(ADAPTER)
        return weight


def _mergeable(adapter: Path) -> LoraConfig:
    """Return the adapter's config.

    Raises:
        ConfigError: The adapter is of a kind that cannot be merged here.
    """
    given = read_adapter_config(str(adapter))
    reasons = [f"it uses {name}" for name, value in given.items() if name not in _KNOWN and value]
    if given.get("bias", "none") != "none":
        reasons.append(f"it trains the bias ('{given['bias']}')")
    if given.get("init_lora_weights", True) not in _PLAIN_INIT:
        reasons.append(f"it changed the base weights at its start (init_lora_weights: {given['init_lora_weights']})")
    if reasons:
        raise ConfigError(f"The adapter {adapter} cannot be merged: {reasons[0]}. Merge it with peft's merge_and_unload.")
    known = {
        name: value for name, value in given.items() if name in _KNOWN and name not in ("auto_mapping", "peft_version")
    }
    return LoraConfig(**{**known, "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0})
