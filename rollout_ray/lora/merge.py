"""Merge a base model and a LoRA adapter into one bf16 checkpoint (`rollout merge-lora`).

Tensors pass one by one, so memory never holds the whole model. The folder appears only after
the logits of the merged and the adapted model agree. peft_model.py computes each weight's change.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from rollout_ray.core.errors import ConfigError, VerifyError
from rollout_ray.lora.lazy_model import LazyModel
from rollout_ray.lora.peft_model import AdaptedModel
from rollout_ray.lora.safetensors_writer import write_shard

INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
PROMPTS = (
    "What is 2 + 2?",
    "Anna has 3 apples and buys 4 more. How many apples does Anna have now?",
    "The quick brown fox jumps over the lazy dog.",
)
# Shares of the logits' standard deviation. Rounding weights to bf16 may move a logit by the first in any model, and never
# by the second. In between, the merged model must be nearer to the adapted model than the base model is.
ROUNDING, MOST_OF_SPREAD = 0.05, 0.25
RULE = "=" * 80
M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


@dataclass(frozen=True)
class Agreement:
    """Comparison of the merged and the adapted model's logits.

    difference: Largest difference between the two.
    effect: Largest difference between the adapted and the base model.
    spread: Standard deviation of the adapted logits.
    agreeing: Positions at which both have the same most likely token, out of `positions`.
    """

    difference: float
    effect: float
    spread: float
    agreeing: int
    positions: int


@dataclass(frozen=True)
class MergedModel:
    """A merged model. Sizes are bytes.

    modules: Parameters that the adapter changed or replaced.
    peak_bytes: Peak memory of this process.
    """

    path: str
    modules: int
    files: int
    size_bytes: int
    agreement: Agreement
    peak_bytes: int
    seconds: float


def merge_lora(base: str, adapter: str, output: str, say: Callable[[str], Any] = print) -> MergedModel:
    """Merge an adapter into a base model and write a new folder.

    Weights become bf16, each rounded once from float32. Weights that the architecture keeps in
    float32 stay float32. The files are split like the base model's files. The tokenizer is the
    adapter's if it has one, else the base model's.

    Args:
        base: Folder of the base model.
        adapter: Folder of the LoRA adapter.
        output: New folder. It stays empty after an error.
        say: Receives progress lines.

    Raises:
        ConfigError: The two do not fit or are unsupported, or `output` is not empty or not writable.
        VerifyError: The logits disagree.
    """
    began = time.monotonic()
    _return_freed_memory()
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{output} already exists and is not empty. Give another --output.")
    say(f"{RULE}\nLoRA merge\n{RULE}\n")
    say(f"Configuration:\n  Base model: {base}\n  LoRA adapter: {adapter}\n  Output path: {output}\n")
    _refuse_quantized(Path(base))
    say("Reading the base model and the adapter ...")
    adapted = AdaptedModel(Path(base), Path(adapter))
    modules = len(adapted.changed) + len(adapted.replaced)
    say(f"  {len(adapted.changed)} of {len(adapted.checkpoint)} weights change, {len(adapted.replaced)} are replaced")
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        files, size = _write_weights(adapted, work, say)
        _write_rest(adapted, Path(base), Path(adapter), work, say)
        agreement = _checked(adapted, work, say)
        if target.is_dir():
            target.rmdir()
        os.replace(work, target)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{output} cannot be written: {error}. Free some space, or give another --output.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    merged = MergedModel(str(target), modules, files, size, agreement, peak, time.monotonic() - began)
    held = f"{size / 2**30:.2f} GiB of bf16 in {files} files, {merged.seconds:.1f} s, {peak / 2**30:.2f} GiB of memory"
    say(f"\n{RULE}\nLoRA merge complete\nMerged model saved to: {output}\n  {held}\n{RULE}")
    return merged


def _return_freed_memory() -> None:
    """Make glibc map every tensor separately, so that freeing returns its memory.

    By default glibc keeps freed blocks of up to 32 MiB: half a gigabyte more for a 1.4 GB model.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _refuse_quantized(base: Path) -> None:
    if not (base / "config.json").is_file():
        raise ConfigError(f"{base} is not a model folder: it has no config.json. Give a folder that save_pretrained wrote.")
    if "quantization_config" in _json(base / "config.json"):
        raise ConfigError(f"{base} is quantized, and quantized weights cannot be merged. Give the unquantized model.")


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Give a folder that save_pretrained wrote.") from error


# Weights


