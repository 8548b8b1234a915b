"""How a model is laid over GPUs, for models and GPUs that people have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import ModelSize, model_size, size_of
from rollout_ray.ray_cluster.placement import Node, choose_placement
from rollout_ray.sizing.hardware import GIB, KINDS, Gpu, kind_of, lay_out, named
from rollout_ray.sizing.throughput import from_data_sheet

MODELS: dict[str, dict[str, Any]] = {
    "0.5B": {
        "num_hidden_layers": 24, "hidden_size": 896, "vocab_size": 151936, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True, "max_position_embeddings": 32768,
    },
    "7B": {
        "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 32000, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 32768,
    },
    "32B": {
        "num_hidden_layers": 64, "hidden_size": 5120, "vocab_size": 152064, "num_attention_heads": 40,
        "num_key_value_heads": 8, "intermediate_size": 27648, "max_position_embeddings": 32768,
    },
    "70B": {
        "num_hidden_layers": 80, "hidden_size": 8192, "vocab_size": 128256, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "max_position_embeddings": 131072,
    },
    "30B-A3B": {
        "num_hidden_layers": 48, "hidden_size": 2048, "vocab_size": 151936, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_experts": 128, "max_position_embeddings": 40960,
    },
    "Phi-4": {
        "num_hidden_layers": 40, "hidden_size": 5120, "vocab_size": 100352, "num_attention_heads": 40,
        "num_key_value_heads": 10, "intermediate_size": 17920, "max_position_embeddings": 16384,
    },
    "DeepSeek-V3": {
        "num_hidden_layers": 61, "hidden_size": 7168, "vocab_size": 129280, "num_attention_heads": 128,
        "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "max_position_embeddings": 163840, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
    "gpt-oss-20b": {
        "num_hidden_layers": 24, "hidden_size": 2880, "vocab_size": 201088, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32,
        "num_experts_per_tok": 4, "max_position_embeddings": 131072, "quantization_config": {"quant_method": "mxfp4"},
    },
}  # fmt: skip
H200 = Gpu("NVIDIA H200", 140.4)
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6)
A100_80 = Gpu("NVIDIA A100-SXM4-80GB", 80.0)
A100_40 = Gpu("NVIDIA A100-SXM4-40GB", 40.0)
L40S = Gpu("NVIDIA L40S", 45.0)
L4 = Gpu("NVIDIA L4", 22.5)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 24.0)


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [("0.5B", 0.494e9, 12288), ("7B", 7.24e9, 131072), ("70B", 70.55e9, 327680), ("30B-A3B", 30.53e9, 98304)],
)
def test_sizes_are_those_of_the_published_models(name: str, parameters: float, kv_bytes: int) -> None:
    size = size_of(MODELS[name], RunConfig())
    assert size is not None
    assert size.parameters == pytest.approx(parameters, rel=0.001) and size.kv_bytes_per_token == kv_bytes
    assert size.weight_bytes == 2 * size.parameters


def test_a_token_meets_few_of_the_experts() -> None:
    size = size_of({**MODELS["30B-A3B"], "num_experts_per_tok": 8}, RunConfig())
    assert size is not None and size.active_parameters == pytest.approx(3.0e9, rel=0.05)


def test_a_hybrid_keeps_keys_and_values_in_its_attention_layers() -> None:
    kinds = ["linear_attention", "linear_attention", "sliding_attention", "full_attention"] * 8
    size = size_of({**MODELS["7B"], "layer_types": kinds}, RunConfig())
    assert size is not None and size.kv_bytes_per_token == 131072 // 2
    both = size_of({**MODELS["7B"], "layer_types": ["hybrid"] * 32}, RunConfig())  # attention and a state in each
    assert both is not None and both.kv_bytes_per_token == 131072


@pytest.mark.parametrize(
    ("keys", "caching"),
    [
        ({"full_attention_interval": 4}, 8),  # Qwen3-Next
        ({"attn_layer_period": 8, "attn_layer_offset": 4}, 4),  # Jamba
        ({"hybrid_override_pattern": "M-M*" * 8}, 8),  # Nemotron-H
    ],
)
def test_a_hybrid_without_a_list_of_its_layers_is_one(keys: dict[str, Any], caching: int) -> None:
    size = size_of({**MODELS["7B"], **keys}, RunConfig())
    assert size is not None and size.kv_bytes_per_token == 131072 * caching // 32


def at(folder: Path, **engine: Any) -> ModelSize | None:
    return model_size(RunConfig.model_validate({"model": {"model_path": str(folder)}, "engine": engine}))


GEMMA_3_4B = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}


def test_what_a_config_leaves_out_is_its_class_s_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": GEMMA_3_4B}))
    size = at(tmp_path)
    assert size is not None and size.parameters == pytest.approx(3.88e9, rel=0.01)
    assert (size.heads, size.kv_heads, size.kv_bytes_per_token) == (8, 4, 34 * 2 * 4 * 256 * 2)


@pytest.mark.parametrize("content", ['{"model_type": "unheard-of"}', "{}", '{"model_type": "llama", "hidden_size": "x"}'])
def test_the_size_of_what_no_class_knows_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert at(tmp_path) is None


def test_weights_that_lie_there_twice_count_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"]))

    def stored() -> int:
        size = at(tmp_path)
        assert size is not None
        return size.weight_bytes

    counted = stored()
    for name, length in {
        "consolidated-00001-of-00001.safetensors": 100, "pytorch_model.bin": 90, "a.safetensors": 30, "b.safetensors": 20
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(b"x" * length)
    assert stored() == 50
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 40)
    assert stored() == 40
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    assert stored() == 50
    (tmp_path / "a.safetensors").unlink()  # not downloaded yet: the size is that of its parameters
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
    """As published, or counted by hand: embeddings and output keep two bytes a weight."""
    size = size_of({**MODELS[model], "quantization_config": quantized}, RunConfig())
    assert size is not None and size.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_the_size_of_the_shipped_model_is_that_of_its_file() -> None:
    size = model_size(RunConfig())
    file = Path(__file__).parent.parent / "rollout_ray" / "demo_model" / "model.safetensors"
    assert size is not None and size.weight_bytes == file.stat().st_size
    assert size.parameters * 2 == pytest.approx(size.weight_bytes, rel=0.01)


def test_a_dtype_or_a_quantization_changes_the_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"]))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)

    def weights(engine: dict[str, Any]) -> int:
        size = model_size(RunConfig.model_validate({"model": {"model_path": str(tmp_path)}, "engine": engine}))
        assert size is not None
        return size.weight_bytes

    assert weights({}) == 1000
    (tmp_path / "config.json").write_text(json.dumps(MODELS["7B"] | {"torch_dtype": "float32"}))
    assert weights({}) == 500  # vLLM loads it as bfloat16
    parameters = weights({"load_format": "dummy"}) // 2
    assert weights({"dtype": "float32"}) == 4 * parameters
    assert weights({"extra": {"quantization": "fp8"}}) == parameters


@pytest.mark.parametrize(
    ("model", "gpu", "of_a_node", "degree"),
    [
        ("7B", H200, 8, 1),
        ("7B", A100_40, 8, 1),
        ("7B", RTX_4090, 4, 1),
        ("0.5B", L40S, 1, 1),
        ("32B", H200, 8, 1),
        ("32B", H100, 8, 2),
        ("32B", A100_40, 4, 4),
        ("70B", H200, 8, 2),
        ("70B", H100, 8, 4),
        ("70B", A100_40, 8, 8),
        ("30B-A3B", H100, 8, 1),
        ("Phi-4", L4, 8, 2),  # with ten heads of keys and values it goes over neither four GPUs nor eight
        ("DeepSeek-V3", H200, 8, 8),
        ("gpt-oss-20b", RTX_4090, 8, 1),
    ],
)
def test_a_replica_takes_the_fewest_gpus_that_hold_the_model(model: str, gpu: Gpu, of_a_node: int, degree: int) -> None:
    layout = lay_out(RunConfig(), size_of(MODELS[model], RunConfig()), gpu, of_a_node)
    assert layout.tensor_parallel_size == layout.engine.tensor_parallel_size == degree, layout.reason


def test_a_latent_that_every_gpu_holds_is_counted_on_each() -> None:
    layout = lay_out(RunConfig(), size_of(MODELS["DeepSeek-V3"], RunConfig()), H200, 8)
    assert layout.kv_tokens is not None and 5e5 < layout.kv_tokens < 7e5
    assert layout.kv_gib is not None and layout.kv_tokens * 61 * 576 * 2 <= layout.kv_gib * GIB


def test_copies_of_keys_and_values_are_read_too() -> None:
    size = size_of(MODELS["7B"], RunConfig())
    assert size is not None

    def rate(**fields: int) -> float | None:
        return from_data_sheet(replace(size, **fields), kind_of(H200), 8, 1024, 100, 400).tokens_per_second

    each = size.kv_bytes_per_token
    assert rate() == rate(kv_heads=2, kv_bytes_per_token=each // 4) == rate(kv_heads=1, kv_bytes_per_token=each // 8)


@pytest.mark.parametrize(("model", "gpu", "of_a_node"), [("70B", H100, 1), ("70B", RTX_4090, 4), ("32B", L40S, 1)])
def test_a_model_that_no_node_holds_is_refused_with_what_would_help(model: str, gpu: Gpu, of_a_node: int) -> None:
    with pytest.raises(PlacementError, match=r"GiB of weights .* do not fit into \d GPU\(s\) of \d+ GiB; take larger"):
        lay_out(RunConfig(), size_of(MODELS[model], RunConfig()), gpu, of_a_node)


def test_what_the_config_sets_stays() -> None:
    engine = {"tensor_parallel_size": 8, "max_num_seqs": 100, "max_num_batched_tokens": 2048}
    layout = lay_out(RunConfig.model_validate({"engine": engine}), size_of(MODELS["7B"], RunConfig()), H200, 8)
    assert layout.engine.model_dump(include=set(engine)) == engine


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [(H200, 1024, 16384), (H100, 1024, 16384), (A100_80, 1024, 8192), (A100_40, 512, 8192), (RTX_4090, 200, 4096)],
)
def test_a_7b_model_gets_the_batch_that_its_gpu_has_room_for(gpu: Gpu, seqs: int, tokens: int) -> None:
    engine = lay_out(RunConfig(), size_of(MODELS["7B"], RunConfig()), gpu, 8).engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (seqs, tokens)


def test_every_kind_is_found_by_its_name() -> None:
    for gpu, name in [
        (H200, "H200"), (H100, "H100"), (A100_80, "A100 80GB"), (A100_40, "A100"), (L40S, "L40S"), (RTX_4090, "4090"),
        (Gpu("NVIDIA H100 PCIe", 79.6), "H100 PCIe"), (Gpu("NVIDIA A100 80GB PCIe", 80.0), "A100 80GB"),
        (Gpu("NVIDIA H800", 79.6), "H800"), (Gpu("NVIDIA A800-SXM4-80GB", 80.0), "A800"), (Gpu("NVIDIA H20", 95.6), "H20"),
        (Gpu("NVIDIA A10G", 22.5), "A10G"), (Gpu("NVIDIA A10", 22.5), "A10"), (Gpu("NVIDIA L40", 45.0), "L40"),
        (Gpu("NVIDIA A40", 45.0), "A40"),
    ]:  # fmt: skip
        assert kind_of(gpu).name == name and not kind_of(gpu).guessed
    tomorrow = kind_of(Gpu("Some card of tomorrow", 24.0))
    assert tomorrow.guessed and tomorrow.max_num_seqs == 256
    for kind in KINDS:
        assert named(f"8x{kind.name}") == (1, 8, kind) == named(f"8x{kind.name.lower().replace(' ', '-')}")
    assert named("2x8xH100")[:2] == (2, 8)
    for wrong in ("8xTPU", "H100", "0xH100", "axH100", "1x2x3xH100"):
        with pytest.raises(PlacementError, match="names no GPUs; give their number and one of B200, H200"):
            named(wrong)


def test_without_knowledge_of_the_gpus_it_says_so_and_takes_one() -> None:
    layout = lay_out(RunConfig(), size_of(MODELS["70B"], RunConfig()), None, 8)
    assert layout.tensor_parallel_size == 1 and "the GPUs' memory is not known here" in layout.reason
    assert "the model's size is not known here" in lay_out(RunConfig(), None, H100, 8).reason


def test_a_placement_follows_the_layout() -> None:
    size = size_of(MODELS["70B"], RunConfig())
    placement = choose_placement([Node(8, 0), Node(64, 8), Node(64, 2)], RunConfig(), H100, size)
    assert (placement.replicas, placement.gpus, placement.engine.tensor_parallel_size) == (2, 4, 4)
    assert "weights take 32.9" in placement.note


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(MODELS)),
    st.floats(8, 200),
    st.integers(1, 8),
    st.sampled_from([None, 512, 4096, 32768]),
)
def test_a_layout_always_holds_what_it_says(model: str, memory: float, of_a_node: int, longest: int | None) -> None:
    config = RunConfig.model_validate({"engine": {"max_model_len": longest}})
    size = size_of(MODELS[model], config)
    assert size is not None
    try:
        layout = lay_out(config, size, Gpu("NVIDIA A100", memory), of_a_node)
    except PlacementError:
        return
    degree = layout.tensor_parallel_size
    assert degree <= of_a_node and size.heads % degree == 0
    assert layout.kv_tokens is not None and layout.kv_gib is not None and layout.weights_gib is not None
    assert layout.kv_tokens >= (longest or 2048) and layout.engine.max_num_seqs
    heads_of_a_gpu = max(1, size.kv_heads / degree)
    assert heads_of_a_gpu == int(heads_of_a_gpu)
    assert layout.kv_tokens * size.kv_bytes_per_token * heads_of_a_gpu / size.kv_heads <= layout.kv_gib * GIB
    assert layout.weights_gib + layout.kv_gib < 0.9 * memory
