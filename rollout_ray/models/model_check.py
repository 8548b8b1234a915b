"""Check the model of a run before its engines start: its place, its weights and its tokenizer.

The driver and `rollout plan` call this. An engine calls it where the driver does not see the model's folder.
"""

from __future__ import annotations

from pathlib import Path

from rollout_ray.models.checkpoint_check import check_checkpoint
from rollout_ray.models.checkpoints import embedding_rows
from rollout_ray.models.hub import check_on_hub
from rollout_ray.models.paths import check_model_path, cluster_address
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.models.tokenizer_check import check_token_ids, check_tokenizer


def check_before_start(run: ResolvedRun) -> None:
    """Raise ConfigError if no engine could serve the model. On a cluster, engines check what this machine does not see."""
    if run.config.engine.backend != "vllm":
        return
    if Path(run.model_path).is_dir() or not cluster_address(run.config):
        _check_model(run)


def check_where_unseen(run: ResolvedRun) -> None:
    """Raise ConfigError as `check_before_start` does, on the node of an engine, for a model that the driver did not see."""
    if run.policy.fingerprint == run.policy.path:
        _check_model(run)


def _check_model(run: ResolvedRun) -> None:
    """Raise ConfigError if the model is not there, or cannot be used."""
    config = run.config
    folder, tokenizer = Path(run.policy.path), Path(run.tokenizer_path)
    if not folder.is_dir():
        check_model_path(run.policy.path)
        if "://" not in run.policy.path:
            check_on_hub(run.policy.path, config.model.revision)
        return
    given = config.engine.extra.keys()
    if config.engine.load_format in ("auto", "safetensors", "hf"):
        check_checkpoint(folder, label_counts=not given & {"quantization", "hf_overrides"})
    if tokenizer.is_dir() and "skip_tokenizer_init" not in given and "tokenizer_mode" not in given:
        check_tokenizer(tokenizer)
        if rows := embedding_rows(folder):
            check_token_ids(tokenizer, rows, config.model.chat_template)
