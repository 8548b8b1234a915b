"""Compute the size of a model: bytes of its weights, bytes of a token's keys and values, and its heads.

The figures follow from a checkpoint's config.json and the sizes of its weight files. This loads no tensor.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.models.weight_files import WEIGHTS, weight_files

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"fp8": 1.0, "int8": 1.0, "awq": 0.56, "gptq": 0.56, "bitsandbytes": 0.56}  # of a weight, with scales
MXFP4_BYTES = 0.53
WITHOUT_CACHE = {"linear_attention", "mamba", "conv", "moe", "mlp"}  # of transformers' kinds of layers


@dataclass(frozen=True)
class ModelSize:
    """`weight_bytes` of all `parameters` as they are loaded, of which a token meets the `active_parameters`;
    `kv_bytes_per_token` over those of the `layers` that keep any, of all `kv_heads` together (1 where all heads share a
    latent vector); `heads` of the attention, which a tensor parallel degree must divide; `hidden` and `width` are a layer's
    input and its widest activation, in elements a token; `max_position_embeddings` in tokens."""

    parameters: int
    active_parameters: int
    layers: int
    hidden: int
    weight_bytes: int
    kv_bytes_per_token: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    max_position_embeddings: int | None = None


def model_size(run: ResolvedRun) -> ModelSize | None:
    """The size of the run's model; None where it is no local folder (nor in the local cache), or of a kind that this
    module cannot count."""
    config = run.config
    folder = _folder(run)
    if folder is None:
        return None
    try:
        written = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    stored = _bytes_of_weights(folder)
    return size_of(written, config, stored) or size_of(_with_defaults(written, folder), config, stored)


def size_of(written: dict[str, Any], config: RunConfig, stored: int = 0, dtype: str | None = None) -> ModelSize | None:
    """The size of a model with the config.json `written`, whose weight files hold `stored` bytes (0: there are none). A
    `dtype` goes before the config's."""
    dtype = dtype or config.engine.dtype
    text = written.get("text_config", written)
    try:
        layers = text["num_hidden_layers"]
        hidden, vocabulary = text["hidden_size"], text["vocab_size"]
        heads = text["num_attention_heads"]
        kv_heads = text.get("num_key_value_heads") or heads
        head = text.get("head_dim") or hidden // heads
        inner = text.get("intermediate_size") or 4 * hidden
        attention = layers * hidden * head * (2 * heads + 2 * kv_heads)
        feed_forward, active = _feed_forward(text, layers, hidden, inner)
    except (KeyError, TypeError):
        return None
    output = vocabulary * hidden
    embeddings = output * (1 if text.get("tie_word_embeddings") else 2)
    parameters = attention + feed_forward + embeddings
    each = BYTES.get(dtype, 2.0)  # auto: vLLM loads float32 as bfloat16 as well
    stored = stored if config.engine.load_format != "dummy" else 0
    quantization = config.engine.extra.get("quantization")
    if quantized := quantization_of(written):
        of_attention, of_feed_forward = _quantized_bytes(quantized, each)
        counted = attention * of_attention + feed_forward * of_feed_forward + embeddings * each
        weights = float(stored or counted)
    elif quantization:
        weights = parameters * QUANTIZED_BYTES.get(quantization, 1.0)
    elif stored and dtype == "auto":
        weights = stored * each / BYTES.get(_stored_dtype(written, text), 2.0)
    else:
        weights = parameters * each
    kv_each = 1.0 if "fp8" in str(config.engine.extra.get("kv_cache_dtype", "")) else each
    if text.get("kv_lora_rank"):  # multi-head latent attention keeps one compressed vector a token
        kv_elements, kv_heads = text["kv_lora_rank"] + text.get("qk_rope_head_dim", 0), 1
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
        kv_heads=kv_heads,
        width=2 * inner + 2 * hidden,
        vocabulary=vocabulary,
        max_position_embeddings=text.get("max_position_embeddings"),
    )


def quantization_of(written: dict[str, Any]) -> dict[str, Any] | None:
    """Return how the checkpoint with this config.json is quantized; None if it is not."""
    return written.get("quantization_config") or written.get("text_config", written).get("quantization_config") or None


def _quantized_bytes(quantized: dict[str, Any], each: float) -> tuple[float, float]:
    """Bytes of a weight of the attention and of the feed-forward layers, by a checkpoint's quantization_config; `each`
    where it is of a kind that is not known here. Embeddings and output stay as they are in all of them."""
    method = quantized.get("quant_method")
    if method == "mxfp4":
        return each, MXFP4_BYTES  # of GPT-OSS, which has it in its experts alone
    linear = each
    if method == "fp8":
        linear = 1.0
    elif method == "bitsandbytes":
        linear = QUANTIZED_BYTES["bitsandbytes"] if quantized.get("load_in_4bit") else 1.0
    elif method in ("awq", "gptq"):
        linear = _grouped_bytes(quantized.get("bits"), quantized.get("group_size", 128)) or each
    elif method == "compressed-tensors":
        schemes = [group.get("weights") or {} for group in (quantized.get("config_groups") or {}).values()]
        known = [_grouped_bytes(scheme.get("num_bits"), scheme.get("group_size")) for scheme in schemes]
        linear = max(filter(None, known), default=each)
    return linear, linear


def _grouped_bytes(bits: int | None, group: int | None) -> float | None:
    """Bytes of a weight of so many bits, where `group` of them share a scale of two bytes and a zero point."""
    if not bits:
        return None
    return bits / 8 + ((2 + bits / 8) / group if group and group > 0 else 0.0)


def _caching_layers(text: dict[str, Any], layers: int) -> int:
    """How many layers keep keys and values: in a hybrid the others keep a state of one size (Mamba, linear attention)."""
    if kinds := text.get("layer_types") or text.get("layers_block_type"):
        caching = sum(kind not in WITHOUT_CACHE for kind in kinds)
    elif every := text.get("full_attention_interval"):  # Qwen3-Next
        caching = layers // every
    elif every := text.get("attn_layer_period"):  # Jamba
        caching = len(range(text.get("attn_layer_offset", 0), layers, every))
    elif pattern := text.get("hybrid_override_pattern"):  # Nemotron-H
        caching = pattern.count("*")
    else:
        caching = layers
    return max(1, caching)


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


def _folder(run: ResolvedRun) -> Path | None:
    """The model's folder; of a hub id, that in the local cache, which is looked at without the network."""
    path = run.model_path
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, "config.json", revision=run.config.model.revision)
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _with_defaults(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config.json `written` with what its class in transformers has for what it leaves out, as Gemma 3's does; empty
    where transformers does not know the class. Importing it takes seconds."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError):
        return {}
    # A family may have names of its own (n_layer) for what size_of asks for.
    named = {name: getattr(config, name, None) for name in config.attribute_map}
    return {**written, "text_config": config.to_dict() | named}


def _bytes_of_weights(folder: Path) -> int:
    """Of the files that a loader takes, since a folder may hold the same weights twice; 0 where they are not all here."""
    try:
        files = weight_files(folder)
        for suffix in WEIGHTS:  # else of an older kind
            files = files or [file for file in folder.iterdir() if file.suffix == suffix]
        return sum(file.stat().st_size for file in files)
    except (OSError, ConfigError):
        return 0
