"""Which GPUs there are, and how a model is laid over them: GPUs a replica, and what an engine decodes at once.

Owns the table of GPU kinds and that choice, which a run and `rollout plan` share. It looks at no machine
(rollout_ray/sizing/gpus.py does) and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout_ray.config.arms import default_max_model_len, resolve_arms
from rollout_ray.config.schema import EngineConfig, RunConfig
from rollout_ray.core.errors import PlacementError
from rollout_ray.models.model_size import ModelSize

GIB = 2**30
DEFAULT_SEQS, DEFAULT_BATCHED_TOKENS = 1024, 16384
CPU_SEQS = 256  # what an engine without GPUs decodes at once where max_num_seqs is unset
CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context, graphs and NCCL's buffers of a GPU
PROMPT_TOKENS = 1024  # that a prompt has at most, for the choices here
SHARE_OF_LENGTH = 8  # most sequences are far shorter than the longest, and few are at their end at once


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver names it."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Kind:
    """A kind of GPU: its name, memory in GiB, memory bandwidth in TB/s and dense bf16 TFLOP/s (the makers' data sheets, or
    `guessed`), and the most sequences and batched tokens of a step that pay on it."""

    name: str
    memory_gib: float
    bandwidth: float
    tflops: float
    max_num_seqs: int = DEFAULT_SEQS
    max_num_batched_tokens: int = DEFAULT_BATCHED_TOKENS
    guessed: bool = False

    @property
    def fewest_seqs(self) -> int:
        """Half the batch from which on a step computes for longer than it reads the weights (2 bytes and 2 FLOP each):
        with room for fewer sequences, a replica over twice the GPUs is faster than two replicas."""
        return int(self.tflops / self.bandwidth / 2)


# Measured on the H200 only (7B, 4,000 x 256 tokens: 512/1,024/1,536/2,048 sequences 25.5/27.3/27.7/27.8 thousand tokens/s
# and two seconds more of start for each doubling; 8k/16k/32k batched tokens 27.5/27.3/26.9). Smaller GPUs get shorter
# steps, since the activations of a step take memory that their KV cache needs.
KINDS = (
    Kind("B200", 180, 8.0, 2250),
    Kind("H200", 140, 4.8, 989),
    Kind("H100 NVL", 94, 3.9, 835),
    Kind("H100 PCIe", 80, 2.0, 756),
    Kind("H100", 80, 3.35, 989),
    Kind("H800 PCIe", 80, 2.0, 756),
    Kind("H800", 80, 3.35, 989),
    Kind("H20", 95, 4.0, 148),
    Kind("A100 80GB", 80, 2.0, 312, max_num_batched_tokens=8192),
    Kind("A100", 40, 1.56, 312, 512, 8192),
    Kind("A800", 80, 2.0, 312, max_num_batched_tokens=8192),
    Kind("L40S", 45, 0.86, 362, 512, 8192),
    Kind("L40", 45, 0.86, 181, 512, 8192),
    Kind("A40", 45, 0.7, 150, 512, 8192),
    Kind("A10G", 22, 0.6, 70, 256, 4096),
    Kind("A10", 22, 0.6, 125, 256, 4096),
    Kind("L4", 22, 0.3, 121, 256, 4096),
    Kind("4090", 24, 1.0, 165, 256, 4096),
    Kind("5090", 32, 1.8, 210, 256, 4096),
)


@dataclass(frozen=True)
class Layout:
    """A model over GPUs: `tensor_parallel_size` GPUs a replica, and per GPU the GiB of weights and of KV cache.
    `kv_tokens` is what a replica's whole KV cache holds; the numbers are None where the model's size is unknown. `engine`
    is the config's engine with what it left open filled in, `reason` says why in words, and `unknown` what had to be known
    to choose the GPUs a replica, where one is assumed for want of it."""

    tensor_parallel_size: int
    engine: EngineConfig
    reason: str
    weights_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    unknown: str | None = None


def kind_of(gpu: Gpu) -> Kind:
    """The kind that a GPU's name and memory say; for one that the table lacks, a cautious kind of its memory."""
    name = gpu.name.upper().replace("-", " ")
    for kind in KINDS:
        words = kind.name.upper().split()
        if set(words) <= set(name.split()) and gpu.memory_gib > 0.85 * kind.memory_gib:
            return kind
    large = gpu.memory_gib >= 70
    return Kind(gpu.name, gpu.memory_gib, 1.0, 150, 1024 if large else 256, 8192 if large else 4096, guessed=True)


def named(text: str) -> tuple[int, int, Kind]:
    """How many nodes of how many GPUs of which kind `2x8xH100` says; one node is left out. Raises PlacementError where the
    table has no such kind."""
    *counts, name = text.split("x")
    wanted = name.upper().replace("-", " ").replace("_", " ").strip()
    kind = next((k for k in KINDS if wanted in (k.name.upper(), k.name.upper().replace(" ", ""))), None)
    if kind is None or len(counts) not in (1, 2) or not all(count.isdigit() and int(count) for count in counts):
        raise PlacementError(
            f"'{text}' names no GPUs; give their number and one of {', '.join(k.name for k in KINDS)}, such as 8xH100 or, "
            "for two nodes, 2x8xH100"
        )
    return (int(counts[0]) if len(counts) == 2 else 1), int(counts[-1]), kind


