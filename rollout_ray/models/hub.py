"""Ask the Hugging Face hub once whether it has a model, so that a mistyped name ends a run within seconds.

vLLM asks again and again, for two minutes. This downloads nothing.
"""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request

from rollout_ray.core.errors import ConfigError

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
# The hub's X-Error-Code -> what it means for the user.
_REFUSALS = {
    "RepoNotFound": "the hub has no model of this name, or it is private; correct the name, or set HF_TOKEN",
    "RevisionNotFound": "the hub has no such revision of it; correct --revision",
    "GatedRepo": "the hub gives it only to those who accepted its terms; accept them there, and set HF_TOKEN",
}


def check_on_hub(model: str, revision: str | None) -> None:
    """Raise ConfigError if neither the local cache nor the hub has the model, or if the hub cannot be reached."""
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    repository = model.partition(":")[0]  # a quantization of GGUF may follow
    if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        return
    missing = f"model_path {model} is no folder here"
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{missing}, and not in the hub's cache, and HF_HUB_OFFLINE is set; give a folder, or unset it")
    url = hf_hub_url(repository, "config.json", revision=revision)
    request = urllib.request.Request(url, method="HEAD")
    if token := get_token():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        code = error.headers.get("X-Error-Code", "")
        if code in _REFUSALS:
            raise ConfigError(f"{missing}, and {_REFUSALS[code]}") from error
        log.debug("the hub says %s about %s", error, model)  # it is busy, or the model has another config file
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{missing}, and the hub cannot be reached ({reason}); give a folder that holds the model, or check the network"
        ) from error
