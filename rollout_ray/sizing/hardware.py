"""Choose the layout of a model over GPUs: GPUs a replica, and sequences an engine decodes at once.

`rollout` and `rollout plan` share this choice and the table of GPU kinds.
gpus.py finds the GPUs of machines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rollout_ray.config.engine_schema import EngineConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import ModelSize
from rollout_ray.models.resolved_run import ResolvedRun

GIB = 2**30
DEFAULT_SEQS, DEFAULT_BATCHED_TOKENS = 1024, 16384
CPU_SEQS = 256  # sequences that an engine without GPUs decodes at once if max_num_seqs is unset
CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context, graphs and NCCL buffers of a GPU
PROMPT_TOKENS = 1024  # assumed longest prompt
SHARE_OF_LENGTH = 8  # most sequences are far shorter than the longest, and few reach their end at once


@dataclass(frozen=True)
class Gpu:
    """One GPU with its driver's name for it."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU, with the figures of its data sheet.

    bandwidth: Memory bandwidth in TB/s.
    tflops: Dense bf16 TFLOP/s.
    max_num_seqs, max_num_batched_tokens: Largest useful batch and step.
    guessed: The figures are not from a data sheet.
    """

    name: str
    memory_gib: float
    bandwidth: float
    tflops: float
    max_num_seqs: int = DEFAULT_SEQS
    max_num_batched_tokens: int = DEFAULT_BATCHED_TOKENS
    guessed: bool = False

    @property
    def fewest_seqs(self) -> int:
        """Return half the batch at which a step's computation takes as long as reading the weights.

        A weight has 2 bytes and takes 2 FLOP. With fewer sequences in memory, one replica over twice
        the GPUs is faster than two replicas.
        """
        return int(self.tflops / self.bandwidth / 2)


# Measured on the H200 only, with a 7B model and 4,000 x 256 tokens. 512/1,024/1,536/2,048 sequences reach
# 25.5/27.3/27.7/27.8 thousand tokens/s, and each doubling adds two seconds of start. 8k/16k/32k batched tokens reach
# 27.5/27.3/26.9. Smaller GPUs get shorter steps, because a step's activations take memory from the KV cache.
GPU_KINDS = (
    GpuKind("B200", 180, 8.0, 2250),
    GpuKind("H200", 140, 4.8, 989),
    GpuKind("H100 NVL", 94, 3.9, 835),
    GpuKind("H100 PCIe", 80, 2.0, 756),
    GpuKind("H100", 80, 3.35, 989),
    GpuKind("H800 PCIe", 80, 2.0, 756),
    GpuKind("H800", 80, 3.35, 989),
    GpuKind("H20", 95, 4.0, 148),
    GpuKind("A100 80GB", 80, 2.0, 312, max_num_batched_tokens=8192),
    GpuKind("A100", 40, 1.56, 312, 512, 8192),
    GpuKind("A800", 80, 2.0, 312, max_num_batched_tokens=8192),
    GpuKind("L40S", 45, 0.86, 362, 512, 8192),
    GpuKind("L40", 45, 0.86, 181, 512, 8192),
    GpuKind("A40", 45, 0.7, 150, 512, 8192),
    GpuKind("A10G", 22, 0.6, 70, 256, 4096),
    GpuKind("A10", 22, 0.6, 125, 256, 4096),
    GpuKind("L4", 22, 0.3, 121, 256, 4096),
    GpuKind("4090", 24, 1.0, 165, 256, 4096),
    GpuKind("5090", 32, 1.8, 210, 256, 4096),
)


@dataclass(frozen=True)
class EngineLimits:
    """How much one engine takes on at once, and of its memory.

    max_num_seqs: Most sequences that the engine decodes at once.
    max_num_batched_tokens: Most tokens in one step. None leaves it to the backend.
    gpu_memory_utilization: Share of each GPU's memory, in (0, 1].
    kv_cache_gib: KV cache of an engine on the CPU, in GiB. None sizes it by the batch.
    """

    max_num_seqs: int
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float
    kv_cache_gib: float | None = None


def usual_limits(engine: EngineConfig, gpus: int) -> EngineLimits:
    """Return the limits that the config sets, and the usual ones for those that it leaves unset."""
    return EngineLimits(
        max_num_seqs=engine.max_num_seqs or (DEFAULT_SEQS if gpus else CPU_SEQS),
        max_num_batched_tokens=engine.max_num_batched_tokens or (DEFAULT_BATCHED_TOKENS if gpus else None),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
    )


@dataclass(frozen=True)
class Layout:
    """A model's layout over GPUs. Numbers are None if the model's size is unknown.

    tensor_parallel_size: GPUs a replica.
    limits: The limits of one engine.
    reason: The choice in words.
    weights_gib, kv_gib: GiB a GPU for weights and KV cache.
    kv_tokens: Tokens in a replica's whole KV cache.
    unknown: The missing fact if one GPU a replica is an assumption.
    """

    tensor_parallel_size: int
    limits: EngineLimits
    reason: str
    weights_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    unknown: str | None = None


def gpu_kind(gpu: Gpu) -> GpuKind:
    """Return the kind with this name and memory, or a cautious guess from the memory."""
    name = gpu.name.upper().replace("-", " ")
    for kind in GPU_KINDS:
        words = kind.name.upper().split()
        if set(words) <= set(name.split()) and gpu.memory_gib > 0.85 * kind.memory_gib:
            return kind
    large = gpu.memory_gib >= 70
    return GpuKind(gpu.name, gpu.memory_gib, 1.0, 150, 1024 if large else 256, 8192 if large else 4096, guessed=True)


def parse_gpus(text: str) -> tuple[int, int, GpuKind]:
    """Parse `2x8xH100` into nodes, GPUs a node, and their kind. The number of nodes is optional.

    Raises:
        PlacementError: The table has no such kind, or a number is wrong.
    """
    *counts, name = text.split("x")
    wanted = name.upper().replace("-", " ").replace("_", " ").strip()
    kind = next((k for k in GPU_KINDS if wanted in (k.name.upper(), k.name.upper().replace(" ", ""))), None)
    if kind is None or len(counts) not in (1, 2) or not all(count.isdigit() and int(count) for count in counts):
        raise PlacementError(
            f"'{text}' is not a number and a known kind of GPU. Give a number and one of "
            f"{', '.join(k.name for k in GPU_KINDS)}, such as 8xH100, or 2x8xH100 for two nodes."
        )
    return (int(counts[0]) if len(counts) == 2 else 1), int(counts[-1]), kind


def lay_out(
    run: ResolvedRun, size: ModelSize | None, gpu: Gpu | None, gpus_of_a_node: int, degree: int | None = None
) -> Layout:
    """Choose the layout of the run's model over nodes with `gpus_of_a_node` GPUs like `gpu`.

    A replica gets the fewest GPUs that hold the model and a batch large enough to keep them
    computing, so the number of replicas is the largest. Values that the config sets stay.
    `degree` fixes the GPUs a replica.

    Raises:
        PlacementError: The model fits no number of these GPUs.
    """
    engine = run.config.engine
    degree = degree or engine.tensor_parallel_size
    kind = gpu_kind(gpu) if gpu else None
    if size is None or gpu is None or kind is None:
        unknown = None if degree else "The model's size" if gpu else "The GPUs' memory"
        why = f"{unknown[0].lower()}{unknown[1:]} is unknown" if unknown else "as configured"
        degree = degree or 1
        return Layout(degree, _limits(engine, kind, None), f"{degree} GPU(s) a replica: {why}", unknown=unknown)
    if degree:
        return _layout(run, size, gpu, kind, degree, "as configured")
    degrees = [n for n in (1, 2, 4, 8, 16) if n <= gpus_of_a_node and _divide(size, n)]
    options = [_layout(run, size, gpu, kind, degree, "") for degree in degrees]
    longest = longest_sequence(run, size)
    batch_tokens = kind.fewest_seqs * _tokens_held(run, longest)
    enough = [o for o in options if (o.kv_tokens or 0) >= max(longest, batch_tokens)]
    possible = [o for o in options if (o.kv_tokens or 0) >= longest]
    if not possible:
        raise PlacementError(
            f"The model's {size.weight_bytes / GIB:.0f} GiB of weights and one sequence of {longest} tokens do not fit "
            f"into {degrees[-1]} GPU(s) of {gpu.memory_gib:.0f} GiB. Use larger or more GPUs a node, a shorter "
            "--max_model_len, or quantized weights."
        )
    chosen = enough[0] if enough else possible[-1]
    fewer = [o for o in options if o.tensor_parallel_size < chosen.tensor_parallel_size]
    why = "the fewest that hold the model and a useful batch" if fewer else "the model fits one"
    return _layout(run, size, gpu, kind, chosen.tensor_parallel_size, why)


def _divide(size: ModelSize, degree: int) -> bool:
    """Return whether so many GPUs can share the heads. Heads of keys and values may be copied to several GPUs."""
    whole = size.kv_heads % degree == 0 or degree % size.kv_heads == 0
    return size.heads % degree == 0 and whole


def _layout(run: ResolvedRun, size: ModelSize, gpu: Gpu, kind: GpuKind, degree: int, why: str) -> Layout:
    """Return the layout over `degree` GPUs, even if the KV cache is too small."""
    engine = run.config.engine
    limits = _limits(engine, kind, None)
    tokens, seqs = limits.max_num_batched_tokens or 0, limits.max_num_seqs
    # A step's activations, and two float32 copies of the logits for sampling.
    working = CONTEXT_BYTES + 2 * tokens * size.width // degree + 8 * seqs * size.vocabulary
    weights = size.weight_bytes / degree
    kv_bytes = engine.gpu_memory_utilization * gpu.memory_gib * GIB - weights - working
    kv_tokens = max(0, int(kv_bytes * min(degree, size.kv_heads) / size.kv_bytes_per_token))
    reason = (
        f"{degree} GPU(s) a replica: {why}; of {gpu.memory_gib:.0f} GiB a GPU, weights take {weights / GIB:.1f} and the KV "
        f"cache {max(0.0, kv_bytes) / GIB:.1f}, which holds {kv_tokens:,} tokens"
    )
    limits = _limits(engine, kind, kv_tokens // _tokens_held(run, longest_sequence(run, size)))
    return Layout(degree, limits, reason, weights / GIB, max(0.0, kv_bytes) / GIB, kv_tokens)


def _limits(engine: EngineConfig, kind: GpuKind | None, cached_seqs: int | None) -> EngineLimits:
    """Return the limits of an engine on GPUs of a kind.

    Args:
        cached_seqs: Sequences of average length that the KV cache holds. None: unknown.
    """
    most = kind.max_num_seqs if kind else DEFAULT_SEQS
    if cached_seqs is not None:
        most = max(8, min(most, cached_seqs // 8 * 8))
    tokens = kind.max_num_batched_tokens if kind else DEFAULT_BATCHED_TOKENS
    seqs = engine.max_num_seqs or most
    return replace(
        usual_limits(engine, gpus=1),
        max_num_seqs=seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens or max(tokens, seqs),
    )


def longest_sequence(run: ResolvedRun, size: ModelSize | None) -> int:
    """Return the engine's max_model_len in tokens."""
    wanted = run.max_model_len
    limit = size.max_position_embeddings if size else None
    if run.config.engine.max_model_len or not limit:
        return wanted or limit or DEFAULT_BATCHED_TOKENS
    return min(wanted, limit) if wanted else limit


def _tokens_held(run: ResolvedRun, longest: int) -> int:
    """Return the tokens that a sequence holds in the KV cache, averaged over its life."""
    output = max(arm.max_tokens for arm in run.arms)
    return max(1, min(longest, PROMPT_TOKENS + output) // SHARE_OF_LENGTH)
