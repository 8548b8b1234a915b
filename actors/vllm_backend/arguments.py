"""Choose vLLM's environment variables and engine arguments from the config and the hardware.

A field of the config, or of `engine.extra`, overrides a choice made here. This starts nothing.
It uses only names that vLLM 0.26 to 0.33 share.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.architecture import checkpoint_config, is_hybrid
from rollout_ray.actors.vllm_backend.cpu_dtype import cpu_dtype
from rollout_ray.core.errors import ConfigError
from rollout_ray.models import adapters
from rollout_ray.models.model_size import ModelSize, size_of
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.sizing.hardware import EngineLimits

CPU_MAX_NUM_BATCHED_TOKENS = 4096
UNKNOWN_KV_CACHE_BYTES = 2**30  # for a model of unknown size, and for the states of a hybrid
GRAPH_CHOICES = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config"}  # the user's, through extra
WORKER = "rollout_ray.actors.vllm_backend.worker.Worker"  # by name: the module imports vLLM


def has_own_process(gpus: int) -> bool:
    """Return whether the engine core has a process of its own, which is vLLM's default.

    On H200s (7B, 4,000 x 220 tokens, warm caches) it then decodes as fast as the bare engine, and over two GPUs 5% faster
    than in one process. On the CPU it would take cores from itself. vLLM's own variable overrides this.
    """
    return os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1" if gpus else "0") != "0"


def environment(run: ResolvedRun, *, gpus: int, threads: int) -> dict[str, str]:
    """Return the variables that a process needs before it imports vLLM."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    default = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "true"}
    if all(Path(name).is_dir() for name in (run.policy.path, run.tokenizer_path)):
        quiet |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    default["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if has_own_process(gpus) else "0"
    if gpus == 0:
        # Two engines of one machine must not both bind every core. With more threads than cores, vLLM's attention kernel
        # aborts.
        needed = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(min(threads, len(os.sched_getaffinity(0)))),
        }
    else:
        # A start then reuses an earlier measurement of the GPU's memory. vLLM checks that it still holds.
        default["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        # Several engines of a machine would each use all cores for little work.
        default["OMP_NUM_THREADS"] = "1"
        needed = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}  # vLLM spawns where a fork is not safe
        if run.config.engine.deterministic:
            needed["VLLM_BATCH_INVARIANT"] = "1"
        if importlib.util.find_spec("flashinfer") is None:
            default["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return {**{k: v for k, v in default.items() if k not in os.environ}, **quiet, **needed}


def engine_arguments(spec: LaunchSpec) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's EngineArgs, with every choice made that the config left open.

    Raises:
        ConfigError: The config asks for what an engine on the CPU cannot do.
    """
    whole = checkpoint_config(spec.run)
    checkpoint = whole.get_text_config()
    limit: int | None = getattr(checkpoint, "max_position_embeddings", None)
    max_model_len = spec.run.max_model_len
    if max_model_len and limit and not spec.run.config.engine.max_model_len:
        max_model_len = min(max_model_len, limit)
    arguments = _common_arguments(spec, max_model_len)
    if spec.gpus:
        arguments |= _gpu_arguments(spec, eager=arguments["enforce_eager"])
    else:
        hybrid = is_hybrid(whole)
        tokens = spec.limits.max_num_batched_tokens or CPU_MAX_NUM_BATCHED_TOKENS
        longest = max_model_len or limit or tokens
        arguments |= _cpu_arguments(spec, batched_tokens=max(tokens, longest), hybrid=hybrid)
        # Some families have other names for the fields that size_of reads, such as n_layer.
        written = checkpoint.to_dict() | {name: getattr(checkpoint, name, None) for name in checkpoint.attribute_map}
        arguments["dtype"] = cpu_dtype(spec.run.config, written, spec.threads)
        size = size_of(written, spec.run.config, dtype=arguments["dtype"])
        arguments["kv_cache_memory_bytes"] = _cpu_kv_cache_bytes(spec.limits, size, longest, hybrid)
    return {name: value for name, value in (arguments | spec.run.config.engine.extra).items() if value is not None}


def _common_arguments(spec: LaunchSpec, max_model_len: int | None) -> dict[str, Any]:
    run = spec.run
    engine, model = run.config.engine, run.config.model
    arguments: dict[str, Any] = {
        "model": run.policy.path,
        "tokenizer": model.tokenizer_path,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": engine.dtype,
        "load_format": engine.load_format,
        # Questions are text. Encoders of pictures or sound would need memory, time at the start, and files that a trainer
        # does not save.
        "language_model_only": True,
        "max_model_len": max_model_len,
        "tensor_parallel_size": max(1, spec.gpus),
        "gpu_memory_utilization": spec.limits.gpu_memory_utilization,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "max_num_seqs": spec.limits.max_num_seqs,
        "enforce_eager": engine.enforce_eager if engine.enforce_eager is not None else not spec.gpus,
        "seed": run.config.sampling.seed % 2**32,
        "disable_log_stats": False,  # costs nothing that could be measured on an H200
        "worker_cls": WORKER,
        **_logprobs_arguments(run),
        **_lora_arguments(spec),
    }
    if run.policy.version:  # engines whose weights were updated keep the tokenizer and the config of the first model
        arguments |= {"tokenizer": run.tokenizer_path, "hf_config_path": run.model_path}
    return arguments


def _gpu_arguments(spec: LaunchSpec, *, eager: bool) -> dict[str, Any]:
    engine = spec.run.config.engine
    arguments: dict[str, Any] = {
        "max_num_batched_tokens": spec.limits.max_num_batched_tokens,
        "enable_chunked_prefill": engine.enable_chunked_prefill is not False,
        "distributed_executor_backend": "mp" if spec.gpus > 1 else "uni",
    }
    if not eager and not GRAPH_CHOICES & engine.extra.keys():
        arguments["cudagraph_capture_sizes"] = graph_sizes(spec.limits.max_num_seqs)
    return arguments


def _cpu_arguments(spec: LaunchSpec, *, batched_tokens: int, hybrid: bool) -> dict[str, Any]:
    engine = spec.run.config.engine
    if engine.deterministic:
        raise ConfigError("deterministic needs a GPU: vLLM has no batch-invariant kernels for the CPU; leave it unset")
    # A seeded request whose prefill is chunked crashes the CPU engine, so a whole prompt must fit into one step.
    if engine.enable_chunked_prefill:
        raise ConfigError("enable_chunked_prefill does not work on the CPU; leave it unset")
    arguments: dict[str, Any] = {
        "max_num_batched_tokens": batched_tokens,
        "enable_chunked_prefill": False,
        "distributed_executor_backend": "uni",
    }
    if engine.enable_prefix_caching is None and hybrid:
        arguments["enable_prefix_caching"] = False  # vLLM shares such states between chunks of a prefill only
    return arguments


def graph_sizes(most: int) -> list[int]:
    """Return the batch sizes to capture CUDA graphs for, up to `most` sequences. vLLM pads a batch to the next one.

    On an H200 every graph costs 28 ms of the start, twice (with and without prefills). vLLM captures every 8th size to 256
    and every 16th above, up to 512. These are fewer: padding adds less than a quarter, and less than 64 sequences.
    """
    sizes = {1, 2, 4, most}
    for first, last, apart in ((8, 64, 8), (80, 128, 16), (160, 256, 32), (320, most, 64)):
        sizes.update(range(first, last + 1, apart))
    return sorted(size for size in sizes if size <= most)


def _logprobs_arguments(run: ResolvedRun) -> dict[str, Any]:
    """Return the distribution that log-probabilities are of. vLLM fixes it when the engine starts."""
    output = run.config.output
    return {"logprobs_mode": "processed_logprobs"} if output.tokens and output.logprobs == "sampled" else {}


def _lora_arguments(spec: LaunchSpec) -> dict[str, Any]:
    room = adapters.capacity(adapters.adapters_of(spec.run.arms))
    if not room.count:
        return {}
    # The CPU kernels give a request without an adapter the one in the last place, so this place stays empty.
    places = room.count if spec.gpus else room.count + 1
    return {"enable_lora": True, "max_lora_rank": room.rank, "max_loras": places}


def _cpu_kv_cache_bytes(limits: EngineLimits, size: ModelSize | None, longest: int, hybrid: bool) -> int:
    """Return room for max_num_seqs sequences of a quarter of `longest` tokens, within 4 GiB; at least for one whole one.

    vLLM would take most of the machine's memory and touch every page of it at start: 1.6 s a GiB.
    """
    if limits.kv_cache_gib is not None:
        return int(limits.kv_cache_gib * 2**30)
    if size is None:
        return UNKNOWN_KV_CACHE_BYTES
    bytes_per_token = size.kv_bytes_per_token
    many = min(limits.max_num_seqs * longest // 4 * bytes_per_token, 4 * 2**30)
    return max(many, 2 * longest * bytes_per_token, UNKNOWN_KV_CACHE_BYTES if hybrid else 0)