def lay_out(config: RunConfig, size: ModelSize | None, gpu: Gpu | None, gpus_of_a_node: int) -> Layout:
    """How the config's model is laid over nodes with `gpus_of_a_node` GPUs like `gpu`: the fewest GPUs a replica that
    leave room for a batch that keeps them computing, so that there are as many replicas as can be. What the config sets
    stays.

    Raises PlacementError where no number of them holds the model.
    """
    engine = config.engine
    kind = kind_of(gpu) if gpu else None
    if size is None or gpu is None or kind is None:
        degree = engine.tensor_parallel_size or 1
        unknown = None if engine.tensor_parallel_size else "the model's size" if gpu else "the GPUs' memory"
        why = f"{unknown} is not known here" if unknown else "as asked for"
        settled = _settled(config, degree, kind, None)
        return Layout(degree, settled, f"{degree} GPU(s) a replica: {why}", unknown=unknown)
    if engine.tensor_parallel_size:
        return _laid_over(config, size, gpu, kind, engine.tensor_parallel_size, "as asked for")
    degrees = [n for n in (1, 2, 4, 8, 16) if n <= gpus_of_a_node and _divide(size, n)]
    options = [_laid_over(config, size, gpu, kind, degree, "") for degree in degrees]
    longest = longest_sequence(config, size)
    enough = [o for o in options if (o.kv_tokens or 0) >= max(longest, kind.fewest_seqs * _middling(config, longest))]
    possible = [o for o in options if (o.kv_tokens or 0) >= longest]
    if not possible:
        raise PlacementError(
            f"the model's {size.weight_bytes / GIB:.0f} GiB of weights and one sequence of {longest} tokens do not fit "
            f"into {degrees[-1]} GPU(s) of {gpu.memory_gib:.0f} GiB; take larger or more GPUs of a node, a shorter "
            "--max_model_len, or quantized weights"
        )
    chosen = enough[0] if enough else possible[-1]
    fewer = [o for o in options if o.tensor_parallel_size < chosen.tensor_parallel_size]
    why = "the fewest that hold the model and a batch worth its step" if fewer else "the model fits one"
    return _laid_over(config, size, gpu, kind, chosen.tensor_parallel_size, why)


def _divide(size: ModelSize, degree: int) -> bool:
    """Whether the heads can be spread over so many GPUs: the heads of keys and values may also be copied to several."""
    whole = size.kv_heads % degree == 0 or degree % size.kv_heads == 0
    return size.heads % degree == 0 and whole


def _laid_over(config: RunConfig, size: ModelSize, gpu: Gpu, kind: Kind, degree: int, why: str) -> Layout:
    """The layout over `degree` GPUs, whatever room it leaves."""
    settled = _settled(config, degree, kind, None)
    tokens, seqs = settled.max_num_batched_tokens or 0, settled.max_num_seqs or 0
    # Activations of a step, and the logits that sampling works on, in float32 and twice over.
    working = CONTEXT_BYTES + 2 * tokens * size.width // degree + 8 * seqs * size.vocabulary
    weights = size.weight_bytes / degree
    room = config.engine.gpu_memory_utilization * gpu.memory_gib * GIB - weights - working
    kv_tokens = max(0, int(room * min(degree, size.kv_heads) / size.kv_bytes_per_token))
    reason = (
        f"{degree} GPU(s) a replica: {why}; of {gpu.memory_gib:.0f} GiB a GPU, weights take {weights / GIB:.1f} and the KV "
        f"cache {max(0.0, room) / GIB:.1f}, room for {kv_tokens:,} tokens"
    )
    engine = _settled(config, degree, kind, kv_tokens // _middling(config, longest_sequence(config, size)))
    return Layout(degree, engine, reason, weights / GIB, max(0.0, room) / GIB, kv_tokens)


def _settled(config: RunConfig, degree: int, kind: Kind | None, room: int | None) -> EngineConfig:
    """The engine's config with what it left open filled in; `room` is how many middling sequences the KV cache holds."""
    engine = config.engine
    most = kind.max_num_seqs if kind else DEFAULT_SEQS
    if room is not None:
        most = max(8, min(most, room // 8 * 8))
    tokens = kind.max_num_batched_tokens if kind else DEFAULT_BATCHED_TOKENS
    return engine.model_copy(
        update={
            "tensor_parallel_size": degree,
            "max_num_seqs": engine.max_num_seqs or most,
            "max_num_batched_tokens": engine.max_num_batched_tokens or max(tokens, engine.max_num_seqs or most),
        }
    )


def longest_sequence(config: RunConfig, size: ModelSize | None) -> int:
    """max_model_len in tokens, as the engine will have it."""
    wanted = config.engine.max_model_len or default_max_model_len(config)
    limit = size.max_position_embeddings if size else None
    if config.engine.max_model_len or not limit:
        return wanted or limit or DEFAULT_BATCHED_TOKENS
    return min(wanted, limit) if wanted else limit


def _middling(config: RunConfig, longest: int) -> int:
    """Tokens that a sequence of the arms holds in the KV cache, on an average over its life."""
    output = max(arm.max_tokens for arm in resolve_arms(config))
    return max(1, min(longest, PROMPT_TOKENS + output) // SHARE_OF_LENGTH)
