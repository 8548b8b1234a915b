"""What vLLM is started with: the choices that the config leaves open. Nothing is started here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray import RunConfig
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.arguments import engine_arguments, environment, graph_sizes
from rollout_ray.actors.vllm_backend.cpu_dtype import cpu_dtype
from rollout_ray.core.errors import ConfigError
from rollout_ray.models.resolved_run import ResolvedRun, resolve


def run(**engine: Any) -> ResolvedRun:
    return resolve(RunConfig.model_validate({"engine": {"max_model_len": 512} | engine}))


def arguments_of(run: ResolvedRun, gpus: int = 0) -> dict[str, Any]:
    return engine_arguments(LaunchSpec.of(run, gpus=gpus, threads=1))


@given(most=st.integers(1, 5000))
def test_a_batch_of_any_size_has_a_graph_near_its_own(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    for batch in range(1, most + 1):
        padded = next(size for size in sizes if size >= batch)
        assert padded - batch < max(8, min(64, batch / 4))


def test_graphs_named_by_the_user_are_not_ours() -> None:
    ours = arguments_of(run(max_num_seqs=512), gpus=1)
    assert ours["cudagraph_capture_sizes"] == graph_sizes(512)
    theirs = arguments_of(run(extra={"max_cudagraph_capture_size": 64}), gpus=1)
    assert theirs["max_cudagraph_capture_size"] == 64 and "cudagraph_capture_sizes" not in theirs


def test_deterministic_asks_for_batch_invariant_kernels_which_only_gpus_have() -> None:
    invariant = run(deterministic=True)
    assert environment(invariant, gpus=1, threads=1)["VLLM_BATCH_INVARIANT"] == "1"
    assert "VLLM_BATCH_INVARIANT" not in environment(run(), gpus=1, threads=1)
    with pytest.raises(ConfigError, match="deterministic needs a GPU"):
        arguments_of(invariant)


def test_the_hub_is_left_alone_where_all_that_is_needed_is_here(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for path, tokenizer, expected in (
        (str(tmp_path), None, offline),
        (str(tmp_path), str(tmp_path), offline),
        (str(tmp_path), "org/tokenizer", {}),
        ("org/model", None, {}),
    ):
        cfg = RunConfig.model_validate({"model": {"model_path": path, "tokenizer_path": tokenizer}})
        given = environment(resolve(cfg), gpus=0, threads=1)
        assert {name: value for name, value in given.items() if name in offline} == expected


LLAMA = {
    "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 256, "vocab_size": 100, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 256, "vocab_size": 100, "n_head": 4, "n_positions": 2048}


@pytest.mark.parametrize(
    ("checkpoint", "dtype", "capability", "bytes_per_token"),
    [
        (LLAMA, "auto", "AVX512", 2 * 3 * 2 * 64 * 2),
        (LLAMA | {"torch_dtype": "float32"}, "auto", "AVX512", 2 * 3 * 2 * 64 * 2),  # which vLLM loads as bfloat16
        (LLAMA, "float32", "AVX512", 2 * 3 * 2 * 64 * 4),
        (LLAMA, "auto", "AVX2", 2 * 3 * 2 * 64 * 4),
        (LLAMA, "bfloat16", "AVX2", 2 * 3 * 2 * 64 * 2),
        (GPT2, "auto", "AVX512", 2 * 3 * 4 * 64 * 2),
    ],
)
def test_a_cpu_engine_gets_a_kv_cache_for_a_quarter_of_its_longest_batch(
    checkpoint: dict[str, Any],
    dtype: str,
    capability: str,
    bytes_per_token: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint))
    cfg = RunConfig.model_validate(
        {"model": {"model_path": str(tmp_path)}, "engine": {"max_model_len": 512, "max_num_seqs": 64, "dtype": dtype}}
    )
    assert arguments_of(resolve(cfg))["kv_cache_memory_bytes"] == 64 * 512 // 4 * bytes_per_token


@pytest.mark.parametrize(
    ("capability", "written", "engine", "expected"),
    [
        ("AVX2", {}, {}, "float32"),
        ("AVX512", {}, {}, "auto"),
        ("DEFAULT", {}, {}, "auto"),  # ARM
        ("AVX2", {}, {"dtype": "float16"}, "float16"),
        ("AVX2", {"hidden_size": 2**18}, {}, "auto"),  # whose weights would fill the memory
        ("AVX2", {"quantization_config": {"quant_method": "awq"}}, {}, "auto"),
        ("AVX2", {}, {"extra": {"quantization": "fp8"}}, "auto"),
    ],
)
def test_auto_is_float32_where_the_processor_lacks_16_bit_arithmetic(
    capability: str,
    written: dict[str, Any],
    engine: dict[str, Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert cpu_dtype(run(**engine).config, LLAMA | written, threads=1) == expected


def test_a_hybrid_on_the_cpu_has_room_for_states_and_for_its_longest_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    hybrid = LLAMA | {"model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(hybrid))
    for longest, needed in ((512, 2**30), (2**20, 2 * 2**20 * 2 * 3 * 2 * 64 * 2)):
        engine = {"max_model_len": longest, "max_num_seqs": 1}
        cfg = RunConfig.model_validate({"model": {"model_path": str(tmp_path)}, "engine": engine})
        arguments = arguments_of(resolve(cfg))
        assert arguments["kv_cache_memory_bytes"] == needed and arguments["enable_prefix_caching"] is False
