"""collect(dataset, cfg): from a question set to one parquet of scored trajectories.

This module holds the order of a run: check the input, open the run directory, generate, merge, sum up.
driver/session.py keeps engines and scorers busy. The engines start for this run, or belong to a pool.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rollout_ray.api.versions import installed_versions
from rollout_ray.config.notices import notices
from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import ScoringConfig, reward_sentence
from rollout_ray.core.errors import ConfigError, Interrupted
from rollout_ray.core.records import schema_version
from rollout_ray.core.redaction import shorten
from rollout_ray.data.columns import GOLD_KEY, check_token_columns
from rollout_ray.data.question_set import QuestionSet, check_faults, load_questions
from rollout_ray.driver.budget import refuse_a_budget_that_saved_nothing
from rollout_ray.driver.prewarm import prewarm
from rollout_ray.driver.run_context import RunContext
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.prompt_wording import Examples, refuse_rendered
from rollout_ray.models.resolved_run import ResolvedRun, resolve
from rollout_ray.report import plots
from rollout_ray.report.html import write_report
from rollout_ray.results.merge import Merged, merge
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.metadata import describe
from rollout_ray.scoring.custom_reward import Rewards, RewardSources, with_reward
from rollout_ray.scoring.graders import check_sources, unreadable_golds
from rollout_ray.scoring.scorer import scoring_columns
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.files import row_batches
from rollout_ray.storage.partial_files import remove_samples, scan_samples
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.bottleneck import bound_by
from rollout_ray.telemetry.error_share import refuse_failures
from rollout_ray.telemetry.notebook import progress_here, summary_html
from rollout_ray.telemetry.progress import Progress
from rollout_ray.telemetry.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rollout_ray.driver.session import PoolResources

log = logging.getLogger(__name__)

GOLDS_CHECKED = 10_000  # gold answers that are read before a run, in about 0.3 s


@dataclass(frozen=True)
class Rollouts:
    """A finished run: the merged parquet and its summary."""

    path: str
    summary: Summary
    run: RunDirectory

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return the merged rows as an Arrow table in memory, with a chunk for each row group or less."""
        with self.run.open_parquet("merged.parquet") as file:
            # Not file.read(): Arrow joins the row groups of a nested column, and holds at most 2 GiB of text in one.
            chunks = list(row_batches(file, max(1, file.metadata.num_rows), columns))
            return pa.Table.from_batches(chunks) if chunks else file.read(columns=columns)

    def to_pandas(self) -> pd.DataFrame:
        """Return the merged rows as a pandas DataFrame. Named rewards are dicts, which pandas can write again."""
        frame: pd.DataFrame = self.table().to_pandas(maps_as_pydicts="strict")
        return frame

    def plot_accuracy(self) -> Figure:
        """Return a figure of the accuracy by arm with 95% intervals. Raises ImportError without matplotlib."""
        return plots.accuracy(self.path)

    def plot_rewards(self) -> Figure:
        """Return a histogram of the rewards by outcome. Raises ImportError without matplotlib."""
        return plots.histogram(self.path, "reward")

    def plot_lengths(self) -> Figure:
        """Return a histogram of the output lengths, in tokens, by outcome. Raises ImportError without matplotlib."""
        return plots.histogram(self.path, "tokens")

    def _repr_html_(self) -> str:
        """Return the summary as an HTML table, for Jupyter."""
        return summary_html(self.summary, self.path)


@dataclass(frozen=True)
class _Call:
    """What a caller gives a run besides the config. `pool_resources` None: the run starts engines of its own."""

    pool_resources: PoolResources | None
    progress: Progress
    rewards: RewardSources
    began: float


