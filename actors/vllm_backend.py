"""vLLM behind the Backend interface of engine.py: one replica on the CPU, on one GPU, or over several of one node.

Owns everything that is particular to vLLM: environment variables, engine arguments chosen from the hardware, sampling
parameters. It uses only what vLLM 0.26 to 0.33 share, and keeps no record of whose request is whose.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.backend import BackendInfo, Finished, Refused
from actors.prompts import PromptEncoder
from actors.readahead import read_ahead
from actors.texts import Output, TextDecoder
from actors.vllm_stats import VllmStats
from rollout_ray import adapters, arms
from rollout_ray.config import RunConfig
from rollout_ray.engine_stats import EngineStats
from rollout_ray.errors import ConfigError
from rollout_ray.hardware import CPU_SEQS, DEFAULT_BATCHED_TOKENS, DEFAULT_SEQS
from rollout_ray.models import model_folder
from rollout_ray.records import Arm, Draw, Prompt

log = logging.getLogger(__name__)


CPU_MAX_NUM_BATCHED_TOKENS = 4096
WORKER = "actors.worker.Worker"  # by name: the module imports vLLM
RESET_S = 30.0  # within which the prefix cache must have been emptied after an update of the weights


def environment(config: RunConfig, *, gpus: int, threads: int) -> dict[str, str]:
    """Variables that the engine's process needs before vLLM is imported."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    default = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "true"}
    if Path(model_folder(config.model.model_path)).is_dir():
        quiet |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # In one process a CPU engine starts in a third of the time and runs faster. On an H200 (7B, 4,000 x 256 tokens, warm
    # caches) it starts in 27 s instead of 43 and decodes 2.8% slower: it wins on every run of under ten minutes.
    default["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if gpus == 0:
        # Two engines of one machine must not both bind every core. With more threads than cores vLLM's attention kernel
        # aborts.
        needed = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(min(threads, len(os.sched_getaffinity(0)))),
        }
    else:
        # A start then takes over what an earlier one has measured of the GPU's memory (vLLM checks that it still holds).
        default["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        needed = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        if config.engine.deterministic:
            needed["VLLM_BATCH_INVARIANT"] = "1"
        if importlib.util.find_spec("flashinfer") is None:
            default["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return {**{k: v for k, v in default.items() if k not in os.environ}, **quiet, **needed}


def engine_arguments(config: RunConfig, *, gpus: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs, with every choice made that the config left open."""
    engine, model = config.engine, config.model
    on_gpu = gpus > 0
    max_num_seqs = engine.max_num_seqs or (DEFAULT_SEQS if on_gpu else CPU_SEQS)
    checkpoint = _checkpoint(config).get_text_config()
    limit: int | None = getattr(checkpoint, "max_position_embeddings", None)
    max_model_len = engine.max_model_len or arms.default_max_model_len(config)
    if max_model_len and limit and not engine.max_model_len:
        max_model_len = min(max_model_len, limit)
    arguments: dict[str, Any] = {
        "model": model_folder(model.model_path),
        "tokenizer": model.tokenizer_path,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": engine.dtype,
        "load_format": engine.load_format,
        "max_model_len": max_model_len,
        "tensor_parallel_size": max(1, gpus),
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "max_num_seqs": max_num_seqs,
        "enforce_eager": engine.enforce_eager if engine.enforce_eager is not None else not on_gpu,
        "seed": config.sampling.seed % 2**32,
        "disable_log_stats": False,  # costs nothing that could be measured on an H200
        "worker_cls": WORKER,
        **_lora_arguments(config, on_gpu),
    }
    if on_gpu:
        arguments |= {
            "max_num_batched_tokens": engine.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS,
            "enable_chunked_prefill": engine.enable_chunked_prefill is not False,
            "distributed_executor_backend": "mp" if gpus > 1 else "uni",
        }
        if not arguments["enforce_eager"]:
            arguments["max_cudagraph_capture_size"] = max_num_seqs
    else:
        if engine.deterministic:
            raise ConfigError("deterministic needs a GPU: vLLM has no batch-invariant kernels for the CPU; leave it unset")
        # A seeded request whose prefill is chunked crashes the CPU engine, so a whole prompt must fit into one step.
        if engine.enable_chunked_prefill:
            raise ConfigError("enable_chunked_prefill does not work on the CPU; leave it unset")
        tokens = engine.max_num_batched_tokens or CPU_MAX_NUM_BATCHED_TOKENS
        longest = max_model_len or limit or tokens
        arguments |= {
            "max_num_batched_tokens": max(tokens, longest),
            "kv_cache_memory_bytes": _cpu_kv_cache_bytes(config, checkpoint, max_num_seqs, longest),
            "enable_chunked_prefill": False,
            "distributed_executor_backend": "uni",
        }
    return {name: value for name, value in (arguments | engine.extra).items() if value is not None}


def _lora_arguments(config: RunConfig, on_gpu: bool) -> dict[str, Any]:
    room = adapters.capacity(adapters.adapters_of(arms.resolve_arms(config)))
    if not room.count:
        return {}
    # The CPU kernels give a request without adapter the one in the last place, so this place must stay empty.
    places = room.count if on_gpu else room.count + 1
    return {"enable_lora": True, "max_lora_rank": room.rank, "max_loras": places}


def _checkpoint(config: RunConfig) -> Any:
    """The checkpoint's own config, as transformers reads it."""
    from vllm.transformers_utils.config import get_config

    return get_config(
        model_folder(config.model.model_path),
        trust_remote_code=config.model.trust_remote_code,
        revision=config.model.revision,
    )


def _inspect_architecture_here(config: RunConfig) -> None:
    """Registers the model's class itself in place of its name. By the name alone vLLM starts a process that imports
    everything again to look at the class, which takes 14 s where it was never done on this machine."""
    from vllm import ModelRegistry

    for name in getattr(_checkpoint(config), "architectures", None) or ():
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _cpu_kv_cache_bytes(config: RunConfig, checkpoint: Any, max_num_seqs: int, longest: int) -> int:
    """Room for max_num_seqs sequences of a quarter of the `longest` (tokens), within 4 GiB; at least for one whole one.

    vLLM would take most of the machine's memory and touch every page of it at start: 1.6 s a GiB.
    """
    if config.engine.kv_cache_gib is not None:
        return int(config.engine.kv_cache_gib * 2**30)
    layers = getattr(checkpoint, "num_hidden_layers", None)
    heads = getattr(checkpoint, "num_attention_heads", None)
    if not (layers and heads):
        return 2**30
    kv_heads = getattr(checkpoint, "num_key_value_heads", None) or heads
    head_size = getattr(checkpoint, "head_dim", None) or checkpoint.hidden_size // heads
    bytes_per_token: int = 2 * layers * kv_heads * head_size * (4 if config.engine.dtype == "float32" else 2)
    many = min(max_num_seqs * longest // 4 * bytes_per_token, 4 * 2**30)
    return max(many, 2 * longest * bytes_per_token)


class VllmBackend:
    """One vLLM replica. Construct it in the process that is to hold it: vLLM is imported then."""

    def __init__(self, config: RunConfig, *, gpus: int, threads: int) -> None:
        self._config, self._gpus = config, gpus
        os.environ.update(environment(config, gpus=gpus, threads=threads))
        if config.engine.load_format != "dummy":
            read_ahead(model_folder(config.model.model_path))
        began = time.perf_counter()
        # Collecting garbage while five thousand modules load costs a fifth of the import and finds nothing; frozen
        # afterwards, they do not slow the collections of the load either.
        gc.disable()
        from vllm import SamplingParams
        from vllm import exceptions as vllm_exceptions
        from vllm.engine.arg_utils import EngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        gc.freeze()
        gc.enable()
        imported = time.perf_counter()
        self._lora_request = LoRARequest
        self._served: dict[tuple[str, str], Any] = {}  # path and fingerprint of an adapter -> LoRARequest
        self._loras: dict[str, Any] = {}  # the same by path alone
        self._last_lora = 0
        self._sampling_params, self._final_only = SamplingParams, RequestOutputKind.FINAL_ONLY
        self._refusals = (ValueError, TypeError, vllm_exceptions.VLLMValidationError)
        _inspect_architecture_here(config)
        arguments = engine_arguments(config, gpus=gpus)
        configured = time.perf_counter()
        self._stats = VllmStats(arguments["max_num_seqs"])
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments), stat_loggers=self._stats.loggers())
        self._max_model_len: int = self._engine.vllm_config.model_config.max_model_len
        self._processes = multiprocessing.active_children()
        tokenizer = self._engine.get_tokenizer()
        self._encoder = PromptEncoder(tokenizer, self._max_model_len, config.model.chat_template)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        self._decoder = TextDecoder(fast) if fast is not None else None
        self._vllm_decodes = True
        self._info = BackendInfo(
            max_num_seqs=arguments["max_num_seqs"],
            import_seconds=imported - began,
            load_seconds=time.perf_counter() - imported,
            phases={"import": imported - began, "config": configured - imported, **self._worker_phases(arguments)},
            settings={k: v for k, v in arguments.items() if isinstance(v, (bool, int, float, str))}
            | {"max_model_len": self._max_model_len},
        )

    def info(self) -> BackendInfo:
        return self._info

    def _worker_phases(self, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Seconds of each phase of vLLM's own start, of the slowest worker in each."""
        if arguments["worker_cls"] != WORKER:
            return {}
        workers: list[dict[str, float]] = self._engine.collective_rpc("rollout_phases")
        return {name: max(worker.get(name, 0.0) for worker in workers) for name in workers[0]}

    def check(self) -> None:
        """Raises RuntimeError where a process of the engine's own has ended: vLLM waits for a killed one for ever."""
        for process in self._processes:
            if not process.is_alive():
                raise RuntimeError(f"vLLM's process {process.name} ended with exit code {process.exitcode}")

    def stats(self) -> EngineStats:
        return self._stats.stats

    def begin(self, config: RunConfig, arms: Sequence[Arm]) -> None:
        """Takes up a run's sampling and adapters. Raises ConfigError where vLLM cannot load an adapter."""
        self._config = config
        # A stop string must be seen when it comes, which takes vLLM's own text.
        self._vllm_decodes = self._decoder is None or bool(config.sampling.stop)
        wanted = set(adapters.fingerprints(adapters.adapters_of(arms)).items())
        for gone in self._served.keys() - wanted:
            self._engine.remove_lora(self._served.pop(gone).lora_int_id)
        for path, fingerprint in sorted(wanted - self._served.keys()):
            # vLLM knows an adapter, and the prefixes cached under it, by id and name: no other content may bear them.
            self._last_lora += 1
            request = self._lora_request(f"adapter-{self._last_lora}", self._last_lora, path)
            try:
                self._engine.add_lora(request)
            except Exception as error:
                self.check()
                raise ConfigError(f"vLLM cannot serve the adapter {path}: {error}; merge it into the model") from error
            self._served[path, fingerprint] = request
        self._loras = {path: request for (path, _), request in self._served.items()}

    def update_weights(self, path: str) -> None:
        """Loads the checkpoint in the folder `path`, which has the shape of the present one."""
        self._engine.collective_rpc("rollout_load_weights", args=(path,))
        deadline = time.monotonic() + RESET_S
        while not self._engine.reset_prefix_cache():  # what was aborted a moment ago may still hold its blocks
            if time.monotonic() > deadline:
                raise RuntimeError(f"vLLM's prefix cache could not be emptied within {RESET_S:g} s")
            time.sleep(0.05)

    def encode(self, prompt: Prompt, system_prompt: str | None) -> list[int]:
        """The prompt's tokens; see PromptEncoder."""
        return self._encoder.encode(prompt, system_prompt)

    def add(self, key: str, tokens: list[int], draw: Draw, seed: int) -> None:
        """Queues one request. Raises Refused where vLLM rejects it."""
        arm, sampling = draw.arm, self._config.sampling
        parameters: Mapping[str, Any] = {
            "temperature": arm.temperature,
            "top_p": arm.top_p,
            "top_k": max(arm.top_k, 0),
            "repetition_penalty": arm.repetition_penalty,
            "max_tokens": min(arm.max_tokens, self._max_model_len - len(tokens)),
            "seed": seed if arm.temperature > 0 else None,
            "stop": sampling.stop or None,
            "ignore_eos": sampling.ignore_eos,
            "detokenize": self._vllm_decodes,
            "output_kind": self._final_only,
        }
        lora = self._loras[arm.lora_path] if arm.lora_path else None
        try:
            self._engine.add_request(
                key, {"prompt_token_ids": tokens}, self._sampling_params(**parameters), lora_request=lora
            )
        except self._refusals as error:
            raise Refused(f"vLLM refused the request: {error}") from error

    def step(self) -> list[Finished]:
        """Decodes one step; returns what it finished."""
        ended = [output for output in self._engine.step() if output.finished]
        self._stats.finished(ended)
        if self._decoder is None or self._vllm_decodes:
            texts = [output.outputs[0].text for output in ended]
        else:
            texts = self._decoder.texts([_tokens_of(output) for output in ended])
        return [_finished(output, text) for output, text in zip(ended, texts, strict=True)]

    def abort(self, keys: Sequence[str]) -> None:
        self._engine.abort_request(list(keys))

    def close(self) -> None:
        """Ends the engine's own processes, where it has some."""
        shutdown = getattr(self._engine.engine_core, "shutdown", None)
        if shutdown:
            shutdown()


def _tokens_of(output: Any) -> Output:
    completion = output.outputs[0]
    return Output(output.prompt_token_ids, completion.token_ids, stopped=completion.finish_reason == "stop")


def _finished(output: Any, text: str) -> Finished:
    completion = output.outputs[0]
    reason = completion.finish_reason
    regular = reason in ("stop", "length")
    return Finished(
        key=output.request_id,
        text=text,
        num_tokens=len(completion.token_ids),
        finish_reason=reason if regular else "error",
        error=None if regular else f"vLLM ended the request: {reason}",
    )
