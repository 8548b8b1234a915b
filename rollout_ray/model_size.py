"""How large a model is: the bytes of its weights, of a token's keys and values, and its heads.

Owns the arithmetic over a checkpoint's config.json and weight files; it loads no tensor. Which GPUs hold the model is
hardware.py's.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.checkpoints import WEIGHTS
from rollout_ray.config import RunConfig
from rollout_ray.models import model_folder

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"fp8": 1.0, "int8": 1.0, "awq": 0.56, "gptq": 0.56, "bitsandbytes": 0.56}  # of a weight, with scales
WITHOUT_CACHE = {"linear_attention", "mamba", "conv", "moe", "mlp"}  # of transformers' kinds of layers


@dataclass(frozen=True)
class ModelSize:
    """`weight_bytes` of all `parameters` as they are loaded, of which a token meets the `active_parameters`;
    `kv_bytes_per_token` over those of the `layers` that keep any; `heads` of the attention, which a tensor parallel degree
    must divide; `hidden` and `width` are a layer's input and its widest activation, in elements a token;
    `max_position_embeddings` in tokens."""

    parameters: int
    active_parameters: int
    layers: int
    hidden: int
    weight_bytes: int
    kv_bytes_per_token: int
    heads: int
    width: int
    vocabulary: int
    max_position_embeddings: int | None = None


def model_size(config: RunConfig) -> ModelSize | None:
    """The size of the config's model; None where it is no local folder (nor in the local cache), or of a kind that this
    module cannot count."""
    folder = _folder(config)
    if folder is None:
        return None
    try:
        written = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return size_of(written, config, _bytes_of_weights(folder))


def size_of(written: dict[str, Any], config: RunConfig, stored_bytes: int = 0) -> ModelSize | None:
    """The size of a model with the config.json `written`, whose weight files hold `stored_bytes` (0: there are none)."""
    text = written.get("text_config", written)
    try:
        layers, hidden, vocabulary = text["num_hidden_layers"], text["hidden_size"], text["vocab_size"]
        heads = text["num_attention_heads"]
        kv_heads = text.get("num_key_value_heads") or heads
        head = text.get("head_dim") or hidden // heads
        inner = text.get("intermediate_size") or 4 * hidden
        attention = layers * hidden * head * (2 * heads + 2 * kv_heads)
        feed_forward, active = _feed_forward(text, layers, hidden, inner)
    except (KeyError, TypeError):
        return None
    output = vocabulary * hidden
    parameters = attention + feed_forward + output * (1 if text.get("tie_word_embeddings") else 2)
    each = BYTES.get(config.engine.dtype, 2.0)  # auto: vLLM loads float32 as bfloat16 as well
    stored = stored_bytes if config.engine.load_format != "dummy" else 0
    quantization = config.engine.extra.get("quantization")
    if quantization:
        weights = parameters * QUANTIZED_BYTES.get(quantization, 1.0)
    elif stored and "quantization_config" in written:
        weights = float(stored)
    elif stored and config.engine.dtype == "auto":
        weights = stored * each / BYTES.get(_stored_dtype(written, text), 2.0)
    else:
        weights = parameters * each
    kv_each = 1.0 if "fp8" in str(config.engine.extra.get("kv_cache_dtype", "")) else each
    if text.get("kv_lora_rank"):  # multi-head latent attention keeps one compressed vector a token
        kv_elements = text["kv_lora_rank"] + text.get("qk_rope_head_dim", 0)
    else:
        kv_elements = 2 * kv_heads * head
    return ModelSize(
        parameters=parameters,
        active_parameters=attention + active + output,
        layers=layers,
        hidden=hidden,
        weight_bytes=int(weights),
        kv_bytes_per_token=int(_caching_layers(text, layers) * kv_elements * kv_each),
        heads=heads,
        width=2 * inner + 2 * hidden,
        vocabulary=vocabulary,
        max_position_embeddings=text.get("max_position_embeddings"),
    )


def _caching_layers(text: dict[str, Any], layers: int) -> int:
    """How many layers keep keys and values: in a hybrid the others keep a state of one size (Mamba, linear attention)."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    return max(1, sum(kind not in WITHOUT_CACHE for kind in kinds)) if kinds else layers


def _stored_dtype(*configs: dict[str, Any]) -> str:
    """What the first of a checkpoint's configs that says so names, in the old spelling or the new; else nothing."""
    said = (config.get(name) for config in configs for name in ("dtype", "torch_dtype"))
    return str(next(filter(None, said), "")).removeprefix("torch.")


def _feed_forward(text: dict[str, Any], layers: int, hidden: int, inner: int) -> tuple[int, int]:
    """Parameters of all gated feed-forward layers, and of those that a token meets (Llama, Mistral, Qwen, Gemma and their
    mixtures of experts). Norms and biases, under a thousandth, are left out here as in the sum of all."""
    experts = text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts")
    if not experts:
        return 3 * layers * hidden * inner, 3 * layers * hidden * inner
    of_one = 3 * hidden * (text.get("moe_intermediate_size") or inner)
    always = text.get("n_shared_experts") or 0
    met = text.get("num_experts_per_tok") or 1
    return layers * (of_one * (experts + always) + hidden * experts), layers * (of_one * (met + always) + hidden * experts)


def _folder(config: RunConfig) -> Path | None:
    """The model's folder; of a hub id, that in the local cache, which is looked at without the network."""
    path = model_folder(config.model.model_path)
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, "config.json", revision=config.model.revision)
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _bytes_of_weights(folder: Path) -> int:
    """Of the safetensors files where there are some, else of the others: a folder may hold the same weights twice."""
    sizes: dict[str, int] = {}
    for file in folder.iterdir():
        if file.suffix in WEIGHTS:
            sizes[file.suffix] = sizes.get(file.suffix, 0) + file.stat().st_size
    return next((sizes[suffix] for suffix in WEIGHTS if suffix in sizes), 0)