def collect(
    dataset: Any = None,
    cfg: RunConfig | None = None,
    *,
    reward: Rewards | None = None,
    progress: Progress | None = None,
) -> Rollouts:
    """Generate the trajectories of every arm and question, score them, and merge them into one parquet.

    A run directory that holds a part of this run is continued.

    Args:
        dataset: A path, a pandas DataFrame, an Arrow table, a list of dicts, a Hugging Face Dataset or a Ray Dataset.
            None: `cfg.data.dataset`.
        cfg: The config of the run. None: the defaults.
        reward: Your own reward function, in place of `cfg.scoring.reward`; or several, as a list or by name. It gets a
            Question and its Trajectory records, or has the signature of TRL or verl, and returns a number, None or a dict
            of named numbers for each. The run is known by the function's name: give a changed one another name.
        progress: Shows the run. None: only a notebook shows it.

    Raises:
        ConfigError, DatasetError: The config or the input is wrong.
        PlacementError, EngineError: The machines cannot hold the engines, or no engine is left.
        LedgerError, IncompleteError: The run directory belongs to another run, or trajectories are missing.
        TooManyErrors: Your functions fail too often. The run is saved, and merged if it is complete.
        Interrupted: Ctrl-C or SIGTERM stopped the run. It is saved.
    """
    cfg, source = with_reward(cfg or RunConfig(), reward)
    return collect_on(None, dataset, resolve(cfg), source, progress)


def collect_on(
    pool_resources: PoolResources | None, dataset: Any, run: ResolvedRun, rewards: RewardSources, progress: Progress | None
) -> Rollouts:
    """Run `collect` on the engines of a pool, which hold the policy of the run. None: on engines for this run."""
    call = _Call(pool_resources, progress or progress_here(), rewards, time.monotonic())
    cfg = run.config
    dataset = cfg.data.dataset if dataset is None else dataset
    if dataset is None:
        raise ConfigError("no data set was given; name one with --dataset, or pass it to collect()")
    _refuse_fleeting_output(cfg.output.output_dir)
    with nullcontext() if pool_resources else prewarm(run):
        questions = _questions(dataset, cfg, rewards)
        directory = RunDirectory(cfg.output.output_dir)
        with directory.lease():
            try:
                return _collect(run, questions, directory, call)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped; what is complete is in {directory.uri}, and the same command goes on from there"
                ) from None


def _questions(dataset: Any, cfg: RunConfig, rewards: RewardSources) -> QuestionSet:
    """Return the input in the order of generation, with the columns that graders and rewards read."""
    questions = load_questions(dataset, cfg.data)
    check_faults(questions)
    if cfg.output.tokens:
        check_token_columns(questions.source)
    names = questions.source.schema.names
    questions = replace(questions, row_columns=scoring_columns(rewards, cfg.scoring, names))
    check_sources(cfg.scoring, questions.questions(), names)
    if questions.gold_key is None:
        log.warning("%s has no column '%s': nothing will be graded", questions.source.name, GOLD_KEY)
    if cfg.data.lengths_from is not None:
        with MergedFile(cfg.data.lengths_from) as earlier:
            questions = questions.long_first(earlier.mean_lengths(frozenset(questions.ids)))
        if not questions.passes:
            log.warning("%s holds none of these questions: they are drawn in the order of the input", earlier.path)
    if questions.gold_key is not None:
        _warn_of_unreadable_golds(questions, cfg.scoring)
    return questions


def _warn_of_unreadable_golds(questions: QuestionSet, scoring: ScoringConfig) -> None:
    """Warn before the run of gold answers that the grader cannot read."""
    golds = list(islice(questions.questions(), GOLDS_CHECKED))
    if unreadable := unreadable_golds(scoring, golds):
        log.warning(
            "%d of the first %d gold answers cannot be read, such as %s. Their trajectories get the score_status bad_gold. "
            "Correct them in the input",
            len(unreadable),
            len(golds),
            ", ".join(repr(shorten(gold, 60)) for gold in unreadable[:3]),
        )


