"""Check a local checkpoint before an engine loads it, at the start and before an update of the weights.

It always reads the headers, the config and the tokenizer's file. It reads all values of a small checkpoint, and a sample
of each tensor of a large one (finite_weights.py). It does not know which tensors an architecture needs: a tensor counts
as missing if the index names it, or if one layer lacks what its equals have.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.models.checkpoints import check_same_shape
from rollout_ray.models.finite_weights import check_finite
from rollout_ray.models.weight_files import (
    PLAIN,
    WEIGHTS,
    StoredTensor,
    is_pointer,
    read_json,
    stored_tensors,
    weight_files,
)

# What trainers leave where nobody has merged the shards, and the command that merges them.
SHARDS = {
    "*world_size_*_rank_*.pt": "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir MERGED",
    "zero_to_fp32.py": "python {folder}/zero_to_fp32.py {folder} MERGED",
    "*.distcp": "accelerate merge-weights {folder} MERGED",
    "*/*.distcp": "accelerate merge-weights FOLDER_OF_THE_DISTCP_FILES MERGED",
}
# quant_method of a config -> whose weights are always stored in fewer bits than 16.
QUANTIZED = frozenset(("fp8", "fbgemm_fp8", "awq", "gptq", "mxfp4"))
# Files beside the weights that trainers write, with endings of weights.
OF_TRAINERS = re.compile(r".*_rank_.*|training_args\.bin|(optimizer|scheduler|scaler|rng_state|optim).*")
_LAYER = re.compile(r"((?:.*?\.)?(?:layers|h|blocks)\.)(\d+)\.(.+)")
_ENCODER = re.compile(r"vision|visual|audio|image|encoder", re.IGNORECASE)
_WRAPPED = re.compile(r"(module|_orig_mod)\..*|.*\b(_fsdp_wrapped_module|_orig_mod|base_layer)\..*")


def check_checkpoint(folder: Path, *, label_counts: bool = True) -> None:
    """Raise ConfigError if an engine could not load the weights in the folder, or would compute nonsense with them.

    Args:
        folder: Folder of the model.
        label_counts: vLLM reads from the config how the weights are quantized.
    """
    for file in sorted(folder.iterdir()):
        if (file.suffix in WEIGHTS or file.name == "config.json") and is_pointer(file):
            raise ConfigError(f"{file} is a git-lfs pointer and holds no weights; run `git lfs pull` in its folder")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ConfigError(f"{folder} is an adapter and no model; give its base as model_path, and this folder as lora_path")
    if not weight_files(folder):
        _check_other_formats(folder)
        return
    tensors = stored_tensors(folder)
    config = read_json(folder / "config.json")
    _check_names(folder, tensors)
    _check_layers(folder, tensors, config)
    if label_counts:
        _check_label(folder, tensors, config)
    check_finite(list(tensors.values()))


def check_update(held: str, offered: str) -> None:
    """Raise ConfigError if the weights in a folder cannot take the place of others.

    Args:
        held: Folder of the present weights, or id of a hub model in the local cache.
        offered: Folder of the new weights.
    """
    try:
        check_checkpoint(Path(offered))
        check_same_shape(held, offered)
    except ConfigError as error:
        raise ConfigError(f"{error}; the old weights stay in use") from error


def _check_other_formats(folder: Path) -> None:
    """Raise ConfigError if a folder without safetensors files of a model holds no weights at all."""
    if any(file.suffix in WEIGHTS and not OF_TRAINERS.fullmatch(file.name) for file in folder.iterdir()):
        return  # an older format, which vLLM reads itself
    for pattern, command in SHARDS.items():
        if next(folder.glob(pattern), None):
            raise ConfigError(
                f"{folder} holds the shards of a trainer, which no engine can load; merge them first, such as with "
                f"`{command.format(folder=folder)}`, and give the merged folder"
            )
    raise ConfigError(f"{folder} holds no weights; give a folder that save_pretrained wrote")


def _check_names(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise ConfigError if the tensors are those of a trainer's wrapper, or have no elements."""
    if wrapped := next(filter(_WRAPPED.fullmatch, tensors), None):
        raise ConfigError(
            f"the weights in {folder} are those of a wrapped model, such as {wrapped}; save the inner model, with its "
            "adapter merged"
        )
    if empty := next((tensor.name for tensor in tensors.values() if 0 in tensor.shape), None):
        raise ConfigError(
            f"{empty} in {folder} has no elements, as ZeRO-3 leaves them; gather the weights when you save them, or run "
            "zero_to_fp32.py"
        )


def _check_layers(folder: Path, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Raise ConfigError if one layer lacks tensors that layers of its kind have.

    A hybrid has layers of several kinds, which its config names or which differ in both directions. So only a layer counts
    that is like no other, and lacks some tensors of another one without having any of its own.
    """
    text = config.get("text_config") or config
    if "block_configs" in text:
        return  # of a pruned model: any layer may lack anything
    kinds: list[Any] = text.get("layer_types") or []
    layers: dict[tuple[str, Any], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in tensors:
        found = _LAYER.fullmatch(name)
        if found and not _ENCODER.search(found[1]):  # no encoder is loaded, and stages of some hold several layers
            number = int(found[2])
            layers[found[1], kinds[number] if number < len(kinds) else None][number].add(found[3])
    for (prefix, _), group in layers.items():
        counts = Counter(map(frozenset, group.values()))
        for number, names in group.items():
            fuller = [other for other in counts if names < other]
            if fuller and counts[frozenset(names)] == 1:
                lacking = min(min(fuller, key=len) - names)
                raise ConfigError(
                    f"the weights in {folder} lack {prefix}{number}.{lacking}, which other layers have; save or copy the "
                    "weights again"
                )


def _check_label(folder: Path, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the config says that weights are quantized and they are not, or the other way round."""
    text = config.get("text_config")
    label = config.get("quantization_config") or config.get("compression_config")
    label = label or (text.get("quantization_config") if isinstance(text, dict) else None)
    method = label.get("quant_method") if isinstance(label, dict) else None
    types = {tensor.dtype for tensor in tensors.values()}
    if method in QUANTIZED and types <= PLAIN:
        raise ConfigError(
            f"{folder}/config.json says that the weights are {method}, and they are {', '.join(sorted(types))}; remove "
            "quantization_config from it, or give the quantized weights"
        )
    if label is None and (folder / "hf_quant_config.json").exists():
        return  # NVIDIA's quantizer writes its label there
    if label is None and (eight := sorted(kind for kind in types if kind.startswith("F8"))):
        raise ConfigError(
            f"the weights in {folder} are {eight[0]}, and config.json has no quantization_config; add it as the "
            "quantizer wrote it"
        )