def _write_weights(adapted: AdaptedModel, work: Path, say: Callable[[str], Any]) -> tuple[int, int]:
    """Write the weight files and their index. Return the number of files and their bytes."""
    by_file: dict[Path, list[str]] = {}
    for name, file in adapted.checkpoint.files.items():
        by_file.setdefault(file, []).append(name)
    size, index = 0, {}
    for number, (file, stored) in enumerate(by_file.items(), 1):
        say(f"Merging {file.name} ({number} of {len(by_file)}) ...")
        shapes = {name: adapted.checkpoint.shapes[each] for each in stored for name, _ in _outputs(adapted, each)}
        size += write_shard(work / file.name, shapes, _new_tensors(adapted, stored))
        index.update(dict.fromkeys(shapes, file.name))
    if len(by_file) > 1 or next(iter(by_file)).name != "model.safetensors":
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (work / INDEX).write_text(json.dumps(content, indent=2))
    return len(by_file), size


def _outputs(adapted: AdaptedModel, stored: str) -> list[tuple[str, str | None]]:
    """Return the new tensors for one stored tensor, each with its parameter.

    The result has one tensor, two if the adapter unties a tied pair, or none for a stored tied copy.
    The parameter is None if the architecture has none for this tensor.
    """
    if stored in adapted.tied and stored != adapted.stored[stored]:
        return []
    if stored in adapted.part_of:
        return [(stored, adapted.part_of[stored])]
    outputs: list[tuple[str, str | None]] = []
    for parameter in (name for name, stored_name in adapted.stored.items() if stored_name == stored):
        if parameter not in adapted.tied:
            outputs.append((stored, parameter))
        elif adapted.unties:
            outputs.append((parameter, parameter))
    return outputs or [(stored, None)]


def _new_tensors(adapted: AdaptedModel, stored: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for each in stored:
        for name, parameter in _outputs(adapted, each):
            tensor = adapted.checkpoint[each]
            if parameter is not None:
                tensor = adapted.merged(parameter, tensor)
                if tensor.is_floating_point() and not any(part in parameter for part in adapted.kept):
                    tensor = tensor.to(torch.bfloat16)
            yield name, tensor


# Everything else


def _write_rest(adapted: AdaptedModel, base: Path, adapter: Path, work: Path, say: Callable[[str], Any]) -> None:
    """Copy the files that are not weights, and set the config's dtype."""
    for file in sorted(base.iterdir()):
        # With params.json, vLLM would look for weights in Mistral's own format.
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith((*WEIGHTS, "params.json")):
            shutil.copyfile(file, work / file.name)
    config = _json(base / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = "bfloat16"
    if adapted.unties:
        config["tie_word_embeddings"] = False
    (work / "config.json").write_text(json.dumps(config, indent=2))
    source = adapter if (adapter / "tokenizer_config.json").exists() else base
    say(f"Taking the tokenizer from {source} ...")
    if source == adapter:
        for name in TOKENIZER:
            (work / name).unlink(missing_ok=True)
            if (adapter / name).exists():
                shutil.copyfile(adapter / name, work / name)
    if not (work / "tokenizer_config.json").exists():
        raise ConfigError(f"Neither {adapter} nor {base} has a tokenizer. Save one with save_pretrained.")


def _checked(adapted: AdaptedModel, work: Path, say: Callable[[str], Any]) -> Agreement:
    """Compare the logits on a few prompts. Rounding to bf16 explains a small difference."""
    say("Comparing the logits of the merged and the adapted model ...")
    tokenizer = AutoTokenizer.from_pretrained(work, local_files_only=True)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    wanted = adapted.logits(prompts)
    found = LazyModel(work).logits(prompts)
    difference = _most(wanted - found)
    spread = float(wanted.std())
    effect = _most(wanted - adapted.base_logits(prompts))
    agreeing = int((wanted.argmax(-1) == found.argmax(-1)).sum())
    positions = len(wanted)
    say(
        f"  largest difference {difference:.3g}; the adapter changes logits by up to {effect:.3g}\n"
        f"  standard deviation {spread:.3g}; same most likely token at {agreeing} of {positions} positions"
    )
    unlike = difference > ROUNDING * spread and difference > effect / 2
    if unlike or not difference <= MOST_OF_SPREAD * spread:
        raise VerifyError(
            f"The logits of the merged and the adapted model differ by up to {difference:.3g}, so the result was deleted. "
            "Merge with peft's merge_and_unload, and report the model's architecture."
        )
    return Agreement(difference, effect, spread, agreeing, positions)


def _most(difference: torch.Tensor) -> float:
    return float(difference.abs().max())
