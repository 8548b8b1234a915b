"""A base model with a LoRA adapter, on the CPU, without holding the base model's weights.

Owns peft's part: which modules an adapter changes and by how much, and forward passes that read each layer's weights
from the checkpoint when it runs and drop them afterwards. It writes nothing (merge_lora.py does).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from rollout_ray.core.errors import ConfigError
from rollout_ray.lora.expert_weights import renamed_and_joined
from rollout_ray.models.adapters import PEFT_PREFIX, read_adapter_config
from rollout_ray.models.checkpoints import shapes_by_file, tensor_shapes

ADAPTER = "default"

# Fields of an adapter's config that peft resolves for us, or that say nothing about its weights. Any other one that is set
# makes something of the adapter that adding B A to a weight is not.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Initial values that leave the base weights alone; the others (PiSSA, OLoRA, CorDA, LoftQ ...) take something out of them.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a folder's safetensors files by name, read when they are asked for and not kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        by_file = shapes_by_file(folder)
        self.shapes = {name: shape for shapes in by_file.values() for name, shape in shapes.items()}
        self.files = {name: file for file, shapes in by_file.items() for name in shapes}

    def __getitem__(self, name: str) -> torch.Tensor:
        # Opened for one tensor: a file's pages count as ours for as long as it is mapped.
        with safe_open(self.files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, name: object) -> bool:
        return name in self.files


class LazyModel:
    """A causal language model of a checkpoint whose weights are read as they are needed, in float32.

    `stored` has the checkpoint's names of the parameters, but for those that it has in parts: these are `joined`, and
    `part_of` names the parameter of each part. `tied` maps the name of a parameter that is another one's twin to the
    other's name. `kept` are parts of names that must not be stored in less than float32. Where transformers has several
    classes for the checkpoint (with and without what takes pictures), it is that which has these `modules`. Raises
    ConfigError where there is none, or the checkpoint has not every tensor under a name that transformers knows.
    """

    def __init__(self, folder: Path, modules: Collection[str] = ()) -> None:
        self.checkpoint = Checkpoint(folder)
        self.model = _without_weights(folder, modules)
        tied = self.model.all_tied_weights_keys if getattr(self.model.config, "tie_word_embeddings", False) else {}
        self.tied: dict[str, str] = dict(tied)
        self.kept: tuple[str, ...] = tuple(self.model._keep_in_fp32_modules_strict or ())
        self._renamed, joined = renamed_and_joined(self.model, self.checkpoint)
        names = [name for name, _ in self._own_tensors()]
        self.joined = {name: joined[name] for name in names if name in joined and name not in self.checkpoint}
        self.part_of = {each: name for name, parts in self.joined.items() for each in parts.all_names()}
        self.stored = {name: self._stored_name(name) for name in names if name not in self.joined}
        self._owners = [(name, module) for name, module in self.model.named_modules() if _has_tensors(module)]
        for module in (module for _, module in self._owners):
            for name, parameter in list(module.named_parameters(recurse=False)):
                # One number that stands for all: a shape and a device without memory, which peft can build upon.
                empty = torch.zeros(()).expand(parameter.shape)
                module.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))

    def _own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters(remove_duplicate=False)
        persistent = self.model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in self.model.named_buffers() if name in persistent)

    def _stored_name(self, name: str) -> str:
        """The checkpoint's name of a parameter: its own, that of its twin, or either without the model's prefix."""
        prefix = f"{self.model.base_model_prefix}."
        names = [self.tied[name]] if name in self.tied else [name]
        names += [each.removeprefix(prefix) for each in names]
        names += [self._renamed[each] for each in names if each in self._renamed]
        found = next((each for each in names if each in self.checkpoint), None)
        if found is None:
            raise ConfigError(
                f"{self.checkpoint.folder} has no tensor {name} under a name that transformers knows; serve the adapter "
                "without merging (--lora_path), or merge it with peft's merge_and_unload"
            )
        return found

    def parameter(self, name: str) -> torch.Tensor:
        """One of the parameters, as the checkpoint has it."""
        return self.joined[name].join(self.checkpoint) if name in self.joined else self.checkpoint[self.stored[name]]

    def logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits at each token of the prompts (token ids), one after another: float32, (tokens in all, vocabulary).
        One layer's weights are held at a time. Raises ConfigError where the model cannot run in this way."""
        self._stream()
        longest = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
        try:
            with torch.inference_mode():
                logits = self.model(tokens, attention_mask=mask, use_cache=False).logits
        except RuntimeError as error:  # it moves something to where its weights are: nowhere, until they are read
            raise ConfigError(
                f"{self.checkpoint.folder} cannot be run layer by layer ({_first_line(error)}); serve the adapter without "
                "merging (--lora_path), or merge it with peft's merge_and_unload"
            ) from error
        return torch.cat([row[: len(prompt)] for row, prompt in zip(logits, prompts, strict=True)])

    def _stream(self) -> None:
        """Has every module read its weights when it runs."""
        for name, module in self._owners:
            if not hasattr(module, "_hf_hook"):
                weights = _Under(self, f"{name}." if name else "")
                hook = AlignDevicesHook(execution_device="cpu", offload=True, offload_buffers=True, weights_map=weights)
                add_hook_to_module(module, hook)


