"""Run a checkpoint's causal language model on the CPU, one layer's weights at a time.

A forward pass reads each layer's weights in float32 and drops them afterwards.
Without peft: peft_model.py adds an adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from rollout_ray.core.errors import ConfigError
from rollout_ray.lora.expert_weights import renamed_and_joined
from rollout_ray.models.weight_files import stored_tensors


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a folder's safetensors files by name. Each access reads its tensor again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored = stored_tensors(folder)
        self.shapes = {name: tensor.shape for name, tensor in stored.items()}
        self.files = {name: tensor.file for name, tensor in stored.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        # Open the file for one tensor only: mapped pages count as memory of this process.
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
    """A checkpoint's causal language model that reads its weights on demand, in float32.

    stored: The checkpoint's name for each parameter.
    joined: Parameters that the checkpoint stores in parts.
    part_of: The parameter of each part.
    tied: For each tied parameter, the parameter that it equals.
    kept: Substrings of names that must stay in float32.
    """

    def __init__(self, folder: Path, modules: Collection[str] = ()) -> None:
        """Read the shapes, and build the model without weights.

        Args:
            modules: If transformers has several classes for the checkpoint, use the class with these modules.

        Raises:
            ConfigError: No class fits, or a tensor has a name that transformers does not know.
        """
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
                # One expanded number: peft gets a shape and a device, and no memory is used.
                empty = torch.zeros(()).expand(parameter.shape)
                module.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))

    def _own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters(remove_duplicate=False)
        persistent = self.model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in self.model.named_buffers() if name in persistent)

    def _stored_name(self, name: str) -> str:
        """Return the checkpoint's name of a parameter.

        The name is its own or its tied parameter's, with or without the model's prefix.
        """
        prefix = f"{self.model.base_model_prefix}."
        names = [self.tied[name]] if name in self.tied else [name]
        names += [each.removeprefix(prefix) for each in names]
        names += [self._renamed[each] for each in names if each in self._renamed]
        found = next((each for each in names if each in self.checkpoint), None)
        if found is None:
            raise ConfigError(
                f"{self.checkpoint.folder} has no tensor {name} under a name that transformers knows. Serve the adapter "
                "without merging (--lora_path), or merge it with peft's merge_and_unload."
            )
        return found

    def parameter(self, name: str) -> torch.Tensor:
        """Return a parameter with the checkpoint's values."""
        return self.joined[name].join(self.checkpoint) if name in self.joined else self.checkpoint[self.stored[name]]

    def logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits at each token of the prompts. Memory holds one layer's weights at a time.

        Args:
            prompts: Token ids of each prompt.

        Returns:
            float32 tensor [total tokens, vocabulary], the prompts one after another.

        Raises:
            ConfigError: The model cannot run layer by layer.
        """
        self._stream()
        longest = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
        try:
            with torch.inference_mode():
                logits = self.model(tokens, attention_mask=mask, use_cache=False).logits
        except RuntimeError as error:  # some models move a tensor to their weights' device, which has no memory yet
            raise ConfigError(
                f"{self.checkpoint.folder} cannot run layer by layer ({first_line(error)}). Serve the adapter without "
                "merging (--lora_path), or merge it with peft's merge_and_unload."
            ) from error
        return torch.cat([row[: len(prompt)] for row, prompt in zip(logits, prompts, strict=True)])

    def _stream(self) -> None:
        """Make every module read its weights when it runs."""
        for name, module in self._owners:
            if not hasattr(module, "_hf_hook"):
                weights = _Under(self, f"{name}." if name else "")
                hook = AlignDevicesHook(execution_device="cpu", offload=True, offload_buffers=True, weights_map=weights)
                add_hook_to_module(module, hook)


def _without_weights(folder: Path, modules: Collection[str]) -> Any:
    """Return the checkpoint's model without weights.

    The first class with these modules is used, else the last class.
    """
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
        raise ConfigError(
            f"transformers finds no causal language model in {folder}: {error}. Give a folder that save_pretrained wrote."
        ) from error
    return model


class _Under(Mapping[str, torch.Tensor]):
    """One module's tensors, by their names within the module."""

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


def _has_tensors(module: torch.nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def first_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
