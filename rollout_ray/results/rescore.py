"""Score the stored texts of a finished run again, with another `scoring` config. Nothing is generated.

Only fields of `scoring` may change. Every text is graded again. The old file and the run directory stay unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rollout_ray.config.loading import overlaid
from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import reward_sentence
from rollout_ray.core.errors import ConfigError, IncompleteError
from rollout_ray.core.records import Completion, Question, ScoredQuestion, has_rewards, part_schema
from rollout_ray.results.layouts import output_schema, to_layout
from rollout_ray.results.merge import write_merged
from rollout_ray.results.merged_file import MergedFile, StoredQuestion
from rollout_ray.results.merged_path import sibling_path
from rollout_ray.scoring.custom_reward import RewardSources, refuse_lone_weights
from rollout_ray.scoring.grader import Grader
from rollout_ray.scoring.graders import Graders, grader_limits
from rollout_ray.scoring.scorer import QuestionScorer, part_table, score_questions, scoring_columns
from rollout_ray.scoring.user_code.rewards import UserRewards
from rollout_ray.storage.parts import fill_fields
from rollout_ray.storage.paths import split_path
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.error_share import refuse_failures
from rollout_ray.telemetry.summary import Summary

EXAMPLES = 10  # changed verdicts that are shown


@dataclass(frozen=True)
class Rescored:
    """The new file, its summary, and the old and new value of each changed field, by dotted name."""

    path: str
    summary: Summary
    changed: Mapping[str, tuple[Any, Any]]
    verdicts_changed: int = 0
    examples: tuple[str, ...] = ()


def rescore(
    path: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    output: str | None = None,
) -> Rescored:
    """Write a merged file with new rewards. Fields that are not given stay as in the run.

    Args:
        path: Path or URI of a run directory or a merged file.
        arguments: Flags of the config.
        environment: Environment variables of the config.
        file: YAML file of the config.
        output: Path of the new file, which must not exist. Default: merged-<digest>.parquet beside the old file.

    Raises:
        ConfigError: A field outside `scoring` differs from the run.
        IncompleteError: The file does not hold every trajectory.
        LedgerError: There is no such file.
        VerifyError: The file cannot be read.
    """
    with MergedFile(path) as merged:
        old = merged.description.config
        base = old.model_dump(mode="json")
        base["output"]["layout"] = merged.layout
        base["scoring"] |= _limits_of_run(split_path(merged.path)[0])
        new = overlaid(base, arguments, environment, file)
        refuse_lone_weights(new.scoring)
        changed = _changed(old, new)
        _refuse_other_fields(merged, new, changed)
        functions = new.scoring.reward_functions
        if merged.run is None and functions and functions == old.scoring.reward_functions:
            _refuse_unasked_function(new, overlaid({}, arguments, environment, file))
        writer = _Writer(merged, new)
        target = sibling_path(merged.path, new.digest()) if output is None else output
        folder, name = split_path(target)
        run = RunDirectory(folder)
        if output is not None and run.exists(name):
            raise ConfigError(f"{output} exists already; give another --output, or remove it")
        run.write_atomically(name, writer.write)
    arms = {arm.name: writer.summary.arms[arm.name] for arm in merged.description.arms if arm.name in writer.summary.arms}
    writer.summary.arms = arms
    writer.summary.reward_rule = reward_sentence(new.scoring)
    return Rescored(target, writer.summary, changed, writer.verdicts_changed, tuple(writer.examples))


def _limits_of_run(folder: str) -> dict[str, Any]:
    """Return the fields of `scoring` that change no row, as the last session of the run in this folder had them."""
    run = RunDirectory(folder)
    if not run.exists("run.json"):
        return {}
    told = [event["operational"] for event in run.events() if "operational" in event]
    fields = told[-1] if told else {}
    return {name.removeprefix("scoring."): value for name, value in fields.items() if name.startswith("scoring.")}


def _changed(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    before, after = old.identity(), new.identity()
    names = {**before, **after}
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _refuse_other_fields(merged: MergedFile, new: RunConfig, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if merged.layout == "responses":
        raise ConfigError(
            f"{merged.path} has the layout 'responses', which holds no rewards; run the command of the run with --layout "
            "questions, which merges again without generating"
        )
    others = {name: values for name, values in changed.items() if not name.startswith("scoring.")}
    if new.output.layout != merged.layout:
        others["output.layout"] = (merged.layout, new.output.layout)
    if others:
        differences = "; ".join(
            f"{name} was {json.dumps(old)} and is {json.dumps(now)}" for name, (old, now) in others.items()
        )
        raise ConfigError(f"rescoring changes only fields of scoring, and {differences}. Leave out the other fields")


def _refuse_unasked_function(new: RunConfig, asked: RunConfig) -> None:
    """Refuse to run code that only the file names: the user may not trust the file."""
    functions = new.scoring.reward_functions
    if asked.scoring.reward_functions == functions:
        return
    if new.scoring.reward is None:
        flags = " ".join(f"--rewards {name}={function}" for name, function in functions.items())
        raise ConfigError(
            f"the file names functions for its rewards; allow them with {flags}, or give --config with `rewards: {{}}` "
            "under scoring"
        )
    raise ConfigError(
        f"the file names the function {new.scoring.reward} for its rewards; allow it with --reward "
        f"{new.scoring.reward}, or give --config with `reward: null` under scoring"
    )


class _Writer:
    """Streams the questions of a merged file into a new one, scored by `config`. `summary` counts the new rows."""

    def __init__(self, merged: MergedFile, config: RunConfig) -> None:
        self._merged = merged
        self._config = config
        self.summary = Summary()
        self.verdicts_changed = 0
        self.examples: list[str] = []
        description = merged.description
        self._scorer = QuestionScorer(description.arms, config.scoring, config.sampling.seed)
        self._sources = RewardSources.of_config(config.scoring)
        self._row = scoring_columns(self._sources, config.scoring, merged.given_schema.names)
        self._index_of_key = {(d.arm.name, d.sample): n for n, d in enumerate(self._scorer.samples)}
        rows = description.questions * (len(self._index_of_key) if merged.layout == "trajectories" else 1)
        if merged.num_rows != rows:
            raise self._incomplete(f"{merged.num_rows} rows where {rows} are due")

    def write(self, stream: IO[bytes]) -> None:
        """Write the whole parquet file."""
        metadata = {k: v for k, v in self._merged.description.metadata.items() if k not in ("config", "digest")}
        metadata |= {
            "rescored_from": self._merged.description.config.digest(),
            "config_digest": self._config.digest(),
            "identity": self._config.identity(),
            "layout": self._merged.layout,
        }
        batches = self._batches()
        first = next(batches, None)
        rows = part_schema(self._merged.tokens)
        if first is not None:  # its rows may lack the named rewards, because every reward in them failed
            rows = part_schema(self._merged.tokens, self._sources.named or has_rewards(first[1].schema))
        schema = output_schema(self._merged.given_schema, self._merged.layout, rows)
        write_merged(stream, schema, metadata, self._tables(chain([first] if first else [], batches), rows))
        remedy = "Correct the function, and run the command again"
        refuse_failures(self.summary, self._config.scoring.max_error_share, remedy)

    def _tables(self, batches: Iterable[tuple[pa.Table, pa.Table]], schema: pa.Schema) -> Iterator[pa.Table]:
        for given, rows in batches:
            if has_rewards(rows.schema) and not has_rewards(schema):
                raise ConfigError(
                    "the reward gives names to its values, and gave none in the first questions. Return names for every "
                    "question, or for none"
                )
            yield from to_layout(self._merged.layout, given, fill_fields(rows, schema))

    def _batches(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the input columns of some questions at a time, and their new rows."""
        scoring = self._config.scoring
        with Grader(**grader_limits(scoring)) as grader, closing(UserRewards(self._sources, scoring)) as rewards:
            for given, stored in self._merged.batches():
                ids = [str(s.question_id) for s in stored]
                questions = list(self._merged.question_set(given, ids, self._row).questions())
                whole = [(q, self._completions(q, s)) for q, s in zip(questions, stored, strict=True)]
                scored = score_questions(whole, Graders(scoring, grader), self._scorer, rewards)
                for question, before, after in zip(questions, stored, scored, strict=True):
                    self._count_changes(question, before, after)
                rows = part_table(scored, self._merged.tokens)
                self.summary.add(rows, [question.gold_answer for question in questions].__getitem__)
                yield given, rows

    def _count_changes(self, question: Question, before: StoredQuestion, after: ScoredQuestion) -> None:
        """Count the verdicts of a question that changed, and keep the first ten."""
        old = {(t["arm"], t["sample"]): t["score_status"] for t in before.trajectories}
        for trajectory in after.trajectories:
            was = old[trajectory.arm, trajectory.sample]
            if was != trajectory.score_status:
                self.verdicts_changed += 1
                if len(self.examples) < EXAMPLES:
                    self.examples.append(
                        f"{question.question_id} {trajectory.arm} {trajectory.sample}: {was} -> {trajectory.score_status} "
                        f"(answer {trajectory.answer!r}, gold {str(question.gold_answer)[-60:]!r})"
                    )

    def _completions(self, question: Question, stored: StoredQuestion) -> list[Completion]:
        by_index = {self._index_of_key.get((t["arm"], t["sample"]), -1): t for t in stored.trajectories}
        if sorted(by_index) != list(range(len(self._index_of_key))) or len(stored.trajectories) != len(by_index):
            raise self._incomplete(f"question {question.question_id} does not have every trajectory once")
        names = ("error", "full_text", "num_prompt_tokens", "num_tokens", "finish_reason", "engine", "policy_version")
        if any(t[name] is None for t in by_index.values() for name in names[1:]):
            raise self._incomplete(
                f"question {question.question_id} has a trajectory without text, counts or finish_reason"
            )
        found = []
        for number, row in sorted(by_index.items()):
            values = {name: row[name] for name in names}
            if row["finish_reason"] != "error":
                values["error"] = None  # the reason of an earlier grade or reward
            found.append(Completion(number, **values, **stored.tokens_of(row)))
        return found

    def _incomplete(self, what: str) -> IncompleteError:
        path = self._merged.path
        return IncompleteError(f"{path} cannot be rescored: {what}; `rollout verify {path}` explains it")
