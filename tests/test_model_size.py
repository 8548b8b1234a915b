"""Test the sizes of models against published figures, from their config.json and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollout_ray.config.schema import RunConfig
from rollout_ray.models.model_size import ModelSize, model_size, size_of
from rollout_ray.models.resolved_run import resolve

MODELS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "model_configs.json").read_text())


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [("0.5B", 0.494e9, 12288), ("7B", 7.24e9, 131072), ("70B", 70.55e9, 327680), ("30B-A3B", 30.53e9, 98304)],
)
def test_sizes_equal_the_published_ones(name: str, parameters: float, kv_bytes: int) -> None:
    size = size_of(MODELS[name], RunConfig())
    assert size is not None
    assert size.parameters == pytest.approx(parameters, rel=0.001) and size.kv_bytes_per_token == kv_bytes
    assert size.weight_bytes == 2 * size.parameters


def test_a_token_uses_few_of_the_experts() -> None:
    size = size_of({**MODELS["30B-A3B"], "num_experts_per_tok": 8}, RunConfig())
    assert size is not None and size.active_parameters == pytest.approx(3.0e9, rel=0.05)


def test_a_hybrid_keeps_keys_and_values_in_its_attention_layers() -> None:
    kinds = ["linear_attention", "linear_attention", "sliding_attention", "full_attention"] * 8
    size = size_of({**MODELS["7B"], "layer_types": kinds}, RunConfig())
    assert size is not None and size.kv_bytes_per_token == 131072 // 2
    # Each layer has both attention and a state.
    both = size_of({**MODELS["7B"], "layer_types": ["hybrid"] * 32}, RunConfig())
    assert both is not None and both.kv_bytes_per_token == 131072


@pytest.mark.parametrize(
    ("keys", "caching"),
    [
        ({"full_attention_interval": 4}, 8),  # Qwen3-Next
        ({"attn_layer_period": 8, "attn_layer_offset": 4}, 4),  # Jamba
        ({"hybrid_override_pattern": "M-M*" * 8}, 8),  # Nemotron-H
    ],
)
def test_a_hybrid_without_a_list_of_layers_is_recognized(keys: dict[str, Any], caching: int) -> None:
    size = size_of({**MODELS["7B"], **keys}, RunConfig())
    assert size is not None and size.kv_bytes_per_token == 131072 * caching // 32


def at(folder: Path, **engine: Any) -> ModelSize | None:
    return model_size(resolve(RunConfig.model_validate({"model": {"model_path": str(folder)}, "engine": engine})))


GEMMA_3_4B = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}


def test_a_missing_field_has_the_default_of_the_config_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": GEMMA_3_4B}))
    size = at(tmp_path)
    assert size is not None and size.parameters == pytest.approx(3.88e9, rel=0.01)
    assert (size.heads, size.kv_heads, size.kv_bytes_per_token) == (8, 4, 34 * 2 * 4 * 256 * 2)


@pytest.mark.parametrize("content", ['{"model_type": "unheard-of"}', "{}", '{"model_type": "llama", "hidden_size": "x"}'])
def test_a_config_of_an_unknown_class_has_no_size(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert at(tmp_path) is None


def test_weights_stored_twice_count_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"]))

    def stored() -> int:
        size = at(tmp_path)
        assert size is not None
        return size.weight_bytes

    counted = stored()
    for name, length in {
        "consolidated-00001-of-00001.safetensors": 100,
        "pytorch_model.bin": 90,
        "a.safetensors": 30,
        "b.safetensors": 20,
    }.items():
        (tmp_path / name).write_bytes(b"x" * length)
    assert stored() == 50
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 40)
    assert stored() == 40
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    assert stored() == 50
    (tmp_path / "a.safetensors").unlink()  # not downloaded yet: the size follows from the parameters
    assert stored() == counted


def compressed(**scheme: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": scheme}}}


@pytest.mark.parametrize(
    ("model", "quantized", "gigabytes"),
    [
        ("DeepSeek-V3", MODELS["DeepSeek-V3"]["quantization_config"], 700),
        ("gpt-oss-20b", MODELS["gpt-oss-20b"]["quantization_config"], 13.76),
        ("70B", {"quant_method": "awq", "bits": 4, "group_size": 128}, 39.77),
        ("70B", {"quant_method": "gptq", "bits": 8, "group_size": -1}, 72.7),
        ("70B", compressed(num_bits=8, type="float", group_size=None), 72.7),
        ("70B", compressed(num_bits=4, type="int", group_size=128), 39.9),
        ("70B", {"quant_method": "bitsandbytes", "load_in_4bit": True}, 42.5),
        ("70B", {"quant_method": "bitsandbytes", "load_in_8bit": True}, 72.7),
        ("70B", {"quant_method": "unheard-of", "bits": 4}, 141.1),
        ("70B", compressed(), 141.1),
    ],
)
def test_a_quantized_model_is_sized_without_its_weights(model: str, quantized: dict[str, Any], gigabytes: float) -> None:
    """Sizes are published or counted by hand. Embeddings and output keep two bytes a weight."""
    size = size_of({**MODELS[model], "quantization_config": quantized}, RunConfig())
    assert size is not None and size.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_the_shipped_model_has_the_size_of_its_file() -> None:
    size = model_size(resolve(RunConfig()))
    file = Path(__file__).parent.parent / "rollout_ray" / "demo_model" / "model.safetensors"
    assert size is not None and size.weight_bytes == file.stat().st_size
    assert size.parameters * 2 == pytest.approx(size.weight_bytes, rel=0.01)


def test_a_dtype_or_a_quantization_changes_the_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"]))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)

    def weights(engine: dict[str, Any]) -> int:
        size = model_size(resolve(RunConfig.model_validate({"model": {"model_path": str(tmp_path)}, "engine": engine})))
        assert size is not None
        return size.weight_bytes

    assert weights({}) == 1000
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"] | {"torch_dtype": "float32"}))
    assert weights({}) == 500  # vLLM loads it as bfloat16
    parameters = weights({"load_format": "dummy"}) // 2
    assert weights({"dtype": "float32"}) == 4 * parameters
    assert weights({"extra": {"quantization": "fp8"}}) == parameters
