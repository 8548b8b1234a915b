"""Define the config's sections for engines: vLLM, and the simulated engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollout_ray.config.arm_schema import Section
from rollout_ray.config.free_values import FreeValues


class SimulatedConfig(Section):
    """The simulated engine, for tests: known speed and faults, no model."""

    sim_tokens_per_second: float = Field(10_000.0, gt=0, description="Output tokens a second of a full batch.")
    sim_mean_tokens: int = Field(100, ge=1, description="Mean output length in tokens.")
    sim_start_seconds: float = Field(0.0, ge=0, description="Duration of a start, in seconds.")
    sim_error_rate: float = Field(0.0, ge=0, le=1, description="Share of requests that the engine refuses.")
    sim_death_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request kills its engine.")
    sim_hang_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request hangs its engine.")
    sim_straggler: float = Field(1.0, gt=0, description="Factor by which engine-0 is slower than the others.")
    sim_memory_seqs: int = Field(2**20, ge=1, description="Largest max_num_seqs for which the engine has memory.")


class EngineConfig(Section):
    """One vLLM replica. The run chooses unset fields from the hardware when it starts."""

    backend: Literal["vllm", "simulated"] = Field("vllm", description="Engine that generates.")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="GPUs of one replica. Unset: the fewest that hold the model."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Type of weights and activations. auto: the checkpoint's; float32 on a CPU without AVX-512, where a "
        "16-bit type takes three times as long.",
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Largest sum of prompt and output, in tokens. Unset: the arm set's, at most the model's."
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory for the engine.")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache of a CPU replica, in GiB. Unset: enough for max_num_seqs sequences of middling length.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Most sequences that are decoded at once. Unset: up to 1024 on a GPU, by its kind; 256 on the CPU.",
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Most tokens in one step. Unset: up to 16384, by the kind of GPU."
    )
    enforce_eager: bool | None = Field(
        None, description="Use no CUDA graphs and no compilation. Unset: false on a GPU, true on the CPU."
    )
    enable_prefix_caching: bool | None = Field(
        None, description="Share the KV cache of prompts with the same beginning. Unset: true where the model can."
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="Split long prompts over several steps. Unset: true on a GPU. The CPU engine cannot."
    )
    deterministic: bool = Field(
        False,
        description="Give the same text for the same seed in every batch. GPUs only, about a fifth slower. Without it a "
        "seed may give another text in another batch.",
    )
    load_format: str = Field("auto", description="How vLLM loads the weights; dummy makes random ones.")
    extra: FreeValues = Field(default_factory=dict, description="Further engine arguments of vLLM, passed on unchanged.")
    simulated: SimulatedConfig = SimulatedConfig()