def _collect(run: ResolvedRun, questions: QuestionSet, directory: RunDirectory, call: _Call) -> Rollouts:
    """Run a collection. The caller holds the lease of the run directory."""
    run = replace(run, examples=Examples.of(questions.questions()))
    refuse_rendered(run.config, run.examples, run.tokenizer_path)
    for notice in notices(run.config, run.arms):
        log.warning(notice)
    versions = installed_versions()
    facts = describe(run.config, run.arms, questions)
    identity = {**run.identity, "data.fingerprint": questions.fingerprint}
    resumed = directory.open(identity, _description(run.config, questions, facts, versions))
    with EventLog(directory) as events, ExitStack() as ray_too:
        known = set(questions.ids)
        part_scan = directory.scan_parts(known)
        done = part_scan.done
        kept = scan_samples(directory, part_scan, known, run.samples_per_question)
        kept_samples = sum(map(len, kept.values()))
        facts_of_session = {"done": len(done), "kept_samples": kept_samples, "operational": run.config.operational()}
        events.write("resumed" if resumed else "begun", questions=len(questions), **facts_of_session)
        for name, reason in part_scan.quarantined.items():
            log.warning("%s %s; it is in parts/bad now, and its questions are drawn again", directory.path(name), reason)
            events.write("part_put_aside", part=name, reason=reason)
        session = Summary()
        if len(done) < len(questions):
            if call.pool_resources is None:
                check_before_start(run)
            limits = run.config.resources
            refuse_a_budget_that_saved_nothing(directory.events(), limits.budget, limits.budget_seconds)
            context = RunContext(questions, done, kept, directory, events, call.progress, call.rewards, time.monotonic())
            from rollout_ray.driver.session import generate_missing
            from rollout_ray.ray_cluster.connection import connected

            if call.pool_resources is None:
                # Until the end of the block: Ray takes seconds to stop, and the merged file does not wait for that.
                ray_too.enter_context(connected(run.config))
            session = generate_missing(run, context, call.pool_resources)
            remove_samples(directory)
        merged, summary = _merged(run, questions, directory, {**versions, **facts})
        summary.session_tokens, summary.generation_seconds = session.session_tokens, session.generation_seconds
        summary.engine_deaths, summary.total_seconds = session.engine_deaths, time.monotonic() - call.began
        summary.reward_rule = reward_sentence(run.config.scoring)
        summary.account, summary.bound_by = session.account, bound_by(session.account, summary.total_seconds)
        events.write("finished", duplicates=merged.duplicates, disagreeing=merged.disagreeing, summary=summary.to_dict())
    if run.config.output.report and run.config.output.layout != "responses":  # which holds no scores
        log.info("the report is %s", write_report(merged.path, run=directory).path)
    remedy = f"Correct the function, and give `rollout rescore {directory.uri}`: {merged.path} holds every text"
    refuse_failures(summary, run.config.scoring.max_error_share, remedy)
    return Rollouts(merged.path, summary, directory)


def _merged(
    run: ResolvedRun, questions: QuestionSet, directory: RunDirectory, facts: dict[str, Any]
) -> tuple[Merged, Summary]:
    """Merge the part files, and sum up the merged rows."""
    summary = Summary()
    metadata = {
        "schema_version": schema_version(run.config.output.tokens),
        "config_digest": run.config.digest(),
        "model": run.config.model.model_path,
        "model_fingerprint": run.policy.fingerprint,
        "policy_version": run.policy.version,
        **({"logprobs": run.config.output.logprobs} if run.config.output.tokens else {}),
        **facts,
    }

    def observe(rows: pa.Table, given: pa.Table) -> None:
        key = questions.gold_key
        summary.add(rows, None if key is None else lambda row: given.column(key)[row].as_py())

    merged = merge(directory, questions, run.config.output.layout, run.samples_per_question, metadata, observe)
    summary.arms = {arm.name: summary.arms[arm.name] for arm in run.arms if arm.name in summary.arms}
    if merged.disagreeing:
        log.warning(
            "%d questions stand in two parts with different rows, as two drivers at once would leave them; the part "
            "that was committed first counts",
            merged.disagreeing,
        )
    return merged, summary


def _refuse_fleeting_output(output_dir: str) -> None:
    """Raise ConfigError if Ray would delete the output with the working directory of its job."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in output_dir and not os.path.isabs(output_dir):
        raise ConfigError(
            f"output_dir '{output_dir}' is relative, and Ray deletes a job's working directory after the job; give an "
            "absolute path on storage that every node shares, or a URI"
        )


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
