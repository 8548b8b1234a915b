"""Read a checkpoint's architecture as vLLM sees it: its config, and vLLM's classes of the model.

It asks vLLM's registry of models, by names that vLLM 0.26 to 0.33 share. It loads no weights.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rollout_ray.models.resolved_run import ResolvedRun

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PYTORCH_PACKAGES = {"torchvision", "torchaudio"}  # without a build for the CPU in the usual index


def checkpoint_config(run: ResolvedRun) -> Any:
    """Return the config of the checkpoint, as transformers reads it."""
    from vllm.transformers_utils.config import get_config

    return get_config(
        run.model_path,
        trust_remote_code=run.config.model.trust_remote_code,
        revision=run.config.model.revision,
    )


def register_classes(run: ResolvedRun) -> None:
    """Register the model's class in vLLM in place of its name.

    For a name alone, vLLM starts a process that imports everything again: 14 s on a machine that never did it.

    Raises:
        ModuleNotFoundError: The class needs a package that is missing. The message has the remedy.
    """
    from vllm import ModelRegistry

    for name, model in _classes(checkpoint_config(run)).items():
        ModelRegistry.register_model(name, model)


def is_hybrid(checkpoint: Any) -> bool:
    """Return whether layers of the model keep a state of fixed size (Mamba, linear attention) beside the KV cache.

    Raises as `register_classes` does.
    """
    return any(getattr(model, "is_hybrid", False) for model in _classes(checkpoint).values())


def _classes(checkpoint: Any) -> dict[str, Any]:
    """Return vLLM's classes of the architectures in the checkpoint's config."""
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
    """Return the package whose absence caused this error. transformers wraps it in an error of its own."""
    found = None
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            found = error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return found
