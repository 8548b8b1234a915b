"""A checkpoint's architecture as vLLM sees it: its config, and vLLM's classes of the model.

Owns the questions to vLLM's registry of models, by names that vLLM 0.26 to 0.33 share. It loads no weights.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rollout_ray.models.resolved_run import ResolvedRun

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PYTORCH_PACKAGES = {"torchvision", "torchaudio"}  # without a build for the CPU in the usual index


def checkpoint_config(run: ResolvedRun) -> Any:
    """The checkpoint's own config, as transformers reads it."""
    from vllm.transformers_utils.config import get_config

    return get_config(
        run.model_path,
        trust_remote_code=run.config.model.trust_remote_code,
        revision=run.config.model.revision,
    )


def register_classes(run: ResolvedRun) -> None:
    """Registers the model's class itself in place of its name. By the name alone vLLM starts a process that imports
    everything again to look at the class, which takes 14 s where it was never done on this machine.

    Raises ModuleNotFoundError, with the remedy, where a package is missing that the class needs.
    """
    from vllm import ModelRegistry

    for name, model in _classes(checkpoint_config(run)).items():
        ModelRegistry.register_model(name, model)


def is_hybrid(checkpoint: Any) -> bool:
    """Whether layers of the model with this `checkpoint_config` keep a state of one size (Mamba, linear attention) beside a
    KV cache. Raises as `register_classes` does."""
    return any(getattr(model, "is_hybrid", False) for model in _classes(checkpoint).values())


def _classes(checkpoint: Any) -> dict[str, Any]:
    """vLLM's classes of the architectures that the checkpoint's config names."""
    from vllm import ModelRegistry

    names = getattr(checkpoint, "architectures", None) or ()
    try:
        return {name: ModelRegistry.models[name].load_model_cls() for name in names if name in ModelRegistry.models}
    except ModuleNotFoundError as error:
        package = _missing(error)
        if package is None:
            raise
        install, torch = package, version("torch")
        if package in PYTORCH_PACKAGES and "+cpu" in torch:
            install += f" torch=={torch} --extra-index-url {CPU_WHEELS}"
        raise ModuleNotFoundError(
            f"vLLM needs {package} for {', '.join(names)}, and it is not installed here: pip install {install}"
        ) from error


def _missing(error: BaseException | None) -> str | None:
    """The package whose absence began this error; transformers tells of it by an error of its own."""
    found = None
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            found = error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return found
