"""Test how models are laid out over the GPUs that people have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import size_of
from rollout_ray.models.resolved_run import resolve
from rollout_ray.ray_cluster.placement import Node, choose_placement
from rollout_ray.sizing.hardware import GIB, GPU_KINDS, Gpu, gpu_kind, lay_out, parse_gpus
from rollout_ray.sizing.throughput import from_data_sheet
from tests.test_model_size import MODELS

RUN = resolve(RunConfig())
H200 = Gpu("NVIDIA H200", 140.4)
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6)
A100_80 = Gpu("NVIDIA A100-SXM4-80GB", 80.0)
A100_40 = Gpu("NVIDIA A100-SXM4-40GB", 40.0)
L40S = Gpu("NVIDIA L40S", 45.0)
L4 = Gpu("NVIDIA L4", 22.5)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 24.0)


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
        ("Phi-4", L4, 8, 2),  # ten heads of keys and values divide over neither four GPUs nor eight
        ("DeepSeek-V3", H200, 8, 8),
        ("gpt-oss-20b", RTX_4090, 8, 1),
    ],
)
def test_a_replica_takes_the_fewest_gpus_that_hold_the_model(model: str, gpu: Gpu, of_a_node: int, degree: int) -> None:
    layout = lay_out(RUN, size_of(MODELS[model], RunConfig()), gpu, of_a_node)
    assert layout.tensor_parallel_size == degree, layout.reason


def test_a_latent_is_counted_on_every_gpu() -> None:
    layout = lay_out(RUN, size_of(MODELS["DeepSeek-V3"], RunConfig()), H200, 8)
    assert layout.kv_tokens is not None and 5e5 < layout.kv_tokens < 7e5
    assert layout.kv_gib is not None and layout.kv_tokens * 61 * 576 * 2 <= layout.kv_gib * GIB


def test_a_step_also_reads_copies_of_keys_and_values() -> None:
    size = size_of(MODELS["7B"], RunConfig())
    assert size is not None

    def rate(**fields: int) -> float | None:
        return from_data_sheet(replace(size, **fields), gpu_kind(H200), 8, 1024, 100, 400).tokens_per_second

    each = size.kv_bytes_per_token
    assert rate() == rate(kv_heads=2, kv_bytes_per_token=each // 4) == rate(kv_heads=1, kv_bytes_per_token=each // 8)


def test_the_host_bounds_a_model_that_is_too_small_for_the_data_sheet() -> None:
    """Eight H100 were said to draw 1,852,878 tokens/s of a small model."""
    size = size_of(MODELS["7B"], RunConfig())
    assert size is not None
    tiny = replace(size, weight_bytes=5_000_000, active_parameters=2_500_000, kv_bytes_per_token=100)
    sheet = from_data_sheet(tiny, gpu_kind(H100), 1, 1024, 100, 400)
    assert sheet.tokens_per_second and sheet.tokens_per_second < 100_000 and "at most, for the host" in sheet.source
    assert "within a third" in from_data_sheet(size, gpu_kind(H100), 1, 1024, 100, 400).source


@pytest.mark.parametrize(("model", "gpu", "of_a_node"), [("70B", H100, 1), ("70B", RTX_4090, 4), ("32B", L40S, 1)])
def test_a_model_that_fits_no_node_is_refused_with_remedies(model: str, gpu: Gpu, of_a_node: int) -> None:
    with pytest.raises(PlacementError, match=r"GiB of weights .* do not fit into \d GPU\(s\) of \d+ GiB\. Use larger"):
        lay_out(RUN, size_of(MODELS[model], RunConfig()), gpu, of_a_node)


def test_configured_values_stay() -> None:
    engine = {"tensor_parallel_size": 8, "max_num_seqs": 100, "max_num_batched_tokens": 2048}
    run = resolve(RunConfig.model_validate({"engine": engine}))
    layout = lay_out(run, size_of(MODELS["7B"], RunConfig()), H200, 8)
    assert layout.tensor_parallel_size == 8
    assert (layout.limits.max_num_seqs, layout.limits.max_num_batched_tokens) == (100, 2048)


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [(H200, 1024, 16384), (H100, 1024, 16384), (A100_80, 1024, 8192), (A100_40, 512, 8192), (RTX_4090, 200, 4096)],
)
def test_a_7b_model_gets_the_batch_that_its_gpu_has_room_for(gpu: Gpu, seqs: int, tokens: int) -> None:
    limits = lay_out(RUN, size_of(MODELS["7B"], RunConfig()), gpu, 8).limits
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (seqs, tokens)


def test_every_kind_is_found_by_its_name() -> None:
    for gpu, name in [
        (H200, "H200"),
        (H100, "H100"),
        (A100_80, "A100 80GB"),
        (A100_40, "A100"),
        (L40S, "L40S"),
        (RTX_4090, "4090"),
        (Gpu("NVIDIA H100 PCIe", 79.6), "H100 PCIe"),
        (Gpu("NVIDIA A100 80GB PCIe", 80.0), "A100 80GB"),
        (Gpu("NVIDIA H800", 79.6), "H800"),
        (Gpu("NVIDIA A800-SXM4-80GB", 80.0), "A800"),
        (Gpu("NVIDIA H20", 95.6), "H20"),
        (Gpu("NVIDIA A10G", 22.5), "A10G"),
        (Gpu("NVIDIA A10", 22.5), "A10"),
        (Gpu("NVIDIA L40", 45.0), "L40"),
        (Gpu("NVIDIA A40", 45.0), "A40"),
    ]:
        assert gpu_kind(gpu).name == name and not gpu_kind(gpu).guessed
    tomorrow = gpu_kind(Gpu("Some card of tomorrow", 24.0))
    assert tomorrow.guessed and tomorrow.max_num_seqs == 256
    for kind in GPU_KINDS:
        assert parse_gpus(f"8x{kind.name}") == (1, 8, kind) == parse_gpus(f"8x{kind.name.lower().replace(' ', '-')}")
    assert parse_gpus("2x8xH100")[:2] == (2, 8)
    for wrong in ("8xTPU", "H100", "0xH100", "axH100", "1x2x3xH100"):
        with pytest.raises(PlacementError, match=r"a known kind of GPU\. Give a number and one of B200, H200"):
            parse_gpus(wrong)


def test_unknown_gpus_give_one_gpu_a_replica_and_a_reason() -> None:
    layout = lay_out(RUN, size_of(MODELS["70B"], RunConfig()), None, 8)
    assert layout.tensor_parallel_size == 1 and "the GPUs' memory is unknown" in layout.reason
    assert "the model's size is unknown" in lay_out(RUN, None, H100, 8).reason


def test_a_placement_follows_the_layout() -> None:
    size = size_of(MODELS["70B"], RunConfig())
    placement = choose_placement([Node(8, 0), Node(64, 8), Node(64, 2)], RUN, H100, size)
    assert (placement.replicas, placement.gpus) == (2, 4)
    assert "weights take 32.9" in placement.note


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(MODELS)),
    st.floats(8, 200),
    st.integers(1, 8),
    st.sampled_from([None, 512, 4096, 32768]),
)
def test_a_layout_always_fits_the_gpus_memory(model: str, memory: float, of_a_node: int, longest: int | None) -> None:
    config = RunConfig.model_validate({"engine": {"max_model_len": longest}})
    size = size_of(MODELS[model], config)
    assert size is not None
    try:
        layout = lay_out(resolve(config), size, Gpu("NVIDIA A100", memory), of_a_node)
    except PlacementError:
        return
    degree = layout.tensor_parallel_size
    assert degree <= of_a_node and size.heads % degree == 0
    assert layout.kv_tokens is not None and layout.kv_gib is not None and layout.weights_gib is not None
    assert layout.kv_tokens >= (longest or 2048) and layout.limits.max_num_seqs
    heads_of_a_gpu = max(1, size.kv_heads / degree)
    assert heads_of_a_gpu == int(heads_of_a_gpu)
    assert layout.kv_tokens * size.kv_bytes_per_token * heads_of_a_gpu / size.kv_heads <= layout.kv_gib * GIB
    assert layout.weights_gib + layout.kv_gib < 0.9 * memory
