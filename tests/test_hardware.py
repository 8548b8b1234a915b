"""How a model is laid over GPUs, for models and GPUs that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.placement import Node, choose_placement
from rollout_ray.config import RunConfig
from rollout_ray.errors import PlacementError
from rollout_ray.hardware import KINDS, Gpu, kind_of, lay_out, named
from rollout_ray.model_size import model_size, size_of

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
}  # fmt: skip
H200 = Gpu("NVIDIA H200", 140.4)
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6)
A100_80 = Gpu("NVIDIA A100-SXM4-80GB", 80.0)
A100_40 = Gpu("NVIDIA A100-SXM4-40GB", 40.0)
L40S = Gpu("NVIDIA L40S", 45.0)
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
    ],
)
def test_a_replica_takes_the_fewest_gpus_that_hold_the_model(model: str, gpu: Gpu, of_a_node: int, degree: int) -> None:
    layout = lay_out(RunConfig(), size_of(MODELS[model], RunConfig()), gpu, of_a_node)
    assert layout.tensor_parallel_size == layout.engine.tensor_parallel_size == degree, layout.reason


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
    ]:  # fmt: skip
        assert kind_of(gpu).name == name
    assert kind_of(Gpu("Some card of tomorrow", 24.0)).max_num_seqs == 256
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


@settings(max_examples=200, deadline=None)
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
    assert layout.tensor_parallel_size <= of_a_node and size.heads % layout.tensor_parallel_size == 0
    assert layout.kv_tokens is not None and layout.kv_gib is not None and layout.weights_gib is not None
    assert layout.kv_tokens >= (longest or 2048) and layout.engine.max_num_seqs
    assert layout.weights_gib + layout.kv_gib < 0.9 * memory
