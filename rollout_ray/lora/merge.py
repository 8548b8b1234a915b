"""`rollout merge-lora`: a base model and a LoRA adapter become one bf16 checkpoint that any engine serves.

Owns the new checkpoint's files: it goes through the base's tensors one by one, so that memory never holds the model, and
publishes the folder once the logits of the merged and of the adapted model agree. What an adapter adds to
a weight is peft's (lora_model.py).
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
from rollout_ray.lora.peft_model import AdaptedModel, LazyModel
from rollout_ray.lora.safetensors_writer import write_shard

INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PROMPTS = (
    "What is 2 + 2?",
    "Anna has 3 apples and buys 4 more. How many apples does Anna have now?",
    "The quick brown fox jumps over the lazy dog.",
)
# Shares of the logits' standard deviation: what rounding every weight to bf16 may move a logit by in any model, and what
# it never does. In between, a merge must at least be nearer to the adapted model than the base model is.
ROUNDING, MOST_OF_SPREAD = 0.05, 0.25
RULE = "=" * 80
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Agreement:
    """Logits of the merged and the adapted model compared: the largest `difference`; the `effect`, the largest between the
    adapted and the base model; the adapted logits' standard deviation `spread`; and at how many of the `positions` the
    likeliest token is the same."""

    difference: float
    effect: float
    spread: float
    agreeing: int
    positions: int


@dataclass(frozen=True)
class MergedModel:
    """What was written: `modules` is how many parameters the adapter changed or replaced; `peak_bytes` the most memory that
    this process has held. Bytes and seconds."""

    path: str
    modules: int
    files: int
    size_bytes: int
    agreement: Agreement
    peak_bytes: int
    seconds: float


def merge_lora(base: str, adapter: str, output: str, say: Callable[[str], Any] = print) -> MergedModel:
    """Writes the model in the folder `base` with the LoRA adapter in the folder `adapter` to the new folder `output`.

    The weights are bf16 (those that the architecture keeps in float32 stay so), each rounded once from float32; the files
    are split as the base's. The tokenizer is the adapter's where it has one, else the base's. Raises ConfigError where the
    two do not fit, are of a kind that is not supported, or `output` holds something or cannot be written, and VerifyError
    where the logits disagree. Nothing is left in `output` then.
    """
    began = time.monotonic()
    _give_freed_memory_back()
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{output} is there already and is not empty; give another --output")
    say(f"{RULE}\nLoRA merge\n{RULE}\n")
    say(f"Configuration:\n  Base model: {base}\n  LoRA adapter: {adapter}\n  Output path: {output}\n")
    _refuse_quantized(Path(base))
    say("Reading the base model and the adapter ...")
    adapted = AdaptedModel(Path(base), Path(adapter))
    modules = len(adapted.changed) + len(adapted.replaced)
    say(f"  {len(adapted.changed)} weights to add to, {len(adapted.replaced)} to replace, of {len(adapted.checkpoint)}")
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
        raise ConfigError(f"{output} cannot be written: {error}; make room, or give another --output") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    merged = MergedModel(str(target), modules, files, size, agreement, peak, time.monotonic() - began)
    held = f"{size / 2**30:.2f} GiB of bf16 in {files} files, {merged.seconds:.1f} s, {peak / 2**30:.2f} GiB of memory"
    say(f"\n{RULE}\nLoRA merge complete\nMerged model saved to: {output}\n  {held}\n{RULE}")
    return merged


def _give_freed_memory_back() -> None:
    """Has glibc map every tensor apart. It keeps freed blocks of up to 32 MiB otherwise: half a gigabyte more of 1.4."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _refuse_quantized(base: Path) -> None:
    if not (base / "config.json").is_file():
        raise ConfigError(f"{base} is no model folder; give one that save_pretrained wrote")
    if "quantization_config" in _json(base / "config.json"):
        raise ConfigError(
            f"{base} is quantized, and an adapter cannot be added to such weights; give the unquantized model"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a folder that save_pretrained wrote") from error


# Weights


def _write_weights(adapted: AdaptedModel, work: Path, say: Callable[[str], Any]) -> tuple[int, int]:
    """Writes the weight files and their index; returns how many they are, and their bytes."""
    by_file: dict[Path, list[str]] = {}
    for name, file in adapted.checkpoint.files.items():
        by_file.setdefault(file, []).append(name)
    size, index = 0, {}
    for number, (file, stored) in enumerate(by_file.items(), 1):
        say(f"Merging {file.name} ({number} of {len(by_file)}) ...")
        shapes = {name: adapted.checkpoint.shapes[each] for each in stored for name, _ in _made_of(adapted, each)}
        size += write_shard(work / file.name, shapes, _new_tensors(adapted, stored))
        index.update(dict.fromkeys(shapes, file.name))
    if len(by_file) > 1 or next(iter(by_file)).name != "model.safetensors":
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (work / INDEX).write_text(json.dumps(content, indent=2))
    return len(by_file), size


def _made_of(adapted: AdaptedModel, stored: str) -> list[tuple[str, str | None]]:
    """The new tensors that one of the base's becomes, each with its parameter (None where the architecture has none): one,
    or two where the adapter sets twins apart; none for a stored copy of a twin."""
    if stored in adapted.tied and stored != adapted.stored[stored]:
        return []
    if stored in adapted.part_of:
        return [(stored, adapted.part_of[stored])]
    made: list[tuple[str, str | None]] = []
    for parameter in (name for name, its in adapted.stored.items() if its == stored):
        if parameter not in adapted.tied:
            made.append((stored, parameter))
        elif adapted.sets_twins_apart:
            made.append((parameter, parameter))
    return made or [(stored, None)]


def _new_tensors(adapted: AdaptedModel, stored: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for each in stored:
        for name, parameter in _made_of(adapted, each):
            tensor = adapted.checkpoint[each]
            if parameter is not None:
                tensor = adapted.merged(parameter, tensor)
                if tensor.is_floating_point() and not any(part in parameter for part in adapted.kept):
                    tensor = tensor.to(torch.bfloat16)
            yield name, tensor


# Everything else


def _write_rest(adapted: AdaptedModel, base: Path, adapter: Path, work: Path, say: Callable[[str], Any]) -> None:
    """Copies what is no weight, with the config's dtype set right."""
    for file in sorted(base.iterdir()):
        # With params.json vLLM would look for weights in Mistral's own format.
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith((*WEIGHTS, "params.json")):
            shutil.copyfile(file, work / file.name)
    config = _json(base / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = "bfloat16"
    if adapted.sets_twins_apart:
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
        raise ConfigError(f"neither {adapter} nor {base} holds a tokenizer; save one with save_pretrained")


def _checked(adapted: AdaptedModel, work: Path, say: Callable[[str], Any]) -> Agreement:
    """Compares the logits on a few prompts; they may differ by what the rounding of the weights to bf16 does."""
    say("Comparing the logits of the merged and the adapted model ...")
    tokenizer = AutoTokenizer.from_pretrained(work, local_files_only=True)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    wanted, found, plain = adapted.logits(prompts), LazyModel(work).logits(prompts), adapted.base_logits(prompts)
    difference, spread, effect = _most(wanted - found), float(wanted.std()), _most(wanted - plain)
    agreeing, positions = int((wanted.argmax(-1) == found.argmax(-1)).sum()), len(wanted)
    say(
        f"  largest difference {difference:.3g}, where the adapter changes logits by up to {effect:.3g} and their\n"
        f"  standard deviation is {spread:.3g}; the likeliest token is the same at {agreeing} of {positions} positions"
    )
    unlike = difference > ROUNDING * spread and difference > effect / 2
    if unlike or not difference <= MOST_OF_SPREAD * spread:
        raise VerifyError(
            f"the logits of the merged model differ by up to {difference:.3g} from those of the adapted one; it was not "
            "kept: merge with peft's merge_and_unload, and report the model's architecture"
        )
    return Agreement(difference, effect, spread, agreeing, positions)


def _most(difference: torch.Tensor) -> float:
    return float(difference.abs().max())
