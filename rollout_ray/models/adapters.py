"""LoRA adapters: those of a run, the room that they need in an engine, and whether one fits the model.

This reads the config, the tensor shapes and a sample of the values of a peft adapter. Engines serve adapters unmerged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.config.templates import end_token, stored_template
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Arm
from rollout_ray.models.checkpoints import model_fingerprint
from rollout_ray.models.finite_weights import check_finite
from rollout_ray.models.weight_files import stored_tensors, tensor_shapes

# Ranks that vLLM accepts as max_lora_rank.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
PEFT_PREFIX = "base_model.model."  # of a tensor's name in an adapter
_LANGUAGE_MODEL = "model.language_model."
_BEYOND = ("lora_bias", "target_parameters", "alora_invocation_tokens", "layer_replication")


@dataclass(frozen=True)
class Capacity:
    """Room of an engine for adapters: their largest rank, and how many at once. A count of 0: no adapters."""

    rank: int = 0
    count: int = 0

    def holds(self, other: Capacity) -> bool:
        return other.rank <= self.rank and other.count <= self.count


def adapters_of(arms: Iterable[Arm]) -> list[str]:
    """Return the distinct adapters of these arms, in order."""
    return list(dict.fromkeys(arm.lora_path for arm in arms if arm.lora_path is not None))


def capacity(paths: Sequence[str]) -> Capacity:
    """Return the room that these adapters need. Raises ConfigError if one cannot be read."""
    if not paths:
        return Capacity()
    rank = max(read_adapter_config(path)["r"] for path in paths)
    return Capacity(next((room for room in RANKS if room >= rank), rank), len(paths))


def fingerprints(paths: Sequence[str]) -> dict[str, str]:
    """Return the fingerprint of each adapter by its path. It tells the adapter from another one in the same place."""
    return {path: model_fingerprint(path) for path in paths}


def check_adapter(path: str, model: str) -> None:
    """Raise ConfigError if vLLM cannot serve the adapter on `model` without merging.

    Shapes are compared only if the model is a folder.
    """
    config = read_adapter_config(path)
    unfit = {
        "it uses DoRA": config.get("use_dora"),
        f"it trains the bias ('{config.get('bias')}')": config.get("bias", "none") != "none",
        "it replaces whole modules (modules_to_save)": config.get("modules_to_save"),
        "its rank or alpha differs between layers": config.get("rank_pattern") or config.get("alpha_pattern"),
        "it has LoRA biases, parameters beside matrices, or tokens that switch it on": any(map(config.get, _BEYOND)),
        f"its rank is {config['r']} and at most {RANKS[-1]} can be served": config["r"] > RANKS[-1],
    }
    if why := next((reason for reason, found in unfit.items() if found), None):
        raise ConfigError(f"the adapter {path} cannot be served unmerged: {why}; merge it into the model")
    stored = stored_tensors(Path(path))
    if os.path.isdir(model):
        _check_shapes(path, {name: tensor.shape for name, tensor in stored.items()}, model, config["r"])
    check_finite(list(stored.values()))


def check_wording(path: str, model: str, *, template_given: bool) -> None:
    """Raise ConfigError if the adapter has another chat template or end token than the folder `model`.

    It was trained with these. Unmerged, it would silently be asked with those of the model.
    """
    template, end = stored_template(path), end_token(path)
    different = None
    if not template_given and template is not None and template.strip() != (stored_template(model) or "").strip():
        different = "chat template"
    elif None not in (end, theirs := end_token(model)) and end != theirs:
        different = "end token"
    if different:
        raise ConfigError(
            f"the adapter {path} was saved with another {different} than {model} has; give --tokenizer_path {path} to draw "
            f"with the adapter's, --tokenizer_path {model} to draw with the model's, or merge it into the model"
        )


def _check_shapes(path: str, shapes: dict[str, tuple[int, ...]], model: str, rank: int) -> None:
    base = tensor_shapes(Path(model))
    for name, shape in shapes.items():
        module, found, matrix = name.removeprefix(PEFT_PREFIX).partition(".lora_")
        weight = next((base[each] for each in _stored_names(f"{module}.weight") if each in base), None)
        if not found or matrix not in ("A.weight", "B.weight"):
            raise ConfigError(f"the adapter {path} holds {name}, which is no LoRA matrix; merge it into the model")
        if weight is None:
            raise ConfigError(f"the adapter {path} is another model's: {model} has no module {module}; check lora_path")
        due = (rank, weight[1]) if matrix == "A.weight" else (weight[0], rank)
        if shape != due:
            raise ConfigError(f"the adapter {path} is another model's: {name} is {shape}, not {due}; check lora_path")
    for name in shapes:
        other = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if other not in shapes:
            raise ConfigError(f"the adapter {path} lacks {other}, and has its other half; save it again")


def _stored_names(name: str) -> Sequence[str]:
    """Where a checkpoint may have a weight, by its name in transformers: where it takes pictures as well, files have other
    names than the model. vLLM knows all three."""
    inner = name.removeprefix(_LANGUAGE_MODEL)
    return (name,) if inner == name else (name, f"language_model.model.{inner}", f"model.{inner}")


def read_adapter_config(path: str) -> dict[str, Any]:
    """The adapter_config.json of a LoRA adapter. Raises ConfigError where there is none."""
    file = Path(path) / "adapter_config.json"
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no adapter: {file.name} cannot be read ({error}); give a folder that peft's save_pretrained wrote"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise ConfigError(f"{path} is no LoRA adapter; its adapter_config.json has no peft_type LORA and rank r")
    return config