def _without_weights(folder: Path, modules: Collection[str]) -> Any:
    """The checkpoint's model of the first class that has these modules, else of the last."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        own = [getattr(transformers, name, None) for name in config.architectures or ()]
        makers = [kind._from_config for kind in own if kind is not None]
        if not makers or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            makers.append(AutoModelForCausalLM.from_config)
        for make in makers:
            with init_empty_weights(include_buffers=False):
                model = make(config, dtype=torch.float32).eval()
            if {name for name, _ in model.named_modules()}.issuperset(modules):
                break
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no causal language model that transformers knows: {error}") from error
    return model


class _Under(Mapping[str, torch.Tensor]):
    """The tensors of one module by their names in it."""

    def __init__(self, model: LazyModel, prefix: str) -> None:
        self._model, self._prefix = model, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._model.parameter(self._prefix + name)
        return tensor.float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        names = (*self._model.stored, *self._model.joined)
        return (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class AdaptedModel(LazyModel):
    """The same under a LoRA adapter that peft's save_pretrained wrote.

    `changed` are the parameters that the adapter adds to, `replaced` those that it brings whole (modules_to_save). Raises
    ConfigError where the adapter is another model's, or of a kind whose weights cannot be added up.
    """

    def __init__(self, folder: Path, adapter: Path) -> None:
        self.config = _mergeable(adapter)
        names = tensor_shapes(adapter)  # refuses what is not safetensors
        inner = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names if ".lora_" in name}
        super().__init__(folder, inner)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on tied embeddings, which are set apart here
                self.peft_model = get_peft_model(self.model, self.config)
            self._wrappers = {n: m for n, m in self.model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
            weights = self._without_base(load_peft_weights(str(adapter), device="cpu"), adapter)
            loaded = set_peft_model_state_dict(self.peft_model, weights)
        except (ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(f"the adapter {adapter} does not fit {folder}: {_first_line(error)}") from error
        missing = [name for name in loaded.missing_keys if ".lora_" in name or ".modules_to_save." in name]
        if odd := [*loaded.unexpected_keys, *missing]:
            raise ConfigError(f"the adapter {adapter} does not fit {folder}: {odd[0]} has no place, or is missing")
        self.peft_model.eval()
        self._layers: dict[str, LoraLayer] = {}
        self.replaced: dict[str, torch.Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                if f"{name}.weight" not in self.stored:
                    raise ConfigError(f"{name} has no weight of its own that an adapter could be added to; merge with peft")
                self._layers[f"{name}.weight"] = module
        for name, wrapper in self._wrappers.items():
            self._replace(name, wrapper.modules_to_save[ADAPTER])

    def _without_base(self, weights: dict[str, torch.Tensor], adapter: Path) -> dict[str, torch.Tensor]:
        """The adapter's tensors without the base model's own embeddings, which peft saves along where it adapts them."""
        kept = {}
        for key, tensor in weights.items():
            name = key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
            if name not in self.stored or any(name.startswith(f"{wrapper}.") for wrapper in self._wrappers):
                kept[key] = tensor
                continue
            base = self.checkpoint[self.stored[name]]
            if base.shape != tensor.shape or not torch.equal(base, tensor.to(base.dtype)):
                raise ConfigError(f"the adapter {adapter} was trained on other values of {name} than the base model's")
        return kept

    def base_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """`logits` without the adapter."""
        with self.peft_model.disable_adapter():
            return self.logits(prompts)

    @property
    def changed(self) -> list[str]:
        return list(self._layers)

    @property
    def sets_twins_apart(self) -> bool:
        """Whether the adapter gives two parameters of one value (an embedding and the head tied to it) different ones."""
        touched = {*self._layers, *self.replaced}
        return any(touched & {twin, source} for twin, source in self.tied.items())

    def _replace(self, name: str, module: torch.nn.Module) -> None:
        for inner, tensor in module.state_dict().items():
            full = f"{name}.{inner}"
            if full not in self.stored or tensor.shape != self.checkpoint.shapes[self.stored[full]]:
                raise ConfigError(f"the adapter replaces {full} by a tensor of another shape or name; merge with peft")
            self.replaced[full] = tensor.detach()

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The parameter `name`, whose value in the base model is `weight`, with the adapter in it; float32 if changed."""
        if name in self.replaced:
            return self.replaced[name]
        if name in self._layers:
            with torch.inference_mode():
                return weight.float() + self._layers[name].get_delta_weight(ADAPTER)
        return weight


def _mergeable(adapter: Path) -> LoraConfig:
    """The adapter's config. Raises ConfigError where it is of a kind that is not merged here."""
    given = read_adapter_config(str(adapter))
    reasons = [f"it uses {name}" for name, value in given.items() if name not in _KNOWN and value]
    if given.get("bias", "none") != "none":
        reasons.append(f"it trains the bias ('{given['bias']}')")
    if given.get("init_lora_weights", True) not in _PLAIN_INIT:
        reasons.append(f"it changed the base weights at its start (init_lora_weights: {given['init_lora_weights']})")
    if reasons:
        raise ConfigError(f"the adapter {adapter} cannot be merged: {reasons[0]}; merge it with peft's merge_and_unload")
    known = {
        name: value for name, value in given.items() if name in _KNOWN and name not in ("auto_mapping", "peft_version")
    }
    return LoraConfig(**{**known, "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0})


def _has_tensors(module: torch.nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
